"""The hidden states of one layer on its way, a batch of blocks at a time.

Owns where the layer's input, its output and what its stages read are kept, and the steps from one
to the next. Refuses to know whose blocks these are, and when a step is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from awq_edge.calibration.hidden_states import HiddenStates
from awq_edge.stages import Origin, Stage, is_kept
from awq_edge.torch_decoder import Layer
from awq_edge.torch_router import Routes


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
            inputs: Places [b, t, k] for what the stages read whose inputs are kept
                (``stages.is_kept``), by their names.
        """
        self.layer = layer
        self._before = before
        self._after = after
        self._inputs = inputs
        self._routed: dict[tuple[int, int], Routes] = {}  # by the first block and the last

    def read(self, stage: Stage, blocks: slice) -> torch.Tensor:
        """What a stage's matrices read, [b, t, k]; an expert's [n, k]."""
        if stage.routers:
            return self._routed_input(stage, blocks)
        if stage.origin is Origin.STREAM:
            return self.layer.input(stage, self.stream(stage, blocks))
        if stage.expert is not None:
            begun = self._inputs[self._first_of(stage).name].read(blocks)
            return self.layer.input(stage, begun, self.routed(blocks))
        return self._inputs[stage.name].read(blocks)

    def routed(self, blocks: slice) -> Routes | None:
        """Where the rows of blocks go, once the first stage of the experts' branch was read."""
        return self._routed.get((blocks.start, blocks.stop))

    def importance(self, blocks: slice, expert: int, shape: Sequence[int]) -> torch.Tensor:
        """What an error of an expert's outputs is multiplied by for every row, [b, t, 1].

        Args:
            blocks: Which blocks.
            expert: The expert; 0 for rows that do not reach it.
            shape: Of what they read, [b, t, k].
        """
        routed = self.routed(blocks)
        assert routed is not None
        rows, importance = routed.rows(expert), routed.importance(expert)
        if rows is not None:
            importance = importance.new_zeros(len(routed.odds), 1).index_copy(0, rows, importance)
        return importance.view(*shape[:-1], 1)

    def _routed_input(self, first: Stage, blocks: slice) -> torch.Tensor:
        """Keeps what all experts read: the first of them that adds changes the stream."""
        if self.routed(blocks) is None:
            x = self.layer.input(first, self.stream(first, blocks))
            self._inputs[first.name].write(blocks, x)
            routed = self.layer.routes(first, x)
            assert routed is not None
            self._routed[blocks.start, blocks.stop] = routed
        return self._inputs[first.name].read(blocks)

    def _first_of(self, stage: Stage) -> Stage:
        return next(one for one in self.layer.stages if set(stage.made_of) & set(one.matrices))

    def make(self, stage: Stage, blocks: slice, begun: torch.Tensor) -> torch.Tensor:
        """Computes what a stage's matrices will read, and keeps it unless it is an expert's.

        Args:
            stage: One that does not read the stream.
            blocks: Which blocks.
            begun: What the first stage of its branch reads for them.
        """
        x = self.layer.input(stage, begun, self.routed(blocks))
        if is_kept(stage):
            self._inputs[stage.name].write(blocks, x)
        return x

    def add(self, stage: Stage, blocks: slice, x: torch.Tensor) -> None:
        """Adds to the stream what a stage gives for its input x."""
        stream = self.stream(stage, blocks)
        output = self.layer.output(stage, x, self.routed(blocks)).view(stream.shape)
        self._after.write(blocks, self.layer.taken_up(stage, stream, output))

    def add_branch(self, first: Stage, blocks: slice, x: torch.Tensor) -> None:
        """Adds to the stream what a whole branch of experts gives for the first stage's input x."""
        output = self.layer.branch(first, x, self.routed(blocks))
        self._after.write(blocks, self.stream(first, blocks) + output)

    def stream(self, stage: Stage, blocks: slice) -> torch.Tensor:
        """The stream that a stage reads or adds to, [b, t, hidden]."""
        first = next(number for number, one in enumerate(self.layer.stages) if one.adds)
        # Something has been added, and the stage's branch does not lie beside it.
        done = self.layer.stages.index(stage) > first and not stage.beside
        return (self._after if done else self._before).read(blocks)
