#!/usr/bin/env python3
"""Give a virtual board the name of a real one: what stands in /proc/device-tree/model.

    qemu-system-aarch64 -M virt,dumpdtb=virt.dtb -cpu cortex-a72 -smp 2 -m 1G   (as it is started)
    devicetree.py virt.dtb pi4.dtb "Raspberry Pi 4 Model B Rev 1.4"
    board.py start k4 a.img 2201 -dtb pi4.dtb

-cpu, -smp and -m must be the same for both runs of qemu.
"""

import struct
import sys
from pathlib import Path

PROPERTY = 3


def main() -> None:
    """Replace the first property 'model', which is the root's."""
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    tree = bytearray(Path(sys.argv[1]).read_bytes())
    value = sys.argv[3].encode() + b"\0"
    fields = list(struct.unpack(">10I", tree[:40]))
    structure, strings = fields[2], fields[3]
    name = tree.index(b"model\0", strings) - strings
    if tree[strings + name - 1] != 0:
        sys.exit("no property of the name 'model'")
    place = structure
    while struct.unpack(">3I", tree[place : place + 12])[::2] != (PROPERTY, name):
        place += 4
    (length,) = struct.unpack(">I", tree[place + 4 : place + 8])
    old, new = -(-length // 4) * 4, -(-len(value) // 4) * 4
    tree[place + 4 : place + 8] = struct.pack(">I", len(value))
    tree[place + 12 : place + 12 + old] = value.ljust(new, b"\0")
    fields[9] += new - old  # the structure's size
    if strings > structure:
        fields[3] += new - old
    # Without the dump's padding: qemu doubles the size, and the kernel takes 2 MiB at most.
    fields[1] = max(fields[2] + fields[9], fields[3] + fields[8])
    del tree[fields[1] :]
    tree[:40] = struct.pack(">10I", *fields)
    Path(sys.argv[2]).write_bytes(tree)


if __name__ == "__main__":
    main()
