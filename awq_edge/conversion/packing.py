"""What becomes of a matrix: rounded, packed, and written to a file of its own.

Owns the order from float rows to packed bytes. Refuses to choose: methods give the plan, ``widths``
the bits, and what is calibrated comes as limits and Hessians.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch

from awq_edge import layouts
from awq_edge.conversion.options import Options
from awq_edge.conversion.work_directory import WorkDirectory
from awq_edge.float_model import FloatModel
from awq_edge.quantize import awq, gptq, grids, grouped, methods
from awq_edge.torch_decoder import LINEARS

# Rows of the embedding and the head that are in memory at once, times columns.
_ROW_BLOCK_FLOATS = 1 << 23


class Packer:
    """Turns float matrices into packed files of the work directory."""

    def __init__(
        self,
        source: FloatModel,
        options: Options,
        widths: Mapping[str, awq.Quantiser],
        work: WorkDirectory,
    ) -> None:
        """Packs matrices of ``source``, each with the bits and groups that ``widths`` says."""
        self._source = source
        self._options = options
        self._widths = widths
        self._work = work

    def plan(self, bits: int) -> methods.Plan:
        """What the method means at a width."""
        return methods.plan(self._options.method, bits, self._options.without)

    def layer_quantisers(self, layer: int) -> dict[str, awq.Quantiser]:
        """Bits and groups of a layer's matrices."""
        return {name: self._widths[f"blk.{layer}.{name}.weight"] for name in LINEARS}

    def rows_at_once(self, k: int) -> int:
        """How many rows of k inputs are worked on together."""
        return max(_ROW_BLOCK_FLOATS // k // layouts.BLOCK_ROWS, 1) * layouts.BLOCK_ROWS

    def packed_rows(self, name: str) -> Iterator[tuple[int, torch.Tensor]]:
        """Packs a matrix in blocks of rows; yields each block as the runtime will see it."""
        n, k = self._source.shape(name)
        bits, group_size = self._widths[name].bits, self._widths[name].group_size
        shares = self.plan(bits).shares
        with self._work.matrix_file(name) as file:
            file.write(layouts.header(layouts.Layout(n, k, bits, group_size)))
            for first, block in self._source.row_blocks(name, self.rows_at_once(k)):
                if bits < 8 and shares:
                    grid = grids.best(block, torch.ones(k), bits, group_size, shares)
                    quantised = grid.rounded(block)
                else:
                    quantised = grouped.quantise(block, bits, group_size, name=name)
                file.write(_packed_blocks(quantised))
                yield first, quantised.dequantise()

    def compensated_rows(
        self,
        name: str,
        blocks: Iterable[torch.Tensor],
        hessian: gptq.Hessian,
        limits: Mapping[str, torch.Tensor | None],
    ) -> Iterator[torch.Tensor]:
        """Packs a matrix with GPTQ; yields its rows as the runtime will see them.

        Args:
            name: The matrix.
            blocks: Its float rows, multiples of 4 at a time.
            hessian: Of its input.
            limits: Clip limits of whole matrices.
        """
        bits, group_size = self._widths[name].bits, self._widths[name].group_size
        plan, within = self.plan(bits), limits.get(name)
        costs = hessian.conditional()

        def choose_grid(part: torch.Tensor, rows: slice) -> grids.Grid:
            if plan.shares:
                return grids.best(part, costs, bits, group_size, plan.shares)
            return grids.spanning(
                part, bits, group_size, None if within is None else within[rows], name
            )

        n, k = self._source.shape(name)
        with self._work.matrix_file(name) as file:
            file.write(layouts.header(layouts.Layout(n, k, bits, group_size)))
            for block in blocks:
                for _, quantised in gptq.quantise(block, hessian, choose_grid, plan.rounds):
                    file.write(_packed_blocks(quantised))
                    yield quantised.dequantise()

    def store_layer(
        self, layer: int, weights: awq.Weights, limits: dict[str, torch.Tensor]
    ) -> None:
        """Packs every tensor; the weights become those that the runtime will compute with."""
        self.store_vectors(layer, weights)
        for stem, quantiser in self.layer_quantisers(layer).items():
            full = f"blk.{layer}.{stem}.weight"
            bits, group_size = quantiser.bits, quantiser.group_size
            quantised = grouped.quantise(
                weights[f"{stem}.weight"], bits, group_size, limits.get(stem), full
            )
            with self._work.matrix_file(full) as file:
                n, k = quantised.codes.shape
                file.write(layouts.header(layouts.Layout(n, k, bits, group_size)))
                file.write(_packed_blocks(quantised))
            weights[f"{stem}.weight"] = quantised.dequantise()

    def store_vectors(self, layer: int, weights: awq.Weights) -> None:
        """Keeps norms and biases."""
        for name, values in weights.items():
            if values.dim() == 1:
                self._work.store_vector(f"blk.{layer}.{name}", values.cpu().numpy())


def _packed_blocks(quantised: grouped.Quantised) -> bytes:
    return layouts.pack_blocks(
        quantised.codes.cpu().numpy(),
        quantised.scales.cpu().numpy(),
        quantised.zeros.cpu().numpy(),
        quantised.bits,
        quantised.group_size,
    )
