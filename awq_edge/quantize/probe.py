"""A layer with a sample of what it reads, on which weights are compared by what they do.

Owns the layer's float inputs and outputs for the sample. Refuses to choose: searches ask it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, MutableMapping

import torch

from awq_edge.architecture import Architecture
from awq_edge.stages import Stage, read_together, stages
from awq_edge.torch_decoder import Layer, Linear, Positions

Weights = MutableMapping[str, torch.Tensor]  # of a layer, by names without "blk.N."


_SAMPLED_ROWS = 1 << 14  # of all experts together: as many as a wide feed-forward has


@dataclasses.dataclass(frozen=True)
class Probe:
    """A sample of calibration blocks in front of a layer."""

    architecture: Architecture
    number: int  # of the layer
    hidden: torch.Tensor  # float32 [b, t, hidden], the layer's input
    positions: Positions
    floors: torch.Tensor | None = None  # as torch_decoder.Layer takes them

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Those of the layer."""
        return stages(self.architecture, self.number)

    def layer(self, weights: Mapping[str, torch.Tensor], linear: Linear | None = None) -> Layer:
        """The layer with given weights; its matrices' products by ``linear`` if that is given."""
        return Layer(
            self.architecture, self.number, weights, self.positions, linear, floors=self.floors
        )

    def change(
        self, weights: Mapping[str, torch.Tensor], linear: Linear | None = None
    ) -> torch.Tensor:
        """What the layer adds to the stream, [b, t, hidden]; takes what :meth:`layer` takes."""
        return self.layer(weights, linear).run(self.hidden) - self.hidden

    def inputs(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What each stage's matrices read, [b, t, k], by the stage's name; an expert's [n, k]."""
        return {step.stage.name: step.x for step in self.layer(weights).steps(self.hidden)}


def rows_of(stage: Stage, weights: Weights) -> torch.Tensor:
    """The rows of a stage's matrices, one after the other, [n, k]; of experts a sample of each."""
    parts = read_together(stage)
    if len(parts) == 1:
        return torch.cat([weights[f"{name}.weight"] for name in stage.matrices])
    each = max(1, _SAMPLED_ROWS // len(stage.matrices))
    sampled = []
    for name in stage.matrices:
        weight = weights[f"{name}.weight"]
        count = min(each, len(weight))
        chosen = torch.linspace(0, len(weight) - 1, count, device=weight.device).round().long()
        sampled.append(weight[chosen])
    return torch.cat(sampled)
