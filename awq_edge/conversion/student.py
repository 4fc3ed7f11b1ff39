"""The packed model while it learns: codes from the work directory, scales that move.

Owns the scales of all matrices, and how gradients reach them. Refuses to know where gradients come
from, and when a round ends.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from awq_edge.conversion.packed_tensors import PackedTensors
from awq_edge.conversion.work_directory import WorkDirectory
from awq_edge.float_model import FloatModel
from awq_edge.quantize import grouped, learned
from awq_edge.quantize.grouped import Quantiser
from awq_edge.quantize.learned import LearnedScales
from awq_edge.stages import head_name, layer_tensor_names, matrices


class Student:
    """A decoder whose matrices of fewer than 8 bits learn.

    Attributes:
        names: Of these matrices, by whole-model names.
    """

    def __init__(
        self,
        source: FloatModel,
        widths: Mapping[str, Quantiser],
        device: torch.device,
        work: WorkDirectory,
    ) -> None:
        """Takes a model whose layers are all packed in ``work``."""
        self._architecture = source.architecture
        self._device = device
        self._work = work
        self._tensors = PackedTensors(work, device)
        self._scales: dict[str, LearnedScales] = {}
        self._weights: dict[str, torch.Tensor] = {}  # of the layer on its way back
        self._group_sizes = {name: q.group_size for name, q in widths.items()}
        self._rate = 0.0
        self.names = sorted(n for n, q in widths.items() if n.startswith("blk.") and q.bits < 8)

    def begin(self, number: int) -> None:
        """Begins where a round ended, 0 being ``auto``; nothing is known of earlier gradients."""
        for name in self.names:
            if number:
                exact = torch.from_numpy(self._work.learned(number, name))
            else:
                exact = torch.from_numpy(self._tensors.matrix(name).scales).float()
            self._scales[name] = LearnedScales.beginning(exact.to(self._device))

    def step(self, rate: float) -> None:
        """Begins a step: what is heard from now on moves scales by a share of the whole rate."""
        self._rate = rate

    def store(self, number: int) -> None:
        """Keeps what a round left."""
        for name, scales in self._scales.items():
            self._work.store_learned(number, name, scales.exact.cpu().numpy())

    def heard(self, layer: int, name: str, gradient: torch.Tensor) -> None:
        """Moves a matrix's scales by the gradient by its weights, float32 [n, k]; used up."""
        full = f"blk.{layer}.{name}.weight"
        if full in self._scales:
            weights, group_size = self._weights[f"{name}.weight"], self._group_sizes[full]
            self._scales[full].move(learned.slopes(gradient, weights, group_size), self._rate)

    def quantised(self, name: str, scales: torch.Tensor) -> grouped.Quantised:
        """A matrix with its codes and zero-points, and with scales [n, groups]."""
        begun = self._tensors.matrix(name)
        codes, zeros = (torch.from_numpy(v).to(self._device) for v in (begun.codes, begun.zeros))
        return grouped.Quantised(codes, scales.half(), zeros, begun.bits, begun.group_size)

    def vector(self, name: str) -> torch.Tensor:
        """A plain tensor, float32 [n]."""
        return self._tensors.vector(name)

    def rows(self, name: str, numbers: torch.Tensor) -> torch.Tensor:
        """Some rows of a matrix, float32 [.., k] for their numbers, int64 [..]."""
        return self._tensors.rows(name, numbers)

    def head(self) -> torch.Tensor:
        """The matrix that makes logits, float32 [v, hidden]."""
        return self._tensors.floats(head_name(self._architecture))

    def layer(self, number: int) -> Mapping[str, torch.Tensor]:
        """A layer's tensors as they stand, by their names without ``blk.N.``."""
        packed = {f"{name}.weight" for name in matrices(self._architecture, number)}
        self._weights = {}
        for name in layer_tensor_names(self._architecture, number):
            full = f"blk.{number}.{name}"
            if full in self._scales:
                tensor = self.quantised(full, self._scales[full].rounded).dequantise()
            else:
                tensor = self._tensors.floats(full) if name in packed else self.vector(full)
            self._weights[name] = tensor
        return self._weights
