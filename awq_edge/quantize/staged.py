"""One decoder layer with error compensation: each matrix is rounded for what it will really read.

Owns the walk through a layer in four stages (query, key and value; output; gate and up; down): the
sums that a stage needs come from hidden states that every matrix before it, rounded already, has
made. Refuses files, grids and methods: it asks its caller to round each stage's matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

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
        sum_up: Callable[[Products], torch.Tensor],
    ) -> None:
        """Takes the layer.

        Args:
            architecture: The decoder.
            layer: Which one.
            weights: Its tensors; a matrix is replaced as soon as it is rounded.
            positions: Rotations.
            round_matrices: Rounds a stage.
            sum_up: Gives the means of a stage's products, over all processes.
        """
        self._architecture = architecture
        self._layer = layer
        self._weights = weights
        self._positions = positions
        self._round_matrices = round_matrices
        self._sum_up = sum_up
        self._linear = torch_decoder.plain_linear(weights)  # follows the replacements

    def run(self, hidden: torch.Tensor, batches: Iterable[slice]) -> None:
        """Rounds the layer and replaces the hidden states by its output.

        Args:
            hidden: float32 [b, t, hidden], in the CPU's memory; what the layers before gave.
            batches: Blocks that go together, of all of ``hidden``.
        """
        a = self._architecture
        device = self._weights["attn_norm.weight"].device
        slices = list(batches)

        products = Products(a.hidden_size, device)
        for batch in slices:
            products.add(self._norm("attn_norm", hidden[batch].to(device)))
        self._finish(STAGES[0], products)

        width = a.heads * a.head_size
        products = Products(width, device)
        mixed = torch.empty(*hidden.shape[:2], width)  # what the output matrix reads
        for batch in slices:
            x = self._mixed(self._norm("attn_norm", hidden[batch].to(device)))
            products.add(x)
            mixed[batch] = x.cpu()
        self._finish(STAGES[1], products)
        for batch in slices:
            hidden[batch] += self._linear("attn_output", mixed[batch].to(device)).cpu()
        del mixed

        products = Products(a.hidden_size, device)
        for batch in slices:
            products.add(self._norm("ffn_norm", hidden[batch].to(device)))
        self._finish(STAGES[2], products)

        products = Products(a.feed_forward_size, device)
        for batch in slices:
            products.add(self._gated(hidden[batch].to(device)))
        self._finish(STAGES[3], products)
        for batch in slices:
            x = self._gated(hidden[batch].to(device))
            hidden[batch] += self._linear("ffn_down", x).cpu()

    def _finish(self, names: tuple[str, ...], products: Products) -> None:
        self._weights.update(self._round_matrices(names, self._sum_up(products)))

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
