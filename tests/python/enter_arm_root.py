"""Runs a command inside an aarch64 root file system, with a network and a binfmt_misc of its own.

    enter_arm_root.py EMULATOR CPU ROOT FOLDER COMMAND [ARGUMENT...]

Since Linux 6.7 every user namespace may have its own table of program formats, so the emulator is
registered there and the machine's own table stays as it is. The new network namespace has not even
a loopback. FOLDER, if it is not empty, appears in the root as /mnt. Exits with 77 where the kernel
does not allow this.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

# From <sched.h> and <sys/mount.h>.
NEW_MOUNTS, NEW_USER, NEW_PIDS, NEW_NETWORK = 0x20000, 0x10000000, 0x20000000, 0x40000000
BIND, RECURSIVE, PRIVATE, READ_ONLY, REMOUNT = 4096, 16384, 1 << 18, 1, 32
# An ELF file, 64 bits, little-endian, an executable or a shared object, for machine 183 (aarch64).
MAGIC = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
MASK = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
NOT_ALLOWED = 77

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def mount(source: str, target: str, kind: str | None = None, flags: int = 0) -> None:
    name = kind.encode() if kind else None
    check(libc.mount(source.encode(), target.encode(), name, flags, None), f"mount {target}")


def enter_namespaces() -> None:
    """Leaves this process as the parent that waits; returns in a child inside the namespaces."""
    inside, mapped = os.pipe(), os.pipe()
    child = os.fork()
    if child:
        if os.read(inside[0], 1) == b"y":
            for name in ("uid_map", "gid_map"):
                Path(f"/proc/{child}/{name}").write_text("0 0 65536")
        os.write(mapped[1], b"y")
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    try:
        check(libc.unshare(NEW_MOUNTS | NEW_USER | NEW_PIDS | NEW_NETWORK), "unshare")
    except OSError as error:
        os.write(inside[1], b"n")
        print(f"this kernel does not allow namespaces here ({error})", file=sys.stderr)
        sys.exit(NOT_ALLOWED)
    os.write(inside[1], b"y")
    os.read(mapped[0], 1)
    os.setgid(0)
    os.setuid(0)
    grandchild = os.fork()  # the first process of the new process namespace
    if grandchild:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]))


def main() -> None:
    emulator, cpu, root, folder, *command = sys.argv[1:]
    enter_namespaces()
    mount("none", "/", None, RECURSIVE | PRIVATE)
    try:
        mount("binfmt_misc", "/proc/sys/fs/binfmt_misc", "binfmt_misc")
        # O, C and F: open the file early, use its rights, keep the emulator open across the chroot.
        Path("/proc/sys/fs/binfmt_misc/register").write_text(
            f":arm:M::{MAGIC}:{MASK}:{emulator}:OCF"
        )
    except OSError as error:
        print(f"this kernel has no binfmt_misc for namespaces ({error})", file=sys.stderr)
        sys.exit(NOT_ALLOWED)
    mount("/dev", f"{root}/dev", None, BIND | RECURSIVE)
    mount("proc", f"{root}/proc", "proc")
    if folder:
        mount(folder, f"{root}/mnt", None, BIND)
        mount(folder, f"{root}/mnt", None, BIND | REMOUNT | READ_ONLY)
    os.chroot(root)
    os.chdir("/")
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "QEMU_CPU": cpu}
    os.execve(command[0], command, environment)


if __name__ == "__main__":
    main()
