"""The innermost loop of rounding: one input's weights of all rows, and then the next input's.

Owns the two walks through a block of inputs, in PyTorch; a GPU has kernels for them
(``columns_triton.py``), for there starting so many small steps takes longer than doing them. Where
Triton does not work the walks in PyTorch do it there too.
Refuses to know where the block lies in its matrix: ``gptq.py`` cuts it out.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from types import ModuleType

import torch


@dataclasses.dataclass(frozen=True)
class BlockGrid:
    """Scales and zero-points of a block of inputs."""

    scales: torch.Tensor  # float32 [inputs, n]
    zeros: torch.Tensor  # float32 [inputs, n], whole numbers
    largest_code: float


@functools.cache
def kernels() -> ModuleType | None:
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
    fast = kernels() if weights.device.type == "cuda" else None
    if fast is not None:
        fast.compensate(grid, upper, weights, codes, errors)
        return
    rows = _rows(grid, weights, codes, errors, upper)
    pivots = upper.diagonal().tolist()
    for index, (scale, divisor, lowest, highest, w, steps, error, factors) in enumerate(rows):
        torch.div(w, divisor, out=steps)
        steps.round_().clamp_(lowest, highest)
        torch.addcmul(w, steps, scale, value=-1, out=error).div_(pivots[index])
        if index + 1 < len(weights):
            weights[index + 1 :].addr_(factors[index + 1 :], error, alpha=-1)
    codes += grid.zeros


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
    fast = kernels() if weights.device.type == "cuda" else None
    if fast is not None:
        fast.descend(grid, matrix, weights, slopes, codes, moves)
        return
    rows = _rows(grid, weights, codes, moves, matrix)
    pivots = matrix.diagonal().tolist()
    for index, (scale, divisor, lowest, highest, w, steps, moved, factors) in enumerate(rows):
        torch.sub(w, slopes[index], alpha=1 / pivots[index], out=steps)
        steps.div_(divisor).round_().clamp_(lowest, highest)
        torch.mul(steps, scale, out=moved).sub_(w)
        if index + 1 < len(weights):
            slopes[index + 1 :].addr_(factors[index + 1 :], moved)
    codes += grid.zeros


def _rows(grid: BlockGrid, *tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """By input: scale, divisor, lowest and highest steps from the zero-point, then the tensors."""
    divisors = torch.where(grid.scales == 0, torch.inf, grid.scales)  # no range: no step
    limits = -grid.zeros, grid.largest_code - grid.zeros
    return zip(*(values.unbind() for values in (grid.scales, divisors, *limits, *tensors)))
