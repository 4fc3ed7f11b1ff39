"""The packed model while it learns: matrices whose codes and scales move, and what stays.

Owns all of the decoder's matrices in memory, and how gradients reach them. Refuses to know where
gradients come from, and when a round ends.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from awq_edge.conversion.packed_tensors import PackedTensors
from awq_edge.conversion.work_directory import WorkDirectory
from awq_edge.float_model import FloatModel
from awq_edge.quantize import grouped
from awq_edge.quantize.grouped import Quantiser
from awq_edge.quantize.learned import LearnedMatrix
from awq_edge.stages import head_name, layer_tensor_names


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
        self._packed = {name for name in widths if name.startswith("blk.")}
        self._learned: dict[str, LearnedMatrix] = {}
        self._kept: dict[str, grouped.Quantised] = {}  # matrices that do not learn, once read
        self._vectors: dict[str, torch.Tensor] = {}
        self._weights: dict[str, torch.Tensor] = {}  # of the layer on its way back
        self._rate = 0.0
        self.names = sorted(name for name in self._packed if widths[name].bits < 8)

    def begin(self, number: int) -> None:
        """Begins where a round ended, 0 being ``auto``; nothing is known of earlier gradients."""
        for name in self.names:
            self._learned.pop(name, None)  # its memory first
            self._learned[name] = self._of_round(number, name)

    def step(self, rate: float) -> None:
        """Begins a step: what is heard from now on moves matrices by a share of the whole rate."""
        self._rate = rate

    def store(self, number: int) -> None:
        """Keeps what a round left."""
        for name, matrix in self._learned.items():
            scales, offsets = matrix.scales.cpu(), matrix.offsets.half().cpu()
            self._work.store_learned(number, name, scales.numpy(), offsets.numpy())

    def heard(self, layer: int, name: str, gradient: torch.Tensor) -> None:
        """Moves a matrix by the gradient by its weights, float32 [n, k]; used up."""
        full = f"blk.{layer}.{name}.weight"
        if full in self._learned:
            self._learned[full].move(gradient, self._weights[f"{name}.weight"], self._rate)

    def quantised(self, name: str, number: int) -> grouped.Quantised:
        """A matrix that learns, as a round left it."""
        return self._of_round(number, name).rounded()

    def vector(self, name: str) -> torch.Tensor:
        """A plain tensor, float32 [n]."""
        if name not in self._vectors:
            self._vectors[name] = self._tensors.vector(name)
        return self._vectors[name]

    def rows(self, name: str, numbers: torch.Tensor) -> torch.Tensor:
        """Some rows of a matrix, float32 [.., k] for their numbers, int64 [..]."""
        if name not in self._kept:
            self._kept[name] = self._tensors.matrix(name)
        rows = self._kept[name].take(numbers.flatten().to(self._device)).dequantise()
        return rows.view(*numbers.shape, -1)

    def head(self) -> torch.Tensor:
        """The matrix that makes logits, float32 [v, hidden]."""
        return self._tensors.matrix(head_name(self._architecture)).dequantise()

    def layer(self, number: int) -> Mapping[str, torch.Tensor]:
        """A layer's tensors as they stand, by their names without ``blk.N.``."""
        self._weights = {}
        for name in layer_tensor_names(self._architecture, number):
            full = f"blk.{number}.{name}"
            if full in self._learned:
                tensor = self._learned[full].rounded().dequantise()
            elif full in self._packed:
                if full not in self._kept:
                    self._kept[full] = self._tensors.matrix(full)
                tensor = self._kept[full].dequantise()
            else:
                tensor = self.vector(full)
            self._weights[name] = tensor
        return self._weights

    def _of_round(self, number: int, name: str) -> LearnedMatrix:
        begun = self._tensors.matrix(name)
        if not number:
            return LearnedMatrix.beginning(begun)
        scales, offsets = (
            torch.from_numpy(values).to(self._device) for values in self._work.learned(number, name)
        )
        return LearnedMatrix(begun, scales, offsets.float())
