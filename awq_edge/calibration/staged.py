"""One decoder layer with error compensation: each matrix is rounded for what it will really read.

Owns the walk through a layer stage by stage: the sums that a stage needs come from hidden states
that every matrix before it, rounded already, has made. Refuses files, grids and methods: it asks
its caller to round each stage's matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Optional

import torch

from awq_edge.calibration.layer_states import LayerStates
from awq_edge.quantize.halves import Half
from awq_edge.quantize.statistics import Products, shares_of
from awq_edge.stages import Origin, Stage, input_width, read_together

# Rounds some of a stage's matrices, which read inputs of these mean products; the layer computes
# with what they became from then on.
RoundMatrices = Callable[[Stage, tuple[str, ...], Half], None]
# The means of the products of all segments, which are made one after the other as they are asked
# for; the last argument is an empty one.
Means = Callable[[Iterable[tuple[int, Products]], Products], Half]
# Hears of a stage, the segment, a batch of blocks, what the stage's matrices read for them, what a
# norm behind the stage multiplies their tokens by, or None, and which expert's matrices these are.
Watch = Callable[[Stage, int, slice, torch.Tensor, Optional[torch.Tensor], Optional[int]], None]


class StagedLayer:
    """One layer on its way from float to rounded."""

    def __init__(
        self,
        states: LayerStates,
        segments: Mapping[int, Sequence[slice]],
        round_matrices: RoundMatrices,
        means: Means,
        watch: Watch | None = None,
    ) -> None:
        """Takes the layer.

        Args:
            states: The layer and its states.
            segments: Batches of blocks, by the segment whose sums they belong to.
            round_matrices: Rounds a stage.
            means: Of products.
            watch: Sees every batch of every stage, before the stage is rounded.
        """
        self._states = states
        self._layer = states.layer
        self._segments = segments
        self._round_matrices = round_matrices
        self._means = means
        self._watch = watch

    def run(self) -> None:
        """Rounds the layer and computes its output."""
        for stage in self._layer.stages:
            if stage.origin is Origin.STREAM:
                first = stage
            self._round(first, stage)
            if stage.adds:
                for batches in self._segments.values():
                    for batch in batches:
                        self._states.add(stage, batch, self._states.read(stage, batch))

    def _round(self, first: Stage, stage: Stage) -> None:
        """Rounds a stage of the branch that begins with ``first``."""
        k = input_width(self._layer.architecture, stage)
        device = self._layer.weights[f"{stage.matrices[0]}.weight"].device

        def summed(
            segment: int, batches: Sequence[slice], expert: int | None, share: Sequence[slice]
        ) -> Products:
            products = Products(k, device, share)
            for batch in batches:
                again = share[0].start > 0  # what was made for the first share is kept
                x = self._states.read(stage if again else first, batch)
                if stage is not first and not again:
                    x = self._states.make(stage, batch, x)
                routed = self._states.routed(batch)
                behind = self._layer.factor_behind(stage, x, routed)
                if expert is None:
                    products.add(x if behind is None else x * behind)
                else:
                    assert routed is not None
                    products.add(routed.weighed(expert, x))
                if self._watch is not None and not again:
                    self._watch(stage, segment, batch, x, behind, expert)
            return products

        parts = read_together(stage)
        for number, part in enumerate(parts):
            # Each expert's own matrices read the rows that go there alone.
            expert = number if stage.routers else None
            segments = self._segments.items()
            strips: list[torch.Tensor] = []
            for share in shares_of(k):
                sums = (
                    (segment, summed(segment, batches, expert, share))
                    for segment, batches in segments
                )
                strips += self._means(sums, Products(k, device, share)).strips
            self._round_matrices(stage, part, Half(strips))
