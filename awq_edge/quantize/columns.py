"""The innermost loop of rounding: one input's weights of all rows, and then the next input's.

Owns the choice between two kernels for each of two walks through a block of inputs: those of a CPU
(``columns_numba.py``) and of a GPU (``columns_triton.py``). As steps of PyTorch a walk takes
tens of times as long. Where Triton does not work a GPU's blocks go to the CPU and back.
Refuses to know where the block lies in its matrix: ``gptq.py`` cuts it out.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from types import ModuleType

import numpy as np
import torch


@dataclasses.dataclass(frozen=True)
class BlockGrid:
    """Scales and zero-points of a block of inputs."""

    scales: torch.Tensor  # float32 [inputs, n]
    zeros: torch.Tensor  # float32 [inputs, n], whole numbers
    largest_code: float


@functools.cache
def gpu_kernels() -> ModuleType | None:
    """The GPU's kernels; None where Triton is missing or cannot compile them."""
    try:
        from awq_edge.quantize import columns_triton

        columns_triton.try_out()
    except Exception:  # whatever its compilers, the driver and a missing C compiler raise
        return None
    return columns_triton


def compensate(
    grid: BlockGrid,
    upper: torch.Tensor,
    weights: torch.Tensor,
    codes: torch.Tensor,
    errors: torch.Tensor,
) -> None:
    """Rounds a block's inputs one after the other; the later ones take over the errors.

    Args:
        grid: Of the block.
        upper: The block [inputs, inputs] of the upper factor of the inverse Hessian.
        weights: What is to be rounded, [inputs, n]; used up.
        codes: A place for the codes, [inputs, n].
        errors: A place for the errors over the factor's diagonal, [inputs, n].
    """
    fast = gpu_kernels() if weights.device.type == "cuda" else None
    if fast is not None:
        fast.compensate(grid, upper, weights, codes, errors)
        return
    from awq_edge.quantize import columns_numba  # Numba takes half a second

    _on_cpu(columns_numba.compensate, grid, upper, (weights,), (codes, errors))


def descend(
    grid: BlockGrid,
    matrix: torch.Tensor,
    weights: torch.Tensor,
    slopes: torch.Tensor,
    codes: torch.Tensor,
    moves: torch.Tensor,
) -> None:
    """Moves a block's codes, one input after the other, to where the error is smallest.

    Args:
        grid: Of the block.
        matrix: The block [inputs, inputs] of the Hessian.
        weights: What the codes stand for, [inputs, n].
        slopes: Half the derivative of the error by each weight, [inputs, n]; used up.
        codes: The codes, [inputs, n]; replaced.
        moves: A place for how far each weight was moved, [inputs, n].
    """
    fast = gpu_kernels() if weights.device.type == "cuda" else None
    if fast is not None:
        fast.descend(grid, matrix, weights, slopes, codes, moves)
        return
    from awq_edge.quantize import columns_numba

    _on_cpu(columns_numba.descend, grid, matrix, (weights, slopes), (codes, moves))


def _on_cpu(
    kernel: Callable[..., None],
    grid: BlockGrid,
    matrix: torch.Tensor,
    given: Sequence[torch.Tensor],
    made: Sequence[torch.Tensor],
) -> None:
    """Lets a kernel of the CPU fill ``made``, wherever the tensors lie; ``given`` is used up."""
    places = [tensor.cpu() for tensor in made]
    read = [tensor.cpu().numpy() for tensor in (grid.scales, grid.zeros)]
    square = np.ascontiguousarray(matrix.cpu().numpy())
    written = [tensor.cpu().numpy() for tensor in (*given, *places)]
    kernel(*read, np.float32(grid.largest_code), square, *written)
    for tensor, place in zip(made, places):
        if tensor is not place:
            tensor.copy_(place)
