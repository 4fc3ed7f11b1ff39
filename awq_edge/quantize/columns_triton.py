"""The loops of ``columns.py`` as kernels for a GPU, in Triton.

On Linux PyTorch's CUDA builds bring it; it compiles with a C compiler of the system's.

Owns two kernels; each of their programs takes some rows and walks all inputs of the block with what
is left of them in registers. One warp a program: nothing has to wait for other warps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from awq_edge.quantize.columns import BlockGrid

_ROWS = 16  # of a program: 64 inputs of them are 32 registers a thread


@triton.jit
def _step(value, scale, zero, largest):
    """The steps from the zero-point that are nearest to a value, half to even."""
    step = tl.where(scale == 0.0, 0.0, value / scale)
    step = tl.minimum(tl.maximum(step, -zero), largest - zero)
    # Adding 1.5 * 2^23 leaves no bits behind the point.
    return (step + 12582912.0) - 12582912.0


@triton.jit
def _compensate(
    scales, zeros, upper, weights, codes, errors, stride, count, n, largest,
    INPUTS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inputs = tl.arange(0, INPUTS)
    known = rows < n
    block = inputs[:, None] * n + rows[None, :]
    left = tl.load(weights + block, mask=(inputs[:, None] < count) & known[None, :], other=0.0)
    for index in range(count):
        at = index * n + rows
        scale = tl.load(scales + at, mask=known, other=0.0)
        zero = tl.load(zeros + at, mask=known, other=0.0)
        later = (inputs > index) & (inputs < count)
        factors = tl.load(upper + index * stride + inputs, mask=later, other=0.0)
        pivot = tl.load(upper + index * stride + index)
        value = tl.sum(tl.where(inputs[:, None] == index, left, 0.0), axis=0)
        step = _step(value, scale, zero, largest)
        error = (value - step * scale) / pivot
        tl.store(codes + at, step + zero, mask=known)
        tl.store(errors + at, error, mask=known)
        left -= factors[:, None] * error[None, :]


@triton.jit
def _descend(
    scales, zeros, matrix, weights, slopes, codes, moves, stride, count, n, largest,
    INPUTS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inputs = tl.arange(0, INPUTS)
    known = rows < n
    block = inputs[:, None] * n + rows[None, :]
    left = tl.load(slopes + block, mask=(inputs[:, None] < count) & known[None, :], other=0.0)
    for index in range(count):
        at = index * n + rows
        scale = tl.load(scales + at, mask=known, other=0.0)
        zero = tl.load(zeros + at, mask=known, other=0.0)
        weight = tl.load(weights + at, mask=known, other=0.0)
        later = (inputs > index) & (inputs < count)
        factors = tl.load(matrix + index * stride + inputs, mask=later, other=0.0)
        pivot = tl.load(matrix + index * stride + index)
        slope = tl.sum(tl.where(inputs[:, None] == index, left, 0.0), axis=0)
        step = _step(weight - slope / pivot, scale, zero, largest)
        moved = step * scale - weight
        tl.store(codes + at, step + zero, mask=known)
        tl.store(moves + at, moved, mask=known)
        left += factors[:, None] * moved[None, :]


def compensate(
    grid: BlockGrid,
    upper: torch.Tensor,
    weights: torch.Tensor,
    codes: torch.Tensor,
    errors: torch.Tensor,
) -> None:
    """As ``columns.compensate``; rows of its tensors lie together, those of ``upper`` may not."""
    count, n = weights.shape
    _compensate[(triton.cdiv(n, _ROWS),)](
        grid.scales, grid.zeros, upper, weights, codes, errors,
        upper.stride(0), count, n, grid.largest_code,
        INPUTS=triton.next_power_of_2(count), ROWS=_ROWS, num_warps=1,
    )  # fmt: skip


def descend(
    grid: BlockGrid,
    matrix: torch.Tensor,
    weights: torch.Tensor,
    slopes: torch.Tensor,
    codes: torch.Tensor,
    moves: torch.Tensor,
) -> None:
    """As ``columns.descend``; rows of its tensors lie together, those of ``matrix`` may not."""
    count, n = weights.shape
    _descend[(triton.cdiv(n, _ROWS),)](
        grid.scales, grid.zeros, matrix, weights, slopes, codes, moves,
        matrix.stride(0), count, n, grid.largest_code,
        INPUTS=triton.next_power_of_2(count), ROWS=_ROWS, num_warps=1,
    )  # fmt: skip


def try_out() -> None:
    """Raises if the kernels do not compile or run here."""
    from awq_edge.quantize.columns import BlockGrid

    one = torch.ones(1, 1, device="cuda")
    grid = BlockGrid(one, one, 15.0)
    compensate(grid, one, one.clone(), one.clone(), one.clone())
    descend(grid, one, one, one.clone(), one.clone(), one.clone())
    torch.cuda.synchronize()
