"""Fetches a packed file so that nothing is fetched twice: over a bad line, onto a slow card.

Owns the folder of an unfinished download: ``data``, and ``manifest`` with the SHA-256 of each chunk
of it, written once the chunk is on the medium. After a power cut the chunks are read again, and
what does not match is fetched again, by ranges. The file gets its name when it is whole, is a
packed file, and its checksums are right. Refuses to print.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Protocol

from awq_edge.errors import AwqEdgeError, FileInvalidError, FileUnreadableError
from awq_edge.outputs.place import Place, check_room, sync, sync_directory, write_error
from awq_edge.store.folder import own_models_folder, partial_folder
from awq_edge.store.http import Answer, BrokenError, DownloadError, Version, host_of, open_at
from awq_edge.store.source import Source

# Lost at most by a power cut, and what a card writes at once without stalling for long.
CHUNK_BYTES = 1 << 20
_READ_BYTES = 1 << 16
# Without a byte between them. With the waits between them some two minutes.
_MOST_FAILURES = 8
# Before anything was heard of the server, whose address may be wrong.
_MOST_FAILURES_AT_FIRST = 4
# A longer wait is told of.
_QUIET_WAIT_SECONDS = 3.0
_LONGEST_WAIT_SECONDS = 30.0
_MOST_VERSIONS = 3
# Of 8 TB.
_MANIFEST_BYTES = 1 << 29
_MAGIC = b"GGUF"
_CHUNK_LINE = re.compile(r"(\d{1,9}) ([0-9a-f]{64})")


class Watcher(Protocol):
    """Who is told how far it is."""

    def begins(self, size_bytes: int, there_bytes: int) -> None:
        """The size of the file, and how much of it is there."""

    def advance(self, size_bytes: int) -> None:
        """So many bytes more."""

    def says(self, text: str) -> None:
        """Something that a person may want to know."""


def fetch(
    source: Source,
    watcher: Watcher,
    *,
    force: bool = False,
    sha256: str | None = None,
    wait: Callable[[float], None] = time.sleep,
) -> Path:
    """Fetches a model into the user's folder.

    Args:
        source: Where it is.
        watcher: Who is told how far it is.
        force: Replace a model of that name.
        sha256: Of the whole file, 64 hexadecimal digits, if it is known.
        wait: Sleeps so many seconds between two tries.

    Returns:
        The file.

    Raises:
        DownloadError: It cannot be fetched; what was, stays for the next time.
        FileUnreadableError: The operating system refused, or another pull of it is at work.
        InvalidArgumentError: A model of that name is there already.
    """
    folder = own_models_folder()
    target = folder / source.name
    exists = "{path} is there already: add --force to fetch it again, or take it as it is."
    place = Place(target, replace=force, exists=exists)
    try:
        with _Partial(partial_folder(folder, source.name), source.address) as partial:
            _fill(partial, source, watcher, wait)
            try:
                _check_whole(partial.data_path, source, sha256)
            except DownloadError:
                partial.remove()
                raise
            place.appear(partial.data_path)
            sync_directory(folder)
            partial.remove()
    except OSError as error:
        if isinstance(error, AwqEdgeError):
            raise
        raise write_error(target, error) from error
    return target


def _fill(
    partial: _Partial, source: Source, watcher: Watcher, wait: Callable[[float], None]
) -> None:
    """Fetches what is missing, as often as it takes."""
    partial.read()
    if partial.version is not None:
        watcher.begins(partial.version.size_bytes, partial.have_bytes)
    failures = versions = 0
    while partial.version is None or partial.missing:
        before = partial.received_bytes
        try:
            begin, end = partial.next_range()
            with open_at(source.address, begin, end, source.headers) as answer:
                if partial.version != answer.version:
                    versions += partial.version is not None
                    if versions >= _MOST_VERSIONS:
                        raise DownloadError(
                            f"{source.name} changes again and again while it is fetched: try later."
                        )
                    if partial.version is not None:
                        watcher.says("The file has changed at its source: it is fetched anew.")
                    _begin(partial, answer.version, watcher)
                    if answer.offset:
                        continue
                    begin = 0
                _receive(partial, answer, begin, watcher)
        except BrokenError as broken:
            failures = 1 if partial.received_bytes > before else failures + 1
            if partial.version is None and failures > _MOST_FAILURES_AT_FIRST:
                raise DownloadError(
                    f"{host_of(source.address)} cannot be reached ({broken}): look at the "
                    "address and the line, and run the same command again."
                ) from broken
            if failures > _MOST_FAILURES:
                raise DownloadError(
                    f"The download of {source.name} broke off{partial.share()} ({broken}): run the "
                    "same command again, and it goes on from there."
                ) from broken
            seconds = max(broken.wait_seconds, min(2.0 ** (failures - 1), _LONGEST_WAIT_SECONDS))
            if seconds >= _QUIET_WAIT_SECONDS:
                watcher.says(f"{broken}: trying again in {seconds:.0f} seconds")
            wait(seconds)


def _begin(partial: _Partial, version: Version, watcher: Watcher) -> None:
    if version.size_bytes < len(_MAGIC):
        raise DownloadError(f"The file has {version.size_bytes} bytes and is no packed file.")
    check_room([(partial.folder, version.size_bytes)])  # before a list of so many chunks is made
    partial.begin(version)
    watcher.begins(version.size_bytes, 0)


def _receive(partial: _Partial, answer: Answer, begin: int, watcher: Watcher) -> None:
    """Writes an answer's chunks, each once it is whole."""
    skip = begin - answer.offset  # a server without ranges begins at 0
    while skip:
        part = answer.read(min(skip, _READ_BYTES))
        if not part:
            raise BrokenError("the line broke")
        skip -= len(part)
    _, end = partial.next_range()
    assert end is not None
    while begin < end:
        part = answer.read(min(partial.chunk_room(), _READ_BYTES))
        if not part:
            raise BrokenError("the line broke")
        begin += len(part)
        if not partial.take(part):
            partial.remove()
            raise DownloadError(
                "What the address gives is no packed file: it does not begin as one. Is it the "
                "address of a page that describes the file?"
            )
        watcher.advance(len(part))


