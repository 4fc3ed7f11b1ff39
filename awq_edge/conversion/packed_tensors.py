"""Tensors of finished layers, read back from the work directory as the runtime will see them.

Owns the way from packed bytes to a device; refuses to know whether a conversion is still going on.
"""

from __future__ import annotations

import torch

from awq_edge import layouts
from awq_edge.conversion.work_directory import WorkDirectory
from awq_edge.quantize import grouped


class PackedTensors:
    """Plain tensors and packed matrices, by whole-model names."""

    def __init__(self, work: WorkDirectory, device: torch.device) -> None:
        """Reads from ``work``, into the memory of a device."""
        self._work = work
        self._device = device

    def vector(self, name: str) -> torch.Tensor:
        """A plain tensor, float32 [n]."""
        return torch.from_numpy(self._work.vector(name)).to(self._device)

    def matrix(self, name: str) -> grouped.Quantised:
        """A packed matrix as codes, scales and zero-points."""
        unpacked = layouts.unpack(self._work.packed(name).read_bytes())
        codes, scales, zeros = (
            torch.from_numpy(values).to(self._device)
            for values in (unpacked.codes, unpacked.scales, unpacked.zeros)
        )
        return grouped.Quantised(codes, scales, zeros, unpacked.bits, unpacked.group_size)
