"""A decoder in plain numpy, written from ``native/format/FORMAT.md`` alone.

Float64, one token after the other, no cache but a list. It shares nothing with ``native/`` or with
the decoder in PyTorch.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from awq_edge.model_file import DequantisedModel

Floats = npt.NDArray[np.float64]

_erf = np.vectorize(math.erf)


def round_activations(x: Floats, group_size: int) -> Floats:
    """Int8 with one scale per group, and back. Rounded in float32, as the runtime does."""
    out = np.empty_like(x)
    for begin in range(0, len(x), group_size):
        part = x[begin : begin + group_size].astype(np.float32)
        largest = np.abs(part).max()
        if largest:
            codes = np.rint(part * (np.float32(127) / largest))
            out[begin : begin + group_size] = codes * np.float64(largest / np.float32(127))
        else:
            out[begin : begin + group_size] = 0
    return out


def activated(kind: str, x: Floats) -> Floats:
    """One of the activations that a file may name."""
    if kind == "relu":
        return np.maximum(x, 0)
    if kind == "gelu":
        return x * (1 + _erf(x / np.sqrt(2))) / 2
    if kind == "gelu_tanh":
        return x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2
    return x / (1 + np.exp(-x))


def capped(x: Floats, cap: float) -> Floats:
    """No further from zero than a cap; 0 is none."""
    return cap * np.tanh(x / cap) if cap else x


class PlainDecoder:
    """One conversation with a dequantised model."""

    def __init__(self, model: DequantisedModel) -> None:
        self.model, self.a = model, model.architecture
        self.keys: list[list[Floats]] = [[] for _ in range(self.a.layers)]  # [kv_heads, head_size]
        self.values: list[list[Floats]] = [[] for _ in range(self.a.layers)]

    def vector(self, name: str) -> Floats:
        return self.model.tensors[name].astype(np.float64)

    def linear(self, name: str, x: Floats, bias: str = "") -> Floats:
        weight = self.vector(f"{name}.weight")
        y = weight @ round_activations(x, self.model.group_sizes[f"{name}.weight"])
        bias = bias or f"{name}.bias"
        return y + self.vector(bias) if bias in self.model.tensors else y

    def norm(self, name: str, x: Floats) -> Floats:
        """Over the last dimension of x; a longer weight has a part for each of the others."""
        if self.a.norm == "layer":
            x = x - x.mean(axis=-1, keepdims=True)
        mean = (x * x).mean(axis=-1, keepdims=True)
        bias = self.model.tensors.get(f"{name}.bias", np.zeros(1))
        weight = self.vector(f"{name}.weight")
        if x.ndim == 2 and len(weight) == x.size:
            weight = weight.reshape(x.shape)
            bias = bias.reshape(x.shape) if len(bias) > 1 else bias
        return x / np.sqrt(mean + self.a.norm_epsilon) * weight + bias

    def rotate(self, layer: int, x: Floats, position: int) -> Floats:
        if self.a.position != "rotary":
            return x
        half = self.a.head_size // 2
        table = self.a.rope_tables[layer]
        frequencies = self.vector("rope.inverse_frequencies")[table * half : (table + 1) * half]
        angles = position * frequencies
        first, second = np.split(x, 2, axis=-1)
        cosines, sines = np.cos(angles), np.sin(angles)
        return np.concatenate(
            (first * cosines - second * sines, second * cosines + first * sines), axis=-1
        )

    def heads(self, layer: int, name: str, x: Floats, normed: bool) -> Floats:
        """Queries, keys or values of one token, [heads, head_size]."""
        a = self.a
        y = self.linear(f"blk.{layer}.{name}", x)
        normed = normed and a.qk_norm
        if normed and a.qk_norm_kind == "width":
            y = self.norm(f"blk.{layer}.{name}_norm", y)
        y = y.reshape(-1, a.head_size)
        if normed and a.qk_norm_kind != "width":
            y = self.norm(f"blk.{layer}.{name}_norm", y)
        return np.clip(y, -a.qkv_clamp, a.qkv_clamp) if a.qkv_clamp else y

    def remember(self, layer: int, x: Floats) -> None:
        """The key and the value of one more position."""
        position = len(self.keys[layer])
        keys = self.rotate(layer, self.heads(layer, "attn_k", x, True), position)
        values = self.heads(layer, "attn_v", x, False)
        self.keys[layer].append(keys.astype(np.float16).astype(np.float64))
        self.values[layer].append(values.astype(np.float16).astype(np.float64))

    def attention(self, layer: int, x: Floats) -> Floats:
        self.remember(layer, x)
        return self.attend(layer, x, len(self.keys[layer]) - 1)

    def attend(self, layer: int, x: Floats, position: int) -> Floats:
        """What a row at a position sees of all that is remembered."""
        a = self.a
        queries = self.rotate(layer, self.heads(layer, "attn_q", x, True), position)
        window = a.sliding_windows[layer] or position + 1
        begin = max(0, position + 1 - window)
        seen_keys, seen_values = self.keys[layer][begin:], self.values[layer][begin:]
        distance = position - np.arange(begin, len(self.keys[layer]))
        out = np.empty_like(queries)
        for head in range(a.heads):
            shared = head // (a.heads // a.kv_heads)
            scores = np.array([queries[head] @ k[shared] for k in seen_keys]) / np.sqrt(a.head_size)
            scores = capped(scores, a.score_cap)
            if a.position == "alibi":
                scores = scores - self.vector("alibi.slopes")[head] * distance
            weights = np.exp(scores - scores.max())
            out[head] = weights @ np.array([v[shared] for v in seen_values]) / weights.sum()
        return self.linear(f"blk.{layer}.attn_output", out.reshape(-1))

    def feed_forward(self, layer: int, x: Floats) -> Floats:
        name = f"blk.{layer}"
        if self.a.feed_forward == "gated":
            inner = activated(self.a.activation, self.linear(f"{name}.ffn_gate", x))
            inner = inner * self.linear(f"{name}.ffn_up", x)
        else:
            inner = activated(self.a.activation, self.linear(f"{name}.ffn_up", x))
            if self.a.activation_scales:
                inner = inner * self.vector(f"{name}.ffn_act.scales")
        return self.linear(f"{name}.ffn_down", inner)

    def layer(self, layer: int, x: Floats) -> Floats:
        """The stream behind a layer."""
        places, begin = self.a.norm_places, x
        for branch, norm in ((self.attention, "attn"), (self.feed_forward, "ffn")):
            name = f"blk.{layer}.{norm}"
            source = begin if self.a.parallel else x
            if places in ("before", "both"):
                source = self.norm(f"{name}_norm", source)
            y = branch(layer, source)
            if places in ("after", "both"):
                y = self.norm(f"{name}_post_norm", y)
            x = x + y
            if places == "stream":
                x = self.norm(f"{name}_post_norm", x)
        return x

    def step(self, token: int) -> Floats:
        """Logits after one more token, [vocabulary]."""
        return self.read(self.vector("token_embd.weight")[token])

    def read_together(self, rows: Floats) -> list[Floats]:
        """Logits after each of some embeddings that see each other; norms in front of branches."""
        first = len(self.keys[0])
        for layer in range(self.a.layers):
            name = f"blk.{layer}"
            normed = [self.norm(f"{name}.attn_norm", x) for x in rows]
            for x in normed:
                self.remember(layer, x)
            seen = [self.attend(layer, x, first + i) for i, x in enumerate(normed)]
            rows = rows + np.array(seen)
            fed = [self.feed_forward(layer, self.norm(f"{name}.ffn_norm", x)) for x in rows]
            rows = rows + np.array(fed)
        return [self.linear("output", self.norm("output_norm", x)) for x in rows]

    def read(self, x: Floats) -> Floats:
        """Logits after one more row, which is an embedding, [vocabulary]."""
        a, position = self.a, len(self.keys[0])
        if a.position == "learned":
            x = x + self.vector("position_embd.weight").reshape(-1, a.hidden_size)[position]
        if a.embedding_norm:
            x = self.norm("token_embd_norm", x)
        for layer in range(a.layers):
            x = self.layer(layer, x)
        if a.final_norm:
            x = self.norm("output_norm", x)
        head = "token_embd" if a.tied_head else "output"
        return capped(self.linear(head, x, "output.bias"), a.logit_cap)
