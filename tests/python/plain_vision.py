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
        self.tapped: list[Floats] = []

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
        if self.key("norm", "layer") == "rms":
            mean = (rows * rows).mean(axis=1, keepdims=True)
            return rows / np.sqrt(mean + self.key("norm_epsilon")) * self.vector(f"{name}.weight")
        return self.layer_norm(name, rows, self.key("norm_epsilon"))

    def patches(self, pixels: npt.NDArray[np.uint8]) -> Floats:
        """The numbers of every patch, [patches, 3 * patch * patch]."""
        size = self.key("patch_size")
        h, w = pixels.shape[0] // size, pixels.shape[1] // size
        table = self.vector("v.pixel_values").reshape(3, 256)
        picture = np.stack([table[c][pixels[:, :, c]] for c in range(3)])  # [3, h, w]
        cut = picture[:, : h * size, : w * size].reshape(3, h, size, w, size)
        return cut.transpose(1, 3, 0, 2, 4).reshape(h * w, -1)

    def turned(self, x: Floats, shape: tuple[int, int]) -> Floats:
        """Queries or keys [patches, heads, d], by the rows and columns of their patches."""
        frequencies = self.vector("v.rope.inverse_frequencies")
        places = np.arange(len(x))
        at = places // shape[1], places % shape[1]
        angles = np.concatenate([np.outer(one, frequencies) for one in at], axis=1)[:, None]
        first, second = np.split(x, 2, axis=2)
        cosines, sines = np.cos(angles), np.sin(angles)
        return np.concatenate(
            (first * cosines - second * sines, second * cosines + first * sines), axis=2
        )

    def hidden_from(self, number: int, shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
        """Which patches each one does not see in a layer, bool [patches, patches]."""
        count, window = shape[0] * shape[1], self.key("window", 0)
        if not window or number in self.key("full_layers", []):
            return np.zeros((count, count), dtype=bool)
        y, x = np.arange(count) // shape[1] // window, np.arange(count) % shape[1] // window
        return (y[:, None] != y) | (x[:, None] != x)

    def attention(self, number: int, rows: Floats, shape: tuple[int, int]) -> Floats:
        layer = f"v.blk.{number}"
        heads, d = self.key("heads"), self.key("head_size")
        q, k, v = (
            self.linear(f"{layer}.attn_{name}", rows).reshape(len(rows), heads, d) for name in "qkv"
        )
        if self.key("position", "learned") == "rotary":
            q, k = self.turned(q, shape), self.turned(k, shape)
        k, v = (x.astype(np.float16).astype(np.float64) for x in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(d)
        if self.key("position", "learned") == "rotary":
            scores[:, self.hidden_from(number, shape)] = -np.inf
        weights = np.exp(scores - scores.max(axis=2, keepdims=True))
        weights /= weights.sum(axis=2, keepdims=True)
        seen = np.einsum("hqk,khd->qhd", weights, v).reshape(len(rows), -1)
        return self.linear(f"{layer}.attn_out", seen)

    def interpolated(self, shape: tuple[int, int]) -> Floats:
        """A position for every patch, from a square table whose corners are the picture's."""
        side = self.key("position_grid")
        table = self.vector("v.position_embd.weight").reshape(side, side, -1)
        rows = []
        for y in range(shape[0]):
            for x in range(shape[1]):
                at = [
                    i * (side - 1) / (n - 1) if n > 1 else 0.0
                    for i, n in ((y, shape[0]), (x, shape[1]))
                ]
                row = np.zeros(table.shape[2])
                for r in range(side):
                    for c in range(side):  # a hat over each place of the table
                        weight = max(0.0, 1 - abs(at[0] - r)) * max(0.0, 1 - abs(at[1] - c))
                        row += weight * table[r, c]
                rows.append(row)
        return np.array(rows)

    def tower(self, pixels: npt.NDArray[np.uint8]) -> Floats:
        """What leaves the tower, a row for each patch."""
        rows = self.linear("v.patch_embd", self.patches(pixels))
        first = int(self.key("class_token", False))
        if first:
            rows = np.concatenate((self.vector("v.class_embd")[None], rows))
        size = self.key("patch_size")
        shape = pixels.shape[0] // size, pixels.shape[1] // size
        if self.key("position", "learned") == "learned":
            rows = rows + self.vector("v.position_embd.weight").reshape(rows.shape)
        elif self.key("position_grid"):
            rows = rows + self.interpolated(shape)
        if self.key("pre_norm", False):
            rows = self.tower_norm("v.pre_ln", rows)
        for i in range(self.key("layers")):
            layer = f"v.blk.{i}"
            rows = rows + self.attention(i, self.tower_norm(f"{layer}.ln1", rows), shape)
            read = self.tower_norm(f"{layer}.ln2", rows)
            inner = self.linear(f"{layer}.ffn_up", read)
            if self.key("feed_forward", "plain") == "gated":
                inner *= gate(self.key("activation"), self.linear(f"{layer}.ffn_gate", read))
            else:
                inner = gate(self.key("activation"), inner)
            rows = rows + self.linear(f"{layer}.ffn_down", inner)
            if i in self.key("taps", []):
                self.tap(len(self.tapped), rows, shape)
        rows = rows if self.key("keep_class", False) else rows[first:]
        return self.tower_norm("v.post_ln", rows) if self.key("post_norm", False) else rows

    def grid(self, rows: Floats, shape: tuple[int, int]) -> Floats:
        """Rows after averaging and regrouping, [tokens, read]."""
        pool, group = self.key("pool", 1), self.key("regroup", 1)
        h, w = shape[0] // pool, shape[1] // pool
        cells = rows.reshape(h, pool, w, pool, -1).mean(axis=(1, 3))
        cells = np.pad(cells, ((0, -h % group), (0, -w % group), (0, 0)))
        h, w = -(-h // group), -(-w // group)
        cells = cells.reshape(h, group, w, group, -1).transpose(0, 2, 1, 3, 4)
        if self.key("by_columns", False):
            cells = cells.swapaxes(0, 1)
        return cells.reshape(h * w, -1)

    def tap(self, number: int, rows: Floats, shape: tuple[int, int]) -> None:
        """Keeps what a tap makes of the rows behind its layer."""
        name = f"mm.tap.{number}"
        read = self.layer_norm(f"{name}.norm", self.grid(rows, shape), self.key("norm_epsilon"))
        inner = gate(self.key("connector_activation", "gelu"), self.linear(f"{name}.0", read))
        self.tapped.append(self.linear(f"{name}.2", inner))

    def embeddings(self, pixels: npt.NDArray[np.uint8]) -> Floats:
        """What a decoder reads of a picture, [tokens, embedding]."""
        size = self.key("patch_size")
        shape = pixels.shape[0] // size, pixels.shape[1] // size
        self.tapped = []
        rows = self.grid(self.tower(pixels), shape)
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
        rows = self.linear("mm.2", gate(self.key("connector_activation", "gelu"), rows))
        return np.concatenate([rows, *self.tapped], axis=1)
