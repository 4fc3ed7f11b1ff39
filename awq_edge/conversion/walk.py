"""The walk through the decoder: embedding, layer after layer, head.

Owns what is measured on the calibration tokens, and that every layer reads what the packed layers
before it give. Refuses packing (``packing``) and mathematics (``awq_edge.quantize``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from awq_edge import torch_decoder
from awq_edge.conversion.options import Options
from awq_edge.conversion.packing import Packer
from awq_edge.conversion.report import Events, LayerReport
from awq_edge.conversion.work_directory import WorkDirectory
from awq_edge.float_model import FloatModel
from awq_edge.quantize import awq, calibration, distributed, gptq, scales, staged
from awq_edge.torch_decoder import LINEARS, Positions

# Enough that the exponents hardly depend on which tokens they are (measured on novels-45m).
_PROBE_TOKENS = 4096
# Floats in the widest intermediate of one batch: 64 MiB each, whatever the model's size.
_BATCH_FLOATS = 1 << 24


class Walk:
    """The walk through one model, given everything that it needs."""

    def __init__(
        self,
        source: FloatModel,
        options: Options,
        widths: Mapping[str, awq.Quantiser],
        device: torch.device,
        work: WorkDirectory,
        events: Events,
        processes: distributed.Processes,
    ) -> None:
        """Walks ``source`` together with the other processes; what is done lies in ``work``."""
        self._source = source
        self._architecture = source.architecture
        self._options = options
        self._device = device
        self._work = work
        self._events = events
        self._widths = widths
        self._processes = processes
        self._packer = Packer(source, options, widths, work)
        self._blocks = 0  # of calibration, over all processes

    def run(self, blocks: torch.Tensor | None) -> None:
        """Makes every tensor file that is not there yet.

        Args:
            blocks: Calibration tokens, int64 [b, t]; None for a method that needs none.
        """
        a, work = self._architecture, self._work
        if blocks is not None:
            self._blocks = len(blocks)
            blocks = blocks[self._processes.blocks(len(blocks))]
        for report in work.layers:
            self._events.layer_done(report, a.layers)
        hidden = self._embedding(blocks)
        positions = None
        if hidden is not None:
            frequencies = torch.from_numpy(a.inverse_frequencies()).to(self._device)
            positions = Positions.first(hidden.shape[1], frequencies)
        for layer in range(len(work.layers), a.layers):
            weights = {
                name: tensor.to(self._device) for name, tensor in self._source.layer(layer).items()
            }
            if hidden is None or positions is None:
                self._events.layer_scaled(layer, weights)
                self._packer.store_layer(layer, weights, {})
                report = LayerReport(layer, None, None, {})
            else:
                report = self._calibrated_layer(layer, weights, hidden, positions)
            work.layer_done(report, hidden)
            self._events.layer_done(report, a.layers)
        if not a.tied_head:
            self._head(hidden)

    def _embedding(self, blocks: torch.Tensor | None) -> torch.Tensor | None:
        """Packs it, and gives the hidden states in front of the first unfinished layer."""
        a, work = self._architecture, self._work
        if work.layers:
            return work.hidden()
        work.store_vector("output_norm.weight", self._source("output_norm.weight").numpy())
        frequencies = a.inverse_frequencies()
        work.store_vector("rope.inverse_frequencies", frequencies)
        hidden = None
        if blocks is not None:
            hidden = torch.empty(*blocks.shape, a.hidden_size)
        for first, rows in self._packer.packed_rows("token_embd.weight"):
            if blocks is not None and hidden is not None:
                inside = (blocks >= first) & (blocks < first + len(rows))
                hidden[inside] = rows[blocks[inside] - first]
        return hidden

    def _head(self, hidden: torch.Tensor | None) -> None:
        """Packs the head, for the states that it will read if the method compensates."""
        name = "output.weight"
        a, quantiser = self._architecture, self._widths[name]
        if (
            hidden is None
            or quantiser.bits == 8
            or not self._packer.plan(quantiser.bits).compensated
        ):
            for _ in self._packer.packed_rows(name):
                pass
            return
        norm = self._source("output_norm.weight").to(self._device)
        parts = {}
        for segment, batches in self._segments(hidden).items():
            parts[segment] = calibration.Products(a.hidden_size, self._device)
            for batch in batches:
                states = hidden[batch].to(self._device)
                parts[segment].add(torch_decoder.rms_norm(states, norm, a.norm_epsilon))
        empty = calibration.Products(a.hidden_size, self._device)
        hessian = gptq.Hessian.of(self._processes.means(parts, empty))
        rows = self._packer.rows_at_once(a.hidden_size)
        blocks = (block.to(self._device) for _, block in self._source.row_blocks(name, rows))
        for _ in self._packer.compensated_rows(name, blocks, hessian, {}):
            pass

    def _calibrated_layer(
        self,
        layer: int,
        weights: awq.Weights,
        hidden: torch.Tensor,
        positions: Positions,
    ) -> LayerReport:
        """Searches, packs, and replaces ``hidden`` by what the quantised layer gives."""
        quantisers = self._packer.layer_quantisers(layer)
        plan = self._packer.plan(min(quantiser.bits for quantiser in quantisers.values()))
        count = max(1, min(self._blocks, _PROBE_TOKENS // hidden.shape[1]))
        chosen = torch.linspace(0, self._blocks - 1, count).round().long().tolist()
        sample = self._processes.gathered(hidden, chosen, self._blocks).to(self._device)
        probe = awq.Probe(self._architecture, layer, sample, positions)
        target = awq.layer_output(probe, weights)

        def rounding(name: str, x: torch.Tensor) -> torch.Tensor:
            rounded = quantisers[name].round_trip(weights[f"{name}.weight"])
            return torch_decoder.multiply(x, rounded, weights.get(f"{name}.bias"))

        error_rtn = _relative(awq.layer_change(probe, weights, rounding), target)
        choices: dict[str, awq.Choice] = {}
        limits: dict[str, torch.Tensor] = {}
        if plan.scales == "outputs" or plan.clipped:
            statistics = self._statistics(layer, weights, hidden, positions)
            if plan.scales == "outputs":
                quantiser = quantisers[LINEARS[0]]
                choices = awq.search_scales(probe, weights, statistics, quantiser)
            limits = {
                name: awq.clip_limits(
                    weights[f"{name}.weight"],
                    statistics[awq.INPUT_OF[name]].mean_products(),
                    quantisers[name],
                )
                for name in LINEARS
                if plan.clipped and name not in awq.NEVER_CLIPPED
            }
        if plan.scales == "pivots":
            choices = scales.search_and_fold(probe, weights, quantisers)
        if plan.compensated:
            self._compensate_layer(layer, weights, limits, hidden, positions)
        else:
            self._events.layer_scaled(layer, weights)
            self._packer.store_layer(layer, weights, limits)
            linear = torch_decoder.plain_linear(weights)
            for batch in self._batches(hidden):
                states = hidden[batch].to(self._device)
                hidden[batch] = torch_decoder.decoder_layer(
                    self._architecture, layer, weights, linear, states, positions
                ).cpu()
        error = _relative(awq.layer_output(probe, weights), target)
        return LayerReport(layer, error_rtn, error, choices)

    def _compensate_layer(
        self,
        layer: int,
        weights: awq.Weights,
        limits: dict[str, torch.Tensor],
        hidden: torch.Tensor,
        positions: Positions,
    ) -> None:
        """Rounds stage by stage, packs, and replaces ``hidden``; ``weights`` become the rounded."""
        self._events.layer_scaled(layer, weights)
        self._packer.store_vectors(layer, weights)

        def round_matrices(
            names: tuple[str, ...], products: torch.Tensor
        ) -> dict[str, torch.Tensor]:
            hessian = gptq.Hessian.of(products)
            rounded = {}
            for name in names:
                full = f"blk.{layer}.{name}.weight"
                parts = self._packer.compensated_rows(
                    full, [weights[f"{name}.weight"]], hessian, {full: limits.get(name)}
                )
                rounded[f"{name}.weight"] = torch.cat(list(parts))
            return rounded

        stages = staged.StagedLayer(
            self._architecture,
            layer,
            weights,
            positions,
            round_matrices,
            self._processes.means,
        )
        stages.run(hidden, self._segments(hidden))

    def _statistics(
        self, layer: int, weights: awq.Weights, hidden: torch.Tensor, positions: Positions
    ) -> dict[str, calibration.InputStatistics]:
        """Of every input of the float layer's matrices, over all calibration tokens."""
        a = self._architecture
        group_size = self._packer.layer_quantisers(layer)[LINEARS[0]].group_size

        def empty() -> dict[str, calibration.InputStatistics]:
            return {
                name: calibration.InputStatistics(
                    weights[f"{name}.weight"].shape[1], group_size, self._device
                )
                for name in sorted(set(awq.INPUT_OF.values()))
            }

        plain = torch_decoder.plain_linear(weights)
        parts = {}
        for segment, batches in self._segments(hidden).items():
            statistics = parts[segment] = empty()

            def recording(
                name: str,
                x: torch.Tensor,
                statistics: dict[str, calibration.InputStatistics] = statistics,
            ) -> torch.Tensor:
                if name in statistics:
                    statistics[name].update(x)
                if name == "ffn_down":
                    return x[..., : a.hidden_size]  # nobody reads it: spare the largest product
                return plain(name, x)

            for batch in batches:
                states = hidden[batch].to(self._device)
                x = torch_decoder.rms_norm(states, weights["attn_norm.weight"], a.norm_epsilon)
                mixed = torch_decoder.attention(a, layer, weights, recording, x, positions)
                states = states + mixed
                x = torch_decoder.rms_norm(states, weights["ffn_norm.weight"], a.norm_epsilon)
                torch_decoder.feed_forward(recording, x)
        return {
            name: whole.merged(
                {segment: part[name] for segment, part in parts.items()}, self._processes.total
            )
            for name, whole in empty().items()
        }

    def _segments(self, hidden: torch.Tensor) -> dict[int, list[slice]]:
        """Batches of this process's blocks, by segment."""
        a = self._architecture
        widest = max(a.feed_forward_size, a.hidden_size, a.heads * a.head_size)
        size = max(1, _BATCH_FLOATS // (hidden.shape[1] * widest))
        begin = self._processes.blocks(self._blocks).start
        return {
            segment: [
                slice(first - begin, min(first + size, part.stop) - begin)
                for first in range(part.start, part.stop, size)
            ]
            for segment, part in self._processes.segments(self._blocks)
        }

    def _batches(self, hidden: torch.Tensor) -> list[slice]:
        return [batch for batches in self._segments(hidden).values() for batch in batches]


def _relative(actual: torch.Tensor, target: torch.Tensor) -> float:
    """Root of the squared error over the squared target."""
    return math.sqrt(float((actual - target).square().sum() / target.square().sum()))
