"""The folder ``incoming`` on a board, where a deploy puts its files: run there by ``deploy.py``.

    incoming.py hold PREFIX           says "held", then waits
    incoming.py list PREFIX MODEL     input: lines of SHA256 SIZE NAME
    incoming.py receive PREFIX        input: such lines with an OFFSET before the name, each
                                      followed by the file's bytes from there on

``hold`` keeps other deploys away until its input ends. ``list`` prints the bytes that are already
there of each file, looks whether the model is installed already, and removes what other deploys
left. ``receive`` takes in one file after the other, for to start a program on a board takes longer
than a small file; a file gets its name when its checksum is right and it is on the medium. Part of
a file is kept for the next try. All of it with a wrong checksum is not, and is named: "wrong NAME".

Owns these three. Needs nothing but Python's own modules; exit statuses are those below.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import stat
import sys
from typing import BinaryIO

FULL, WRONG_SUM, BUSY = 21, 22, 23
_READ_BYTES = 1 << 18
# So much of a copy may be lost with the power.
_SYNC_BYTES = 1 << 26


def hold(prefix: str) -> int:
    """Locks the folder until standard input ends."""
    folder = _folder(prefix)
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    if not _lock(lock):
        return BUSY
    print("held", flush=True)
    sys.stdin.buffer.read()
    return 0


def listed(prefix: str, model: str) -> int:
    """Tells what is there of each file."""
    folder = _folder(prefix)
    expected = {"wheels"}
    told = []
    for line in sys.stdin.buffer.read().decode("utf-8", "surrogateescape").splitlines():
        digest, text, name = line.split(" ", 2)
        size = int(text)
        path = f"{folder}/{name}"
        part = f"{name}.{digest}.part"
        if not os.path.lexists(path) and name.endswith(".gguf"):
            _take_installed(prefix, model, path, size)
        have = 0
        if _size(path) == size and _has_digest(path, digest):
            have = size
        else:
            have = _size(f"{folder}/{part}")
            if have >= size:
                _remove(f"{folder}/{part}")
                have = 0
        expected.update((name, part))
        told.append(f"{have} {name}\n")
    for place in (folder, f"{folder}/wheels"):
        for entry in os.listdir(place):
            path = f"{place}/{entry}"
            if os.path.relpath(path, folder) not in expected and not _is_locked(path):
                _remove(path)
    sys.stdout.buffer.write("".join(told).encode("utf-8", "surrogateescape"))
    return 0


def receive(prefix: str) -> int:
    """Takes in files until standard input ends."""
    folder = _folder(prefix)
    stream = sys.stdin.buffer
    status = 0
    while True:
        line = stream.readline().decode("utf-8", "surrogateescape").rstrip("\n")
        if not line:
            break
        digest, size, offset, name = line.split(" ", 3)
        path = f"{folder}/{name}"
        part = f"{path}.{digest}.part"
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        with os.fdopen(os.open(part, flags, 0o600), "r+b", buffering=0) as sink:
            if not _lock(sink.fileno()):
                return BUSY
            try:
                whole = _fill(sink, stream, int(offset), int(size))
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                _remove(part)
                print(f"full {name}")
                return FULL
            if not whole:
                return WRONG_SUM
            if _has_digest(part, digest):
                os.chmod(part, 0o644)
                os.replace(part, path)
            else:
                _remove(part)
                print(f"wrong {name}")
                status = WRONG_SUM
    for place in (folder, f"{folder}/wheels"):
        number = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(number)
        os.close(number)
    return status


def _fill(sink: BinaryIO, stream: BinaryIO, offset: int, size: int) -> bool:
    """Writes a file from ``offset`` on and brings it to the medium; False if the input ends."""
    if os.fstat(sink.fileno()).st_size > offset:
        sink.truncate(offset)
    # Should there be less than was told, the hole makes the checksum wrong.
    sink.seek(offset)
    unsynced = 0
    while offset < size:
        data = stream.read(min(_READ_BYTES, size - offset))
        if not data:
            break
        view = memoryview(data)
        while view:
            view = view[sink.write(view) :]
        offset += len(data)
        unsynced += len(data)
        if unsynced >= _SYNC_BYTES:
            os.fsync(sink.fileno())
            unsynced = 0
    os.fsync(sink.fileno())
    return offset == size


def _folder(prefix: str) -> str:
    folder = f"{prefix}/incoming"
    os.makedirs(f"{folder}/wheels", exist_ok=True)
    for path in (folder, f"{folder}/wheels"):
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, "a link, and no folder", path)
    return folder


def _take_installed(prefix: str, model: str, path: str, size: int) -> None:
    """A second name for an installed model that may be the one wanted; its checksum will tell."""
    for place in (f"{prefix}/current/models/{model}", f"{prefix}/models/{model}"):
        if _size(place) == size:
            with contextlib.suppress(OSError):
                os.link(os.path.realpath(place), path)
            return


def _size(path: str) -> int:
    """Bytes of a regular file; 0 if there is none."""
    try:
        status = os.lstat(path)
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def _has_digest(path: str, wanted: str) -> bool:
    """Compares a file's SHA-256. What the medium does not give is missing: it is sent again."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as source:
            while True:
                data = source.read(_READ_BYTES)
                if not data:
                    return digest.hexdigest() == wanted
                digest.update(data)
    except OSError:
        return False


def _lock(number: int) -> bool:
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True


def _is_locked(path: str) -> bool:
    """Whether another deploy is writing it."""
    try:
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return not _lock(number)
    finally:
        os.close(number)


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)


def main(arguments: list[str]) -> int:
    """Does one of the three; a failure is one line on standard error."""
    verb, prefix, *rest = arguments
    try:
        if verb == "hold":
            return hold(prefix)
        if verb == "list":
            return listed(prefix, rest[0])
        return receive(prefix)
    except OSError as error:
        sys.stderr.write(f"{error.filename or prefix}: {error.strerror}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
