"""The walk through a tower for pictures: patches, layer after layer, connector.

Owns what is measured on calibration pictures, and that every layer reads what the packed layers
before it give. Below 8 bits AWQ's searches find scales and clips of the tower's layers, and clips
of the connector, whose input nothing absorbs a scale of; at 8 bits everything is rounded to
nearest, and pictures only show that nothing overflows. Patches keep 8 bits in any case: they are a
hundredth of a tower, and all of a picture passes through them. A resampler and the keys and values
of gated blocks belong to the tower: they are computed once for a picture, not for a token, so that
their width costs no time while a text is written.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch

from awq_edge import layouts, torch_tower
from awq_edge.calibration import pictures
from awq_edge.checkpoints.vision_tensors import VisionTensors
from awq_edge.conversion.extremes import solvable
from awq_edge.conversion.options import Options
from awq_edge.conversion.packing import write_matrix
from awq_edge.conversion.report import Events
from awq_edge.conversion.work_directory import WorkDirectory
from awq_edge.errors import UnsupportedError
from awq_edge.quantize import awq, grouped, methods
from awq_edge.quantize.grouped import Quantiser
from awq_edge.quantize.probe import Probe, Weights
from awq_edge.quantize.statistics import InputStatistics
from awq_edge.torch_decoder import Positions, activated, multiply
from awq_edge.vision.architecture import VisionArchitecture, in_file

_MOST_TILES = 64  # of all pictures, spread over them
_SHOWN_TILES = 4  # enough to see whether a tower overflows
_SEEN_TILES = 8  # by a calibration text, one after the other, in a decoder that looks at pictures
_PROBE_POSITIONS = 4096
_BATCH_FLOATS = 1 << 24  # in the widest intermediate of one batch
_PATCH_BITS = 8
_LARGEST_HALF = 65504.0  # keys and values are kept as fp16
_BEHIND = ("v.resampler.", "mm.blk.")
# Queries and keys, whose error passes through their product.
_COMPARED = (".attn_q.weight", ".attn_k.weight", ".k.weight")


def calibration_tiles(vision: VisionTensors, options: Options) -> torch.Tensor | None:
    """What a tower is calibrated on, uint8 [n, s, s, 3]; None: the method reads nothing."""
    preprocessing = vision.processor.preprocessing
    least = _SHOWN_TILES if vision.architecture.cross is None else _SEEN_TILES
    if not methods.METHODS[options.method].calibrated:
        return None
    folder = options.calibration_images
    found = pictures.drawn() if folder is None else pictures.of_folder(folder)
    tiles = np.concatenate([preprocessing.of_one_size(rgb) for rgb in found])
    most = least if options.vision_bits == 8 else _MOST_TILES
    if len(tiles) > most:
        tiles = tiles[np.linspace(0, len(tiles) - 1, most).round().astype(int)]
    return torch.from_numpy(np.ascontiguousarray(tiles))


def stored_bytes(a: VisionArchitecture, options: Options) -> dict[str, int]:
    """What each tensor of a tower and its connector takes in the file, without alignment."""
    found = {}
    for name in a.tensor_names():
        shape = a.tensor_shape(name)
        if len(shape) == 1:
            found[name] = 4 * shape[0]
        else:
            bits = _PATCH_BITS if name == "v.patch_embd.weight" else options.vision_bits
            rows, columns = shape
            found[name] = layouts.Layout(rows, columns, bits, options.group_size).total_bytes
    return found


def tiles_digest(tiles: torch.Tensor) -> str:
    """Of the pictures, as the tower reads them."""
    return hashlib.sha256(tiles.numpy().tobytes()).hexdigest()


class TowerWalk:
    """The walk through one tower, given everything that it needs."""

    def __init__(
        self,
        source: VisionTensors,
        options: Options,
        device: torch.device,
        work: WorkDirectory,
        events: Events,
    ) -> None:
        """Walks ``source``; what is done lies in ``work``."""
        self._source = source
        self._architecture = source.architecture
        self._quantiser = Quantiser(options.vision_bits, options.group_size)
        self._searched = options.vision_bits < 8
        self._without = options.without
        self._device = device
        self._work = work
        self._events = events
        self._grid: tuple[int, int] | None = None

    def run(self, tiles: torch.Tensor | None) -> torch.Tensor | None:
        """Makes every tensor file.

        Args:
            tiles: Calibration pictures, uint8 [n, s, s, 3]; None for a method that needs none.

        Returns:
            What gated blocks look at of these, float32 [n, tokens, row size], as the packed tower
            makes it; None without pictures or blocks.
        """
        a, layers = self._architecture, self._architecture.layers
        self._grid = None if tiles is None else torch_tower.grid_of(a, tiles)
        self._store_vectors()
        stream = self._embedded(tiles)
        for number in range(layers):
            self._events.note(f"tower, layer {number + 1}/{layers}")
            with solvable(f"layer {number} of the tower"):
                stream = self._walked(number, stream)
            if number in a.taps:
                self._tap(a.taps.index(number), stream)
        if a.cross is not None:
            return self._for_blocks(stream)
        rows = None
        if stream is not None:
            rows = torch_tower.gathered(a, self._weights, stream, self._grid)
        self._connector(rows)
        return None

    def _positions(self, number: int) -> Positions:
        """What a layer knows of the patches of calibration pictures."""
        grid = self._grid or (0, 0)
        return torch_tower.positions_of(self._architecture, self._weights, number, grid)

    def _weights(self, name: str) -> torch.Tensor:
        return self._source(name, self._device)

    def _store_vectors(self) -> None:
        """Keeps what is no matrix and belongs to no layer."""
        for name in self._source.tensor_names():
            if len(self._source.shape(name)) == 1 and not name.startswith("v.blk."):
                self._work.store_vector(name, self._source(name).numpy())

    def _embedded(self, tiles: torch.Tensor | None) -> torch.Tensor | None:
        """Packs the patch matrix; gives the stream in front of the first layer, [n, p, E]."""
        name = "v.patch_embd.weight"
        patches = Quantiser(_PATCH_BITS, self._quantiser.group_size)
        rounded = self._store(name, self._weights(name), patches)
        if tiles is None:
            return None

        def weights(asked: str) -> torch.Tensor:
            return rounded if asked == name else self._weights(asked)

        a, values = self._architecture, self._weights("v.pixel_values")
        read = torch_tower.patches(a, values, tiles.to(self._device))
        return torch_tower.embedded(a, weights, read, self._grid)

    def _walked(self, number: int, stream: torch.Tensor | None) -> torch.Tensor | None:
        """Packs a layer; gives the stream behind it, as the packed layer makes it."""
        weights: Weights = torch_tower.layer_weights(self._architecture, self._weights, number)
        limits: dict[str, torch.Tensor] = {}
        if stream is not None:
            self._check(number, weights, stream)
            if self._searched:
                limits = self._search(number, weights, stream)
        for name, values in list(weights.items()):
            stored = in_file(number, name)
            if values.dim() == 1:
                self._work.store_vector(stored, values.cpu().numpy())
                continue
            limit = limits.get(name[: -len(".weight")])
            weights[name] = self._store(stored, values, self._quantiser, limit)
        if stream is None:
            return None
        layer = torch_tower.layer(self._architecture, number, weights, self._positions(number))
        return torch.cat([layer.run(batch) for batch in self._batches(stream)])

    def _search(
        self, number: int, weights: Weights, stream: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Folds the scales that AWQ finds into a layer's weights; gives the limits of its groups.

        A tower's layer has LayerNorms that absorb a scale with their bias, values that share no
        head, and a gelu that absorbs nothing.
        """
        plan = methods.METHODS["awq"].plan(self._quantiser.bits, self._without)
        count = max(1, _PROBE_POSITIONS // stream.shape[1])
        probe = Probe(self._architecture.tower(), number, stream[:count], self._positions(number))
        statistics = {
            stage.name: InputStatistics(
                weights[f"{stage.matrices[0]}.weight"].shape[1],
                self._quantiser.group_size,
                self._device,
            )
            for stage in probe.stages
        }
        layer = probe.layer(weights)
        for batch in self._batches(stream):
            for step in layer.steps(batch):
                statistics[step.stage.name].update(step.x)

        def clip(weight: torch.Tensor, products: torch.Tensor) -> torch.Tensor:
            return awq.clip_limits(weight, products, self._quantiser, plan.apart)

        if plan.scales == "outputs":
            joint = clip if plan.joint else None
            awq.search_scales(probe, weights, statistics, self._quantiser, plan, joint)
        return {
            name: clip(weights[f"{name}.weight"], statistics[stage.name].mean_products())
            for stage in probe.stages
            for name in stage.matrices
            if plan.clipped and name not in awq.NEVER_CLIPPED
        }

    def _check(self, number: int, weights: Weights, stream: torch.Tensor) -> None:
        """Refuses a tower whose keys, values or outputs leave what they are kept in."""
        few = stream[:_SHOWN_TILES]
        layer = torch_tower.layer(self._architecture, number, weights, self._positions(number))
        first = next(layer.steps(few))
        for name in ("attn_k", "attn_v"):
            made = multiply(first.x, weights[f"{name}.weight"], weights[f"{name}.bias"])
            if not float(made.abs().max()) <= _LARGEST_HALF:  # NaN neither
                raise UnsupportedError(
                    f"Layer {number} of the tower makes {name[-1]} of {float(made.abs().max()):g} "
                    f"of a calibration picture; up to {_LARGEST_HALF:g} are supported."
                )
        if not math.isfinite(float(layer.run(few).sum())):
            raise UnsupportedError(
                f"Layer {number} of the tower gives values that are not finite for calibration "
                "pictures: the checkpoint is probably damaged."
            )

    def _for_blocks(self, stream: torch.Tensor | None) -> torch.Tensor | None:
        """Packs the resampler and the gated blocks' keys and values, in the order of their use."""
        a = self._architecture
        names = a.tensor_names()
        if stream is None:
            for name in names:
                if name.startswith(_BEHIND) and len(a.tensor_shape(name)) == 2:
                    self._store(name, self._weights(name), self._quantiser)
            return None
        made: dict[str, torch.Tensor] = {}

        def pack(name: str, read: torch.Tensor) -> None:
            weight, limits = self._weights(name), None
            if self._searched and not name.endswith(_COMPARED):
                limits = self._clipped(weight, read)
            made[name] = self._store(name, weight, self._quantiser, limits)

        def weights(name: str) -> torch.Tensor:
            return made[name] if name in made else self._weights(name)

        rows = torch_tower.gathered(a, weights, stream, watch=pack)
        for name in a.connector_matrices():
            pack(f"{name}.weight", rows)
        seen = torch_tower.connected(a, weights, rows)
        largest = float(seen.abs().max())
        if not largest <= _LARGEST_HALF:  # NaN neither
            raise UnsupportedError(
                f"The gated blocks make a key or a value of {largest:g} of a calibration picture; "
                f"up to {_LARGEST_HALF:g} are supported."
            )
        return seen

    def _tap(self, tap: int, stream: torch.Tensor | None) -> None:
        """Packs the connector of a tap, for the stream behind its layer."""
        rows = None
        if stream is not None and self._grid is not None:
            rows = torch_tower.tapped(self._architecture, self._weights, tap, stream, self._grid)
        self._connector(rows, tap)

    def _connector(self, rows: torch.Tensor | None, tap: int = -1) -> None:
        """Packs the connector, or a tap's, for what it reads of the pictures, [n, t, k]."""
        a = self._architecture
        for name in a.connector_matrices(tap):
            weight = self._weights(f"{name}.weight")
            limits = None
            if rows is not None and self._searched:
                limits = self._clipped(weight, rows)
            rounded = self._store(f"{name}.weight", weight, self._quantiser, limits)
            if rows is not None and name.endswith(".0") and a.connector == "mlp":
                bias = self._weights(f"{name}.bias") if a.connector_bias else None
                rows = activated(a.connector_activation, multiply(rows, rounded, bias))

    def _clipped(self, weight: torch.Tensor, rows: torch.Tensor) -> torch.Tensor | None:
        plan = methods.METHODS["awq"].plan(self._quantiser.bits, self._without)
        if not plan.clipped:
            return None
        statistics = InputStatistics(weight.shape[1], self._quantiser.group_size, self._device)
        statistics.update(rows)
        products = statistics.mean_products()
        return awq.clip_limits(weight, products, self._quantiser, plan.apart)

    def _store(
        self,
        name: str,
        weight: torch.Tensor,
        quantiser: Quantiser,
        limits: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Packs a matrix; gives it as the runtime will see it."""
        quantised = grouped.quantise(weight, quantiser.bits, quantiser.group_size, limits, name)
        write_matrix(self._work, name, quantised)
        return quantised.dequantise()

    def _batches(self, stream: torch.Tensor) -> list[torch.Tensor]:
        a = self._architecture
        positions = stream.shape[1]
        widest = max(a.feed_forward_size, a.heads * positions)  # scores of every pair
        size = max(1, _BATCH_FLOATS // (positions * widest))
        return [stream[first : first + size] for first in range(0, len(stream), size)]
