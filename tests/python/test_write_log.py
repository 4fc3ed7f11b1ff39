"""What a virtual board's disk holds after a cut (``tests/board/write_log.py``), on logs by hand."""

from __future__ import annotations

import random
import struct
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "board"))
from write_log import SECTOR, Disk, read_requests

FLUSH, FUA, DISCARD = 1, 2, 4


def write_log(path: Path, entries: list[tuple[int, bytes, int]]) -> Path:
    """A log of (sector, data, flags), as qemu writes it."""
    parts = [struct.pack("<QQQI", 0x6A736677736872, 1, len(entries), SECTOR).ljust(SECTOR, b"\0")]
    for sector, data, flags in entries:
        count = 7 if flags & DISCARD else len(data) // SECTOR
        parts.append(struct.pack("<QQQQ", sector, count, flags, 0).ljust(SECTOR, b"\0"))
        parts.append(data)
    path.write_bytes(b"".join(parts))
    return path


def sectors(letters: str) -> bytes:
    return b"".join(letter.encode() * SECTOR for letter in letters)


def disk(tmp_path: Path, entries: list[tuple[int, bytes, int]]) -> Disk:
    log = write_log(tmp_path / "log", entries)
    (tmp_path / "image").write_bytes(sectors("........"))
    return Disk(tmp_path / "image", log, read_requests(log))


def after_cuts(state: Disk, tmp_path: Path, tries: int = 200) -> set[str]:
    """Every content that a cut now can leave, a letter for each sector."""
    found = set()
    for seed in range(tries):
        copy = tmp_path / "copy"
        copy.write_bytes(state.image.read_bytes())
        state.cut(copy, random.Random(seed))
        found.add(copy.read_bytes()[::SECTOR].decode())
    return found


def test_what_was_flushed_stays_and_the_rest_may_be_lost_or_torn(tmp_path: Path) -> None:
    entries = [(0, sectors("a"), 0), (0, b"", FLUSH), (1, sectors("bb"), 0), (4, sectors("c"), 0)]
    state = disk(tmp_path, entries)
    state.advance(4)
    assert after_cuts(state, tmp_path) == {
        *("a.......", "abb.....", "ab......", "a...c...", "abb.c...", "ab..c..."),
    }


def test_nothing_is_there_before_its_request(tmp_path: Path) -> None:
    state = disk(tmp_path, [(0, sectors("a"), 0), (1, sectors("b"), 0), (0, b"", FLUSH)])
    state.advance(1)
    assert after_cuts(state, tmp_path) == {"........", "a......."}
    state.advance(3)
    assert after_cuts(state, tmp_path) == {"ab......"}


def test_a_durable_request_stays_beside_waiting_ones(tmp_path: Path) -> None:
    entries = [(0, sectors("ab"), 0), (6, sectors("j"), 0), (1, sectors("c"), FUA)]
    state = disk(tmp_path, entries)
    state.advance(3)
    # What waits for a sector that it writes as well is in its place first.
    assert after_cuts(state, tmp_path) == {"ac......", "ac....j."}


def test_a_discarded_range_keeps_its_bytes(tmp_path: Path) -> None:
    state = disk(tmp_path, [(0, sectors("a"), 0), (0, b"", DISCARD), (0, b"", FLUSH)])
    state.advance(3)
    assert after_cuts(state, tmp_path, 3) == {"a......."}


def test_a_log_that_ends_in_the_middle_has_the_whole_requests(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", [(0, sectors("a"), 0), (1, sectors("bcd"), 0)])
    log.write_bytes(log.read_bytes()[: -2 * SECTOR])
    assert [request.size for request in read_requests(log)] == [SECTOR]
    log.write_bytes(b"no log".ljust(4 * SECTOR))
    with pytest.raises(ValueError, match="no log of writes"):
        read_requests(log)
