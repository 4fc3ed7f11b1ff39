"""One decoder layer with error compensation: each matrix is rounded for what it will really read.

Owns the walk through a layer in four stages (query, key and value; output; gate and up; down): the
sums that a stage needs come from hidden states that every matrix before it, rounded already, has
made. Refuses files, grids and methods: it asks its caller to round each stage's matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from awq_edge import torch_decoder
from awq_edge.architecture import Architecture
from awq_edge.quantize.calibration import Products
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


class StagedLayer:
    """One layer on its way from float to rounded."""

    def __init__(
        self,
        architecture: Architecture,
        layer: int,
        weights: dict[str, torch.Tensor],
        positions: Positions,
        round_matrices: RoundMatrices,
        means: Callable[[dict[int, Products], Products], torch.Tensor],
    ) -> None:
        """Takes the layer.

        Args:
            architecture: The decoder.
            layer: Which one.
            weights: Its tensors; a matrix is replaced as soon as it is rounded.
            positions: Rotations.
            round_matrices: Rounds a stage.
            means: Of the products of all segments, by segment; the last argument is an empty one.
        """
        self._architecture = architecture
        self._layer = layer
        self._weights = weights
        self._positions = positions
        self._round_matrices = round_matrices
        self._means = means
        self._linear = torch_decoder.plain_linear(weights)  # follows the replacements

    def run(self, hidden: torch.Tensor, segments: Mapping[int, Sequence[slice]]) -> None:
        """Rounds the layer and replaces the hidden states by its output.

        Args:
            hidden: float32 [b, t, hidden], in the CPU's memory; what the layers before gave.
            segments: Blocks that go together, by the segment whose sums they belong to.
        """
        device = self._weights["attn_norm.weight"].device
        slices = [batch for batches in segments.values() for batch in batches]

        def states(batch: slice) -> torch.Tensor:
            return hidden[batch].to(device)

        self._round(STAGES[0], segments, lambda b: self._norm("attn_norm", states(b)))
        self._attention_output(hidden, segments)
        self._round(STAGES[2], segments, lambda b: self._norm("ffn_norm", states(b)))
        self._round(STAGES[3], segments, lambda b: self._gated(states(b)))
        for batch in slices:
            hidden[batch] += self._linear("ffn_down", self._gated(states(batch))).cpu()

    def _attention_output(
        self, hidden: torch.Tensor, segments: Mapping[int, Sequence[slice]]
    ) -> None:
        """The second stage; adds the attention's output to the hidden states."""
        a = self._architecture
        device = self._weights["attn_norm.weight"].device
        kept = torch.empty(*hidden.shape[:2], a.heads * a.head_size)

        def mix(batch: slice) -> torch.Tensor:
            x = self._mixed(self._norm("attn_norm", hidden[batch].to(device)))
            kept[batch] = x.cpu()
            return x

        self._round(STAGES[1], segments, mix)
        for batches in segments.values():
            for batch in batches:
                hidden[batch] += self._linear("attn_output", kept[batch].to(device)).cpu()

    def _round(
        self,
        names: tuple[str, ...],
        segments: Mapping[int, Sequence[slice]],
        inputs: Callable[[slice], torch.Tensor],
    ) -> None:
        """Rounds a stage for the inputs that its matrices read from every batch."""
        weight = self._weights[f"{names[0]}.weight"]
        k = weight.shape[1]
        parts = {}
        for segment, batches in segments.items():
            parts[segment] = Products(k, weight.device)
            for batch in batches:
                parts[segment].add(inputs(batch))
        means = self._means(parts, Products(k, weight.device))
        del parts
        self._weights.update(self._round_matrices(names, means))

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
