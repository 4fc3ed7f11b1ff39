"""Contexts on disk, so that nobody's prompt is read again after a restart or a power cut.

One file for each context: what it begins with is here, what the library saved follows, with its own
check of damage. A file appears whole or not at all, and its name is a hash of the model, of the
kind of keys and values, and of all tokens: a file of another name, or whose content the library
refuses, is left alone or removed, told of once, and costs a prompt that is read again.

Owns the files, their index and two threads, one that reads and one that writes; the engine's thread
never waits for a disk. Contexts are exact, so what follows from one is what would have followed
without, to the bit.
"""

from __future__ import annotations

import array
import contextlib
import hashlib
import logging
import os
import secrets
import stat
import struct
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from awq_edge.errors import FileUnreadableError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_log = logging.getLogger("awq_edge.serve")

_MAGIC = b"AWQEKEPT"
_HEAD = struct.Struct("<8sII")  # magic, length of the key, tokens
_SUFFIX = ".context"
_MOST_TOKENS = 1 << 24
_MOST_KEY_BYTES = 256
# Reading so many tokens costs as little as a file.
LEAST_STORED_TOKENS = 32


@dataclass(eq=False)
class Entry:
    """One file.

    Attributes:
        path: Where it is.
        key: Model and kind of keys and values.
        tokens: uint32 [tokens], of the context.
        size_bytes: Of the file.
        used: Seconds since 1970; the file's own time, so that it survives a restart.
    """

    path: Path
    key: str
    tokens: NDArray[np.uint32]
    size_bytes: int
    used: float


