"""A layer with a sample of what it reads, on which weights are compared by what they do.

Owns the layer's float inputs and outputs for the sample. Refuses to choose: searches ask it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch

from awq_edge.architecture import Architecture
from awq_edge.stages import Stage, stages
from awq_edge.torch_decoder import Layer, Linear, Positions

Weights = dict[str, torch.Tensor]  # of a layer, by names without "blk.N."


@dataclasses.dataclass(frozen=True)
class Probe:
    """A sample of calibration blocks in front of a layer."""

    architecture: Architecture
    number: int  # of the layer
    hidden: torch.Tensor  # float32 [b, t, hidden], the layer's input
    positions: Positions

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Those of the layer."""
        return stages(self.architecture, self.number)

    def layer(self, weights: Mapping[str, torch.Tensor], linear: Linear | None = None) -> Layer:
        """The layer with given weights; its matrices' products by ``linear`` if that is given."""
        return Layer(self.architecture, self.number, weights, self.positions, linear)

    def change(
        self, weights: Mapping[str, torch.Tensor], linear: Linear | None = None
    ) -> torch.Tensor:
        """What the layer adds to the stream, [b, t, hidden]; takes what :meth:`layer` takes."""
        return self.layer(weights, linear).run(self.hidden) - self.hidden

    def inputs(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What the matrices of each stage read, [b, t, k], by the stage's name."""
        return {step.stage.name: step.x for step in self.layer(weights).steps(self.hidden)}
