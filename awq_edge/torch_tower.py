"""The tower for pictures in PyTorch: calibration runs it, tests compare the runtime with it.

Owns what is in front of its layers and behind them: patches, positions, pooling, regrouping and the
connector. Refuses layers: those are the decoder's (``torch_decoder.py``), without its causal mask.

Shapes: b pictures of one size, p positions, E the tower's width, H the decoder's.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from awq_edge import torch_resampler
from awq_edge.cross_attention import CrossAttention
from awq_edge.torch_decoder import (
    Layer,
    Linear,
    Positions,
    WeightSource,
    activated,
    multiply,
)
from awq_edge.vision.architecture import VisionArchitecture, in_file


def patches(
    architecture: VisionArchitecture, values: torch.Tensor, pixels: torch.Tensor
) -> torch.Tensor:
    """What the patch matrix reads of pictures.

    Args:
        architecture: The tower.
        values: Of every byte in every channel, float32 [3 * 256].
        pixels: uint8 [b, height, width, 3].

    Returns:
        float32 [b, patches, 3 * size * size], a patch's numbers by channel, row and column.
    """
    size = architecture.patch_size
    height, width = grid_of(architecture, pixels)
    table = values.view(3, 256)
    read = pixels[:, : height * size, : width * size]  # what is left over is not read
    planes = [table[c][read[..., c].long()] for c in range(3)]
    numbers = torch.stack(planes, dim=1).view(-1, 3, height, size, width, size)
    return numbers.permute(0, 2, 4, 1, 3, 5).reshape(len(pixels), height * width, -1)


def grid_of(architecture: VisionArchitecture, pixels: torch.Tensor) -> tuple[int, int]:
    """Rows and columns of patches of pictures, uint8 [b, height, width, 3]."""
    return pixels.shape[1] // architecture.patch_size, pixels.shape[2] // architecture.patch_size


def positions_of(
    architecture: VisionArchitecture, weights: WeightSource, number: int, grid: tuple[int, int]
) -> Positions:
    """What the attention of a layer knows of patches in rows and columns.

    Queries and keys turn by both; with windows a patch sees those of its own, except in full
    layers.
    """
    a = architecture
    if not a.rotary:
        return Positions()
    frequencies = weights("v.rope.inverse_frequencies")
    places = torch.arange(grid[0] * grid[1], device=frequencies.device)
    rows, columns = places // grid[1], places % grid[1]
    angles = torch.cat([torch.outer(at.float(), frequencies) for at in (rows, columns)], dim=1)
    visible = None
    if a.window and number not in a.full_layers:
        across = -(-grid[1] // a.window)
        windows = rows // a.window * across + columns // a.window
        visible = windows[:, None] == windows
    return Positions(angles.cos()[None], angles.sin()[None], visible=visible)


def embedded(
    architecture: VisionArchitecture,
    weights: WeightSource,
    read: torch.Tensor,
    grid: tuple[int, int] | None = None,
) -> torch.Tensor:
    """The stream in front of the first layer, [b, p, E], for what :func:`patches` gives.

    ``grid``: rows and columns of patches; None: those of the square that the tower reads.
    """
    a = architecture
    bias = weights("v.patch_embd.bias") if a.patch_bias else None
    stream = multiply(read, weights("v.patch_embd.weight"), bias)
    if a.class_token:
        first = weights("v.class_embd").expand(len(stream), 1, -1)
        stream = torch.cat((first, stream), dim=1)
    if not a.rotary:
        stream = stream + weights("v.position_embd.weight").view(a.positions, a.hidden_size)
    elif a.position_grid:
        table = weights("v.position_embd.weight").view(a.position_grid, a.position_grid, -1)
        stream = stream + interpolated(table, *(grid or (a.grid, a.grid)))
    return _norm(a, weights, "v.pre_ln", stream) if a.pre_norm else stream


def interpolated(table: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Positions of a grid from those of a square table, the corners at each other.

    Args:
        table: [s, s, E].
        height: Rows of the grid.
        width: Columns of it.

    Returns:
        [height * width, E].
    """

    def between(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        at = torch.arange(count, device=table.device) * (len(table) - 1)
        steps = max(count - 1, 1)
        first = at // steps
        return first, (first + 1).clamp(max=len(table) - 1), (at % steps).float() / steps

    top, bottom, down = between(height)
    left, right, across = between(width)
    down, across = down[:, None, None], across[None, :, None]
    taps = (
        ((1 - down) * (1 - across), top, left),
        ((1 - down) * across, top, right),
        (down * (1 - across), bottom, left),
        (down * across, bottom, right),
    )
    summed = sum(weight * table[rows][:, columns] for weight, rows, columns in taps)
    assert isinstance(summed, torch.Tensor)
    return summed.reshape(height * width, -1)


def layer_weights(
    architecture: VisionArchitecture, weights: WeightSource, number: int
) -> dict[str, torch.Tensor]:
    """A layer's tensors by the decoder's names."""
    return {name: weights(in_file(number, name)) for name in architecture.layer_tensor_names()}


def layer(
    architecture: VisionArchitecture,
    number: int,
    weights: Mapping[str, torch.Tensor],
    positions: Positions,
    linear: Linear | None = None,
    *,
    kv_fp16: bool = False,
) -> Layer:
    """One layer, for its tensors by the decoder's names."""
    return Layer(architecture.tower(), number, weights, positions, linear, kv_fp16=kv_fp16)


def gathered(
    architecture: VisionArchitecture,
    weights: WeightSource,
    stream: torch.Tensor,
    grid: tuple[int, int] | None = None,
    watch: torch_resampler.Watch | None = None,
) -> torch.Tensor:
    """What the connector's first matrix reads of the stream behind the last layer, [b, t, k].

    ``grid``: rows and columns of patches; None: those of the square that the tower reads.
    ``watch`` hears what the matrices of a resampler read.
    """
    a = architecture
    rows = stream[:, 1:] if a.class_token and not a.keep_class else stream
    if a.cross is not None:
        if a.resampler is None:
            return rows
        return torch_resampler.resampled(a.resampler, weights, rows, watch)
    if a.post_norm:
        rows = _norm(a, weights, "v.post_ln", rows)
    height, width = grid or (a.grid, a.grid)
    cells = rows.view(len(rows), height, width, a.hidden_size)
    if a.pool > 1:
        height, width = height // a.pool, width // a.pool
        cells = cells.view(len(rows), height, a.pool, width, a.pool, -1).mean(dim=(2, 4))
    rows = regrouped(cells, a.regroup)
    if a.by_columns:
        lines = rows.view(len(rows), -(-height // a.regroup), -(-width // a.regroup), -1)
        rows = lines.transpose(1, 2).reshape(rows.shape)
    if a.connector_norm == "none":
        return rows
    weight, read = weights("mm.norm.weight"), rows.shape[-1:]
    if a.connector_norm == "layer":
        return F.layer_norm(rows, read, weight, weights("mm.norm.bias"), a.connector_norm_epsilon)
    mean = rows.square().mean(dim=-1, keepdim=True)
    return rows * torch.rsqrt(mean + a.connector_norm_epsilon) * weight


def regrouped(grid: torch.Tensor, size: int) -> torch.Tensor:
    """Squares of rows as one row each.

    Args:
        grid: [b, h, w, E]; where h or w is no multiple of ``size``, zeros follow.
        size: Side of a square.

    Returns:
        [b, squares, size * size * E]: a square's rows by row and column.
    """
    grid = F.pad(grid, (0, 0, 0, -grid.shape[2] % size, 0, -grid.shape[1] % size))
    b, h, w, e = grid.shape
    squares = grid.view(b, h // size, size, w // size, size, e).permute(0, 1, 3, 2, 4, 5)
    return squares.reshape(b, (h // size) * (w // size), size * size * e)


def tapped(
    architecture: VisionArchitecture,
    weights: WeightSource,
    tap: int,
    stream: torch.Tensor,
    grid: tuple[int, int],
) -> torch.Tensor:
    """What a tap's first matrix reads of the stream behind its layer, [b, t, k]."""
    a = architecture
    rows = regrouped(stream.view(len(stream), *grid, a.hidden_size), a.regroup)
    name = f"mm.tap.{tap}.norm"
    weight, bias = weights(f"{name}.weight"), weights(f"{name}.bias")
    return F.layer_norm(rows, rows.shape[-1:], weight, bias, a.norm_epsilon)


def connected(
    architecture: VisionArchitecture, weights: WeightSource, rows: torch.Tensor, tap: int = -1
) -> torch.Tensor:
    """What the decoder reads, [b, tokens, H], for what :func:`gathered` or :func:`tapped` gives.

    Where layers look at pictures, [b, tokens, row size].
    """
    a = architecture
    if a.cross is not None:
        return torch.cat([_seen(a.cross, weights, n, rows) for n in a.cross.numbers], dim=-1)

    def product(name: str, x: torch.Tensor) -> torch.Tensor:
        bias = weights(f"{name}.bias") if a.connector_bias else None
        return multiply(x, weights(f"{name}.weight"), bias)

    matrices = a.connector_matrices(tap)
    first = product(matrices[0], rows)
    if a.connector == "linear":
        return first
    return product(matrices[1], activated(a.connector_activation, first))


def _seen(
    cross: CrossAttention, weights: WeightSource, number: int, rows: torch.Tensor
) -> torch.Tensor:
    """Keys and values of the gated block before a layer, [b, tokens, 2 * size]."""
    keys = multiply(rows, weights(f"mm.blk.{number}.k.weight"), None)
    values = multiply(rows, weights(f"mm.blk.{number}.v.weight"), None)
    if cross.qk_norm:
        weight = weights(f"mm.blk.{number}.k_norm.weight")
        heads = keys.view(*keys.shape[:2], cross.heads, cross.head_size)
        mean = heads.square().mean(dim=-1, keepdim=True)
        keys = (heads * torch.rsqrt(mean + cross.norm_epsilon) * weight).view(keys.shape)
    return torch.cat((keys, values), dim=-1)


@torch.inference_mode()
def encoded(
    architecture: VisionArchitecture, weights: WeightSource, pixels: torch.Tensor
) -> torch.Tensor:
    """What the decoder reads of pictures, or looks at, float32 [b, tokens, row size].

    Args:
        architecture: The tower.
        weights: Gives its tensors by the names of a model file, one layer's at a time.
        pixels: uint8 [b, height, width, 3].
    """
    a, grid = architecture, grid_of(architecture, pixels)
    stream = embedded(a, weights, patches(a, weights("v.pixel_values"), pixels), grid)
    taps: list[torch.Tensor] = []
    for number in range(a.layers):
        positions = positions_of(a, weights, number, grid)
        stream = layer(a, number, layer_weights(a, weights, number), positions).run(stream)
        if number in a.taps:
            tap = len(taps)
            taps.append(connected(a, weights, tapped(a, weights, tap, stream, grid), tap))
    rows = connected(a, weights, gathered(a, weights, stream, grid))
    return torch.cat((rows, *taps), dim=-1)


def _norm(
    architecture: VisionArchitecture, weights: WeightSource, norm: str, x: torch.Tensor
) -> torch.Tensor:
    weight = weights(f"{norm}.weight")
    if architecture.norm == "rms":
        mean = x.square().mean(dim=-1, keepdim=True)
        return x * torch.rsqrt(mean + architecture.norm_epsilon) * weight
    return F.layer_norm(x, x.shape[-1:], weight, weights(f"{norm}.bias"), architecture.norm_epsilon)