class StoredContexts:
    """A folder of contexts. All methods but the constructor are for one thread, the engine's."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        """Reads what every file begins with.

        Args:
            folder: Made if it is not there; nobody else can read it.
            most_bytes: Of all files together; the ones that were not used for longest go.

        Raises:
            FileUnreadableError: The folder cannot be used.
        """
        self.folder = folder
        self._most_bytes = most_bytes
        self._lock = threading.Lock()  # around the index: the writer changes it too
        self._entries: list[Entry] = []
        self._writing = False
        self._warned = False
        self.changed: Callable[[], None] = _nothing
        self.read_count = 0
        self.written_count = 0
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            paths = sorted(folder.iterdir())
        except OSError as error:
            raise FileUnreadableError(
                f"Cannot use the cache {folder}: {error.strerror}."
            ) from error
        for path in paths:
            self._find(path)
        self._make_room(0)
        self._reader = ThreadPoolExecutor(1, "awq-edge reads contexts")
        self._writer = ThreadPoolExecutor(1, "awq-edge writes contexts")

    @property
    def count(self) -> int:
        """Files."""
        return len(self._entries)

    @property
    def total_bytes(self) -> int:
        """Of all files."""
        with self._lock:
            return sum(entry.size_bytes for entry in self._entries)

    @property
    def busy(self) -> bool:
        """Whether a file is being written; the next one waits."""
        return self._writing

    def longest(self, key: str, prompt: Sequence[int]) -> tuple[Entry | None, int]:
        """The file that shares most with the beginning of a prompt, and how many tokens that is."""
        import numpy as np

        wanted = np.asarray(prompt, np.uint32)
        best, most = None, 0
        with self._lock:
            entries = [entry for entry in self._entries if entry.key == key]
        for entry in entries:
            shared = _shared(entry.tokens, wanted)
            if shared > most:
                best, most = entry, shared
        return best, most

    def read(self, entry: Entry) -> Future[bytes | None]:
        """Begins to read a file; gives what the library saved, None if it cannot be read."""
        future = self._reader.submit(self._read, entry)
        future.add_done_callback(lambda _: self.changed())
        return future

    def is_worth_writing(self, key: str, tokens: Sequence[int]) -> bool:
        """Whether a context holds enough that no file has."""
        if len(tokens) < LEAST_STORED_TOKENS:
            return False
        return len(tokens) - self.longest(key, tokens)[1] >= LEAST_STORED_TOKENS

    def write(self, key: str, tokens: Sequence[int], saved: bytes | bytearray) -> None:
        """Begins to write a context; only while not ``busy``."""
        self._writing = True

        def done(_: object) -> None:
            self._writing = False
            self.changed()

        self._writer.submit(self._write, key, tokens, saved).add_done_callback(done)

    def refuse(self, entry: Entry, reason: str) -> None:
        """Removes a file whose content is damaged or of another release."""
        self._warn(entry.path, reason)
        self._drop(entry)

    def close(self) -> None:
        """Ends the threads when they have done what they were given."""
        self._reader.shutdown(wait=True)
        self._writer.shutdown(wait=True)

    # ---- files -------------------------------------------------------------------------------

    def _find(self, path: Path) -> None:
        """Adds a file to the index; what is not ours stays as it is."""
        if path.name.startswith(".") and path.name.endswith(_SUFFIX):
            with contextlib.suppress(OSError):  # of a process that was killed while it wrote
                path.unlink()
            return
        if not path.name.endswith(_SUFFIX):
            self._warn(path, "it is not one of ours")
            return
        import numpy as np

        try:
            with _opened(path) as file:
                found = os.fstat(file.fileno())
                head = file.read(_HEAD.size)
                if len(head) < _HEAD.size:
                    raise ValueError("it is cut off")
                magic, key_bytes, count = _HEAD.unpack(head)
                if magic != _MAGIC or key_bytes > _MOST_KEY_BYTES or count > _MOST_TOKENS:
                    raise ValueError("it is not one of ours")
                key = file.read(key_bytes)
                tokens = file.read(4 * count)
                if len(tokens) < 4 * count or _name(key, tokens) != path.name:
                    raise ValueError("it is damaged")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            self._warn(path, reason or "it cannot be read")
            return
        ids = np.frombuffer(tokens, "<u4").astype(np.uint32)
        entry = Entry(path, key.decode("ascii", "replace"), ids, found.st_size, found.st_mtime)
        self._entries.append(entry)

    def _read(self, entry: Entry) -> bytes | None:
        try:
            with _opened(entry.path) as file:
                file.seek(_HEAD.size + len(entry.key) + 4 * len(entry.tokens))
                saved = file.read()
            os.utime(entry.path)
        except OSError as error:
            self._warn(entry.path, error.strerror or "it cannot be read")
            self._drop(entry, remove=False)
            return None
        entry.used = entry.path.stat().st_mtime
        self.read_count += 1
        return saved

    def _write(self, key: str, tokens: Sequence[int], saved: bytes | bytearray) -> None:
        import numpy as np

        ids = array.array("I", tokens)
        if sys.byteorder == "big":
            ids.byteswap()
        data, name = ids.tobytes(), key.encode("ascii")
        path = self.folder / _name(name, data)
        beside = self.folder / f".{secrets.token_hex(8)}{_SUFFIX}"
        size = _HEAD.size + len(name) + len(data) + len(saved)
        if size > self._most_bytes:
            return
        self._make_room(size)
        try:
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(_HEAD.pack(_MAGIC, len(name), len(tokens)) + name + data)
                    file.write(saved)
                    file.flush()
                    os.fsync(file.fileno())
                beside.replace(path)
                _sync_folder(self.folder)
            except BaseException:
                with contextlib.suppress(OSError):
                    beside.unlink()
                raise
            used = path.stat().st_mtime
        except OSError as error:
            if not self._warned:  # a full disk would say it again and again
                self._warned = True
                _log.warning("contexts cannot be kept in %s: %s", self.folder, error.strerror)
            return
        entry = Entry(path, key, np.asarray(tokens, np.uint32), size, used)
        with self._lock:
            old = [one for one in self._entries if one.key == key and _begins(entry, one)]
            self._entries = [one for one in self._entries if one.path != path]
            self._entries.append(entry)
        self.written_count += 1
        for one in old:  # the new file says all that they said
            if one.path != path:
                self._drop(one)

    def _make_room(self, size: int) -> None:
        with self._lock:
            total = size + sum(entry.size_bytes for entry in self._entries)
            going = []
            for entry in sorted(self._entries, key=lambda entry: entry.used):
                if total <= self._most_bytes:
                    break
                total -= entry.size_bytes
                going.append(entry)
        for entry in going:
            self._drop(entry)

    def _drop(self, entry: Entry, *, remove: bool = True) -> None:
        with self._lock:
            self._entries = [one for one in self._entries if one is not entry]
        if remove:
            with contextlib.suppress(OSError):
                entry.path.unlink()

    def _warn(self, path: Path, reason: str) -> None:
        _log.warning("the kept context %s is not used: %s", path.name, reason)


def _opened(path: Path) -> BinaryIO:
    """A regular file that only this user can change, never through a link."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        os.close(descriptor)
        raise PermissionError(1, "it is not a file of this user")
    return os.fdopen(descriptor, "rb")


def _name(key: bytes, tokens: bytes) -> str:
    digest = hashlib.sha256(len(key).to_bytes(4, "little") + key + tokens)
    return digest.hexdigest()[:40] + _SUFFIX


def _shared(one: NDArray[np.uint32], other: NDArray[np.uint32]) -> int:
    """Elements that two arrays begin with."""
    count = min(len(one), len(other))
    different = (one[:count] != other[:count]).nonzero()[0]
    return int(different[0]) if len(different) else count


def _begins(entry: Entry, other: Entry) -> bool:
    """Whether a context goes on where another ends."""
    count = len(other.tokens)
    return len(entry.tokens) >= count and _shared(entry.tokens, other.tokens) == count


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _nothing() -> None:
    """Until an engine wants to know."""
