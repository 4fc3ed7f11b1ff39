"""Boards without boards, for the tests: an emulated 64-bit Arm Debian, and a folder of its own.

``arm_wheel`` and ``arm_bundle`` are what ``awq-edge build`` and ``bundle`` make for a Raspberry Pi
4B. ``arm_root`` is Debian bookworm for arm64, unpacked and not configured. ``run_emulated`` runs
its Python with the packages of the bundle as one CPU or another; nothing else can be started in
there. ``run_in_root`` starts anything, install.sh included, but needs root.

What is missing on this machine skips the test and says so. Everything is kept under ``build/``.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

from awq_edge.device.bundle import collect, write
from awq_edge.device.library import LibraryBuild, find_tools
from awq_edge.device.wheel import write_wheel
from awq_edge.errors import BuildError, UnsupportedError
from awq_edge.profiles import load_profile

ROOT = Path(__file__).resolve().parents[2]
STORIES = ROOT / "tests/data/stories260k.awq.gguf"
WORK = ROOT / "build/boards"
PYTHON = "3.11"  # of bookworm
SUITE = "bookworm"
# What a Debian without recommended packages has, as far as install.sh and Python need it.
PACKAGES = "python3 libstdc++6 dash coreutils libc-bin grep sed util-linux"
CPUS = {"cortex-a72": "neon", "cortex-a76": "neon_dotprod", "max": "neon_i8mm"}


@functools.cache
def _arm_build() -> LibraryBuild:
    """The library for the Raspberry Pi 4B, built from this checkout in the tests' own cache."""
    try:
        find_tools()
    except UnsupportedError as error:
        pytest.skip(str(error))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWQ_EDGE_CACHE", str(WORK / "cache"))
        build = LibraryBuild(load_profile("rpi4b"))
        build.run()
    assert "[-W" not in build.log.read_text()  # no compiler warned
    return build


@functools.cache
def arm_wheel() -> Path:
    """The wheel of that library."""
    build = _arm_build()
    return write_wheel(build.profile, build.library, WORK / "dist")


def copy_arm_objects(folder: Path) -> None:
    """Begins a build of the preset ``rpi4b`` with that library's objects: none is compiled twice.

    The compiler is the same, and so are its options where warnings are no errors.
    """
    build = _arm_build()
    objects = Path("CMakeFiles/awq_edge_objects.dir")
    with build._alone(None):
        shutil.copytree(build.folder / objects, folder / objects)
        for name in (".ninja_log", ".ninja_deps"):
            shutil.copy2(build.folder / name, folder)


@functools.cache
def arm_bundle() -> Path:
    """A bundle of the small model for the Raspberry Pi 4B, as a folder."""
    wheel = arm_wheel()
    folder = WORK / "bundle"
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as work:
        try:
            bundle = collect(
                STORIES, load_profile("rpi4b"), wheel, [PYTHON], Path(work) / "bundle", print
            )
        except BuildError as error:
            if "cannot be fetched" not in str(error):
                raise
            pytest.skip(f"there are no packages for Arm here: {error}")
        write(bundle, folder)
    return folder


@functools.cache
def arm_packages() -> Path:
    """The bundle's packages, unpacked: what PYTHONPATH names under emulation."""
    bundle = arm_bundle()
    site = WORK / "site"
    shutil.rmtree(site, ignore_errors=True)
    for name in (bundle / f"wheels/{PYTHON}.txt").read_text().split():
        if not name.startswith("pip-"):
            with zipfile.ZipFile(bundle / "wheels" / name) as archive:
                archive.extractall(site)
    return site


