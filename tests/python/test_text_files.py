"""Files of the user's that hold text never fill the memory, and a pipe is one of them."""

from __future__ import annotations

import gzip
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from awq_edge import text_files
from awq_edge.errors import FileUnreadableError, InvalidArgumentError


def _calibration(path: Path) -> str:
    pytest.importorskip("torch")
    from awq_edge.calibration.text import read_text

    return read_text(path)


def _evaluation(path: Path) -> str:
    from awq_edge.cli._evaluated import read_text

    return read_text(path, None)


def _keys(path: Path) -> str:
    from awq_edge.serve.start import read_keys

    return b"\n".join(read_keys(path)).decode()


READERS: list[Callable[[Path], str]] = [_calibration, _evaluation, _keys]


@pytest.mark.parametrize("read", READERS)
def test_a_file_without_end_is_refused(read: Callable[[Path], str]) -> None:
    with pytest.raises(InvalidArgumentError, match=r"/dev/zero holds more than .* has no end"):
        read(Path("/dev/zero"))


@pytest.mark.parametrize("read", READERS)
def test_a_pipe_is_a_file(read: Callable[[Path], str], tmp_path: Path) -> None:
    """As a shell makes one for ``<(zcat text.gz)``."""
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=("a pipe's text",))
    writer.start()
    assert read(tmp_path / "pipe") == "a pipe's text"
    writer.join()


@pytest.mark.parametrize("read", READERS)
def test_what_is_no_file_is_a_sentence(read: Callable[[Path], str], tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for name in ("missing", "loop", "."):
        with pytest.raises(FileUnreadableError):
            read(tmp_path / name)


def test_a_limit_is_of_what_a_compressed_file_holds(tmp_path: Path) -> None:
    path = tmp_path / "text.gz"
    path.write_bytes(gzip.compress(b"\n" * 1000))
    assert text_files.read_compressed(path, 1000) == b"\n" * 1000
    with pytest.raises(InvalidArgumentError, match=r"text\.gz holds more than"):
        text_files.read_compressed(path, 999)


def test_pictures_that_nothing_is_calibrated_on_are_told(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("gguf")
    import checkpoints

    from awq_edge.conversion import Events, Options, convert

    said: list[str] = []
    source = checkpoints.save(checkpoints.random_model("llama"), tmp_path / "source")
    options = Options(method="rtn", group_size=32, calibration_images=tmp_path / "pictures")
    convert(str(source), tmp_path / "m.gguf", options, events=Events(said.append))
    assert [line for line in said if line.startswith("The calibration pictures are not used")]
