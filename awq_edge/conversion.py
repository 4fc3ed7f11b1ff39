"""Converts a checkpoint into a model file, one decoder layer at a time.

Owns the order of the work, the work directory from which an interrupted conversion resumes, and
the report. Refuses mathematics (``awq_edge.quantize``), file formats (``awq_edge.model_file``,
``awq_edge.layouts``) and printing (``awq_edge.cli.convert``).

The work directory ``<output>.partial`` holds every finished tensor, the hidden states behind the
last finished layer and a manifest. It outlives Ctrl-C and a killed process, not an error.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from awq_edge import __version__, layouts, model_file, torch_decoder
from awq_edge.architecture import Architecture, MetadataValue
from awq_edge.errors import (
    CheckpointError,
    FileUnreadableError,
    InvalidArgumentError,
    UnsupportedError,
)
from awq_edge.float_model import FloatModel, open_float_model
from awq_edge.hf_tokenizer import StoredTokenizer, read_tokenizer
from awq_edge.quantize import (
    awq,
    budget,
    calibration,
    distributed,
    gptq,
    grids,
    grouped,
    methods,
    scales,
    sensitivity,
    staged,
)
from awq_edge.torch_decoder import LINEARS, Positions

METHODS = methods.METHODS

# Enough that the exponents hardly depend on which tokens they are (measured on novels-45m).
_PROBE_TOKENS = 4096
# Floats in the widest intermediate of one batch: 64 MiB each, whatever the model's size.
_BATCH_FLOATS = 1 << 24
# Rows of the embedding and the head that are in memory at once, times columns.
_ROW_BLOCK_FLOATS = 1 << 23


@dataclasses.dataclass(frozen=True)
class Options:
    """What a user may choose."""

    method: str = "auto"
    bits: float = 4  # of the decoder's matrices; a fraction mixes widths
    group_size: int = 128
    head_bits: int = 8
    embedding_bits: int = 8
    size: int | None = None  # bytes of the whole file; then no width above counts
    calibration: Path | None = None  # None: the text that ships with the package
    samples: int = 128
    sequence_length: int = 512
    seed: int = 0
    device: str = "cpu"
    without: tuple[str, ...] = ()  # parts of the method that are left out

    def __post_init__(self) -> None:
        """Refuses values that can never work."""
        if self.method not in METHODS:
            raise InvalidArgumentError(
                f"The method {self.method!r} is none of {', '.join(METHODS)}."
            )
        for part in self.without:
            if part not in methods.PARTS:
                raise InvalidArgumentError(
                    f"{part!r} is no part of a method; parts are {', '.join(methods.PARTS)}."
                )
        for name in ("head_bits", "embedding_bits"):
            if getattr(self, name) not in layouts.BITS:
                raise InvalidArgumentError(
                    f"{name} is {getattr(self, name)}; it must be 2, 3, 4 or 8."
                )
        if not (self.bits in layouts.BITS or (2 < self.bits < 8 and self.bits % 1 != 0)):
            raise InvalidArgumentError(
                f"bits is {self.bits:g}; it must be 2, 3, 4 or 8, or a fraction between 2 and 8 "
                "that widths are mixed to."
            )
        if self.mixed and self.method not in methods.MIXING:
            raise InvalidArgumentError(
                f"The method {self.method} knows one width for all matrices; use "
                f"{' or '.join(methods.MIXING)} with a size or a fraction of bits."
            )
        if self.group_size not in layouts.GROUP_SIZES:
            raise InvalidArgumentError(
                f"The group size is {self.group_size}; it must be 32, 64 or 128."
            )
        if self.samples < 1 or self.sequence_length < 2:
            raise InvalidArgumentError(
                "Calibration needs at least 1 sample of at least 2 tokens, "
                f"not {self.samples} of {self.sequence_length}."
            )

    @property
    def mixed(self) -> bool:
        """Whether matrices get widths of their own."""
        return self.size is not None or self.bits not in layouts.BITS


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """How one layer fared: errors relative to what the layer adds to the residual stream."""

    layer: int
    error_rtn: float | None  # None without calibration
    error: float | None
    choices: dict[str, awq.Choice]


@dataclasses.dataclass(frozen=True)
class Report:
    """What came out."""

    path: Path
    architecture: Architecture
    file_bytes: int
    linear_bits_per_weight: float  # the decoder's matrices, with their headers and padding
    file_bits_per_weight: float  # the whole file over every weight of the model
    decode_bytes: int  # weights read for one token
    layers: list[LayerReport]

    def cache_bytes(self, positions: int) -> int:
        """Keys and values of a context, in fp16."""
        a = self.architecture
        return 2 * 2 * a.layers * a.kv_heads * a.head_size * positions


@dataclasses.dataclass(frozen=True)
class Events:
    """What a caller may want to hear while the work goes on."""

    message: Callable[[str], None] = lambda text: None
    layer_done: Callable[[LayerReport, int], None] = lambda report, layers: None
    # A layer's weights with their scales folded in, before anything is rounded.
    layer_scaled: Callable[[int, awq.Weights], None] = lambda layer, weights: None


def convert(
    model: str,
    output: Path,
    options: Options,
    *,
    force: bool = False,
    events: Events | None = None,
) -> Report:
    """Converts a model; leaves a whole file or none.

    Args:
        model: A checkpoint's directory or a hub id.
        output: The file to write.
        options: How.
        force: Replace an existing file.
        events: Who listens.

    Raises:
        AwqEdgeError: Something is wrong with the input, the disk or the options.
        KeyboardInterrupt: As it stands; the work directory stays and the same call resumes.
    """
    events = events or Events()
    check_output(output, force)
    device = _device(options.device)
    source = open_float_model(model)
    tokenizer = read_tokenizer(source.checkpoint.directory, source.checkpoint.config)
    blocks, digest = _calibration(source, tokenizer, options)
    _check_disk(output, source.architecture, options, blocks)
    plain = _metadata(source, tokenizer, options, digest)
    widths = _widths(source, options, blocks, device, _container_bytes(source, plain), events)

    with distributed.joined(device) as processes:
        path, written = output.with_name(output.name + ".partial"), output
        if processes.count > 1 and processes.rank == 0:
            # Interrupted work of several processes is not resumed: it may lie on several hosts.
            shutil.rmtree(path, ignore_errors=True)
        if processes.rank > 0:
            path = Path(tempfile.mkdtemp(prefix="awq-edge-")) / "work.partial"
            written = path.with_name("model")
        work = _WorkDirectory(path, _key(source, options, digest), events)
        try:
            with work:
                with torch.inference_mode():
                    _Conversion(source, options, widths, device, work, events, processes).run(
                        blocks
                    )
                metadata = {**plain, **_width_metadata(widths)}
                try:
                    model_file.write_model(written, metadata, work.tensors(source))
                    report = _report(written, source.architecture, work)
                finally:
                    work.finished()
        finally:
            if processes.rank > 0:
                shutil.rmtree(path.parent, ignore_errors=True)
    return dataclasses.replace(report, path=output)


class _Conversion:
    """The work itself, given everything that it needs."""

    def __init__(
        self,
        source: FloatModel,
        options: Options,
        widths: Mapping[str, awq.Quantiser],
        device: torch.device,
        work: _WorkDirectory,
        events: Events,
        processes: distributed.Processes,
    ) -> None:
        self._source = source
        self._architecture = source.architecture
        self._options = options
        self._device = device
        self._work = work
        self._events = events
        self._widths = widths
        self._processes = processes
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
                self._store_layer(layer, weights, {})
                report = LayerReport(layer, None, None, {})
            else:
                report = self._calibrated_layer(layer, weights, hidden, positions)
            work.layer_done(report, hidden)
            self._events.layer_done(report, a.layers)
        if not a.tied_head:
            self._head(hidden)

    def _plan(self, bits: int) -> methods.Plan:
        return methods.plan(self._options.method, bits, self._options.without)

    def _layer_quantisers(self, layer: int) -> dict[str, awq.Quantiser]:
        return {name: self._widths[f"blk.{layer}.{name}.weight"] for name in LINEARS}

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
        for first, rows in self._packed_rows("token_embd.weight"):
            if blocks is not None and hidden is not None:
                inside = (blocks >= first) & (blocks < first + len(rows))
                hidden[inside] = rows[blocks[inside] - first]
        return hidden

    def _head(self, hidden: torch.Tensor | None) -> None:
        """Packs the head, for the states that it will read if the method compensates."""
        name = "output.weight"
        a, quantiser = self._architecture, self._widths[name]
        if hidden is None or quantiser.bits == 8 or not self._plan(quantiser.bits).compensated:
            for _ in self._packed_rows(name):
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
        rows = self._rows_at_once(a.hidden_size)
        blocks = (block.to(self._device) for _, block in self._source.row_blocks(name, rows))
        for _ in self._compensated_rows(name, blocks, hessian, {}):
            pass

    def _rows_at_once(self, k: int) -> int:
        return max(_ROW_BLOCK_FLOATS // k // layouts.BLOCK_ROWS, 1) * layouts.BLOCK_ROWS

    def _packed_rows(self, name: str) -> Iterator[tuple[int, torch.Tensor]]:
        """Packs a matrix in blocks of rows; yields each block as the runtime will see it."""
        n, k = self._source.shape(name)
        bits, group_size = self._widths[name].bits, self._widths[name].group_size
        shares = self._plan(bits).shares
        with self._work.matrix_file(name) as file:
            file.write(layouts.header(layouts.Layout(n, k, bits, group_size)))
            for first, block in self._source.row_blocks(name, self._rows_at_once(k)):
                if bits < 8 and shares:
                    grid = grids.best(block, torch.ones(k), bits, group_size, shares)
                    quantised = grid.rounded(block)
                else:
                    quantised = grouped.quantise(block, bits, group_size, name=name)
                file.write(_packed_blocks(quantised))
                yield first, quantised.dequantise()

    def _calibrated_layer(
        self,
        layer: int,
        weights: awq.Weights,
        hidden: torch.Tensor,
        positions: Positions,
    ) -> LayerReport:
        """Searches, packs, and replaces ``hidden`` by what the quantised layer gives."""
        quantisers = self._layer_quantisers(layer)
        plan = self._plan(min(quantiser.bits for quantiser in quantisers.values()))
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
            self._store_layer(layer, weights, limits)
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
        self._store_vectors(layer, weights)

        def round_matrices(
            names: tuple[str, ...], products: torch.Tensor
        ) -> dict[str, torch.Tensor]:
            hessian = gptq.Hessian.of(products)
            rounded = {}
            for name in names:
                full = f"blk.{layer}.{name}.weight"
                parts = self._compensated_rows(
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

    def _compensated_rows(
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
        plan, within = self._plan(bits), limits.get(name)
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

    def _statistics(
        self, layer: int, weights: awq.Weights, hidden: torch.Tensor, positions: Positions
    ) -> dict[str, calibration.InputStatistics]:
        """Of every input of the float layer's matrices, over all calibration tokens."""
        a = self._architecture
        group_size = self._layer_quantisers(layer)[LINEARS[0]].group_size

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

    def _store_layer(
        self, layer: int, weights: awq.Weights, limits: dict[str, torch.Tensor]
    ) -> None:
        """Packs every tensor; the weights become those that the runtime will compute with."""
        self._events.layer_scaled(layer, weights)
        self._store_vectors(layer, weights)
        for stem, quantiser in self._layer_quantisers(layer).items():
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

    def _store_vectors(self, layer: int, weights: awq.Weights) -> None:
        """Keeps norms and biases."""
        for name, values in weights.items():
            if values.dim() == 1:
                self._work.store_vector(f"blk.{layer}.{name}", values.cpu().numpy())


