"""The tower for pictures in PyTorch: calibration runs it, tests compare the runtime with it.

Owns what is in front of its layers and behind them: patches, positions, pooling, regrouping and the
connector. Refuses layers: those are the decoder's (``torch_decoder.py``), without its causal mask.

Shapes: b pictures of s x s pixels, p positions, E the tower's width, H the decoder's.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

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
        pixels: uint8 [b, s, s, 3].

    Returns:
        float32 [b, patches, 3 * size * size], a patch's numbers by channel, row and column.
    """
    a = architecture
    side = a.grid * a.patch_size  # what is left over is not read
    table = values.view(3, 256)
    planes = [table[c][pixels[:, :side, :side, c].long()] for c in range(3)]
    numbers = torch.stack(planes, dim=1).view(-1, 3, a.grid, a.patch_size, a.grid, a.patch_size)
    return numbers.permute(0, 2, 4, 1, 3, 5).reshape(len(pixels), a.grid**2, -1)


def embedded(
    architecture: VisionArchitecture, weights: WeightSource, read: torch.Tensor
) -> torch.Tensor:
    """The stream in front of the first layer, [b, p, E], for what :func:`patches` gives."""
    a = architecture
    bias = weights("v.patch_embd.bias") if a.patch_bias else None
    stream = multiply(read, weights("v.patch_embd.weight"), bias)
    if a.class_token:
        first = weights("v.class_embd").expand(len(stream), 1, -1)
        stream = torch.cat((first, stream), dim=1)
    stream = stream + weights("v.position_embd.weight").view(a.positions, a.hidden_size)
    return _layer_norm(a, weights, "v.pre_ln", stream) if a.pre_norm else stream


def layer_weights(
    architecture: VisionArchitecture, weights: WeightSource, number: int
) -> dict[str, torch.Tensor]:
    """A layer's tensors by the decoder's names."""
    return {name: weights(in_file(number, name)) for name in architecture.layer_tensor_names()}


def layer(
    architecture: VisionArchitecture,
    number: int,
    weights: Mapping[str, torch.Tensor],
    linear: Linear | None = None,
    *,
    kv_fp16: bool = False,
) -> Layer:
    """One layer, for its tensors by the decoder's names."""
    return Layer(architecture.tower(), number, weights, Positions(), linear, kv_fp16=kv_fp16)


def gathered(
    architecture: VisionArchitecture, weights: WeightSource, stream: torch.Tensor
) -> torch.Tensor:
    """What the connector's first matrix reads of the stream behind the last layer, [b, t, k]."""
    a = architecture
    rows = stream[:, 1:] if a.class_token else stream
    if a.post_norm:
        rows = _layer_norm(a, weights, "v.post_ln", rows)
    side = a.grid
    grid = rows.view(len(rows), side, side, a.hidden_size)
    if a.pool > 1:
        side //= a.pool
        grid = grid.view(len(rows), side, a.pool, side, a.pool, -1).mean(dim=(2, 4))
    rows = regrouped(grid, a.regroup)
    if a.connector_norm == "none":
        return rows
    weight, width = weights("mm.norm.weight"), rows.shape[-1:]
    if a.connector_norm == "layer":
        return F.layer_norm(rows, width, weight, weights("mm.norm.bias"), a.connector_norm_epsilon)
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


def connected(
    architecture: VisionArchitecture, weights: WeightSource, rows: torch.Tensor
) -> torch.Tensor:
    """What the decoder reads, [b, tokens, H], for what :func:`gathered` gives."""
    a = architecture

    def product(name: str, x: torch.Tensor) -> torch.Tensor:
        bias = weights(f"{name}.bias") if a.connector_bias else None
        return multiply(x, weights(f"{name}.weight"), bias)

    first = product("mm.0", rows)
    if a.connector == "linear":
        return first
    return product("mm.2", activated(a.connector_activation, first))


@torch.inference_mode()
def encoded(
    architecture: VisionArchitecture, weights: WeightSource, pixels: torch.Tensor
) -> torch.Tensor:
    """What the decoder reads of pictures, float32 [b, tokens, H].

    Args:
        architecture: The tower.
        weights: Gives its tensors by the names of a model file, one layer's at a time.
        pixels: uint8 [b, s, s, 3].
    """
    a = architecture
    stream = embedded(a, weights, patches(a, weights("v.pixel_values"), pixels))
    for number in range(a.layers):
        stream = layer(a, number, layer_weights(a, weights, number)).run(stream)
    return connected(a, weights, gathered(a, weights, stream))


def _layer_norm(
    architecture: VisionArchitecture, weights: WeightSource, norm: str, x: torch.Tensor
) -> torch.Tensor:
    weight, bias = weights(f"{norm}.weight"), weights(f"{norm}.bias")
    return F.layer_norm(x, x.shape[-1:], weight, bias, architecture.norm_epsilon)
