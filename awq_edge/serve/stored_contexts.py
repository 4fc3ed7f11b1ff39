"""Contexts on disk, so that nobody's prompt is read again after a restart or a power cut.

A context lies there in blocks, each a file behind the one that it continues, and what several
contexts begin with is there once. What a file begins with is here, what the library saved follows,
with its own check of damage. A file appears whole or not at all, and its name is a hash of the
model, of the kind of keys and values, of what it continues and of its contents: ids, and for the
rows of pictures numbers that follow from these. A file of another name, or whose content the
library refuses, is left alone or removed, told of once, and costs a prompt that is read again from
there on.

Owns the files, their index and two threads, one that reads and one that writes; the engine's thread
never waits for a disk. Contexts are exact, so what follows from one is what would have followed
without, to the bit.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import struct
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from awq_edge.errors import FileUnreadableError
from awq_edge.session import Contents, common_length
from awq_edge.user_cache import open_own, write_own

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_log = logging.getLogger("awq_edge.serve")

_MAGIC = b"AWQEBLK2"
_EARLIER_MAGIC = b"AWQEBLCK"  # of builds that knew no pictures: such files go
_HEAD = struct.Struct("<8sIII")  # magic, length of the key, first position, tokens
_CONTENT_BYTES = 8  # of a position
_SUFFIX = ".context"
_NAME_DIGITS = 40
_NOTHING = "0" * _NAME_DIGITS  # what a first block continues
_MOST_TOKENS = 1 << 24
_MOST_KEY_BYTES = 256
# Reading so many tokens costs as little as a file.
LEAST_STORED_TOKENS = 32
# Short enough that conversations share what they begin with, long enough for few files.
BLOCK_TOKENS = 128


@dataclass(eq=False)
class Block:
    """One file.

    Attributes:
        path: Where it is.
        key: Model and kind of keys and values.
        parent: The name of the block that it continues.
        name: Its own.
        begin: Its first position.
        contents: uint64 [tokens], from there on, as of ``Session``.
        size_bytes: Of the file.
        used: Seconds since 1970; the file's own time, so that it survives a restart. What it
            continues was used no earlier.
    """

    path: Path
    key: str
    parent: str
    name: str
    begin: int
    contents: NDArray[np.uint64]
    size_bytes: int
    used: float

    @property
    def end(self) -> int:
        """The position behind it."""
        return self.begin + len(self.contents)


@dataclass(frozen=True)
class Missing:
    """What of a context is on no file.

    Attributes:
        key: Model and kind of keys and values.
        before: Blocks that it continues.
        spans: Its positions, block by block: the first and the one behind the last.
    """

    key: str
    before: tuple[Block, ...]
    spans: tuple[tuple[int, int], ...]


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
        self._blocks: dict[str, Block] = {}  # by name
        self._behind: dict[tuple[str, str], list[Block]] = {}  # by key and what they continue
        self._writing = False
        self._warned = False
        self.changed: Callable[[], None] = _nothing
        self.read_count = 0
        self.written_count = 0
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            paths = sorted(path for path in folder.iterdir() if not path.is_dir())
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
        return len(self._blocks)

    @property
    def total_bytes(self) -> int:
        """Of all files."""
        with self._lock:
            return sum(block.size_bytes for block in self._blocks.values())

    @property
    def busy(self) -> bool:
        """Whether files are being written; the next ones wait."""
        return self._writing

    def longest(self, key: str, prompt: Contents) -> tuple[list[Block], int]:
        """The blocks that share most with the beginning of a prompt, and how many tokens that is.

        All but the last are shared whole.
        """
        import numpy as np

        wanted = np.asarray(prompt, np.uint64)
        chain: list[Block] = []
        name, known = _NOTHING, 0
        with self._lock:
            while True:
                rest = wanted[known:]
                best, most = None, 0
                for block in self._behind.get((key, name), ()):
                    shared = common_length(block.contents, rest)
                    whole = shared == len(block.contents)
                    if shared > most or (shared == most > 0 and whole):
                        best, most = block, shared
                if best is None:
                    return chain, known
                chain.append(best)
                known += most
                if most < len(best.contents):
                    return chain, known
                name = best.name

    def read(self, chain: Sequence[Block]) -> Future[list[bytes]]:
        """Begins to read blocks: what the library saved, as far as the files can be read."""
        future = self._reader.submit(self._read, tuple(chain))
        future.add_done_callback(lambda _: self.changed())
        return future

    def missing(self, key: str, contents: Contents, earliest: int) -> Missing | None:
        """What of a context is worth writing; None where files hold about as much.

        Args:
            key: Model and kind of keys and values.
            contents: Of the context.
            earliest: The lowest position that it can still be saved up to.
        """
        if len(contents) < LEAST_STORED_TOKENS:
            return None
        chain, known = self.longest(key, contents)
        if len(contents) - known < LEAST_STORED_TOKENS:
            return None
        # What ends within a block is written again, with what follows.
        before = [block for block in chain if block.end <= known and not block.end % BLOCK_TOKENS]
        begin = before[-1].end if before else 0
        ends = range(begin - begin % BLOCK_TOKENS + BLOCK_TOKENS, len(contents), BLOCK_TOKENS)
        spans = []
        for end in [*(end for end in ends if end >= earliest), len(contents)]:
            spans.append((begin, end))
            begin = end
        return Missing(key, tuple(before), tuple(spans))

    def write(
        self, missing: Missing, contents: Contents, saved: Sequence[bytes | bytearray]
    ) -> None:
        """Begins to write blocks; only while not ``busy``.

        Args:
            missing: Which, as ``missing`` said.
            contents: Of the context.
            saved: What the library saved of each.
        """
        self._writing = True

        def done(_: object) -> None:
            self._writing = False
            self.changed()

        self._writer.submit(self._write, missing, contents, saved).add_done_callback(done)

    def refuse(self, block: Block, reason: str) -> None:
        """Removes a file whose content is damaged or of another release."""
        self._warn(block.path, reason)
        self._drop(block)

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
            with open_own(path) as file:
                found = os.fstat(file.fileno())
                head = file.read(_HEAD.size)
                if len(head) < _HEAD.size:
                    raise ValueError("it is cut off")
                magic, key_bytes, begin, count = _HEAD.unpack(head)
                if magic == _EARLIER_MAGIC:
                    path.unlink()
                    return
                most = max(begin, count)
                if magic != _MAGIC or key_bytes > _MOST_KEY_BYTES or not 0 < most < _MOST_TOKENS:
                    raise ValueError("it is not one of ours")
                key, parent = file.read(key_bytes), file.read(_NAME_DIGITS)
                contents = file.read(_CONTENT_BYTES * count)
                whole = len(contents) == _CONTENT_BYTES * count
                if not whole or _name(key, parent, begin, contents) != path.stem:
                    raise ValueError("it is damaged")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            self._warn(path, reason or "it cannot be read")
            return
        self._add(
            Block(
                path,
                key.decode("ascii", "replace"),
                parent.decode("ascii", "replace"),
                path.stem,
                begin,
                np.frombuffer(contents, "<u8").astype(np.uint64),
                found.st_size,
                found.st_mtime,
            )
        )

    def _read(self, chain: Sequence[Block]) -> list[bytes]:
        found: list[bytes] = []
        for block in chain:
            try:
                with open_own(block.path) as file:
                    head = _HEAD.size + len(block.key) + _NAME_DIGITS
                    file.seek(head + _CONTENT_BYTES * len(block.contents))
                    found.append(file.read())
            except OSError as error:
                self._warn(block.path, error.strerror or "it cannot be read")
                self._drop(block, remove=False)
                break
            self.read_count += 1
        self._touch(chain[: len(found)])
        return found

    def _write(
        self, missing: Missing, contents: Contents, saved: Sequence[bytes | bytearray]
    ) -> None:
        import numpy as np

        stored = np.asarray(contents, "<u8")
        key = missing.key.encode("ascii")
        parent = missing.before[-1].name if missing.before else _NOTHING
        heads: list[tuple[str, str, bytes]] = []  # name, parent, what the file begins with
        for begin, end in missing.spans:
            data = stored[begin:end].tobytes()
            name = _name(key, parent.encode("ascii"), begin, data)
            head = _HEAD.pack(_MAGIC, len(key), begin, end - begin)
            heads.append((name, parent, head + key + parent.encode("ascii") + data))
            parent = name
        sizes = [len(head) + len(content) for (_, _, head), content in zip(heads, saved)]
        self._touch(missing.before)
        if sum(sizes) + sum(block.size_bytes for block in missing.before) > self._most_bytes:
            return
        self._make_room(sum(sizes))
        try:
            for (name, _, head), content in zip(heads, saved):
                write_own(self.folder / (name + _SUFFIX), head, content)
            _sync_folder(self.folder)
        except OSError as error:
            if not self._warned:  # a full disk would say it again and again
                self._warned = True
                _log.warning("contexts cannot be kept in %s: %s", self.folder, error.strerror)
            return
        now = time.time()
        added = []
        for (name, before, _), (begin, end), size in zip(heads, missing.spans, sizes):
            path = self.folder / (name + _SUFFIX)
            held = np.array(contents[begin:end], np.uint64)
            added.append(Block(path, missing.key, before, name, begin, held, size, now))
        for block in added:
            self._add(block)
            self.written_count += 1
        self._touch(added)
        for block in added:
            self._drop_beginnings(block)

    def _add(self, block: Block) -> None:
        with self._lock:
            self._take_out(block.name)
            self._blocks[block.name] = block
            self._behind.setdefault((block.key, block.parent), []).append(block)

    def _take_out(self, name: str) -> None:
        """Out of the index; the caller holds the lock."""
        block = self._blocks.pop(name, None)
        if block is None:
            return
        place = (block.key, block.parent)
        left = [one for one in self._behind[place] if one is not block]
        if left:
            self._behind[place] = left
        else:
            del self._behind[place]

    def _touch(self, chain: Sequence[Block]) -> None:
        """These blocks are used now, all at one time."""
        now = time.time()
        for block in chain:
            with contextlib.suppress(OSError):
                os.utime(block.path, (now, now))
            block.used = now

    def _drop_beginnings(self, block: Block) -> None:
        """Drops what a block says too, unless something continues it."""
        with self._lock:
            old = [
                one
                for one in self._behind.get((block.key, block.parent), ())
                if one is not block
                and len(one.contents) < len(block.contents)
                and common_length(one.contents, block.contents) == len(one.contents)
                and (one.key, one.name) not in self._behind
            ]
        for one in old:
            self._drop(one)

    def _make_room(self, size: int) -> None:
        with self._lock:
            total = size + sum(block.size_bytes for block in self._blocks.values())
            going = []
            # Of those used at one time the last of a chain goes first, so that none is cut off.
            for block in sorted(self._blocks.values(), key=lambda one: (one.used, -one.begin)):
                if total <= self._most_bytes:
                    break
                total -= block.size_bytes
                going.append(block)
        for block in going:
            self._drop(block)

    def _drop(self, block: Block, *, remove: bool = True) -> None:
        with self._lock:
            if self._blocks.get(block.name) is block:
                self._take_out(block.name)
        if remove:
            with contextlib.suppress(OSError):
                block.path.unlink()

    def _warn(self, path: Path, reason: str) -> None:
        _log.warning("the kept context %s is not used: %s", path.name, reason)


def _name(key: bytes, parent: bytes, begin: int, contents: bytes) -> str:
    head = struct.pack("<II", len(key), begin)
    return hashlib.sha256(head + key + parent + contents).hexdigest()[:_NAME_DIGITS]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _nothing() -> None:
    """Until an engine wants to know."""
