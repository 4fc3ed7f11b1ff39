"""The C++ runtime against a decoder in plain numpy, for every form that a decoder may have."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("gguf")

from plain_decoder import PlainDecoder

from awq_edge import _native, layouts, stages
from awq_edge.architecture import Architecture
from awq_edge.errors import UnsupportedError
from awq_edge.model_file import TensorSource, read_dequantised, write_model

PLAIN = Architecture(
    layers=2,
    hidden_size=40,
    vocabulary_size=37,
    context_length=96,
    heads=10,  # five queries for a key: four together and one alone
    kv_heads=2,
    head_size=10,
    feed_forward_size=52,
    norm_epsilon=1e-5,
    rope_theta=100.0,
    sliding_windows=(17, 0),
    qkv_bias=True,
    feed_forward_bias=True,
)
# Caps and limits are so small that they bite.
FORMS: dict[str, dict[str, object]] = {
    "layer norms": {"norm": "layer"},
    "layer norms with biases": {"norm": "layer", "norm_bias": True},
    "norms behind": {"norm_places": "after"},
    "norms around": {"norm_places": "both"},
    "norms of the stream": {
        "norm": "layer",
        "norm_bias": True,
        "norm_places": "stream",
        "final_norm": False,
    },
    "embedding norm": {"norm": "layer", "norm_bias": True, "embedding_norm": True},
    "parallel": {"parallel": True},
    "learned": {"position": "learned"},
    "learned, embedding norm": {"position": "learned", "embedding_norm": True},
    "alibi": {"position": "alibi"},
    "two tables": {"rope_tables": (1, 0), "local_rope_theta": 7.0},
    "a layer without positions": {"rope_tables": (0, 1)},
    "q/k layer norms": {"norm": "layer", "norm_bias": True, "qk_norm": True, "qk_norm_bias": True},
    "q/k norms of heads": {"norm": "layer", "qk_norm": True, "qk_norm_kind": "heads"},
    "q/k norms of the width": {"qk_norm": True, "qk_norm_kind": "width"},
    "limits": {"qk_norm": True, "qk_norm_kind": "width", "qkv_clamp": 0.5},
    "score cap": {"score_cap": 0.5},
    "logit cap, tied": {"logit_cap": 1.0, "tied_head": True},
    "plain relu": {"feed_forward": "plain", "activation": "relu"},
    "plain gelu": {"feed_forward": "plain", "activation": "gelu"},
    "plain gelu_tanh, scales": {
        "feed_forward": "plain",
        "activation": "gelu_tanh",
        "activation_scales": True,
    },
    "head bias": {"head_bias": True},
    "head bias, tied, cap": {"head_bias": True, "tied_head": True, "logit_cap": 2.0},
}
PROMPT = [(17 * i * i + 5 * i + 3) % PLAIN.vocabulary_size for i in range(80)]


def _tensor(
    random: np.random.Generator, architecture: Architecture, name: str, bits: int
) -> TensorSource:
    shape = stages.tensor_shape(architecture, name)
    if name == "rope.inverse_frequencies":
        return architecture.inverse_frequencies()
    if len(shape) == 1:
        middle = 1.0 if name.endswith(("norm.weight", ".scales")) else 0.0
        values = middle + 0.3 * random.standard_normal(shape[0])
        return (np.abs(values) if "slopes" in name else values).astype(np.float32)
    n, k = shape
    codes = random.integers(0, 1 << bits, (n, k), dtype=np.uint8)
    zeros = random.integers(0, 1 << bits, (n, -(-k // 32)), dtype=np.uint8)
    steps = random.uniform(1.0, 3.0, zeros.shape) / (1 << bits) / np.sqrt(k)
    return layouts.pack(codes, steps.astype(np.float16), zeros, bits, 32)


def _write(path: Path, architecture: Architecture) -> None:
    random = np.random.default_rng(7)
    names = stages.tensor_names(architecture)
    tensors = [
        (name, _tensor(random, architecture, name, (4, 8, 3)[i % 3]))
        for i, name in enumerate(names)
    ]
    metadata = {
        **architecture.to_metadata(),
        "awq_edge.quantization.method": "rtn",
        "awq_edge.quantization.bits": 4,
        "awq_edge.quantization.group_size": 32,
        "awq_edge.quantization.head_bits": 4,
        "awq_edge.quantization.embedding_bits": 8,
        "awq_edge.quantization.tool_version": "0",
    }
    write_model(path, metadata, tensors)


def _logits(path: Path, prompt: list[int]) -> npt.NDArray[np.float32]:
    try:
        model = _native.NativeModel(path)
    except UnsupportedError as missing:
        pytest.skip(f"no runtime library: {missing}")
    session = _native.NativeSession(model, context_length=0, threads=1, prefill_threads=2)
    logits = np.empty((len(prompt), PLAIN.vocabulary_size), dtype=np.float32)
    session.evaluate(prompt, logits)
    return logits


@pytest.mark.parametrize("form", FORMS)
def test_logits_are_those_of_a_plain_decoder(form: str, tmp_path: Path) -> None:
    path = tmp_path / "model.awq.gguf"
    _write(path, dataclasses.replace(PLAIN, **FORMS[form]))  # type: ignore[arg-type]
    decoder = PlainDecoder(read_dequantised(path))
    expected = np.array([decoder.step(token) for token in PROMPT])
    logits = _logits(path, PROMPT)
    error = np.linalg.norm(logits - expected, axis=1) / np.linalg.norm(expected, axis=1)
    # Both round activations to 8 bits. Where float32 and float64 disagree about a tie, one code
    # differs, and the keys and values of that token move all later ones by some 1e-6 to 1e-2.
    assert np.quantile(error, 0.2) < 1e-6
    assert error.max() < 3e-2
