"""Files of the user's that hold text: to calibrate and evaluate on, problems, keys.

Owns that none of them fills the memory: a device (/dev/zero) or a stream has no end, and a
compressed file may hold a thousand times its size. A pipe is read as a file, for a shell makes one
of ``<(zcat text.gz)``. Refuses to know what a text is for.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from awq_edge.errors import InvalidArgumentError

# A hundred times WikiText's test part, and minutes of tokenizing.
MOST_BYTES = 256 << 20


def read_whole(path: Path, most_bytes: int = MOST_BYTES) -> bytes:
    """All of a file.

    Raises:
        OSError: It cannot be read.
        InvalidArgumentError: It holds more than ``most_bytes``.
    """
    with path.open("rb") as file:
        return _limited(path, file.read(most_bytes + 1), most_bytes)


def read_compressed(path: Path, most_bytes: int = MOST_BYTES) -> bytes:
    """What a .gz file holds.

    Raises:
        OSError: It cannot be read.
        ValueError: It is damaged, or no such file.
        InvalidArgumentError: It holds more than ``most_bytes``.
    """
    try:
        with gzip.open(path, "rb") as file:
            return _limited(path, file.read(most_bytes + 1), most_bytes)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(str(error)) from error


def _limited(path: Path, content: bytes, most_bytes: int) -> bytes:
    if len(content) > most_bytes:
        raise InvalidArgumentError(
            f"{path} holds more than {most_bytes >> 20} MB, or has no end: give a shorter text."
        )
    return content
