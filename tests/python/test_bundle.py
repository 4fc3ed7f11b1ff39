"""``awq-edge bundle``: the set of packages is complete for the board, and the bundle is whole.

The packages here are made up and lie in a folder, so that no index is asked. Real ones are used in
test_emulated_board.py.
"""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from boards import STORIES
from conftest import Command

from awq_edge.device import bundle as bundle_module
from awq_edge.device.bundle import Bundle, collect, requirements, write
from awq_edge.device.packages import fetch
from awq_edge.device.project import runtime_requirements
from awq_edge.device.wheel import wheel_name
from awq_edge.errors import BuildError, FileUnreadableError, InvalidArgumentError
from awq_edge.profiles import load_profile

PI = load_profile("rpi4b")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where pip looks."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def _package(
    folder: Path, name: str, *needs: str, version: str = "1.0", tag: str = "py3-none-any"
) -> None:
    info = f"{name}-{version}.dist-info"
    lines = "".join(f"Requires-Dist: {need}\n" for need in needs)
    with zipfile.ZipFile(folder / f"{name}-{version}-{tag}.whl", "w") as archive:
        archive.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            f"Provides-Extra: more\n{lines}",
        )
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nTag: {tag}\n")
        archive.writestr(f"{info}/RECORD", "")


def _names(paths: list[Path]) -> list[str]:
    return [path.name.split("-")[0] for path in paths]


def test_markers_are_those_of_the_board_not_of_this_machine(index: Path, tmp_path: Path) -> None:
    _package(
        index,
        "top",
        "for_old_pythons; python_version < '3.10'",
        "for_arm; platform_machine == 'aarch64'",
        "for_pcs; platform_machine == 'x86_64'",
        "for_windows; sys_platform == 'win32'",
        "with_more[more]",
    )
    _package(index, "with_more", "extra_part; extra == 'more'", "never; extra == 'other'")
    for name in ("for_old_pythons", "for_arm", "for_pcs", "for_windows", "extra_part", "never"):
        _package(index, name)
    common = ["extra_part", "for_arm", "top", "with_more"]
    assert _names(fetch(["top"], "aarch64", "3.12", tmp_path / "a")) == common
    old = fetch(["top>=1"], "aarch64", "3.9", tmp_path / "b")
    assert _names(old) == ["extra_part", "for_arm", "for_old_pythons", "top", "with_more"]
    pc = fetch(["top; python_version >= '3'"], "x86_64", "3.12", tmp_path / "c")
    assert _names(pc) == ["extra_part", "for_pcs", "top", "with_more"]


@pytest.mark.parametrize(("python", "newest"), [("3.9", "0.23.1"), ("3.10", "0.28.0")])
def test_typer_needs_the_same_click_on_every_python(python: str, newest: str) -> None:
    """Later ones say ``click>=8.2.1; python_version >= "3.10"``, which pip reads for this machine.

    There is no such click for 3.9, and pip searches for minutes among releases of everything else.
    """
    from packaging.requirements import Requirement

    found = [Requirement(text) for text in runtime_requirements(["serve"])]
    (typer,) = [
        one
        for one in found
        if one.name == "typer" and one.marker and one.marker.evaluate({"python_version": python})
    ]
    assert typer.specifier.contains(newest)
    assert typer.specifier.contains("0.23.2") == (python != "3.9")


def test_wheels_for_the_boards_cpu_and_c_library_are_taken(index: Path, tmp_path: Path) -> None:
    for tag in (
        "cp311-cp311-manylinux_2_17_x86_64",
        "cp311-cp311-manylinux_2_28_aarch64",
        "cp312-cp312-manylinux_2_28_aarch64",
        "cp39-abi3-manylinux2014_aarch64",
    ):
        _package(index, "native", tag=tag)
    _package(index, "native", tag="cp311-cp311-manylinux_2_36_aarch64", version="2.0")
    (wheel,) = fetch(["native"], "aarch64", "3.11", tmp_path / "a")
    assert wheel.name == "native-1.0-cp311-cp311-manylinux_2_28_aarch64.whl"
    (wheel,) = fetch(["native"], "aarch64", "3.13", tmp_path / "b")
    assert wheel.name == "native-1.0-cp39-abi3-manylinux2014_aarch64.whl"


