"""Opening a checkpoint's files: regular files only, and each failure in a sentence.

Owns that nothing here ever waits (a FIFO), runs on for ever (a device) or takes a pointer of Git
LFS for the file that it stands for. Refuses to know what a file holds.
"""

from __future__ import annotations

import os
import stat
from io import BufferedReader
from pathlib import Path

from awq_edge.errors import CheckpointError, FileUnreadableError

# What stands in a repository instead of a large file that was never fetched.
LFS_POINTER = b"version https://git-lfs.github.com/spec/"

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_regular(path: Path) -> BufferedReader:
    """Opens a file for reading, and never waits for one.

    Raises:
        CheckpointError: It is a pipe, a device or a directory.
        FileUnreadableError: It is not there, or the system refuses it.
    """
    try:
        # Without O_NONBLOCK, opening a pipe waits for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise FileUnreadableError(f"Cannot read {path}: {error.strerror}.") from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = next((name for test, name in _KINDS if test(mode)), "no file")
        raise CheckpointError(f"{path} is {kind}, where a file of the checkpoint should be.")
    return os.fdopen(descriptor, "rb")


def refuse_pointer(path: Path, beginning: bytes) -> None:
    """Refuses a pointer of Git LFS, given the first bytes of a file."""
    if beginning.startswith(LFS_POINTER):
        raise CheckpointError(
            f"{path} is a pointer of Git LFS and not the file itself; fetch it with "
            "'git lfs pull', or download the model again."
        )
