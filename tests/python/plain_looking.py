"""Resamplers and gated blocks in plain numpy, written from ``native/format/FORMAT.md`` alone.

Float64, one row after the other, beside ``plain_vision.py`` and ``plain_decoder.py``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from plain_decoder import Floats, PlainDecoder, activated
from plain_vision import PlainVision, gate


def as_half(x: Floats) -> Floats:
    return x.astype(np.float16).astype(np.float64)


def attended(queries: Floats, keys: Floats, values: Floats) -> Floats:
    """[n, heads, d] of queries of the same shape, over all of [m, heads, d] keys and values."""
    scores = np.einsum("qhd,khd->hqk", queries, as_half(keys)) / np.sqrt(queries.shape[-1])
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    weights /= weights.sum(axis=2, keepdims=True)
    return np.einsum("hqk,khd->qhd", weights, as_half(values))


class PlainLooking(PlainVision):
    """The vision part of a dequantised model whose decoder looks at pictures."""

    def of_resampler(self, name: str, absent: Any = None) -> Any:
        return self.key(f"resampler.{name}", absent)

    def norm(self, name: str, rows: Floats) -> Floats:
        return self.layer_norm(name, rows, self.of_resampler("norm_epsilon"))

    def heads(self, name: str, rows: Floats) -> Floats:
        split = (len(rows), self.of_resampler("heads"), self.of_resampler("head_size"))
        made = self.linear(name, rows).reshape(split)
        if self.of_resampler("qk_norm", False) and not name.endswith("v"):
            flat = self.norm(f"{name}_norm", made.reshape(-1, split[2]))
            made = flat.reshape(split)
        return made

    def resampled(self, rows: Floats) -> Floats:
        x = self.vector("v.resampler.latents").reshape(-1, rows.shape[1])
        for i in range(self.of_resampler("layers")):
            layer = f"v.resampler.{i}"
            own = self.norm(f"{layer}.ln1", x)
            read = np.concatenate((self.norm(f"{layer}.ln_rows", rows), own))
            q = self.heads(f"{layer}.attn_q", own)
            k, v = (self.heads(f"{layer}.attn_{name}", read) for name in "kv")
            x = x + self.linear(f"{layer}.attn_out", attended(q, k, v).reshape(len(x), -1))
            inner = self.linear(f"{layer}.ffn_up", self.norm(f"{layer}.ln2", x))
            inner = gate(self.of_resampler("activation"), inner)
            x = x + self.linear(f"{layer}.ffn_down", inner)
        return self.norm("v.resampler.post_ln", x)

    def looked_at(self, pixels: npt.NDArray[np.uint8]) -> Floats:
        """What gated blocks look at, [rows, numbers]."""
        cross = self.model.architecture.cross
        assert cross is not None
        rows = self.tower(pixels)
        if self.of_resampler("layers"):
            rows = self.resampled(rows)
        parts = []
        for layer in cross.numbers:
            keys = self.linear(f"mm.blk.{layer}.k", rows)
            if cross.qk_norm:
                heads = keys.reshape(len(rows), cross.heads, cross.head_size)
                mean = (heads * heads).mean(axis=2, keepdims=True)
                heads = heads / np.sqrt(mean + cross.norm_epsilon)
                keys = (heads * self.vector(f"mm.blk.{layer}.k_norm.weight")).reshape(keys.shape)
            parts += [keys, self.linear(f"mm.blk.{layer}.v", rows)]
        return np.concatenate(parts, axis=1)


class PlainLooker(PlainDecoder):
    """One conversation with a model that looks at ``picture``, or at none."""

    picture: Floats | None = None

    def block_norm(self, name: str, x: Floats) -> Floats:
        cross = self.a.cross
        assert cross is not None
        bias = 0.0
        if cross.norm == "layer":
            x = x - x.mean(axis=-1, keepdims=True)
            bias = self.vector(f"{name}.bias")
        mean = (x * x).mean(axis=-1, keepdims=True)
        return x / np.sqrt(mean + cross.norm_epsilon) * self.vector(f"{name}.weight") + bias

    def block(self, layer: int, x: Floats) -> Floats:
        cross, name = self.a.cross, f"blk.{layer}.cross"
        assert cross is not None
        y = np.zeros(cross.size)
        if self.picture is not None:
            query = self.linear(f"{name}_attn_q", self.block_norm(f"{name}_attn_norm", x))
            query = query.reshape(1, cross.heads, cross.head_size)
            if cross.qk_norm:
                query = self.block_norm(f"{name}_attn_q_norm", query)
            number = cross.numbers.index(layer)
            split = (len(self.picture), len(cross.numbers), 2, cross.heads, cross.head_size)
            rows = self.picture.reshape(split)[:, number]
            y = attended(query, rows[:, 0], rows[:, 1]).reshape(-1)
        x = x + self.linear(f"{name}_attn_output", y)
        read = self.block_norm(f"{name}_ffn_norm", x)
        inner = self.linear(f"{name}_ffn_up", read)
        if cross.feed_forward == "gated":
            inner = activated(cross.activation, self.linear(f"{name}_ffn_gate", read)) * inner
        else:
            inner = activated(cross.activation, inner)
        return x + self.linear(f"{name}_ffn_down", inner)

    def layer(self, layer: int, x: Floats) -> Floats:
        if self.a.has_cross(layer):
            x = self.block(layer, x)
        return super().layer(layer, x)
