"""The C++ runtime against a decoder in plain numpy, for every form that a decoder may have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gguf")

from decoder_forms import FORMS, architecture, write_packed
from plain_decoder import PlainDecoder

from awq_edge import _native
from awq_edge.model_file import read_dequantised


@pytest.mark.parametrize("form", FORMS)
def test_logits_are_those_of_a_plain_decoder(form: str, tmp_path: Path) -> None:
    path = tmp_path / "model.awq.gguf"
    a = architecture(form)
    write_packed(a, path)
    prompt = [(17 * i * i + 5 * i + 3) % a.vocabulary_size for i in range(a.context_length)]
    decoder = PlainDecoder(read_dequantised(path))
    expected = np.array([decoder.step(token) for token in prompt])
    model = _native.NativeModel(path)
    session = _native.NativeSession(model, context_length=0, threads=1, prefill_threads=2)
    logits = np.empty(expected.shape, dtype=np.float32)
    session.evaluate(prompt, logits)
    error = np.linalg.norm(logits - expected, axis=1) / np.linalg.norm(expected, axis=1)
    # Both round activations to 8 bits. Where float32 and float64 disagree about a tie, one code
    # differs, and the keys and values of that token move all later ones by some 1e-6 to 1e-2.
    assert np.quantile(error, 0.1) < 1e-6
    assert error.max() < 3e-2
