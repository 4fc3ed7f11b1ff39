"""``awq-edge build``: what the wheel holds, that it is reproducible, and what a person reads."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import sysconfig
import time
import types
import zipfile
from pathlib import Path

import pytest
from boards import ROOT, WORK, arm_wheel
from conftest import Command

from awq_edge import __version__, _native
from awq_edge._native import library as native_library
from awq_edge.cli.build import build
from awq_edge.device import library, sources, wheel
from awq_edge.device.library import LibraryBuild, find_tools
from awq_edge.device.project import metadata_files, runtime_requirements
from awq_edge.errors import (
    BuildError,
    FileUnreadableError,
    InvalidArgumentError,
    UnsupportedError,
)
from awq_edge.profiles import load_profile

PI = load_profile("rpi4b")


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """A file that stands for a library, for tests that look at the wheel alone."""
    path = tmp_path / "stand-in.so"
    path.write_bytes(b"\x7fELF stand-in")
    return path


def test_the_wheel_is_called_after_what_it_needs(stand_in: Path, tmp_path: Path) -> None:
    made = wheel.write_wheel(PI, stand_in, tmp_path / "dist")
    assert made.name == f"awq_edge-{__version__}-py3-none-manylinux_2_31_aarch64.whl"
    with zipfile.ZipFile(made) as archive:
        text = archive.read(f"awq_edge-{__version__}.dist-info/WHEEL").decode()
    assert "Tag: py3-none-manylinux_2_31_aarch64\n" in text
    assert "Root-Is-Purelib: false\n" in text


def test_the_wheel_holds_the_package_and_what_it_is_built_from(
    stand_in: Path, tmp_path: Path
) -> None:
    made = wheel.write_wheel(PI, stand_in, tmp_path)
    with zipfile.ZipFile(made) as archive:
        names = set(archive.namelist())
    for name in (
        "awq_edge/__init__.py",
        "awq_edge/libawq_edge.so",
        "awq_edge/include/awq_edge.h",
        "awq_edge/device/install.sh",
        "awq_edge/converters/__init__.py",
        "awq_edge/targets/zig.cmake",
        "awq_edge/targets/rpi4b/toolchain.cmake",
        "awq_edge/targets/rpi4b/profile.toml",
        "awq_edge/native_source/CMakeLists.txt",
        "awq_edge/native_source/native/api/c_api.cpp",
        "awq_edge/native_source/native/api/exports.map",
        f"awq_edge-{__version__}.dist-info/licenses/LICENSE",
    ):
        assert name in names
    assert not [name for name in names if "__pycache__" in name or name.startswith("tests/")]
    # Every source that CMake names is there.
    cmake = (ROOT / "CMakeLists.txt").read_text("utf-8").split()
    listed = [word.rstrip(")") for word in cmake if word.startswith("native/") and ".cpp" in word]
    assert len(listed) > 30
    for word in listed:
        assert f"awq_edge/native_source/{word}" in names


def test_the_record_has_every_file_with_its_checksum(stand_in: Path, tmp_path: Path) -> None:
    made = wheel.write_wheel(PI, stand_in, tmp_path)
    with zipfile.ZipFile(made) as archive:
        record = f"awq_edge-{__version__}.dist-info/RECORD"
        lines = [line.split(",") for line in archive.read(record).decode().splitlines()]
        assert sorted(name for name, _, _ in lines) == sorted(archive.namelist())
        for name, checksum, size in lines:
            if name == record:
                assert (checksum, size) == ("", "")
                continue
            data = archive.read(name)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            assert (checksum, size) == (f"sha256={digest}", str(len(data)))


def test_the_same_files_give_the_same_bytes(stand_in: Path, tmp_path: Path) -> None:
    first = wheel.write_wheel(PI, stand_in, tmp_path / "one").read_bytes()
    assert wheel.write_wheel(PI, stand_in, tmp_path / "two").read_bytes() == first


def test_the_wheel_holds_what_cffi_makes_of_the_header(
    stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library as it is declared there does what it does otherwise; another header counts."""
    made = wheel.write_wheel(PI, stand_in, tmp_path)
    with zipfile.ZipFile(made) as archive:
        source = archive.read("awq_edge/_declarations.py").decode()
        text = _native.declarations(archive.read("awq_edge/include/awq_edge.h").decode())
    module = types.ModuleType("awq_edge._declarations")
    exec(source, module.__dict__)
    monkeypatch.setitem(sys.modules, "awq_edge._declarations", module)
    monkeypatch.setattr("awq_edge._declarations", module, raising=False)
    ffi = native_library._declared(text)
    assert ffi is module.ffi
    library = ffi.dlopen(str(_native.library_path()))
    assert library.awqe_abi_version() == library.AWQE_ABI_VERSION
    assert ffi.string(library.awqe_version()).decode() == __version__
    for name in ("awqe_error", "awqe_session_options", "awqe_batch_input"):
        assert ffi.sizeof(name) == native_library.load()[0].sizeof(name)
    assert native_library._declared(text + " ") is not module.ffi


