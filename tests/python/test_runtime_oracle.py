"""The C++ runtime against a transformer in plain numpy, on a model whose sizes divide nothing.

The transformer below is written from ``native/format/FORMAT.md`` alone: float64, one token after
the other, no cache but a list. It shares nothing with ``native/`` or with the torch decoder.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("gguf")

from awq_edge import _native, errors
from awq_edge.model_file import DequantisedModel, read_dequantised

TINY = Path(__file__).parents[1] / "data" / "tiny.awq.gguf"
PROMPT = [(17 * i * i + 5 * i + 3) % 203 for i in range(90)]

Floats = npt.NDArray[np.float64]


def round_activations(x: Floats, group_size: int) -> Floats:
    """Int8 with one scale per group, and back. Rounded in float32, as the runtime does."""
    out = np.empty_like(x)
    for begin in range(0, len(x), group_size):
        part = x[begin : begin + group_size].astype(np.float32)
        scale = np.abs(part).max() / np.float32(127)
        out[begin : begin + group_size] = np.rint(part / scale) * np.float64(scale) if scale else 0
    return out


class Oracle:
    """One conversation with a dequantised model."""

    def __init__(self, model: DequantisedModel) -> None:
        self.model, self.a = model, model.architecture
        self.keys: list[list[Floats]] = [[] for _ in range(self.a.layers)]  # [kv_heads, head_size]
        self.values: list[list[Floats]] = [[] for _ in range(self.a.layers)]

    def vector(self, name: str) -> Floats:
        return self.model.tensors[name].astype(np.float64)

    def linear(self, name: str, x: Floats) -> Floats:
        weight = self.vector(f"{name}.weight")
        y = weight @ round_activations(x, self.model.group_sizes[f"{name}.weight"])
        bias = f"{name}.bias"
        return y + self.vector(bias) if bias in self.model.tensors else y

    def norm(self, name: str, x: Floats) -> Floats:
        mean = (x * x).mean(axis=-1, keepdims=True)
        return x / np.sqrt(mean + self.a.norm_epsilon) * self.vector(f"{name}.weight")

    def rotate(self, x: Floats, position: int) -> Floats:
        angles = position * self.vector("rope.inverse_frequencies")
        first, second = np.split(x, 2, axis=-1)
        cosines, sines = np.cos(angles), np.sin(angles)
        return np.concatenate(
            (first * cosines - second * sines, second * cosines + first * sines), axis=-1
        )

    def attention(self, layer: int, x: Floats) -> Floats:
        a, name = self.a, f"blk.{layer}"
        queries = self.linear(f"{name}.attn_q", x).reshape(a.heads, a.head_size)
        keys = self.linear(f"{name}.attn_k", x).reshape(a.kv_heads, a.head_size)
        values = self.linear(f"{name}.attn_v", x).reshape(a.kv_heads, a.head_size)
        if a.qk_norm:
            queries = self.norm(f"{name}.attn_q_norm", queries)
            keys = self.norm(f"{name}.attn_k_norm", keys)
        position = len(self.keys[layer])
        queries, keys = self.rotate(queries, position), self.rotate(keys, position)
        self.keys[layer].append(keys.astype(np.float16).astype(np.float64))
        self.values[layer].append(values.astype(np.float16).astype(np.float64))
        window = a.sliding_windows[layer] or position + 1
        seen_keys, seen_values = self.keys[layer][-window:], self.values[layer][-window:]
        out = np.empty_like(queries)
        for head in range(a.heads):
            shared = head // (a.heads // a.kv_heads)
            scores = np.array([queries[head] @ k[shared] for k in seen_keys])
            weights = np.exp((scores - scores.max()) / np.sqrt(a.head_size))
            out[head] = weights @ np.array([v[shared] for v in seen_values]) / weights.sum()
        return self.linear(f"{name}.attn_output", out.reshape(-1))

    def feed_forward(self, layer: int, x: Floats) -> Floats:
        name = f"blk.{layer}"
        gate = self.linear(f"{name}.ffn_gate", x)
        up = self.linear(f"{name}.ffn_up", x)
        return self.linear(f"{name}.ffn_down", gate / (1 + np.exp(-gate)) * up)

    def step(self, token: int) -> Floats:
        x = self.vector("token_embd.weight")[token]
        for layer in range(self.a.layers):
            x = x + self.attention(layer, self.norm(f"blk.{layer}.attn_norm", x))
            x = x + self.feed_forward(layer, self.norm(f"blk.{layer}.ffn_norm", x))
        return self.linear("output", self.norm("output_norm", x))


@pytest.fixture(scope="module")
def native_model() -> _native.NativeModel:
    try:
        return _native.NativeModel(TINY)
    except errors.UnsupportedError as missing:
        pytest.skip(f"no runtime library: {missing}")


def test_logits_are_those_of_a_plain_transformer(native_model: _native.NativeModel) -> None:
    oracle = Oracle(read_dequantised(TINY))
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
    whole = Oracle(model)
    expected = [whole.step(token) for token in prompt][-1]
    for name in [name for name in model.tensors if name.endswith((".bias", "norm.weight"))]:
        changed = dict(model.tensors)
        changed[name] = np.zeros_like(changed[name])
        oracle = Oracle(DequantisedModel(model.architecture, {}, changed, model.group_sizes))
        logits = [oracle.step(token) for token in prompt][-1]
        assert np.linalg.norm(logits - expected) > 1e-2 * np.linalg.norm(expected), name
