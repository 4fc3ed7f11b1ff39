"""Files whose numbers are damaged: an end in a sentence, or the same logits from every table.

A scale that is not finite, and finite numbers so large that values overflow on their way through
the layers, must reach the logits as NaN or infinity, which the sampler refuses; nothing may turn
them back into text. What stays finite has equal bits in every kernel table.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from awq_edge import Model, _native, errors
from awq_edge._native import NativeModel, NativeSampler, NativeSession, TensorInfo
from awq_edge.accuracy import perplexity

TINY = Path(__file__).parents[1] / "data/tiny.awq.gguf"
TOKENS = [1, 7, 3, 150, 11, 2, 99, 31]
HALVES = {"nan": 0x7E01, "infinite": 0x7C00, "negative infinite": 0xFC00}
HEADER_BYTES = 64  # FORMAT.md, section 2


def _tensors() -> list[TensorInfo]:
    model = NativeModel(TINY)
    tensors = model.tensors()
    model.close()
    return tensors


TENSORS = _tensors()
MATRICES = [t for t in TENSORS if t.group_size and t.name != "token_embd.weight"]
VECTORS = [t for t in TENSORS if not t.group_size and t.name != "rope.inverse_frequencies"]


def _scale_offset(t: TensorInfo, row: int, group: int) -> int:
    """Where a scale lies in the file: FORMAT.md, section 3."""
    blocks = -(-t.rows // 4)
    block_bytes = (t.bytes - HEADER_BYTES) // blocks
    return t.offset + HEADER_BYTES + row // 4 * block_bytes + (group * 4 + row % 4) * 2


def _logits(path: Path, table: str, kv_type: str, chunk: int) -> tuple[NDArray[np.float32], bool]:
    """The logits of TOKENS, and whether the sampler draws a token from them."""
    model = NativeModel(path)
    session = NativeSession(model, context_length=16, threads=1, prefill_threads=1, kv_type=kv_type)
    assert session.kernels == table
    logits = np.zeros((len(TOKENS), model.info().vocabulary_size), np.float32)
    for begin in range(0, len(TOKENS), chunk):
        session.evaluate(TOKENS[begin : begin + chunk], logits[begin : begin + chunk])
    sampler = NativeSampler(
        temperature=0.8,
        top_k=40,
        top_p=0.95,
        min_p=0.05,
        repetition_penalty=1.1,
        repetition_window=64,
        seed=1,
    )
    try:
        session.sample(sampler)
        drawn = True
    except errors.FileInvalidError as error:
        assert "is not finite: the model file is damaged" in str(error)
        drawn = False
    session.close()
    model.close()
    logits[np.isnan(logits)] = np.nan  # one NaN is as good as another
    return logits, drawn


def _outcomes(path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[bytes, bool]]:
    """What each cache gives; fails where a table or the way to cut the prompt changes it."""
    found: dict[str, tuple[bytes, bool]] = {}
    for kv_type in _native.KV_TYPES:
        for table in _native.kernel_tables():
            monkeypatch.setenv("AWQ_EDGE_KERNELS", table)
            for chunk in (len(TOKENS), 1):
                logits, drawn = _logits(path, table, kv_type, chunk)
                assert drawn == bool(np.isfinite(logits[-1]).all())
                value = (logits.tobytes(), drawn)
                assert found.setdefault(kv_type, value) == value, f"{table}, {kv_type}, {chunk}"
    return found


def _damaged(path: Path, change: Callable[[bytearray], None]) -> Path:
    data = bytearray(TINY.read_bytes())
    change(data)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("word", HALVES)
def test_a_scale_that_is_not_finite_never_gives_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    for number, t in enumerate(MATRICES):
        # The first and the last row, whose block may not be whole; the first and the last group.
        row = (0, t.rows - 1)[number % 2]
        group = (0, -(-t.columns // t.group_size) - 1)[number // 2 % 2]

        def change(data: bytearray, at: int = _scale_offset(t, row, group)) -> None:
            struct.pack_into("<H", data, at, HALVES[word])

        outcomes = _outcomes(_damaged(tmp_path / "damaged.gguf", change), monkeypatch)
        assert not any(drawn for _, drawn in outcomes.values()), t.name


@pytest.mark.parametrize("value", [3.0e38, 1e30, 1e19, -1e10])
def test_huge_norms_and_biases_give_equal_logits_in_every_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    for number, t in enumerate(VECTORS):
        places = range(t.columns) if number % 2 else [number % t.columns]

        def change(data: bytearray, at: int = t.offset, places: object = places) -> None:
            for i in places:  # type: ignore[attr-defined]  # a range or a list
                struct.pack_into("<f", data, at + 4 * i, value)

        _outcomes(_damaged(tmp_path / "damaged.gguf", change), monkeypatch)


def test_largest_scales_everywhere_give_equal_logits_in_every_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(data: bytearray) -> None:
        for t in MATRICES:
            for row in range(t.rows):
                for group in range(-(-t.columns // t.group_size)):
                    struct.pack_into("<H", data, _scale_offset(t, row, group), 0x7BFF)

    _outcomes(_damaged(tmp_path / "damaged.gguf", change), monkeypatch)


def test_frequencies_beyond_their_bound_are_refused(tmp_path: Path) -> None:
    (frequencies,) = [t for t in TENSORS if t.name == "rope.inverse_frequencies"]
    for value in (3e38, -1e9):
        path = _damaged(
            tmp_path / "damaged.gguf",
            lambda data, value=value: struct.pack_into("<f", data, frequencies.offset, value),
        )
        with pytest.raises(errors.FileInvalidError, match="largest magnitude allowed"):
            NativeModel(path)


def test_whoever_asks_for_logits_gets_the_sentence_too(tmp_path: Path) -> None:
    t = MATRICES[-1]

    def change(data: bytearray) -> None:
        struct.pack_into("<H", data, _scale_offset(t, 0, 0), HALVES["nan"])

    with Model.open(_damaged(tmp_path / "damaged.gguf", change), threads=1) as model:
        with pytest.raises(errors.FileInvalidError, match=r"logit of token \d+ is not finite"):
            model.logits(TOKENS)
        with pytest.raises(errors.FileInvalidError, match=r"logit of token \d+ is not finite"):
            perplexity.measure(perplexity.SessionSource(model.session()), [TOKENS])
