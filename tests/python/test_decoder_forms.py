"""The C++ runtime against the decoder in PyTorch, on dequantised weights, for every form."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("gguf")

import decoder_forms  # noqa: E402  (after the checks that torch and gguf are there)

from awq_edge import _native, torch_decoder  # noqa: E402
from awq_edge.model_file import DequantisedModel, read_dequantised  # noqa: E402

# Sequences, as long as the shortest windows and somewhat more.
TOKENS = torch.tensor(
    [[(17 * i * i + (5 + 2 * s) * i + 3 * s) % 101 for i in range(12)] for s in range(10)]
)


def runtime_logits(path: Path, chunk: int) -> np.ndarray:
    """Of every sequence, [b, t, vocabulary], read in chunks."""
    model = _native.NativeModel(path)
    logits = np.empty((*TOKENS.shape, model.info().vocabulary_size), dtype=np.float32)
    for sequence, tokens in enumerate(TOKENS.tolist()):
        session = _native.NativeSession(model, context_length=0, threads=1, prefill_threads=2)
        for first in range(0, len(tokens), chunk):
            inside = slice(first, first + chunk)
            session.evaluate(tokens[inside], logits[sequence, inside])
        session.close()
    model.close()
    return logits


def decoder_logits(model: DequantisedModel) -> np.ndarray:
    return torch_decoder.logits(
        lambda name: torch.from_numpy(model.tensors[name]),
        model.architecture,
        TOKENS,
        model.group_sizes,
        kv_fp16=True,
    ).numpy()


@pytest.mark.parametrize("form", decoder_forms.FORMS)
def test_runtime_computes_what_the_decoder_does(form: str, tmp_path: Path) -> None:
    a = decoder_forms.architecture(form)
    path = tmp_path / "m.awq.gguf"
    decoder_forms.write_packed(a, path)
    model = read_dequantised(path)
    assert model.architecture == a
    expected = decoder_logits(model)
    whole = runtime_logits(path, TOKENS.shape[1])
    error = np.linalg.norm(whole - expected, axis=2) / np.linalg.norm(expected, axis=2)
    # Both round activations to 8 bits. Where their floats disagree about a tie, one code differs
    # and moves the logits of that token and of those that attend to it by some
    # 1e-2, by more behind norms of the stream; such a tie is
    # at another place in every sequence.
    assert error.min(axis=0).max() < 5e-6
    assert error.max() < 0.2
    assert np.array_equal(runtime_logits(path, 5), whole)
    assert np.array_equal(runtime_logits(path, 1), whole)


@pytest.mark.parametrize("form", decoder_forms.FORMS)
def test_every_tensor_of_a_form_matters(form: str, tmp_path: Path) -> None:
    """The comparison above can fail: with one vector of a form changed, the logits are others."""
    path = tmp_path / "m.awq.gguf"
    decoder_forms.write_packed(decoder_forms.architecture(form), path)
    model = read_dequantised(path)
    expected = decoder_logits(model)
    for name in model.tensors:
        if name in model.group_sizes or name.startswith("blk.1."):
            continue
        changed = {**model.tensors, name: np.roll(model.tensors[name], 1) * 1.5 + 0.25}
        logits = decoder_logits(dataclasses.replace(model, tensors=changed))
        difference = np.linalg.norm(logits - expected) / np.linalg.norm(expected)
        assert difference > 1e-3, name
