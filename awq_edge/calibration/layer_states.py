"""The hidden states of one layer on its way, a batch of blocks at a time.

Owns where the layer's input, its output and what its stages read are kept, and the steps from one
to the next. Refuses to know whose blocks these are, and when a step is taken.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from awq_edge.calibration.hidden_states import HiddenStates
from awq_edge.stages import Origin, Stage
from awq_edge.torch_decoder import Layer


class LayerStates:
    """States [b, t, width] of a layer."""

    def __init__(
        self,
        layer: Layer,
        before: HiddenStates,
        after: HiddenStates,
        inputs: Mapping[str, HiddenStates],
    ) -> None:
        """Takes the layer and the places of its states.

        Args:
            layer: Multiplies by its weights as they stand.
            before: [b, t, hidden], what the layers before gave.
            after: [b, t, hidden], a place for the stream behind the stages done, in the end the
                layer's output.
            inputs: Places [b, t, k] for what the stages read that do not read the stream, by their
                names.
        """
        self.layer = layer
        self._before = before
        self._after = after
        self._inputs = inputs

    def read(self, stage: Stage, blocks: slice) -> torch.Tensor:
        """What a stage's matrices read, [b, t, k]."""
        if stage.origin is Origin.STREAM:
            return self.layer.input(stage, self.stream(stage, blocks))
        return self._inputs[stage.name].read(blocks)

    def make(self, stage: Stage, blocks: slice, begun: torch.Tensor) -> torch.Tensor:
        """Computes and keeps what a stage's matrices will read.

        Args:
            stage: One that does not read the stream.
            blocks: Which blocks.
            begun: What the first stage of its branch reads for them.
        """
        x = self.layer.input(stage, begun)
        self._inputs[stage.name].write(blocks, x)
        return x

    def add(self, stage: Stage, blocks: slice, x: torch.Tensor) -> None:
        """Adds to the stream what a stage gives for its input x."""
        stream = self.stream(stage, blocks)
        self._after.write(blocks, self.layer.taken_up(stage, stream, self.layer.output(stage, x)))

    def stream(self, stage: Stage, blocks: slice) -> torch.Tensor:
        """The stream that a stage reads or adds to, [b, t, hidden]."""
        first = next(number for number, one in enumerate(self.layer.stages) if one.adds)
        # Something has been added, and the stage's branch does not lie beside it.
        done = self.layer.stages.index(stage) > first and not stage.beside
        return (self._after if done else self._before).read(blocks)
