"""A slow line that may break, for ssh's ProxyCommand.

slow_line.py HOST PORT BYTES_PER_SECOND BREAK_AFTER     BREAK_AFTER: bytes to the host, 0: never
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time


def carry(source: int, sink: int, speed: int, break_after: int) -> None:
    """Moves bytes at a speed; ends the program when the line breaks."""
    carried = 0
    while data := os.read(source, max(1, min(1 << 14, speed // 20))):
        time.sleep(len(data) / speed)
        view = memoryview(data)
        while view:
            view = view[os.write(sink, view) :]
        carried += len(data)
        if break_after and carried >= break_after:
            time.sleep(0.5)  # what was carried arrives; what comes now does not
            os._exit(0)


def main() -> None:
    """Joins standard input and output with a port."""
    host, port, speed, break_after = sys.argv[1], *map(int, sys.argv[2:])
    with socket.create_connection((host, port)) as line:
        number = line.fileno()
        threading.Thread(target=carry, args=(number, 1, speed, 0), daemon=True).start()
        carry(0, number, speed, break_after)


if __name__ == "__main__":
    main()