def _check_whole(path: Path, source: Source, sha256: str | None) -> None:
    """Compares the checksums of a file that is complete.

    Raises:
        DownloadError: It is no model of ours, or damaged.
    """
    from awq_edge.model import Model
    from awq_edge.verification import verify

    if sha256 is not None:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while part := file.read(CHUNK_BYTES):
                digest.update(part)
        if digest.hexdigest() != sha256.lower():
            raise DownloadError(
                f"{source.name} was fetched, and its SHA-256 is {digest.hexdigest()}, not the one "
                "that was given: it was deleted again."
            )
    try:
        with Model.open(path) as model:
            verify(model)
    except FileInvalidError as error:
        why = str(error).replace(str(path), source.name).rstrip(".")
        raise DownloadError(
            f"{source.name} was fetched, and is damaged or no model of ours, so it was deleted "
            f"again ({why}). If it happens again, the file at its source is damaged."
        ) from error


class _Partial:
    """The folder of a download. A context manager: another pull of the same model is refused.

    Attributes:
        folder: Where it is.
        data_path: The file that grows.
        version: What is being fetched; None before that is known.
        missing: Numbers of the chunks that are not there, ascending.
        received_bytes: Since it was opened.
    """

    def __init__(self, folder: Path, address: str) -> None:
        self.folder = folder
        self.data_path = folder / "data"
        self.version: Version | None = None
        self.missing: list[int] = []
        self.received_bytes = 0
        self._address = address
        self._manifest_path = folder / "manifest"
        self._held = b""  # of the first missing chunk
        self._lock: BinaryIO | None = None
        self._data: BinaryIO | None = None
        self._manifest: BinaryIO | None = None

    def __enter__(self) -> _Partial:
        self.folder.mkdir(mode=0o700, exist_ok=True)
        if self.folder.is_symlink():
            raise FileUnreadableError(
                f"{self.folder} is a link, and what is fetched would lie elsewhere: remove it."
            )
        self._lock = _opened(self.folder / "lock")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise FileUnreadableError(
                f"Another pull of {self.folder.name[1:]} is at work: wait until it has ended."
            ) from None
        except OSError:  # a file system without locks
            pass
        # Who held it may have ended meanwhile, and taken the folder away.
        held, there = os.fstat(self._lock.fileno()), os.lstat(self.folder / "lock")
        if held.st_ino != there.st_ino:
            self._lock.close()
            raise FileUnreadableError(f"{self.folder} was taken away: run the command again.")
        self._data = _opened(self.data_path)
        self._manifest = _opened(self._manifest_path)
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._data, self._manifest, self._lock):
            if file is not None:
                file.close()

    # ---- what is there -----------------------------------------------------------------------

    def read(self) -> None:
        """Looks at what an earlier pull has left, chunk by chunk."""
        assert self._manifest is not None and self._data is not None
        lines = self._manifest.read(_MANIFEST_BYTES).decode("utf-8", "replace").split("\n")
        version = self._version_in(lines[0])
        if version is None:
            return
        self.version = version
        count = -(-version.size_bytes // CHUNK_BYTES)
        sums: dict[int, str] = {}
        for line in lines[1:-1]:  # what follows the last line end was being written
            match = _CHUNK_LINE.fullmatch(line)
            if match is not None and int(match[1]) < count:
                sums[int(match[1])] = match[2]
        good = set()
        for number, expected in sorted(sums.items()):
            self._data.seek(number * CHUNK_BYTES)
            chunk = self._data.read(self._size_of(number))
            if hashlib.sha256(chunk).hexdigest() == expected:
                good.add(number)
        self.missing = [number for number in range(count) if number not in good]
        # Behind a line that was cut off, the next one would be unreadable.
        self._manifest.seek(0, os.SEEK_END)
        if lines[-1]:
            self._manifest.write(b"\n")

    def _version_in(self, line: str) -> Version | None:
        """The first line of the manifest, if it is about the same address."""
        try:
            kept = json.loads(line)
            if kept["address"] != self._address or kept["chunk_bytes"] != CHUNK_BYTES:
                return None
            version = Version(int(kept["size_bytes"]), str(kept["etag"]), str(kept["modified"]))
        except (OverflowError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return version if 0 < version.size_bytes < 1 << 50 else None

    @property
    def have_bytes(self) -> int:
        """Bytes in whole chunks."""
        assert self.version is not None
        return self.version.size_bytes - sum(self._size_of(number) for number in self.missing)

    def share(self) -> str:
        """How far it is, in words."""
        if self.version is None:
            return ""
        return f" at {100 * (self.have_bytes + len(self._held)) // self.version.size_bytes} %"

    # ---- what comes --------------------------------------------------------------------------

    def next_range(self) -> tuple[int, int | None]:
        """The bytes to ask for: the first run of missing chunks."""
        if self.version is None or not self.missing:
            return 0, None
        first = last = self.missing[0]
        for number in self.missing[1:]:
            if number != last + 1:
                break
            last = number
        end = min((last + 1) * CHUNK_BYTES, self.version.size_bytes)
        return first * CHUNK_BYTES + len(self._held), end

    def begin(self, version: Version) -> None:
        """Forgets everything, for another version of the file."""
        assert self._manifest is not None and self._data is not None
        for file in (self._manifest, self._data):
            file.seek(0)
            file.truncate()
        self.version, self._held = version, b""
        self.missing = list(range(-(-version.size_bytes // CHUNK_BYTES)))
        kept = {
            "address": self._address,
            "size_bytes": version.size_bytes,
            "etag": version.etag,
            "modified": version.modified,
            "chunk_bytes": CHUNK_BYTES,
        }
        self._manifest.write(json.dumps(kept).encode() + b"\n")
        sync(self._data)
        sync(self._manifest)
        sync_directory(self.folder)

    def chunk_room(self) -> int:
        """Bytes that the first missing chunk still lacks."""
        return self._size_of(self.missing[0]) - len(self._held)

    def take(self, part: bytes) -> bool:
        """The next bytes of the first missing chunk; False if this is no packed file."""
        assert self._manifest is not None and self._data is not None
        self.received_bytes += len(part)
        self._held += part
        number = self.missing[0]
        if number == 0 and not self._held.startswith(_MAGIC[: len(self._held)]):
            return False
        if len(self._held) < self._size_of(number):
            return True
        self._data.seek(number * CHUNK_BYTES)
        self._data.write(self._held)
        sync(self._data)  # the manifest may only tell of what is on the medium
        self._manifest.write(f"{number} {hashlib.sha256(self._held).hexdigest()}\n".encode())
        sync(self._manifest)
        self._held = b""
        del self.missing[0]
        return True

    def remove(self) -> None:
        """Deletes the folder; what has got its name by now is no longer in it."""
        for path in (self.data_path, self._manifest_path, self.folder / "lock"):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
        with contextlib.suppress(FileNotFoundError):
            self.folder.rmdir()
        sync_directory(self.folder.parent)

    def _size_of(self, number: int) -> int:
        assert self.version is not None
        return min(CHUNK_BYTES, self.version.size_bytes - number * CHUNK_BYTES)


def partial_progress(folder: Path) -> tuple[int, int] | None:
    """Bytes that the manifest of an unfinished download tells of, and of the whole file."""
    try:
        with _opened(folder / "manifest", os.O_RDONLY) as file:
            lines = file.read(_MANIFEST_BYTES).decode("utf-8", "replace").split("\n")
        size = int(json.loads(lines[0])["size_bytes"])
    except (AwqEdgeError, OSError, OverflowError, ValueError, KeyError, TypeError, RecursionError):
        return None
    count = len({line.partition(" ")[0] for line in lines[1:-1] if _CHUNK_LINE.fullmatch(line)})
    return min(count * CHUNK_BYTES, size), size


def _opened(path: Path, access: int = os.O_RDWR | os.O_CREAT) -> BinaryIO:
    """A regular file of the folder; never through a link, and without waiting for a pipe."""
    careful = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, access | careful, 0o600)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileUnreadableError(f"{path} is no regular file: remove it.")
    return os.fdopen(descriptor, "r+b" if access & os.O_RDWR else "rb")
