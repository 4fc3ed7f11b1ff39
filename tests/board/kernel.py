#!/usr/bin/env python3
"""Make a virtual board's kernel and initrd from Debian packages; nothing is installed or run.

    kernel.py IMAGE.deb BUSYBOX.deb FOLDER

IMAGE.deb: linux-image-*-arm64; the cloud flavour has ext4 built in and a short list of modules, a
-16k flavour has pages of 16 KiB. BUSYBOX.deb: busybox-static of the same architecture. Writes
FOLDER/vmlinuz and FOLDER/initrd. The initrd loads every module that the board needs, so the root
file system holds none and any root goes with any kernel.
"""

import lzma
import re
import subprocess
import sys
import tempfile
from pathlib import Path

# crc32c_generic: ext4 asks for it by an alias, not in "depends".
WANTED = (
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_rng",
    "pci_host_generic",
    "crc32c_generic",
    "ext4",
    "dm_mod",
)
INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /root
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
for module in MODULES; do /bin/busybox insmod /$module || echo "initrd: $module failed"; done
init=/sbin/init
for word in $(/bin/busybox cat /proc/cmdline); do
  case $word in board.init=*) init=${word#board.init=} ;; esac
done
tries=0
until [ -b /dev/vda ] || [ $tries = 100 ]; do /bin/busybox sleep 0.1; tries=$((tries + 1)); done
/bin/busybox mount -t ext4 -o rw,noatime /dev/vda /root || exec /bin/busybox sh
/bin/busybox umount /proc
/bin/busybox umount /sys
exec /bin/busybox switch_root /root $init
"""


def modules(folder: Path) -> dict[str, bytes]:
    """The wanted modules and what they need, in the order of loading."""
    paths = {}
    for path in folder.rglob("*.ko*"):
        paths[path.name.split(".")[0].replace("-", "_")] = path
    loaded: dict[str, bytes] = {}

    def load(name: str) -> None:
        if name in loaded or name not in paths:  # absent: built into the kernel
            return
        data = paths[name].read_bytes()
        if paths[name].suffix == ".xz":
            data = lzma.decompress(data)
        needs = re.search(rb"\0depends=([^\0]*)\0", data)
        soft = re.findall(rb"\0softdep=pre: ([^\0]*)\0", data)
        words = (needs[1].decode().split(",") if needs else []) + b" ".join(soft).decode().split()
        for other in words:
            load(other.replace("-", "_"))
        loaded[name] = data

    for name in WANTED:
        load(name)
    return loaded


def cpio(files: dict[str, tuple[int, bytes]]) -> bytes:
    """An archive in the form 'newc', the one that the kernel reads."""
    archive = bytearray()
    for number, (name, (mode, data)) in enumerate([*files.items(), ("TRAILER!!!", (0, b""))], 1):
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        archive += b"070701" + "".join(f"{field:08x}" for field in fields).encode()
        archive += name.encode() + b"\0"
        archive += bytes(-len(archive) % 4) + data
        archive += bytes(-len(archive) % 4)
    return bytes(archive)


def main() -> None:
    """Do as the text at the top says."""
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    image, busybox, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        for package in (image, busybox):
            subprocess.run(["dpkg", "-x", package, scratch], check=True)
        root = Path(scratch)
        (kernel,) = root.glob("boot/vmlinuz-*")
        (folder / "vmlinuz").write_bytes(kernel.read_bytes())
        found = modules(root)
        shell = next(
            path for path in (root / "bin/busybox", root / "usr/bin/busybox") if path.exists()
        )
        files = {"bin": (0o40755, b""), "bin/busybox": (0o100755, shell.read_bytes())}
    for name, data in found.items():
        files[f"{name}.ko"] = (0o100644, data)
    init = INIT.replace("MODULES", " ".join(f"{name}.ko" for name in found))
    files["init"] = (0o100755, init.encode())
    (folder / "initrd").write_bytes(cpio(files))
    print(f"{kernel.name}: modules {' '.join(found)}")


if __name__ == "__main__":
    main()
