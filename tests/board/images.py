"""Kernels and disk images of virtual boards, out of Debian's packages; cached by their lists.

Owns ``build/board``. Nothing of another architecture runs here, nothing is mounted, and the host's
own apt is neither read nor changed, but for the address of its archive.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WORK = ROOT / "build/board"
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
# Name: Debian's release and package.
KERNELS = {
    "6.1": ("bookworm", "linux-image-cloud-arm64"),
    "6.12": ("trixie", "linux-image-cloud-arm64"),
    "16k": ("trixie", "linux-image-arm64-16k"),
}
# The Pythons: 3.11 of bookworm, 3.13 of trixie.
SUITES = ("bookworm", "trixie")


class Unavailable(Exception):
    """Packages cannot be fetched here; the text says why."""


def archive() -> str:
    """Where this machine's own apt takes Debian from."""
    done = _run(["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"])
    found = [line for line in done.splitlines() if line.rstrip("/").endswith("/debian")]
    if not found:
        raise Unavailable("this machine's apt has no Debian archive as its source")
    return found[0].rstrip("/")


def user_key() -> Path:
    """A key for the boards, made once."""
    key = WORK / "key"
    if not key.exists():
        WORK.mkdir(parents=True, exist_ok=True)
        _run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "board", "-f", str(key)])
    return key


def kernel(name: str) -> Path:
    """The folder with a kernel and an initrd that suits every image."""
    suite, package = KERNELS[name]
    apt = _Apt(suite, "arm64")
    packages = apt.packages([package, "busybox-static"], names=("linux-image-6", "busybox-static"))
    folder = WORK / f"kernel-{name}-{_digest(packages)}"
    if not folder.is_dir():
        image, busybox = apt.fetch(packages)
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        _run([sys.executable, str(HERE / "kernel.py"), str(image), str(busybox), str(partial)])
        partial.rename(folder)
    return folder


def disk(suite: str = "bookworm", architecture: str = "arm64", size: str = "2G") -> Path:
    """An ext4 image as Raspberry Pi OS has it: ordered data, delayed allocation."""
    key = user_key()
    recipe = (HERE / "root.sh").read_bytes() + key.with_suffix(".pub").read_bytes()
    apt = _Apt(suite, architecture)
    listed = apt.packages(_root_packages())
    image = WORK / f"{suite}-{architecture}-{size}-{_digest([*listed, recipe.hex()])}.img"
    if image.exists():
        return image
    root = WORK / f"root-{suite}-{architecture}"
    shutil.rmtree(root, ignore_errors=True)
    partial = image.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    # One command: without root, what belongs to whom is known inside fakeroot alone.
    script = (
        'bash "$1" "$2" "$3" "$4" "$5" "$6" && PATH="$PATH:/sbin:/usr/sbin" mke2fs -q -t ext4 '
        '-L rootfs -E lazy_itable_init=0 -O "^orphan_file" -d "$5" "$7" "$8"'
    )
    command = ["bash", "-c", script, "image", str(HERE / "root.sh"), architecture, suite]
    command += [archive(), str(root), f"{key}.pub", str(partial), size]
    _run(command if os.geteuid() == 0 else ["fakeroot", *command])
    shutil.rmtree(root)
    partial.rename(image)
    return image


def _root_packages() -> list[str]:
    """What root.sh installs, as it says itself."""
    return _run(["bash", str(HERE / "root.sh"), "packages"]).split()


class _Apt:
    """A private apt for one release and architecture."""

    def __init__(self, suite: str, architecture: str) -> None:
        self.folder = WORK / f"apt-{suite}-{architecture}"
        for name in ("etc", "state/lists/partial", "cache/archives/partial"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "status").write_text("")
        (self.folder / "etc/sources.list").write_text(
            f"deb [arch={architecture} signed-by={KEYS}] {archive()} {suite} main\n"
        )
        self.command = [
            *("apt-get", "-qq", "-o", f"APT::Architecture={architecture}"),
            *("-o", f"APT::Architectures={architecture}", "-o", "APT::Sandbox::User="),
            *("-o", f"Dir::Etc::sourcelist={self.folder}/etc/sources.list"),
            *("-o", "Dir::Etc::sourceparts=/dev/null"),
            *("-o", f"Dir::State::lists={self.folder}/state/lists"),
            *("-o", f"Dir::State::status={self.folder}/status"),
            *("-o", f"Dir::Cache={self.folder}/cache"),
        ]
        _run([*self.command, "update"])

    def packages(self, wanted: list[str], names: tuple[str, ...] = ("",)) -> list[str]:
        """Lines "Inst NAME (VERSION ...)" of what would be installed, ``names`` first."""
        install = ["-s", "install", "-y", "--no-install-recommends", *wanted]
        lines = sorted(_run([*self.command, *install]).splitlines())
        return [line for name in names for line in lines if line.startswith(f"Inst {name}")]

    def fetch(self, lines: list[str]) -> list[Path]:
        """The packages of such lines, in their order, checked by apt."""
        names = [line.split()[1] for line in lines]
        _run([*self.command, "install", "-y", "--download-only", "--no-install-recommends", *names])
        found = []
        for line in lines:
            name, version = line.split()[1], line.split("(")[1].split()[0].replace(":", "%3a")
            (path,) = (self.folder / "cache/archives").glob(f"{name}_{version}_*.deb")
            found.append(path)
        return found


def _digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Unavailable(f"{command[0]} failed: {done.stderr.strip()[-300:]}")
    return done.stdout
