"""What a deploy does with files on a board that the medium does not give."""

from __future__ import annotations

import errno
import hashlib
import io
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from awq_edge.device import incoming

DATA = b"weights " * 1000
DIGEST = hashlib.sha256(DATA).hexdigest()
SIZE = len(DATA)


class Unreadable(io.BytesIO):
    """A file that can be opened, on a card that fails."""

    def read(self, size: int | None = -1) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Inodes that cannot be read, by whatever name."""
    found: set[int] = set()

    def opened(path: str, mode: str) -> Any:
        if Path(path).stat().st_ino in found:
            return Unreadable()
        return Path(path).open(mode)

    monkeypatch.setattr(incoming, "open", opened, raising=False)
    return found


def give(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(data)))


def listed(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    give(monkeypatch, f"{DIGEST} {SIZE} model.gguf\n".encode())
    return incoming.listed(str(prefix), "m.gguf")


@pytest.mark.parametrize("readable", [True, False])
def test_an_installed_model_is_sent_again_if_it_cannot_be_read(
    readable: bool,
    tmp_path: Path,
    lost: set[int],
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    installed = tmp_path / "models/m.gguf"
    installed.parent.mkdir()
    installed.write_bytes(DATA)
    if not readable:
        lost.add(installed.stat().st_ino)
    assert listed(tmp_path, monkeypatch) == 0
    assert capsysbinary.readouterr().out == f"{SIZE if readable else 0} model.gguf\n".encode()
    if readable:
        return
    give(monkeypatch, f"{DIGEST} {SIZE} 0 model.gguf\n".encode() + DATA)
    assert incoming.receive(str(tmp_path)) == 0
    arrived = tmp_path / "incoming/model.gguf"
    assert arrived.read_bytes() == DATA
    assert arrived.stat().st_ino not in lost


def test_a_part_that_cannot_be_read_is_sent_again(
    tmp_path: Path,
    lost: set[int],
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    part = tmp_path / f"incoming/model.gguf.{DIGEST}.part"
    part.parent.mkdir()
    part.write_bytes(DATA[:100])
    lost.add(part.stat().st_ino)
    give(monkeypatch, f"{DIGEST} {SIZE} 100 model.gguf\n".encode() + DATA[100:])
    assert incoming.receive(str(tmp_path)) == incoming.WRONG_SUM
    assert capsysbinary.readouterr().out == b"wrong model.gguf\n"
    assert listed(tmp_path, monkeypatch) == 0
    assert capsysbinary.readouterr().out == b"0 model.gguf\n"
