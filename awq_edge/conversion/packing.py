"""What becomes of a matrix: rounded, packed, and written to a file of its own.

Owns the order from float rows to packed bytes. Refuses to choose: methods give the plan, ``widths``
the bits, and what is calibrated comes as limits and Hessians.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from awq_edge import layouts
from awq_edge.conversion.options import Options
from awq_edge.conversion.work_directory import WorkDirectory
from awq_edge.float_model import FloatModel
from awq_edge.quantize import coupling, gptq, grids, grouped
from awq_edge.quantize.grouped import Quantiser
from awq_edge.quantize.probe import Weights
from awq_edge.stages import matrices

# Rows of the embedding and the head that are in memory at once, times columns.
_ROW_BLOCK_FLOATS = 1 << 23
_WRITERS = 4  # matrices that are packed at once beside a GPU's work


class Packer:
    """Turns float matrices into packed files of the work directory."""

    def __init__(
        self,
        source: FloatModel,
        options: Options,
        widths: Mapping[str, Quantiser],
        device: torch.device,
        work: WorkDirectory,
    ) -> None:
        """Packs matrices of ``source``, each with the bits and groups that ``widths`` says."""
        self._source = source
        self._options = options
        self._widths = widths
        self._device = device
        self._work = work
        self._writers = ThreadPoolExecutor(_WRITERS)
        self._unsettled: list[Future[None]] = []

    def layer_quantisers(self, layer: int) -> dict[str, Quantiser]:
        """Bits and groups of a layer's matrices."""
        return {
            name: self._widths[f"blk.{layer}.{name}.weight"]
            for name in matrices(self._source.architecture, layer)
        }

    def packed_rows(self, name: str) -> Iterator[tuple[int, torch.Tensor]]:
        """Packs a matrix in blocks of rows; yields each block as the runtime will see it."""
        n, k = self._source.shape(name)
        bits, group_size = self._widths[name].bits, self._widths[name].group_size
        shares = self._options.plan(bits).shares
        costs = torch.ones(k, device=self._device)
        with self._work.matrix_file(name) as file:
            file.write(layouts.header(layouts.Layout(n, k, bits, group_size)))
            for first, block in self._source.row_blocks(name, self._rows_at_once(k)):
                weight = block.to(self._device)
                if bits < 8 and shares:
                    grid = grids.best(weight, costs, bits, group_size, shares, name=name)
                    quantised = grid.rounded(weight)
                else:
                    quantised = grouped.quantise(weight, bits, group_size, name=name)
                file.write(packed_blocks(quantised))
                yield first, quantised.dequantise()

    def store_head(self, hessian: gptq.Hessian) -> None:
        """Packs the head with GPTQ in blocks of rows."""
        name = "output.weight"
        n, k = self._source.shape(name)
        bits, group_size = self._widths[name].bits, self._widths[name].group_size
        with self._work.matrix_file(name) as file:
            file.write(layouts.header(layouts.Layout(n, k, bits, group_size)))
            for _, block in self._source.row_blocks(name, self._rows_at_once(k)):
                for part in self._compensated([name], block.to(self._device), hessian, None):
                    file.write(packed_blocks(part))

    def store_stage(
        self,
        layer: int,
        weights: dict[str, torch.Tensor],
        hessian: gptq.Hessian,
        limits: Mapping[str, torch.Tensor],
        moments: dict[str, torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """Packs matrices of a layer with GPTQ.

        Args:
            layer: Which one.
            weights: Its matrices that read the same input, by "attn_q.weight" and so on; used up.
            hessian: Of this input.
            limits: Of those that are clipped, [n, groups, 2], by "attn_q" and so on.
            moments: Of the gradients by the outputs of those whose outputs make up for each
                other's errors, [runs, outputs, outputs], by "attn_q" and so on; used up.

        Returns:
            The weights as the runtime will see them, by the same names.
        """
        rounded = {}
        for names in self._rounded_together(layer, weights, moments):
            full = [f"blk.{layer}.{name}" for name in names]
            stems = [name[: -len(".weight")] for name in names]
            if stems[0] in moments:
                whole = self._coupled(
                    full,
                    [weights.pop(name) for name in names],
                    hessian,
                    [moments.pop(stem) for stem in stems],
                )
            else:
                parts = self._compensated(
                    full,
                    _stacked([weights.pop(name) for name in names]),
                    hessian,
                    self._stacked_limits(full, names, limits),
                )
                whole = grouped.joined(list(parts))
            first = 0
            for name in names:
                end = first + self._source.shape(f"blk.{layer}.{name}")[0]
                quantised = whole.rows(first, end)
                self._store(f"blk.{layer}.{name}", quantised)
                rounded[name] = quantised.dequantise()
                first = end
        return rounded

    def store_layer(
        self, layer: int, weights: Weights, limits: dict[str, torch.Tensor], *, computed: bool
    ) -> None:
        """Packs every tensor.

        Args:
            layer: Which one.
            weights: Its tensors.
            limits: Of those that are clipped, by "attn_q" and so on.
            computed: Whether the weights become those that the runtime will compute with.
        """
        self.store_vectors(layer, weights)
        for stem, quantiser in self.layer_quantisers(layer).items():
            full = f"blk.{layer}.{stem}.weight"
            quantised = grouped.quantise(
                weights[f"{stem}.weight"],
                quantiser.bits,
                quantiser.group_size,
                limits.get(stem),
                full,
            )
            self._store(full, quantised)
            if computed:
                weights[f"{stem}.weight"] = quantised.dequantise()

    def store_vectors(self, layer: int, weights: Weights) -> None:
        """Keeps norms and biases."""
        for name in weights:
            if len(self._source.shape(f"blk.{layer}.{name}")) == 1:
                self._work.store_vector(f"blk.{layer}.{name}", weights[name].cpu().numpy())

    def close(self) -> None:
        """Waits until nothing is written any more, whether it is wanted or not."""
        self._writers.shutdown()

    def unsettled(self) -> list[Future[None]]:
        """What was stored since the last call and may not lie in its file yet."""
        unsettled, self._unsettled = self._unsettled, []
        return unsettled

    def _rows_at_once(self, k: int) -> int:
        return max(_ROW_BLOCK_FLOATS // k // layouts.BLOCK_ROWS, 1) * layouts.BLOCK_ROWS

    def _rounded_together(
        self, layer: int, names: Iterable[str], moments: Mapping[str, torch.Tensor]
    ) -> list[list[str]]:
        """Matrices of one width, where more rows at once take hardly more time."""
        if self._device.type == "cpu" and not moments:
            return [[name] for name in names]
        by_width: dict[Quantiser, list[str]] = {}
        for name in names:
            by_width.setdefault(self._widths[f"blk.{layer}.{name}"], []).append(name)
        return list(by_width.values())

    def _stacked_limits(
        self, full: Sequence[str], names: Sequence[str], limits: Mapping[str, torch.Tensor]
    ) -> torch.Tensor | None:
        """Of all rows; infinite where a matrix is not clipped, None where none is."""
        stems = [name[: -len(".weight")] for name in names]
        if not any(stem in limits for stem in stems):
            return None
        parts = []
        for stem, name in zip(stems, full):
            n, k = self._source.shape(name)
            groups = -(-k // self._widths[name].group_size)
            unlimited = torch.tensor([-torch.inf, torch.inf], device=self._device)
            parts.append(limits.get(stem, unlimited.expand(n, groups, 2)))
        return _stacked(parts)

    def _compensated(
        self,
        names: Sequence[str],
        weight: torch.Tensor,
        hessian: gptq.Hessian,
        limits: torch.Tensor | None,
    ) -> Iterator[grouped.Quantised]:
        """Some rows after the other of the named matrices' weight, all of one width."""
        choose_grid = self._grid_chooser(names, hessian, limits)
        return gptq.quantise(
            weight, hessian, choose_grid, self._options.plan(self._widths[names[0]].bits).rounds
        )

    def _coupled(
        self,
        names: Sequence[str],
        weights: list[torch.Tensor],
        hessian: gptq.Hessian,
        moments: list[torch.Tensor],
    ) -> grouped.Quantised:
        """The named matrices, all of one width, outputs making up for each other's errors."""
        choose_grid = self._grid_chooser(names, hessian, None)

        def choose(part: torch.Tensor) -> grids.Grid:
            return choose_grid(part, slice(0, len(part)))

        rounds = self._options.plan(self._widths[names[0]].bits).rounds
        return grouped.joined(coupling.quantise(weights, hessian, moments, choose, rounds))

    def _grid_chooser(
        self, names: Sequence[str], hessian: gptq.Hessian, limits: torch.Tensor | None
    ) -> gptq.ChooseGrid:
        bits, group_size = self._widths[names[0]].bits, self._widths[names[0]].group_size
        plan, costs, either = self._options.plan(bits), hessian.conditional(), " or ".join(names)

        def choose_grid(part: torch.Tensor, rows: slice) -> grids.Grid:
            if plan.shares:
                return grids.best(part, costs, bits, group_size, plan.shares, name=either)
            within = None if limits is None else limits[rows]
            return grids.spanning(part, bits, group_size, within, either)

        return choose_grid

    def _store(self, name: str, quantised: grouped.Quantised) -> None:
        """Packs a whole matrix into its file, while a GPU goes on with other work."""
        if self._device.type == "cpu":
            self._write(name, quantised)
        else:
            copied = quantised.on_cpu()
            self._unsettled.append(self._writers.submit(self._write, name, copied))

    def _write(self, name: str, quantised: grouped.Quantised) -> None:
        write_matrix(self._work, name, quantised)


def write_matrix(work: WorkDirectory, name: str, quantised: grouped.Quantised) -> None:
    """Packs a whole matrix into a file of the work directory."""
    n, k = quantised.codes.shape
    with work.matrix_file(name) as file:
        layout = layouts.Layout(n, k, quantised.bits, quantised.group_size)
        file.write(layouts.header(layout))
        file.write(packed_blocks(quantised))


def _stacked(matrices: Sequence[torch.Tensor]) -> torch.Tensor:
    return matrices[0] if len(matrices) == 1 else torch.cat(list(matrices))


def packed_blocks(quantised: grouped.Quantised) -> bytes:
    """The bytes of whole blocks of rows, without a header."""
    on_cpu = quantised.on_cpu()
    return layouts.pack_blocks(
        on_cpu.codes.numpy(),
        on_cpu.scales.numpy(),
        on_cpu.zeros.numpy(),
        on_cpu.bits,
        on_cpu.group_size,
    )
