"""One decoder layer with error compensation: each matrix is rounded for what it will really read.

Owns the walk through a layer in four stages (query, key and value; output; gate and up; down): the
sums that a stage needs come from hidden states that every matrix before it, rounded already, has
made. Refuses files, grids and methods: it asks its caller to round each stage's matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from awq_edge import torch_decoder
from awq_edge.architecture import Architecture
from awq_edge.quantize.calibration import Products
from awq_edge.quantize.hidden_states import HiddenStates
from awq_edge.torch_decoder import Positions

STAGES = (
    ("attn_q", "attn_k", "attn_v"),
    ("attn_output",),
    ("ffn_gate", "ffn_up"),
    ("ffn_down",),
)

# Rounds the named matrices, which read inputs of these mean products; gives the float weights that
# the runtime will compute with, by "attn_q.weight" and so on.
RoundMatrices = Callable[[tuple[str, ...], torch.Tensor], Mapping[str, torch.Tensor]]
# Hears of a stage's matrices, the segment, a batch of blocks and what the matrices read for them.
Watch = Callable[[tuple[str, ...], int, slice, torch.Tensor], None]


class StagedLayer:
    """One layer on its way from float to rounded."""

    def __init__(
        self,
        architecture: Architecture,
        layer: int,
        weights: dict[str, torch.Tensor],
        positions: Positions,
        round_matrices: RoundMatrices,
        means: Callable[[Iterable[tuple[int, Products]], Products], torch.Tensor],
        watch: Watch | None = None,
    ) -> None:
        """Takes the layer.

        Args:
            architecture: The decoder.
            layer: Which one.
            weights: Its tensors; a matrix is replaced as soon as it is rounded.
            positions: Rotations.
            round_matrices: Rounds a stage.
            means: Of the products of all segments, which are made one after the other as they are
                asked for; the last argument is an empty one.
            watch: Sees every batch of every stage, before the stage is rounded.
        """
        self._architecture = architecture
        self._layer = layer
        self._weights = weights
        self._positions = positions
        self._round_matrices = round_matrices
        self._means = means
        self._watch = watch
        self._linear = torch_decoder.plain_linear(weights)  # follows the replacements

    def run(
        self,
        before: HiddenStates,
        mixed: HiddenStates,
        gated: HiddenStates,
        after: HiddenStates,
        segments: Mapping[int, Sequence[slice]],
    ) -> None:
        """Rounds the layer and computes its output.

        Args:
            before: [b, t, hidden], what the layers before gave.
            mixed: [b, t, heads * head size], a place for what the output matrix reads.
            gated: [b, t, feed-forward], a place for what the down matrix reads.
            after: [b, t, hidden], a place for the layer's output.
            segments: Blocks that go together, by the segment whose sums they belong to.
        """

        def normed(batch: slice) -> torch.Tensor:
            return self._norm("attn_norm", before.read(batch))

        def mix(batch: slice) -> torch.Tensor:
            x = self._mixed(normed(batch))
            mixed.write(batch, x)
            return x

        def gate(batch: slice) -> torch.Tensor:
            x = self._gated(after.read(batch))
            gated.write(batch, x)
            return x

        batches = [batch for run in segments.values() for batch in run]
        self._round(STAGES[0], segments, normed)
        self._round(STAGES[1], segments, mix)
        for batch in batches:
            states = before.read(batch) + self._linear("attn_output", mixed.read(batch))
            after.write(batch, states)
        self._round(STAGES[2], segments, lambda b: self._norm("ffn_norm", after.read(b)))
        self._round(STAGES[3], segments, gate)
        for batch in batches:
            states = after.read(batch) + self._linear("ffn_down", gated.read(batch))
            after.write(batch, states)

    def _round(
        self,
        names: tuple[str, ...],
        segments: Mapping[int, Sequence[slice]],
        inputs: Callable[[slice], torch.Tensor],
    ) -> None:
        """Rounds a stage for the inputs that its matrices read from every batch."""
        weight = self._weights[f"{names[0]}.weight"]
        k, device = weight.shape[1], weight.device

        def summed(segment: int, batches: Sequence[slice]) -> Products:
            products = Products(k, device)
            for batch in batches:
                x = inputs(batch)
                products.add(x)
                if self._watch is not None:
                    self._watch(names, segment, batch, x)
            return products

        parts = ((segment, summed(segment, batches)) for segment, batches in segments.items())
        self._weights.update(self._round_matrices(names, self._means(parts, Products(k, device))))

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        epsilon = self._architecture.norm_epsilon
        return torch_decoder.rms_norm(x, self._weights[f"{name}.weight"], epsilon)

    def _mixed(self, x: torch.Tensor) -> torch.Tensor:
        """The heads' results, [b, t, heads * head size], for normed states x."""
        return torch_decoder.attention(
            self._architecture, self._layer, self._weights, self._without("attn_output"), x,
            self._positions,
        )  # fmt: skip

    def _gated(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the down matrix reads."""
        x = self._norm("ffn_norm", hidden)
        return torch_decoder.feed_forward(self._without("ffn_down"), x)

    def _without(self, last: str) -> torch_decoder.Linear:
        """The layer's multiplication, but the named matrix hands its input on."""

        def linear(name: str, x: torch.Tensor) -> torch.Tensor:
            return x if name == last else self._linear(name, x)

        return linear
