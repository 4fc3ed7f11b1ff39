"""A virtual 64-bit Arm board under qemu-system: start, log in, cut the power, shut down.

Owns one process of qemu and its disk image. The board is reached through a port on 127.0.0.1 alone,
and reaches nothing itself. Its process is ended by its id; no other is touched.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

# Emulation on busy cores: a boot took 21 s alone, and a minute with three boards side by side.
BOOT_SECONDS = 600.0


class BoardFailure(Exception):
    """The board did not do what it must; the text is one sentence."""


@dataclass(frozen=True)
class Kind:
    """What a board is made of.

    Attributes:
        kernel: A folder with vmlinuz and initrd.
        cpu: As qemu names it.
        options: Further ones for qemu; of two of a kind the last one counts.
        disk: How qemu reaches the disk, with {image} for its file.
    """

    kernel: Path
    cpu: str = "cortex-a72"
    options: tuple[str, ...] = ()
    disk: str = "file={image},format=raw"


@dataclass
class Machine:
    """A board that runs, and one of its users. Its image is changed by what it does."""

    kind: Kind
    image: Path
    key: Path
    port: int = 0
    user: str = "pi"
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def ssh(self) -> str:
        """What ``awq-edge deploy --ssh`` takes: no file of the user's own is read."""
        options = {
            "IdentitiesOnly": "yes",
            "BatchMode": "yes",
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": "/dev/null",
            "LogLevel": "ERROR",
            "ConnectTimeout": "20",
        }
        words = ["ssh", "-F", "none", "-p", str(self.port), "-i", str(self.key)]
        for name, value in options.items():
            words += ["-o", f"{name}={value}"]
        return shlex.join(words)

    @property
    def host(self) -> str:
        """What ssh takes."""
        return f"{self.user}@127.0.0.1"

    def start(self) -> None:
        """Starts it and waits for a login; gives up when qemu ends or the time is over."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        words = "console=ttyAMA0 root=/dev/vda rw quiet"
        network = f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{self.port}-:22"
        drive = f"{self.kind.disk.format(image=self.image)},if=none,id=disk,cache=writeback"
        command = [
            *("qemu-system-aarch64", "-M", "virt", "-cpu", self.kind.cpu, "-smp", "2", "-m", "1G"),
            *("-accel", "tcg,thread=multi,tb-size=256"),
            *("-kernel", f"{self.kind.kernel}/vmlinuz", "-initrd", f"{self.kind.kernel}/initrd"),
            *("-append", words, "-drive", drive, "-device", "virtio-blk-pci,drive=disk"),
            *("-netdev", network, "-device", "virtio-net-pci,netdev=net,romfile="),
            *("-device", "virtio-rng-pci", "-display", "none", "-monitor", "none"),
            *("-serial", f"file:{self.image}.console"),
            *self.kind.options,
        ]
        if "{image}.writes" in self.kind.disk:
            Path(f"{self.image}.writes").write_bytes(b"")
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
        self.wait()

    def wait(self) -> None:
        """Until a login works."""
        end = time.monotonic() + BOOT_SECONDS
        while time.monotonic() < end:
            if self.process is None or self.process.poll() is not None:
                raise BoardFailure(f"qemu ended; the board's words are in {self.image}.console")
            if self.run("true").returncode == 0:
                return
            time.sleep(1)
        raise BoardFailure(f"no login within {BOOT_SECONDS:.0f} s; see {self.image}.console")

    def run(self, script: str, seconds: float = 600) -> subprocess.CompletedProcess[str]:
        """One command on the board."""
        return subprocess.run(
            [*shlex.split(self.ssh), self.host, script],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def must(self, script: str, seconds: float = 600) -> str:
        """Standard output of a command that ends well."""
        done = self.run(script, seconds)
        if done.returncode != 0:
            raise BoardFailure(f"{script!r} ended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def put(self, file: Path, name: str) -> None:
        """Copies a file into the user's home."""
        command = [*shlex.split(self.ssh), self.host, f"cat >{shlex.quote(name)}"]
        with file.open("rb") as source:
            subprocess.run(command, stdin=source, check=True, timeout=600)

    def reboot(self) -> None:
        """An orderly restart; qemu stays."""
        before = self.must("cat /proc/sys/kernel/random/boot_id")
        self.run("sudo systemctl reboot")
        end = time.monotonic() + BOOT_SECONDS
        while time.monotonic() < end:
            done = self.run("cat /proc/sys/kernel/random/boot_id")
            if done.returncode == 0 and done.stdout != before:
                return
            time.sleep(1)
        raise BoardFailure("the board did not come back after a restart")

    def cut(self) -> None:
        """What a pulled plug does: what the board's kernel had not written is lost."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def off(self) -> None:
        """An orderly end, after which the image may be copied."""
        self.run("sudo poweroff")
        assert self.process is not None
        try:
            self.process.wait(180)
        except subprocess.TimeoutExpired as error:
            self.cut()
            raise BoardFailure("the board did not shut down within three minutes") from error
        self.process = None


@contextlib.contextmanager
def running(kind: Kind, image: Path, copy: Path, key: Path) -> Iterator[Machine]:
    """A board with a copy of an image, which goes with it."""
    # Holes stay holes: an image of 2 GB takes what is in it.
    command = ["cp", "--sparse=always", "--reflink=auto", str(image), str(copy)]
    subprocess.run(command, check=True)
    machine = Machine(kind, copy, key)
    try:
        machine.start()
        yield machine
    finally:
        machine.cut()
        for path in (copy, Path(f"{copy}.console"), Path(f"{copy}.writes")):
            with contextlib.suppress(OSError):
                path.unlink()


def missing_tools() -> list[str]:
    """Programs that virtual boards need and this machine lacks, with Debian's packages."""
    wanted = {
        "qemu-system-aarch64": "qemu-system-arm",
        "mke2fs": "e2fsprogs",
        "debugfs": "e2fsprogs",
        "dpkg": "dpkg",
        "apt-get": "apt",
        "ssh": "openssh-client",
        "ssh-keygen": "openssh-client",
    }
    if os.geteuid() != 0:
        wanted["fakeroot"] = "fakeroot"
    path = f"{os.environ.get('PATH', '')}:/sbin:/usr/sbin"
    return [
        f"{name} ({package})"
        for name, package in wanted.items()
        if shutil.which(name, path=path) is None
    ]
