"""``make wheel``: this machine's wheel runs in a fresh environment, and the sources are whole.

The library is linked from the objects of the checkout's own build; the sources are configured and
their build is planned, not run: it is the same CMakeLists.txt over the same files.
"""

from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from boards import ROOT, STORIES

from awq_edge import __version__

TOOLS = ("scikit_build_core", "cmake", "ninja", "pip")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with both files."""
    missing = [name for name in TOOLS if importlib.util.find_spec(name) is None]
    if shutil.which("make") is None:
        missing.append("make")
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed")
    if not (ROOT / "build").is_dir():
        pytest.skip("nothing was built in this checkout: the wheel would take minutes")
    folder = tmp_path_factory.mktemp("dist")
    # -o: the environment is the one that the tests run in.
    command = ["make", "-o", "setup", "wheel", f"BIN={Path(sys.executable).parent}"]
    done = subprocess.run(
        [*command, f"DIST={folder}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


def _wheel(made: Path) -> Path:
    (wheel,) = made.glob("*.whl")
    assert wheel.name.startswith(f"awq_edge-{__version__}-py3-none-")
    return wheel


def test_the_wheel_runs_in_a_fresh_environment(made: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin/python"
    if platform.system() == "Windows":
        python = environment / "Scripts/python.exe"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*pip, "--no-index", "--no-deps", str(_wheel(made))], check=True)
    # Its dependencies are those of this environment: an index is not asked.
    (site,) = environment.rglob("site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    done = subprocess.run(
        [python, "-c", "import awq_edge; print(awq_edge.__file__)"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert done.stdout.startswith(str(site))
    command = [python.with_name("awq-edge"), "run", STORIES, "-p", "Once upon a time", "-n", "8"]
    done = subprocess.run(
        [*command, "--temperature", "0", "-q"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert done.stdout.startswith(", there was a little boy")


def test_the_wheel_holds_what_boards_are_built_from(made: Path) -> None:
    with zipfile.ZipFile(_wheel(made)) as archive:
        names = set(archive.namelist())
    for name in (
        "awq_edge/device/install.sh",
        "awq_edge/device/launch.sh",
        "awq_edge/native_source/CMakeLists.txt",
        "awq_edge/native_source/native/api/c_api.cpp",
        "awq_edge/targets/rpi4b/profile.toml",
        "awq_edge/converters/llama.py",
        "awq_edge/include/awq_edge.h",
        "awq_edge/libawq_edge.so",
    ):
        assert name in names


def test_the_sources_are_whole(made: Path, tmp_path: Path) -> None:
    (archive,) = made.glob("*.tar.gz")
    assert archive.stat().st_size < 4_000_000
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path)
    (source,) = (path for path in tmp_path.iterdir() if path.is_dir())
    here = {
        path.relative_to(ROOT)
        for folder in ("awq_edge", "converters", "targets", "native")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in (".pyc", ".so")
    }
    there = {path.relative_to(source) for path in source.rglob("*") if path.is_file()}
    assert here <= there
    assert {Path(name) for name in ("pyproject.toml", "README.md", "LICENSE")} <= there
    import cmake
    import ninja

    ninja_program = shutil.which("ninja", path=ninja.BIN_DIR)
    build = tmp_path / "build"
    command = [shutil.which("cmake", path=cmake.CMAKE_BIN_DIR), "-S", source, "-B", build]
    command += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja_program}", "-DAWQE_BUILD_TESTS=OFF"]
    subprocess.run(command, check=True, capture_output=True)
    plan = subprocess.run(
        [ninja_program, "-C", build, "-n", "awq_edge"], capture_output=True, text=True, check=False
    )
    assert plan.returncode == 0, plan.stdout
    assert "Linking CXX shared library" in plan.stdout