def test_a_missing_package_is_one_sentence(index: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"Python 3\.12 on aarch64.*absent.*--python"):
        fetch(["absent"], "aarch64", "3.12", tmp_path)
    _package(index, "top", "absent; platform_machine == 'aarch64'")
    with pytest.raises(BuildError, match="absent"):
        fetch(["top"], "aarch64", "3.12", tmp_path)


@pytest.fixture
def made(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A bundle for two Pythons, with made-up packages."""
    _package(index, "numpy")
    _package(index, "tomli")
    monkeypatch.setattr(
        bundle_module,
        "runtime_requirements",
        lambda extras: ["numpy", "tomli; python_version < '3.11'", *extras],
    )
    own = tmp_path / wheel_name(PI)
    with zipfile.ZipFile(own, "w") as archive:
        archive.writestr("awq_edge/__init__.py", "")
    return collect(STORIES, PI, own, ["3.9", "3.11"], tmp_path / "work", lambda _: None)


def test_every_python_has_a_list_of_its_own(made: Bundle) -> None:
    own = wheel_name(PI)
    numpy, tomli = (f"{name}-1.0-py3-none-any.whl" for name in ("numpy", "tomli"))
    lists = {v: made.files[f"wheels/{v}.txt"].read_text().split() for v in ("3.9", "3.11")}
    assert lists == {"3.9": [own, numpy, tomli], "3.11": [own, numpy]}
    assert {f"wheels/{name}" for name in (own, numpy, tomli)} < set(made.files)
    assert made.files["model.gguf"] == STORIES  # not copied


def test_a_folder_is_whole_and_verifies(made: Bundle, tmp_path: Path) -> None:
    written = 0

    def count(size: int) -> None:
        nonlocal written
        written += size

    folder = tmp_path / "new" / "bundle"
    write(made, folder, count)
    assert written == made.size_bytes
    names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert names == set(made.files)
    done = subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=folder, check=False)
    assert done.returncode == 0
    assert (folder / "install.sh").stat().st_mode & 0o111
    script = (folder / "install.sh").read_text()
    for line in ("MACHINE=aarch64", "PYTHONS='3.9 3.11'", f"MODEL={STORIES.name}", "CONTEXT=512"):
        assert f"\n{line}\n" in script


@pytest.mark.parametrize("name", ["pi.tar", "pi.tar.gz", "pi.tgz"])
def test_an_archive_has_the_same_bytes_each_time(name: str, made: Bundle, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write(made, tmp_path / folder / name)
    first = (tmp_path / "one" / name).read_bytes()
    assert name.endswith("gz") or first == (tmp_path / "two" / name).read_bytes()
    with tarfile.open(tmp_path / "one" / name) as archive:
        assert {entry.name for entry in archive} == {
            f"awq-edge-bundle/{file}" for file in made.files
        }
        model = archive.extractfile("awq-edge-bundle/model.gguf")
        assert model is not None
        digest = hashlib.sha256(model.read()).hexdigest()
    assert digest == made.digests["model.gguf"]


def test_what_exists_is_not_overwritten_and_a_failure_leaves_nothing(
    made: Bundle, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileUnreadableError, match="exists already"):
        write(made, tmp_path / "mine")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileUnreadableError, match="cannot be written"):
        write(made, tmp_path / "file" / "bundle")
    made.files["README.txt"].unlink()
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(FileUnreadableError):
        write(made, tmp_path / "bundle")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_files_of_a_killed_bundle_do_not_get_into_the_next(made: Bundle, tmp_path: Path) -> None:
    """Killed while it writes; the next one of that name takes its folder away."""
    for name in ("out", "out.tar"):
        program = (
            "import os, sys\nfrom pathlib import Path\n"
            "from awq_edge.device.bundle import Bundle, write\n"
            "files = {name: Path(sys.argv[1]) for name in ('install.sh', 'private', 'z')}\n"
            "write(Bundle(None, files, {}), Path(sys.argv[2]), lambda _: os.kill(os.getpid(), 9))\n"
        )
        command = [sys.executable, "-c", program, str(STORIES), str(tmp_path / name)]
        assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
        assert (tmp_path / f".{name}.partial").is_dir()
        write(made, tmp_path / name)
        assert not (tmp_path / f".{name}.partial").exists()
    out = tmp_path / "out"
    found = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert found == set(made.files)


def test_what_is_in_the_way_is_not_taken_away(made: Bundle, tmp_path: Path) -> None:
    partial = tmp_path / ".out.partial"
    partial.mkdir()
    (partial / "mine").write_text("")
    with pytest.raises(FileUnreadableError, match="is in the way and is not"):
        write(made, tmp_path / "out")
    assert (partial / "mine").exists()
    (partial / "mine").unlink()
    partial.rmdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    partial.symlink_to(elsewhere)
    with pytest.raises(FileUnreadableError, match="in the way"):
        write(made, tmp_path / "out")
    assert not any(elsewhere.iterdir())
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(FileUnreadableError, match="exists already"):
        write(made, tmp_path / "dangling")


def test_two_bundles_of_one_name_at_once(made: Bundle, tmp_path: Path) -> None:
    refused = []

    def begin_another(_: int) -> None:
        if not refused:
            with pytest.raises(FileUnreadableError, match="Another awq-edge") as caught:
                write(made, tmp_path / "out")
            refused.append(caught)

    write(made, tmp_path / "out", begin_another)
    assert refused
    assert (tmp_path / "out/install.sh").is_file()


def test_the_models_and_the_outputs_names_are_no_names_in_a_bundle(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _package(index, "numpy")
    monkeypatch.setattr(bundle_module, "runtime_requirements", lambda extras: ["numpy"])
    own = tmp_path / wheel_name(PI)
    with zipfile.ZipFile(own, "w") as archive:
        archive.writestr("awq_edge/__init__.py", "")
    names = {}
    for model in ("install.sh", "SHA256SUMS", "wheels"):
        path = tmp_path / model
        path.write_bytes(STORIES.read_bytes())
        made = collect(path, PI, own, ["3.11"], tmp_path / f"work-{model}", lambda _: None)
        assert made.files["model.gguf"] == path
        assert f"\nMODEL={model}\n" in made.files["install.sh"].read_text()
        names[model] = set(made.files)
        for output in ("..tar", "-rf.tar.gz", "a.tar.tar"):
            write(made, tmp_path / f"out-{model}" / output)
            with tarfile.open(tmp_path / f"out-{model}" / output) as archive:
                assert {entry.name.split("/")[0] for entry in archive} == {"awq-edge-bundle"}
    assert names["install.sh"] == names["SHA256SUMS"] == names["wheels"]


def test_the_needs_come_from_the_model() -> None:
    needs = requirements(STORIES, PI, ["3.11"], packages_bytes=0)
    assert needs.context == 512
    assert needs.disk_bytes == STORIES.stat().st_size
    assert needs.memory_bytes > STORIES.stat().st_size


@pytest.mark.parametrize("name", ["-rf", "a\nb", "a\x1b[2J.gguf", ".hidden", "\x7f", "a\udcff"])
def test_a_name_that_no_shell_could_hold_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="rename"):
        requirements(tmp_path / name, PI, ["3.11"])


def test_a_bad_file_is_refused_before_anything_is_built(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_text("no model" * 40)
    result = command("bundle", path, "--target", "rpi4b", "-o", tmp_path / "out")
    result.assert_one_sentence("magic")
    assert "First build" not in result.err
    assert not (tmp_path / "out").exists()


def test_a_wheel_for_another_target_is_refused(command: Command, tmp_path: Path) -> None:
    wheel = tmp_path / wheel_name(load_profile("x86_64-linux"))
    arguments = ("bundle", STORIES, "-t", "rpi4b", "-o", tmp_path / "out", "--wheel")
    command(*arguments, wheel).assert_one_sentence("not the wheel for rpi4b", "aarch64")
    command(*arguments, tmp_path / wheel_name(PI)).assert_one_sentence("does not exist")


@pytest.mark.parametrize("version", ["x", "2.7", "3"])
def test_a_python_that_cannot_be_is_refused_before_anything_is_built(
    version: str, command: Command, tmp_path: Path
) -> None:
    result = command("bundle", STORIES, "-t", "rpi4b", "-o", tmp_path / "out", "--python", version)
    result.assert_one_sentence(f"'{version}'", "3.11")
    assert "First build" not in result.err
    assert not (tmp_path / "out").exists()
