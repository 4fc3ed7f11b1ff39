"""Tensors of finished layers, read back from the work directory as the runtime will see them.

Owns the way from packed bytes to floats; refuses to know whether a conversion is still going on.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from awq_edge import layouts
from awq_edge.conversion.work_directory import WorkDirectory
from awq_edge.layouts import BLOCK_ROWS, HEADER_BYTES


class PackedTensors:
    """Plain tensors and packed matrices, by whole-model names."""

    def __init__(self, work: WorkDirectory, device: torch.device) -> None:
        """Reads from ``work``, into the memory of a device."""
        self._work = work
        self._device = device

    def vector(self, name: str) -> torch.Tensor:
        """A plain tensor, float32 [n]."""
        return torch.from_numpy(self._work.vector(name)).to(self._device)

    def matrix(self, name: str) -> layouts.Unpacked:
        """A packed matrix as codes, scales and zero-points."""
        return layouts.unpack(self._work.packed(name).read_bytes())

    def floats(self, name: str) -> torch.Tensor:
        """A packed matrix, float32 [n, k]."""
        return torch.from_numpy(self.matrix(name).dequantise()).to(self._device)

    def rows(self, name: str, numbers: torch.Tensor) -> torch.Tensor:
        """Some rows of a packed matrix, float32 [.., k] for their numbers, int64 [..]."""
        data = np.memmap(self._work.packed(name), dtype=np.uint8, mode="r")
        layout = layouts.read_header(data[:HEADER_BYTES].tobytes())
        wanted = numbers.numpy()
        blocks = np.unique(wanted // BLOCK_ROWS)
        chosen = data[HEADER_BYTES:].reshape(layout.blocks, layout.block_bytes)[blocks]
        part = layouts.header(dataclasses.replace(layout, n=BLOCK_ROWS * len(blocks)))
        rows = layouts.unpack(part + chosen.tobytes()).dequantise()
        at = BLOCK_ROWS * np.searchsorted(blocks, wanted // BLOCK_ROWS) + wanted % BLOCK_ROWS
        return torch.from_numpy(rows[at]).to(self._device)
