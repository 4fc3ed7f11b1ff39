"""The C++ runtime against a decoder in plain numpy, on models whose sizes divide nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gguf")

from plain_decoder import PlainDecoder

from awq_edge import _native
from awq_edge.model_file import DequantisedModel, read_dequantised

TINY = Path(__file__).parents[1] / "data" / "tiny.awq.gguf"
PROMPT = [(17 * i * i + 5 * i + 3) % 203 for i in range(90)]


@pytest.fixture(scope="module")
def native_model() -> _native.NativeModel:
    return _native.NativeModel(TINY)


def test_logits_are_those_of_a_plain_transformer(native_model: _native.NativeModel) -> None:
    oracle = PlainDecoder(read_dequantised(TINY))
    expected = np.array([oracle.step(token) for token in PROMPT])
    session = _native.NativeSession(native_model, context_length=0, threads=1, prefill_threads=2)
    logits = np.empty(expected.shape, dtype=np.float32)
    session.evaluate(PROMPT, logits)
    error = np.linalg.norm(logits - expected, axis=1) / np.linalg.norm(expected, axis=1)
    # Both round activations to 8 bits. Where float32 and float64 disagree about a tie, one code
    # differs and moves the logits by some 1e-3; without such a token they agree to float32.
    assert np.median(error) < 2e-6
    assert error.max() < 2e-2


def test_every_piece_of_the_model_matters(native_model: _native.NativeModel) -> None:
    """The comparison above can fail: dropping any one piece from the oracle moves the logits."""
    model = read_dequantised(TINY)
    prompt = PROMPT[:45]  # longer than the sliding window
    whole = PlainDecoder(model)
    expected = [whole.step(token) for token in prompt][-1]
    for name in [name for name in model.tensors if name.endswith((".bias", "norm.weight"))]:
        changed = dict(model.tensors)
        changed[name] = np.zeros_like(changed[name])
        oracle = PlainDecoder(DequantisedModel(model.architecture, {}, changed, model.group_sizes))
        logits = [oracle.step(token) for token in prompt][-1]
        assert np.linalg.norm(logits - expected) > 1e-2 * np.linalg.norm(expected), name