class _WorkDirectory:
    """Finished tensors, hidden states and the manifest that says what they belong to."""

    def __init__(self, path: Path, key: str, events: Events) -> None:
        self._path = path
        self._key = key
        self._events = events
        self._output = path.with_name(path.name[: -len(".partial")])
        self.layers: list[LayerReport] = []

    def __enter__(self) -> _WorkDirectory:
        """Takes up what an interrupted conversion left, if it was the same conversion."""
        manifest = self._read_manifest()
        if manifest is not None and manifest.get("key") == self._key:
            self.layers = [_layer_report(entry) for entry in manifest["layers"]]
            self._events.message(
                f"Resuming after layer {len(self.layers)} of an interrupted conversion."
            )
            return self
        if self._path.exists():
            if manifest is None and any(self._path.iterdir()):
                raise FileUnreadableError(
                    f"{self._path} is in the way and is not a work directory of awq-edge; "
                    "move it away or choose another output."
                )
            if manifest is not None:
                self._events.message("An interrupted conversion was another one: starting anew.")
            shutil.rmtree(self._path)
        try:
            self._path.mkdir()
            self._write_manifest()
        except OSError as error:
            raise model_file.write_error(self._output, error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: Any
    ) -> None:
        """Keeps the directory after Ctrl-C, clears it after an error; words a failed write."""
        if kind is None or not issubclass(kind, Exception):
            return
        self.finished()
        if isinstance(error, OSError):
            raise model_file.write_error(self._output, error) from error

    def finished(self) -> None:
        """Removes the directory."""
        shutil.rmtree(self._path, ignore_errors=True)

    @contextlib.contextmanager
    def matrix_file(self, name: str) -> Iterator[Any]:
        """A file for the bytes of a packed matrix."""
        with (self._path / f"{name}.packed").open("wb") as file:
            yield file

    def store_vector(self, name: str, values: npt.NDArray[np.float32]) -> None:
        """Keeps a plain tensor."""
        np.save(self._path / f"{name}.npy", np.ascontiguousarray(values, dtype=np.float32))

    def layer_done(self, report: LayerReport, hidden: torch.Tensor | None) -> None:
        """Records a finished layer; what came before it is not needed any more."""
        done = len(self.layers) + 1
        if hidden is not None:
            np.save(self._path / f"hidden.{done}.npy", hidden.numpy())
        self.layers.append(report)
        self._write_manifest()
        (self._path / f"hidden.{done - 1}.npy").unlink(missing_ok=True)

    def hidden(self) -> torch.Tensor | None:
        """The hidden states behind the last finished layer."""
        path = self._path / f"hidden.{len(self.layers)}.npy"
        return torch.from_numpy(np.load(path)) if path.exists() else None

    def tensors(self, source: FloatModel) -> Iterator[tuple[str, model_file.TensorSource]]:
        """Every tensor of the model file, in file order: as a token meets them."""
        names = [name for name in source.tensor_names() if not name.startswith("output")]
        names.insert(1, "rope.inverse_frequencies")
        names += [name for name in source.tensor_names() if name.startswith("output")]
        for name in names:
            packed = self._path / f"{name}.packed"
            yield name, packed if packed.exists() else np.load(self._path / f"{name}.npy")

    def packed_bytes(self, prefix: str) -> int:
        """Bytes of the packed matrices whose names begin so."""
        return sum(path.stat().st_size for path in self._path.glob(f"{prefix}*.packed"))

    def _read_manifest(self) -> dict[str, Any] | None:
        try:
            manifest = json.loads((self._path / "manifest.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return manifest if isinstance(manifest, dict) else None

    def _write_manifest(self) -> None:
        text = json.dumps(
            {"key": self._key, "layers": [dataclasses.asdict(report) for report in self.layers]}
        )
        partial = self._path / "manifest.json.writing"
        partial.write_text(text, encoding="utf-8")
        partial.replace(self._path / "manifest.json")


def _packed_blocks(quantised: grouped.Quantised) -> bytes:
    return layouts.pack_blocks(
        quantised.codes.cpu().numpy(),
        quantised.scales.cpu().numpy(),
        quantised.zeros.cpu().numpy(),
        quantised.bits,
        quantised.group_size,
    )


def _relative(actual: torch.Tensor, target: torch.Tensor) -> float:
    """Root of the squared error over the squared target."""
    return math.sqrt(float((actual - target).square().sum() / target.square().sum()))


def _layer_report(entry: dict[str, Any]) -> LayerReport:
    choices = {name: awq.Choice(**choice) for name, choice in entry["choices"].items()}
    return LayerReport(entry["layer"], entry["error_rtn"], entry["error"], choices)


def check_output(output: Path, force: bool) -> None:
    """Refuses an output that could not be written in the end, before any work."""
    if output.is_dir():
        raise InvalidArgumentError(f"{output} is a directory; give the name of a file in it.")
    if output.exists() and not force:
        raise InvalidArgumentError(f"{output} exists already; add --force to replace it.")
    if not output.parent.is_dir():
        raise FileUnreadableError(f"There is no directory {output.parent} to write into.")
    try:
        with tempfile.TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        raise FileUnreadableError(
            f"Cannot write into the directory {output.parent.resolve()}: {error.strerror}."
        ) from error


def _device(name: str) -> torch.device:
    if name not in ("cpu", "cuda"):
        raise InvalidArgumentError(f"The device {name!r} is none of cpu, cuda.")
    if name == "cuda" and not torch.cuda.is_available():
        raise UnsupportedError(
            "This PyTorch sees no CUDA device; leave --device out to use the CPU."
        )
    return torch.device(name)


def _calibration(
    source: FloatModel, tokenizer: StoredTokenizer | None, options: Options
) -> tuple[torch.Tensor | None, str | None]:
    """Calibration tokens [b, t] and the digest of their text; None for a method without any."""
    if not methods.plan(options.method, 4).calibrated:
        return None, None
    if tokenizer is None:
        raise CheckpointError(
            f"{source.checkpoint.directory} holds neither tokenizer.json nor tokenizer.model, and "
            "calibration needs one; --method rtn does without."
        )
    text = calibration.read_text(options.calibration)
    length = min(options.sequence_length, source.architecture.context_length)
    blocks = calibration.token_blocks(tokenizer, text, options.samples, length, options.seed)
    calibration.check_tokens(blocks, source.architecture.vocabulary_size)
    return blocks, calibration.text_digest(text)


def _check_disk(
    output: Path, architecture: Architecture, options: Options, blocks: torch.Tensor | None
) -> None:
    """Refuses a conversion that would fill the disk in the end."""
    overhead = 24 / options.group_size
    tables = architecture.vocabulary_size * architecture.hidden_size
    packed = (
        architecture.linear_parameters() * (options.bits + overhead)
        + tables * (options.embedding_bits + overhead)
        + (0 if architecture.tied_head else tables * (options.head_bits + overhead))
    ) / 8
    hidden = 0 if blocks is None else 2 * 4 * blocks.numel() * architecture.hidden_size
    needed = 2 * packed + hidden  # the work directory and the file itself
    free = shutil.disk_usage(output.parent).free
    if free < needed:
        raise FileUnreadableError(
            f"The disk that holds {output} is too full: the conversion needs "
            f"{needed / 1e6:.0f} MB, {free / 1e6:.0f} MB are free."
        )


def _key(source: FloatModel, options: Options, digest: str | None) -> str:
    """Changes with anything that changes a tensor."""
    settings = {**dataclasses.asdict(options), "calibration": digest}
    identity = [__version__, torch.__version__, source.checkpoint.identity(), settings]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def _widths(
    source: FloatModel,
    options: Options,
    blocks: torch.Tensor | None,
    device: torch.device,
    container_bytes: int,
    events: Events,
) -> dict[str, awq.Quantiser]:
    """Bits and group size of every packed matrix, by name."""
    a = source.architecture
    names = [name for name in source.tensor_names() if len(source.shape(name)) == 2]
    tables = {"token_embd.weight": options.embedding_bits, "output.weight": options.head_bits}
    if a.tied_head:
        tables = {"token_embd.weight": max(tables.values())}
    # One group size for all: matrices that read the same input share its rounding on the device.
    groups = dict.fromkeys(layouts.BITS, options.group_size)
    if not options.mixed:
        chosen = {name: tables.get(name, int(options.bits)) for name in names}
        return {name: awq.Quantiser(bits, groups[bits]) for name, bits in chosen.items()}

    sizes = {
        name: {
            bits: layouts.Layout(n, k, bits, group).total_bytes for bits, group in groups.items()
        }
        for name in names
        for n, k in [source.shape(name)]
    }
    if options.size is not None:
        fixed: dict[str, int] = {}
        smallest = container_bytes + sum(min(by_bits.values()) for by_bits in sizes.values())
        if options.size < smallest:
            raise InvalidArgumentError(
                f"No file of {options.size} bytes can hold {source.checkpoint.directory.name}: the "
                f"smallest possible one has {smallest} bytes ({smallest / 1e6:.1f} MB)."
            )
    else:
        fixed = tables
    assert blocks is not None
    events.message("Measuring what every width of every matrix costs in accuracy …")
    harms = sensitivity.measure(source, blocks, groups, device)
    if options.size is None:
        # Codes alone count: a width of 3.5 bits means the same whatever the group size.
        for name in names:
            n, k = source.shape(name)
            sizes[name] = {bits: n * k * bits // 8 for bits in groups}
        total = int(a.linear_parameters() * options.bits / 8)
    else:
        total = options.size - container_bytes
    items = [budget.Item(name, sizes[name], harms[name]) for name in names if name not in fixed]
    chosen = {**fixed, **budget.solve(items, total)}
    return {name: awq.Quantiser(bits, groups[bits]) for name, bits in chosen.items()}


def _container_bytes(source: FloatModel, metadata: Mapping[str, MetadataValue]) -> int:
    """At most so many bytes of the file are no packed matrix."""
    described = sum(
        len(str(key)) + (len(value.encode()) if isinstance(value, str) else 16) + 32
        if not isinstance(value, list)
        else len(str(key)) + 4 * len(value) + 32
        for key, value in metadata.items()
    )
    names = source.tensor_names()
    tensors = sum(len(name) + 64 + model_file.ALIGNMENT for name in [*names, "rope" * 8])
    vectors = sum(
        4 * math.prod(source.shape(name)) for name in names if len(source.shape(name)) == 1
    )
    frequencies = 4 * source.architecture.head_size
    return described + tensors + vectors + frequencies + 1024 + model_file.TRAILING_BYTES


def _width_metadata(widths: Mapping[str, awq.Quantiser]) -> dict[str, MetadataValue]:
    """The widths as asked for, or what came nearest to them; each matrix's header decides."""
    linears = [quantiser for name, quantiser in widths.items() if name.startswith("blk.")]
    embedding = widths["token_embd.weight"]
    head = widths.get("output.weight", embedding)
    return {
        "awq_edge.quantization.bits": round(sum(q.bits for q in linears) / len(linears)),
        "awq_edge.quantization.group_size": max(q.group_size for q in linears),
        "awq_edge.quantization.head_bits": head.bits,
        "awq_edge.quantization.embedding_bits": embedding.bits,
    }


def _metadata(
    source: FloatModel, tokenizer: StoredTokenizer | None, options: Options, digest: str | None
) -> dict[str, MetadataValue]:
    """What the file says of itself, widths apart."""
    metadata: dict[str, MetadataValue] = {
        "general.name": source.checkpoint.directory.resolve().name,
        **source.architecture.to_metadata(),
        "awq_edge.quantization.method": options.method,
        "awq_edge.quantization.tool_version": __version__,
    }
    if digest is not None:
        metadata["awq_edge.quantization.calibration_sha256"] = digest
    if tokenizer is not None:
        metadata.update(tokenizer.to_metadata())
    return metadata


def _report(output: Path, architecture: Architecture, work: _WorkDirectory) -> Report:
    tables = architecture.vocabulary_size * architecture.hidden_size
    linears = architecture.linear_parameters()
    size = output.stat().st_size
    linear_bytes, embedding_bytes = work.packed_bytes("blk."), work.packed_bytes("token_embd")
    head_bytes = embedding_bytes if architecture.tied_head else work.packed_bytes("output")
    return Report(
        path=output,
        architecture=architecture,
        file_bytes=size,
        linear_bits_per_weight=8 * linear_bytes / linears,
        file_bits_per_weight=8 * size / (linears + tables * (1 if architecture.tied_head else 2)),
        decode_bytes=linear_bytes + head_bytes,
        layers=work.layers,
    )
