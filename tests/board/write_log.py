"""What a disk would hold if the power had gone at some moment: replays a log of its writes.

Owns the log that qemu's driver ``blklogwrites`` makes, which has the format of Linux's
``dm-log-writes``: a header, then for each request an entry of one sector and its data. A disk with
a cache that can be lost keeps what was written before a flush had ended, and any part of what came
after it; the last sector may be torn from its request. One logged deploy so gives as many cuts as
wanted. Refuses to judge what it makes: ``cuts.py`` does.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

SECTOR = 512
_MAGIC = 0x6A736677736872
_HEADER = struct.Struct("<QQQI")
_ENTRY = struct.Struct("<QQQQ")
_FLUSH, _FUA, _DISCARD = 1, 2, 4


@dataclass(frozen=True)
class Request:
    """One request to the disk.

    Attributes:
        begin: Byte of the disk that it begins with.
        size: Bytes that it writes; 0 writes nothing.
        flush: What was written before it is on the medium once it has ended.
        durable: So is its own data (FUA).
        place: Where its data begin in the log.
    """

    begin: int
    size: int
    flush: bool
    durable: bool
    place: int


def read_requests(path: Path) -> list[Request]:
    """The requests of a log, in their order; an entry that is cut off at its end is left out.

    Raises:
        ValueError: It is no such log.
    """
    end = path.stat().st_size
    found = []
    with path.open("rb") as log:
        magic, version, _, sector = _HEADER.unpack(log.read(_HEADER.size))
        if (magic, version) != (_MAGIC, 1):
            raise ValueError(f"{path} is no log of writes")
        place = sector
        # The count in the header is brought up to date now and then: the entries tell the end.
        while place + sector <= end:
            log.seek(place)
            first, count, flags, _ = _ENTRY.unpack(log.read(_ENTRY.size))
            if not (count or flags):
                break
            size = 0 if flags & _DISCARD else count * sector
            if place + sector + size > end:
                break
            found.append(
                Request(
                    first * sector,
                    size,
                    bool(flags & _FLUSH),
                    bool(flags & _FUA),
                    place + sector,
                )
            )
            place += sector + size
    return found


@dataclass
class Disk:
    """A disk at one moment: what is on the medium, and what may be.

    Attributes:
        image: A copy of the image that the log begins with; changed as time goes on.
        log: The log.
        requests: ``read_requests`` of it.
        now: Requests that have ended.
        waiting: Those of them that a cut may still lose.
    """

    image: Path
    log: Path
    requests: list[Request]
    now: int = 0

    def __post_init__(self) -> None:
        """Begins before the first request."""
        self.waiting: list[Request] = []

    def advance(self, number: int) -> None:
        """Goes on until ``number`` requests have ended."""
        with self.image.open("r+b") as disk, self.log.open("rb") as log:
            for request in self.requests[self.now : number]:
                if request.flush:
                    for earlier in self.waiting:
                        _write(disk, log, earlier, earlier.size)
                    self.waiting = []
                if request.size and request.durable:
                    # In order with what waits for the same sectors.
                    for earlier in self.waiting:
                        if _overlap(earlier, request):
                            _write(disk, log, earlier, earlier.size)
                    _write(disk, log, request, request.size)
                    self.waiting = [one for one in self.waiting if not _overlap(one, request)]
                elif request.size:
                    self.waiting.append(request)
        self.now = max(self.now, number)

    def cut(self, copy: Path, chance: random.Random) -> str:
        """Writes to ``copy``, a copy of ``image``, what of the waiting requests was in time.

        Returns:
            What was lost, for people.
        """
        # None, all, or some: a card with a small cache, a quick one, and one that reorders.
        share = chance.choice((0.0, 1.0, chance.random()))
        kept = [request for request in self.waiting if chance.random() < share]
        torn = chance.choice(kept) if kept and chance.random() < 0.5 else None
        with copy.open("r+b") as disk, self.log.open("rb") as log:
            for request in kept:
                size = request.size
                if request is torn:
                    size = SECTOR * chance.randrange(size // SECTOR)
                _write(disk, log, request, size)
        lost = len(self.waiting) - len(kept)
        return f"{lost} of {len(self.waiting)} writes lost{', one torn' if torn else ''}"


def _overlap(one: Request, other: Request) -> bool:
    return one.begin < other.begin + other.size and other.begin < one.begin + one.size


def _write(disk: BinaryIO, log: BinaryIO, request: Request, size: int) -> None:
    for part in _parts(log, request.place, size):
        disk.seek(request.begin + part[0])
        disk.write(part[1])


def _parts(log: BinaryIO, place: int, size: int) -> Iterator[tuple[int, bytes]]:
    """Data of a log in pieces of at most 1 MiB, each with its place in the request."""
    done = 0
    while done < size:
        log.seek(place + done)
        data = log.read(min(1 << 20, size - done))
        if not data:
            raise ValueError("the log is cut off")
        yield done, data
        done += len(data)
