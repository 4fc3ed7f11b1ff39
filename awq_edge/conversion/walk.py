"""The walk through the decoder: embedding, layer after layer, head.

Owns what is measured on the calibration tokens, and that every layer reads what the packed layers
before it give. Refuses packing (``packing``) and mathematics (``awq_edge.quantize``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch

from awq_edge import torch_decoder, torch_router
from awq_edge.calibration import gradients, propagation, staged
from awq_edge.calibration.distributed import Processes
from awq_edge.calibration.hidden_states import HiddenStates
from awq_edge.calibration.layer_states import LayerStates
from awq_edge.conversion.extremes import check_finite, solvable
from awq_edge.conversion.layer_reader import LayerReader
from awq_edge.conversion.options import Options
from awq_edge.conversion.packing import Packer
from awq_edge.conversion.recorder import Recorder
from awq_edge.conversion.report import Events, ExpertsReport, LayerReport
from awq_edge.conversion.work_directory import WorkDirectory
from awq_edge.float_model import FloatModel
from awq_edge.quantize import awq, columns, coupling, gptq, methods, pivots
from awq_edge.quantize.grouped import Quantiser
from awq_edge.quantize.halves import Half
from awq_edge.quantize.probe import Probe, Weights
from awq_edge.quantize.scales import Choice
from awq_edge.quantize.statistics import InputStatistics, Products
from awq_edge.stages import (
    Stage,
    coupled_matrices,
    input_width,
    is_kept,
)
from awq_edge.torch_decoder import Layer, Positions

# Enough that the exponents hardly depend on which tokens they are (measured on novels-45m).
_PROBE_TOKENS = 4096
# An expert is calibrated on at least so many of all tokens: some for each input of a second matrix.
_EXPERT_TOKENS = 1024
_SHOWN_TOKENS = 1024  # of these, for the errors that are reported
# Floats in the widest intermediate of one batch, or of one block where it has more: 16 MiB, for
# beyond 32 MiB glibc asks the system for new pages each time; more for a GPU, which needs many
# tokens at once to be busy.
_BATCH_FLOATS = {"cpu": 1 << 22, "cuda": 1 << 26}


class Walk:
    """The walk through one model, given everything that it needs."""

    def __init__(
        self,
        source: FloatModel,
        layers: LayerReader,
        options: Options,
        widths: Mapping[str, Quantiser],
        device: torch.device,
        work: WorkDirectory,
        events: Events,
        processes: Processes,
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
        self._damping = methods.METHODS[options.method].damping
        self._packer = Packer(source, options, widths, device, work)
        self._recorder = Recorder(work, device)
        self._layers = layers
        self._blocks = 0  # of calibration, over all processes
        self._float_blocks: propagation.FloatBlocks | None = None  # if errors are propagated

    def run(self, blocks: torch.Tensor | None) -> None:
        """Makes every tensor file that is not there yet.

        Args:
            blocks: Calibration tokens, int64 [b, t]; None for a method that needs none.
        """
        a, work = self._architecture, self._work
        if self._device.type == "cuda" and columns.gpu_kernels() is None:
            self._events.message(
                "Triton cannot compile kernels here (it needs a C compiler): blocks of weights go "
                "to the CPU and back, which takes longer."
            )
        if blocks is not None:
            self._blocks = len(blocks)
            mine = self._processes.blocks(len(blocks))
            blocks = blocks[mine]
            bits = {self._widths[name].bits for name in self._widths if name.startswith("blk.")}
            plans = [self._options.plan(width) for width in bits]
            if any(plan.propagated for plan in plans):
                self._float_blocks = propagation.FloatBlocks(mine)
            if any(plan.coupled for plan in plans) and not (work.layers or work.measured):
                with torch.inference_mode(mode=False):
                    self._measure_gradients(blocks, mine.start)
        for report in work.layers:
            self._events.layer_done(report, a.layers)
        hidden = self._embedding(blocks)
        positions = None
        if hidden is not None:
            positions = self._source.positions(hidden.shape[1], self._device)
        with contextlib.closing(self._packer), self._recorder:
            for layer, weights in self._layers(range(len(work.layers), a.layers)):
                hidden = self._walked(layer, weights, hidden, positions)
                del weights  # before the next layer is read
        if not a.tied_head and not work.rounds:  # else it was recorded with them
            self._head(hidden)

    def _walked(
        self,
        layer: int,
        weights: Weights,
        hidden: HiddenStates | None,
        positions: Positions | None,
    ) -> HiddenStates | None:
        """Does a layer; gives the hidden states behind it."""
        if hidden is None or positions is None:
            self._events.layer_scaled(layer, weights)
            self._packer.store_layer(layer, weights, {}, computed=False)
            report, after = LayerReport(layer, None, None, {}), None
        else:
            after = self._work.hidden(layer + 1, hidden.shape, self._device)
            with solvable(f"layer {layer}"):
                report = self._calibrated_layer(layer, weights, hidden, after, positions)
        self._recorder.wait()
        if hidden is not None:
            hidden.close()
        self._recorder.record(report, after, self._packer.unsettled())
        self._events.layer_done(report, self._architecture.layers)
        return after

    def _measure_gradients(self, blocks: torch.Tensor, begin: int) -> None:
        """Leaves every layer's moments in the work directory.

        Args:
            blocks: This process's tokens, int64 [b, t].
            begin: The number of the first one among all processes' blocks.
        """
        a, work = self._architecture, self._work
        chosen = gradients.chosen(self._blocks)
        numbers = [number for number in chosen if 0 <= number - begin < len(blocks)]
        halves = [chosen.index(number) % 2 for number in numbers]
        shape = (len(numbers), blocks.shape[1], a.hidden_size)
        segments = {
            segment: [at for at, n in enumerate(numbers) if part.start <= n < part.stop]
            for segment, part in self._processes.segments(self._blocks)
        }
        self._events.message("Measuring what errors of every output cost the predictions …")
        walk = gradients.Gradients(
            self._source,
            self._layers,
            [work.floats(layer, shape, self._device) for layer in range(a.layers + 1)],
            segments,
            self._processes,
            self._events.note,
        )
        measured = walk.measure(blocks[[n - begin for n in numbers]], numbers, halves)
        with ThreadPoolExecutor(1) as writer:
            unsettled = None
            for layer, moments in measured:
                if unsettled is not None:
                    unsettled.result()  # no more than one layer waits
                unsettled = writer.submit(work.store_moments, layer, moments)
                del moments
            assert unsettled is not None
            unsettled.result()
        work.moments_stored()

    def _embedding(self, blocks: torch.Tensor | None) -> HiddenStates | None:
        """Packs it, and gives the hidden states in front of the first unfinished layer."""
        a, work = self._architecture, self._work
        done = len(work.layers)
        hidden = None
        if blocks is not None:
            count = len(blocks) + (self._float_blocks.count if self._float_blocks else 0)
            hidden = work.hidden(done, (count, blocks.shape[1], a.hidden_size), self._device)
        if done:
            if hidden is not None:
                hidden.take_up()
            return hidden
        for name in self._source.tensor_names():
            if not name.startswith("blk.") and len(self._source.shape(name)) == 1:
                work.store_vector(name, self._source(name).numpy())
        embedded = None if blocks is None else torch.empty(*blocks.shape, a.hidden_size)
        for first, rows in self._packer.packed_rows("token_embd.weight"):
            if blocks is not None and embedded is not None:
                inside = (blocks >= first) & (blocks < first + len(rows))
                embedded[inside] = rows[(blocks[inside] - first).to(rows.device)].cpu()
        if blocks is not None and hidden is not None and embedded is not None:
            begun = torch_decoder.embedded(a, self._source, embedded)
            hidden.write(slice(0, len(begun)), begun)
            if self._float_blocks is not None:
                chosen, at = self._float_blocks.of(slice(0, len(blocks)))
                rows = self._source.rows("token_embd.weight", blocks[chosen])
                hidden.write(at, torch_decoder.embedded(a, self._source, rows))
        return hidden

    def _head(self, hidden: HiddenStates | None) -> None:
        """Packs the head, for the states that it will read if the method compensates."""
        name = "output.weight"
        a, quantiser = self._architecture, self._widths[name]
        if (
            hidden is None
            or quantiser.bits == 8
            or not self._options.plan(quantiser.bits).compensated
        ):
            for _ in self._packer.packed_rows(name):
                pass
            return

        def summed(batches: list[slice]) -> Products:
            products = Products(a.hidden_size, self._device)
            for batch in batches:
                products.add(torch_decoder.ended(a, self._source, hidden.read(batch)))
            return products

        parts = ((segment, summed(batches)) for segment, batches in self._segments(hidden).items())
        empty = Products(a.hidden_size, self._device)
        products = self._processes.means(parts, empty)
        with solvable("the head"):
            self._packer.store_head(gptq.Hessian.of(products, self._damping))

    def _calibrated_layer(
        self,
        layer: int,
        weights: Weights,
        hidden: HiddenStates,
        after: HiddenStates,
        positions: Positions,
    ) -> LayerReport:
        """Searches, packs, and makes of ``hidden`` what the quantised layer gives, ``after``."""
        quantisers = self._packer.layer_quantisers(layer)
        plan = self._options.plan(min(quantiser.bits for quantiser in quantisers.values()))
        count = max(1, min(self._blocks, _PROBE_TOKENS // hidden.shape[1]))
        chosen = torch.linspace(0, self._blocks - 1, count).round().long().tolist()
        sample = self._processes.gathered(hidden, chosen, self._blocks)
        probe = Probe(self._architecture, layer, sample, positions)
        experts = None
        if self._architecture.has_experts(layer):
            probe, experts = self._with_floors(probe, weights, hidden)
        few = sample[: max(1, _SHOWN_TOKENS // hidden.shape[1])].clone()  # the rest goes early
        shown = dataclasses.replace(probe, hidden=few)
        target = check_finite(shown.change(weights), layer)

        def rounding(name: str, x: torch.Tensor) -> torch.Tensor:
            rounded = quantisers[name].round_trip(weights[f"{name}.weight"])
            return torch_decoder.multiply(x, rounded, weights.get(f"{name}.bias"))

        error_rtn = _relative(shown.change(weights, rounding), target)
        choices: dict[str, Choice] = {}
        limits: dict[str, torch.Tensor] = {}
        divided: dict[str, torch.Tensor] = {}  # outputs, by scales that were folded
        if plan.scales == "outputs" or plan.clipped:
            quantiser = next(iter(quantisers.values()))  # these methods know one width for all
            statistics = self._statistics(probe, weights, quantiser, hidden)

            def clip(weight: torch.Tensor, products: torch.Tensor) -> torch.Tensor:
                return awq.clip_limits(weight, products, quantiser, plan.apart)

            if plan.scales == "outputs":
                joint = clip if plan.joint else None
                choices = awq.search_scales(probe, weights, statistics, quantiser, plan, joint)
            limits = {
                name: clip(weights[f"{name}.weight"], statistics[stage.name].mean_products())
                for stage in probe.stages
                for name in stage.matrices
                if plan.clipped and name not in awq.NEVER_CLIPPED
            }
        if plan.scales == "pivots":
            choices, divided = pivots.search_and_fold(probe, weights, quantisers, self._damping)
        del probe, sample
        if plan.compensated:
            moments = self._moments(layer, divided)
            walked = shown.layer(weights)
            turned = self._compensate_layer(walked, weights, limits, moments, hidden, after)
            if experts is not None:
                experts = dataclasses.replace(experts, turned=turned)
        else:
            self._events.layer_scaled(layer, weights)
            self._packer.store_layer(layer, weights, limits, computed=True)
            packed = Layer(self._architecture, layer, weights, positions)
            for batch in self._batches(hidden):
                after.write(batch, packed.run(hidden.read(batch)))
        error = _relative(check_finite(shown.change(weights), layer), target)
        return LayerReport(layer, error_rtn, error, choices, experts)

    def _with_floors(
        self, probe: Probe, weights: Weights, hidden: HiddenStates
    ) -> tuple[Probe, ExpertsReport]:
        """Sees to it that experts which few tokens choose read others too, those next in line."""
        layer = probe.layer(weights)
        step = next(step for step in layer.steps(probe.hidden) if step.stage.routers)
        assert step.routed is not None
        chosen = step.routed.chosen()
        logits = layer.router_logits(step.x)
        enough = math.ceil(_EXPERT_TOKENS * len(chosen) / (self._blocks * hidden.shape[1]))
        floors = torch_router.floors_of(logits, chosen, enough)
        counts = chosen.sum(dim=0)
        report = ExpertsReport(
            least_share=float(counts.min()) / max(int(counts.sum()), 1),
            topped_up=int((floors < torch.inf).sum()),
            unreached=int(((floors == torch.inf) & (counts == 0)).sum()),
        )
        return dataclasses.replace(probe, floors=floors), report

    def _moments(self, layer: int, divided: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Of the gradients by the outputs of those matrices whose outputs are coupled."""
        moments = {}
        quantisers = self._packer.layer_quantisers(layer)
        for name in coupled_matrices(self._architecture, layer):
            quantiser = quantisers[name]
            if self._options.plan(quantiser.bits).coupled:
                kept = self._work.moments(layer, name, self._device)
                if name in divided:
                    kept = coupling.scaled(kept, divided[name])
                moments[name] = kept
        return moments

    def _compensate_layer(
        self,
        walked: Layer,
        weights: Weights,
        limits: dict[str, torch.Tensor],
        moments: dict[str, torch.Tensor],
        hidden: HiddenStates,
        after: HiddenStates,
    ) -> float | None:
        """Rounds stage by stage, packs, and computes ``after``; ``weights`` become the rounded.

        Returns:
            The share of tokens for which other experts were chosen than in the float model, where
            that is known.
        """
        layer = walked.number
        self._events.layer_scaled(layer, weights)
        self._packer.store_vectors(layer, weights)
        inputs = {
            stage.name: self._work.inputs(
                stage.name,
                (*hidden.shape[:2], input_width(self._architecture, stage)),
                self._device,
            )
            for stage in walked.stages
            if is_kept(stage)
        }
        states = LayerStates(walked, hidden, after, inputs)
        corrections = None
        if self._float_blocks is not None:
            corrections = propagation.Propagation(states, self._float_blocks, self._processes)

        def round_matrices(stage: Stage, part: tuple[str, ...], products: Half) -> None:
            hessian = gptq.Hessian.of(products, self._damping)
            targets: Mapping[str, torch.Tensor] = weights
            if corrections is not None:
                targets = corrections.targets(stage, hessian)
            wanted = {f"{name}.weight": targets[f"{name}.weight"] for name in part}
            del targets  # with what they are made of, which may be as large as the matrices
            weights.update(self._packer.store_stage(layer, wanted, hessian, limits, moments))

        watch = None if corrections is None else corrections.take
        means, segments = self._processes.means, self._segments(hidden)
        staged.StagedLayer(states, segments, round_matrices, means, watch).run()
        for kept in inputs.values():
            kept.close()
        if corrections is None or not corrections.turned[1]:
            return None
        return corrections.turned[0] / corrections.turned[1]

    def _statistics(
        self, probe: Probe, weights: Weights, quantiser: Quantiser, hidden: HiddenStates
    ) -> dict[str, InputStatistics]:
        """Of what every stage of the float layer reads, over all calibration tokens."""
        layer = probe.layer(weights)

        def empty() -> dict[str, InputStatistics]:
            return {
                stage.name: InputStatistics(
                    input_width(self._architecture, stage), quantiser.group_size, self._device
                )
                for stage in layer.stages
            }

        parts = {}
        for segment, batches in self._segments(hidden).items():
            parts[segment] = empty()
            for batch in batches:
                for step in layer.steps(hidden.read(batch)):
                    parts[segment][step.stage.name].update(step.x)
        return {
            name: whole.merged(
                {segment: part[name] for segment, part in parts.items()}, self._processes.total
            )
            for name, whole in empty().items()
        }

    def _segments(self, hidden: HiddenStates) -> dict[int, list[slice]]:
        """Batches of this process's blocks, by segment."""
        a = self._architecture
        routed = a.experts_per_token * a.expert_size
        widest = max(a.feed_forward_size, routed, a.hidden_size, a.heads * a.head_size)
        size = max(1, _BATCH_FLOATS[self._device.type] // (hidden.shape[1] * widest))
        begin = self._processes.blocks(self._blocks).start
        return {
            segment: [
                slice(first - begin, min(first + size, part.stop) - begin)
                for first in range(part.start, part.stop, size)
            ]
            for segment, part in self._processes.segments(self._blocks)
        }

    def _batches(self, hidden: HiddenStates) -> list[slice]:
        return [batch for batches in self._segments(hidden).values() for batch in batches]


def _relative(actual: torch.Tensor, target: torch.Tensor) -> float:
    """Root of the squared error over the squared target."""
    return math.sqrt(float((actual - target).square().sum() / target.square().sum()))