def test_pip_takes_the_wheel_for_a_board(stand_in: Path, tmp_path: Path) -> None:
    made = wheel.write_wheel(PI, stand_in, tmp_path)
    command = [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"),
        *("--target", str(tmp_path / "site"), "--platform", "manylinux_2_31_aarch64"),
        *("--python-version", "3.9", "--only-binary", ":all:", str(made)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site/awq_edge/libawq_edge.so").is_file()


def test_an_unwritable_place_leaves_nothing(command: Command, tmp_path: Path) -> None:
    (tmp_path / "dist").write_text("a file, not a folder")
    with pytest.raises(OSError, match="Cannot write"):
        wheel.write_wheel(PI, tmp_path / "dist", tmp_path / "dist")
    assert [path.name for path in tmp_path.iterdir()] == ["dist"]


@pytest.mark.parametrize("place", ["file", "file/dist", "loop", "loop/dist", "closed\0"])
def test_a_place_that_no_folder_can_have_is_told_before_anything_is_built(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("a model, perhaps")
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.setattr(library.LibraryBuild, "run", lambda *_: pytest.fail("it was built"))
    with pytest.raises((FileUnreadableError, InvalidArgumentError), match="choose another"):
        build(target="rpi4b", directory=tmp_path / place, quiet=True)
    assert (tmp_path / "file").read_text() == "a model, perhaps"


def test_the_metadata_tells_what_a_device_needs_and_no_more() -> None:
    text = metadata_files()["METADATA"].decode()
    assert f"Version: {__version__}\n" in text
    assert 'Requires-Dist: torch>=2.4; extra == "convert"\n' in text
    names = {requirement.split(">")[0] for requirement in runtime_requirements()}
    assert "numpy" in names
    assert not {"torch", "transformers", "cmake", "pytest"} & names


@pytest.mark.parametrize("missing", ["cmake", "ninja", "ziglang"])
def test_a_missing_tool_is_one_sentence_with_the_command(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == missing else real(name)
    )
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UnsupportedError, match=rf"{missing}.*pip install 'awq-edge\[build\]'"):
        find_tools()


def test_a_failed_build_names_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "CMakeLists.txt").write_text(
        'cmake_minimum_required(VERSION 3.22)\nmessage(FATAL_ERROR "no")\n'
        "project(nothing LANGUAGES NONE)\n"  # or CMake tries the compiler before it reads on
    )
    monkeypatch.setattr(library, "native_source_directory", lambda: tmp_path)
    monkeypatch.setenv("AWQ_EDGE_CACHE", str(tmp_path / "cache"))
    build = LibraryBuild(PI)
    assert build.is_first
    with pytest.raises(BuildError, match=r"aarch64 failed.*CMake Error.*build\.log"):
        build.run()
    assert "CMake Error at CMakeLists.txt:2" in build.log.read_text()


def test_a_build_that_says_nothing_still_shows_that_it_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first step of two minutes, as the compiler's own C++ library takes."""
    monkeypatch.setattr(library, "_PULSE_SECONDS", 0.01)
    said = []
    # Each step takes as long as the one before was told of.
    wait = f"while [ ! -e {tmp_path}/%d ]; do sleep 0.01; done; echo '[%d/2] a'\n"

    def hear(*step: int) -> None:
        said.append(step)
        if said.count(step) > 3:
            (tmp_path / f"{step[0] + 1}").touch()

    build = LibraryBuild(PI)
    with (tmp_path / "log").open("w") as log:
        build._tool(["sh", "-c", wait % (1, 1) + wait % (2, 2)], log, hear)
    for step in ((0, 0), (1, 2)):
        assert said.count(step) > 3
    assert said[-1] == (2, 2)
    assert (tmp_path / "log").read_text() == "[1/2] a\n[2/2] a\n"


def test_builds_of_one_folder_wait_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for the tools of one that was killed: they work on, and a second set would meet them."""
    tool = tmp_path / "tool"
    tool.write_text(
        f"#!/bin/sh\ncd {tmp_path}\n[ -e at-work ] && echo met >> met\n"
        "touch at-work\nwhile [ ! -e heard ] && [ ! -e met ]; do sleep 0.05; done\nrm at-work\n"
    )
    tool.chmod(0o755)
    monkeypatch.setattr(library, "find_tools", lambda: library.Tools(tool, tool, tool))
    monkeypatch.setattr(library, "native_source_directory", lambda: tmp_path)
    monkeypatch.setenv("AWQ_EDGE_CACHE", str(tmp_path / "cache"))
    build = LibraryBuild(PI)
    first = os.fork()
    if first == 0:
        try:
            build.run()
        finally:
            os._exit(0)
    while not (tmp_path / "at-work").exists():
        time.sleep(0.01)
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    said = []

    def hear(*step: int) -> None:
        said.append(step)
        if said.count((0, 0)) > 2:  # the first one's tool works as long as that takes
            (tmp_path / "heard").touch()

    build.library.touch()
    assert LibraryBuild(PI).run(hear) == build.library
    assert said.count((0, 0)) > 2
    assert not (tmp_path / "met").exists()


def test_a_package_without_sources_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "is_checkout", lambda: False)
    with pytest.raises(UnsupportedError, match="native sources"):
        sources.native_source_directory()


def test_a_second_build_does_nothing_and_gives_the_same_wheel(
    command: Command, tmp_path: Path
) -> None:
    """The command itself, over the build that the other tests have made."""
    first = arm_wheel()
    result = command(
        *("build", "--target", "rpi5", "-o", tmp_path, "--json"),
        environment={"AWQ_EDGE_CACHE": str(WORK / "cache")},
    )
    assert result.status == 0, result.err
    assert "First build" not in result.err
    document = json.loads(result.out)
    # Another Arm board, the same wheel.
    assert Path(document["wheel"]).read_bytes() == first.read_bytes()
    assert 100_000 < document["library_bytes"] < 1_500_000


# Runs the command line from a folder of unpacked wheels. Without "site", so that no editable
# installation of this checkout comes first.
FROM_A_FOLDER = """
import sys
folder, packages, *arguments = sys.argv[1:]
sys.path[:0] = [folder, packages]
import awq_edge
assert awq_edge.__file__.startswith(folder), awq_edge.__file__
from awq_edge.cli.main import main
sys.argv = ["awq-edge", *arguments]
main()
"""


def test_an_installed_wheel_builds_the_same_wheel_without_the_checkout(tmp_path: Path) -> None:
    """Another folder, another cache, an installation instead of a checkout: the same bytes."""
    made = arm_wheel()
    site = tmp_path / "site"
    with zipfile.ZipFile(made) as archive:
        archive.extractall(site)
    command = [sys.executable, "-S", "-c", FROM_A_FOLDER, str(site), sysconfig.get_path("purelib")]
    done = subprocess.run(
        [*command, "build", "--target", "rpi4b", "-o", "dist"],
        cwd=tmp_path,
        env={**os.environ, "AWQ_EDGE_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "about two minutes" in done.stderr
    (cache,) = (tmp_path / "cache").rglob("CMakeCache.txt")
    assert f"CMAKE_HOME_DIRECTORY:INTERNAL={site}/awq_edge/native_source\n" in cache.read_text()
    assert (tmp_path / "dist" / made.name).read_bytes() == made.read_bytes()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="asks an x86 CPU for its features")
def test_the_wheels_compiler_sees_the_cpus_features(tmp_path: Path) -> None:
    """Against Linux's list: a compiler's own run-time support may know none of them."""
    tools = find_tools()
    (tmp_path / "main.cpp").write_text(
        '#include <stdio.h>\n#include "native/kernels/cpu_features.h"\n'
        'int main() { printf("%u", awqe::cpu_features()); }\n'
    )
    target = ("-target", "x86_64-linux-gnu.2.31", "-mcpu=x86_64")
    zig = [str(tools.python), "-m", "ziglang"]
    sources = (ROOT / "native/kernels/cpu_features.cpp", tmp_path / "main.cpp")
    for source in sources:
        options = ["-std=c++20", "-fno-threadsafe-statics", f"-I{ROOT}", "-c", str(source)]
        subprocess.run([*zig, "c++", *target, *options], cwd=tmp_path, check=True)
    # As C: the compiler would make its whole C++ library for this machine, which nothing needs.
    objects = [f"{source.stem}.o" for source in sources]
    subprocess.run([*zig, "cc", *target, "-s", *objects, "-o", "a"], cwd=tmp_path, check=True)
    printed = subprocess.run([tmp_path / "a"], capture_output=True, text=True, check=True).stdout
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    flags = set(next(line for line in lines if line.startswith("flags")).split())
    avx512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"}
    expected = 0
    if {"avx2", "fma", "f16c"} <= flags:  # bits as native/kernels/cpu_features.h numbers them
        expected = 1 | ({"avx_vnni", "gfni"} <= flags) << 1 | (avx512 <= flags) << 2
    assert int(printed) == expected
