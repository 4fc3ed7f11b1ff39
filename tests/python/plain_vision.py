"""A vision tower and its connector in plain numpy, written from ``native/format/FORMAT.md`` alone.

Float64, one row after the other. It shares nothing with ``native/`` or with towers in PyTorch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from plain_decoder import Floats, activated, round_activations

from awq_edge.model_file import DequantisedModel


def gate(kind: str, x: Floats) -> Floats:
    """One of the activations that a tower may name."""
    return x / (1 + np.exp(-1.702 * x)) if kind == "quick_gelu" else activated(kind, x)


class PlainVision:
    """The vision part of a dequantised model."""

    def __init__(self, model: DequantisedModel) -> None:
        self.model = model

    def key(self, name: str, absent: Any = None) -> Any:
        return self.model.metadata.get(f"awq_edge.vision.{name}", absent)

    def vector(self, name: str) -> Floats:
        return self.model.tensors[name].astype(np.float64)

    def linear(self, name: str, rows: Floats) -> Floats:
        weight, g = self.vector(f"{name}.weight"), self.model.group_sizes[f"{name}.weight"]
        y = np.array([weight @ round_activations(x, g) for x in rows])
        bias = f"{name}.bias"
        return y + self.vector(bias) if bias in self.model.tensors else y

    def layer_norm(self, name: str, rows: Floats, epsilon: float) -> Floats:
        rows = rows - rows.mean(axis=1, keepdims=True)
        spread = np.sqrt((rows * rows).mean(axis=1, keepdims=True) + epsilon)
        return rows / spread * self.vector(f"{name}.weight") + self.vector(f"{name}.bias")

    def tower_norm(self, name: str, rows: Floats) -> Floats:
        return self.layer_norm(name, rows, self.key("norm_epsilon"))

    def patches(self, pixels: npt.NDArray[np.uint8]) -> Floats:
        """The numbers of every patch, [patches, 3 * patch * patch]."""
        size = self.key("patch_size")
        grid = self.key("image_size") // size
        table = self.vector("v.pixel_values").reshape(3, 256)
        picture = np.stack([table[c][pixels[:, :, c]] for c in range(3)])  # [3, h, w]
        cut = picture[:, : grid * size, : grid * size].reshape(3, grid, size, grid, size)
        return cut.transpose(1, 3, 0, 2, 4).reshape(grid * grid, -1)

    def attention(self, layer: str, rows: Floats) -> Floats:
        heads, d = self.key("heads"), self.key("head_size")
        q, k, v = (
            self.linear(f"{layer}.attn_{name}", rows).reshape(len(rows), heads, d) for name in "qkv"
        )
        k, v = (x.astype(np.float16).astype(np.float64) for x in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(d)
        weights = np.exp(scores - scores.max(axis=2, keepdims=True))
        weights /= weights.sum(axis=2, keepdims=True)
        seen = np.einsum("hqk,khd->qhd", weights, v).reshape(len(rows), -1)
        return self.linear(f"{layer}.attn_out", seen)

    def tower(self, pixels: npt.NDArray[np.uint8]) -> Floats:
        """What leaves the tower, a row for each patch."""
        rows = self.linear("v.patch_embd", self.patches(pixels))
        first = int(self.key("class_token", False))
        if first:
            rows = np.concatenate((self.vector("v.class_embd")[None], rows))
        rows = rows + self.vector("v.position_embd.weight").reshape(rows.shape)
        if self.key("pre_norm", False):
            rows = self.tower_norm("v.pre_ln", rows)
        for i in range(self.key("layers")):
            layer = f"v.blk.{i}"
            rows = rows + self.attention(layer, self.tower_norm(f"{layer}.ln1", rows))
            inner = self.linear(f"{layer}.ffn_up", self.tower_norm(f"{layer}.ln2", rows))
            rows = rows + self.linear(f"{layer}.ffn_down", gate(self.key("activation"), inner))
        rows = rows[first:]
        return self.tower_norm("v.post_ln", rows) if self.key("post_norm", False) else rows

    def grid(self, rows: Floats) -> Floats:
        """Rows after averaging and regrouping, [tokens, read]."""
        side = int(np.sqrt(len(rows)))
        pool, group = self.key("pool", 1), self.key("regroup", 1)
        cells = rows.reshape(side, side, -1)
        side //= pool
        cells = cells.reshape(side, pool, side, pool, -1).mean(axis=(1, 3))
        beyond = -side % group
        cells = np.pad(cells, ((0, beyond), (0, beyond), (0, 0)))
        side = (side + beyond) // group
        cells = cells.reshape(side, group, side, group, -1).transpose(0, 2, 1, 3, 4)
        return cells.reshape(side * side, -1)

    def embeddings(self, pixels: npt.NDArray[np.uint8]) -> Floats:
        """What a decoder reads of a picture, [tokens, embedding]."""
        rows = self.grid(self.tower(pixels))
        kind = self.key("connector_norm", "none")
        if kind == "layer":
            rows = self.layer_norm("mm.norm", rows, self.key("connector_norm_epsilon"))
        elif kind == "rms":
            mean = (rows * rows).mean(axis=1, keepdims=True)
            rows = rows / np.sqrt(mean + self.key("connector_norm_epsilon"))
            rows = rows * self.vector("mm.norm.weight")
        rows = self.linear("mm.0", rows)
        if self.key("connector") == "linear":
            return rows
        return self.linear("mm.2", gate(self.key("connector_activation", "gelu"), rows))