@functools.cache
def arm_root() -> Path:
    """A Debian root file system for arm64, unpacked once."""
    root = WORK / SUITE
    if root.is_dir():
        return root
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed: an arm64 Debian cannot be fetched")
    WORK.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=WORK) as folder:
        try:
            packages = _download_packages(Path(folder) / "apt")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"Debian's arm64 packages cannot be fetched here: {error.stderr[-200:]}")
        unpacked = Path(folder) / "root"
        # Debian's folders at the top are links into usr; the packages still name them.
        for name in ("bin", "sbin", "lib"):
            (unpacked / "usr" / name).mkdir(parents=True)
            (unpacked / name).symlink_to(f"usr/{name}")
        for name in ("dev", "proc", "mnt", "tmp", "home/pi"):
            (unpacked / name).mkdir(parents=True)
        (unpacked / "tmp").chmod(0o1777)
        for package in packages:
            with subprocess.Popen(
                ["dpkg", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE
            ) as archive:
                subprocess.run(
                    ["tar", "-x", "--keep-directory-symlink", "-C", str(unpacked)],
                    stdin=archive.stdout,
                    check=True,
                )
            assert archive.returncode == 0
        unpacked.rename(root)
    return root


def _download_packages(folder: Path) -> list[Path]:
    """Fetches arm64 packages from this machine's own source, into a private apt."""
    for name in ("etc", "state/lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    (folder / "status").write_text("")
    site = _run("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages")
    sources = [
        line.rstrip("/") for line in site.splitlines() if line.rstrip("/").endswith("/debian")
    ]
    if not sources:
        pytest.skip("this machine's apt has no Debian archive as its source")
    keys = "/usr/share/keyrings/debian-archive-keyring.gpg"
    (folder / "etc/sources.list").write_text(
        f"deb [arch=arm64 signed-by={keys}] {sources[0]} {SUITE} main\n"
    )
    options = [
        *("-qq", "-o", "APT::Architecture=arm64", "-o", "APT::Architectures=arm64"),
        *("-o", f"Dir::Etc::sourcelist={folder}/etc/sources.list"),
        *("-o", "Dir::Etc::sourceparts=/dev/null", "-o", "APT::Sandbox::User="),
        *("-o", f"Dir::State::lists={folder}/state/lists"),
        *("-o", f"Dir::State::status={folder}/status", "-o", f"Dir::Cache={folder}/cache"),
    ]
    _run("apt-get", *options, "update")
    wanted = ["install", "-y", "--no-install-recommends", "--download-only", *PACKAGES.split()]
    _run("apt-get", *options, *wanted)
    return sorted((folder / "cache/archives").glob("*.deb"))


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def run_emulated(cpu: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs the root's Python with the bundle's packages as one CPU; needs no root and no setup."""
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if emulator is None:
        pytest.skip("qemu-aarch64 is not installed (Debian: qemu-user)")
    root, site = arm_root(), arm_packages()
    libraries = ":".join(f"{root}/{name}/aarch64-linux-gnu" for name in ("usr/lib", "lib"))
    return subprocess.run(
        [
            *(emulator, "-cpu", cpu, "-L", str(root), "-E", f"LD_LIBRARY_PATH={libraries}"),
            f"{root}/usr/bin/python{PYTHON}",
            *map(str, arguments),
        ],
        env={
            "PATH": "/bin",
            "LC_ALL": "C.UTF-8",
            "PYTHONHOME": f"{root}/usr",
            "PYTHONPATH": str(site),
        },
        capture_output=True,
        text=True,
        cwd=WORK,
        timeout=600,
        check=False,
    )


def run_in_root(
    user: int, command: list[str], cpu: str, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a command as an ordinary user in the root, without network.

    Args:
        user: Numeric id of the user; its home is /home/pi.
        command: Program and arguments inside the root.
        cpu: What the emulator is.
        folder: A folder of this machine that the root sees as /mnt, read-only.
    """
    if os.geteuid() != 0:
        pytest.skip("a root file system of another architecture can only be entered by root")
    emulator = shutil.which("qemu-aarch64-static")
    if emulator is None:
        pytest.skip("qemu-aarch64-static is not installed (Debian: qemu-user-static)")
    script = Path(__file__).with_name("enter_arm_root.py")
    done = subprocess.run(
        [
            *(sys.executable, str(script), emulator, cpu, str(arm_root()), str(folder or "")),
            *("/usr/bin/setpriv", "--reuid", str(user), "--regid", str(user), "--clear-groups"),
            *("/usr/bin/env", "HOME=/home/pi", *command),
        ],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    if done.returncode == 77:
        pytest.skip(done.stderr.strip())
    return done
