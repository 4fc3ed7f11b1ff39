"""Rounding with error compensation: GPTQ, and what refines its codes and scales afterwards.

Owns the choice of codes for a given grid, target and Hessian: the error of every rounded input is
made good by the inputs that are still to come (Frantar et al., "GPTQ: Accurate Post-Training
Quantization", ICLR 2023), inputs of large activations first, with groups that never move. Then
exact minimisation one code at a time, and group scales refitted by least squares, in turn. Refuses
to choose grids (``grids.py``) and to see activations: all that it knows of them is the Hessian.

Matrices are held transposed, [k, n]: the inner loop walks inputs, and one input's weights of all
rows then lie together.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import torch

from awq_edge.quantize import grouped
from awq_edge.quantize.grids import Grid, to_half

# Share of the mean diagonal that is added to it: the Hessian of few tokens is nearly singular.
DAMPING = 0.01
_ROWS = 4096  # refined together: bounds the memory
_BLOCK = 64  # inputs rounded before the rest of the matrix hears of their errors


@dataclasses.dataclass(frozen=True)
class Hessian:
    """Means of x_i * x_j over the tokens that a matrix reads, damped, with what solving needs.

    ``order`` lists inputs by falling diagonal; ``upper`` is the upper triangular factor of the
    inverse in that order, inverse = upper^T @ upper.
    """

    matrix: torch.Tensor  # float32 [k, k]
    order: torch.Tensor  # int64 [k]
    upper: torch.Tensor  # float32 [k, k]

    @classmethod
    def of(cls, products: torch.Tensor, damping: float = DAMPING) -> Hessian:
        """Damps means of products, [k, k]; an input that never was anything but zero is kept."""
        matrix = products.double()
        diagonal = matrix.diagonal()
        dead = diagonal <= 0
        mean = diagonal.mean() if bool((~dead).any()) else torch.ones_like(diagonal[0])
        matrix = matrix + torch.diag(torch.where(dead, mean, mean * damping))
        order = torch.argsort(matrix.diagonal(), descending=True, stable=True)
        # H = V V^T with V upper triangular, from the Cholesky factor of H read backwards; the
        # factor of the inverse is then V's inverse.
        backwards = matrix[order][:, order].flip(0, 1)
        factor = torch.linalg.cholesky(backwards).flip(0, 1)
        identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        upper = torch.linalg.solve_triangular(factor, identity, upper=True)
        return cls(matrix.float(), order, upper.float())

    def conditional(self) -> torch.Tensor:
        """What an input's error costs once the later ones have made up for it, [k]."""
        costs = torch.empty_like(self.upper[0])
        costs[self.order] = self.upper.diagonal().square().reciprocal()
        return costs

    def solve(self, right: torch.Tensor) -> torch.Tensor:
        """``right`` [n, k] times the inverse."""
        in_order = right[:, self.order] @ self.upper.T @ self.upper
        solved = torch.empty_like(in_order)
        solved[:, self.order] = in_order
        return solved


def quantise(
    weight: torch.Tensor,
    hessian: Hessian,
    choose_grid: Callable[[torch.Tensor, slice], Grid],
    rounds: int,
) -> Iterator[tuple[slice, grouped.Quantised]]:
    """Rounds a matrix, some rows at a time: rows do not know of each other.

    Args:
        weight: float32 [n, k].
        hessian: Of its input.
        choose_grid: Gives the grid of some rows, for their weights and which they are.
        rounds: How often codes and scales are refined in turn.

    Yields:
        Rows and what they became.
    """
    with _one_thread(weight.device):
        for first in range(0, len(weight), _ROWS):
            rows = slice(first, min(first + _ROWS, len(weight)))
            target = weight[rows]
            grid = choose_grid(target, rows)
            codes = compensate(target, hessian, grid)
            for _ in range(rounds):
                codes = descend(codes, target, hessian, grid, 1)
                grid = refit_scales(codes, target, hessian, grid)
            if rounds:
                codes = descend(codes, target, hessian, grid, 1)
            yield rows, grid.with_codes(codes)


@contextlib.contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    """Small steps, one after the other: handing them out to threads costs more than it gives."""
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def compensate(target: torch.Tensor, hessian: Hessian, grid: Grid) -> torch.Tensor:
    """GPTQ: codes [n, k], as float32, for a target [n, k] on a grid."""
    scales, zeros = grid.transposed()
    divisors = torch.where(scales == 0, torch.inf, scales)  # an empty group stays empty
    weights = target.T[hessian.order].contiguous()  # [k, n]
    codes = torch.empty_like(weights)
    groups = (hessian.order // grid.group_size).tolist()
    upper, k = hessian.upper, len(weights)
    pivots = upper.diagonal().tolist()
    for first in range(0, k, _BLOCK):
        end = min(first + _BLOCK, k)
        errors = torch.empty_like(weights[first:end])
        for index in range(first, end):
            group = groups[index]
            w, zero = weights[index], zeros[group]
            code = torch.round(w / divisors[group]).add_(zero).clamp_(0.0, grid.largest_code)
            codes[index] = code
            error = (w - (code - zero) * scales[group]) / pivots[index]
            errors[index - first] = error
            if index + 1 < end:
                weights[index + 1 : end].addr_(upper[index, index + 1 : end], error, alpha=-1)
        if end < k:
            weights[end:] -= upper[first:end, end:].T @ errors
    unordered = torch.empty_like(codes)
    unordered[hessian.order] = codes
    return unordered.T.contiguous()


def descend(
    codes: torch.Tensor, target: torch.Tensor, hessian: Hessian, grid: Grid, sweeps: int
) -> torch.Tensor:
    """Moves one code after the other to where the output's error is smallest, all others fixed.

    Args:
        codes: float32 [n, k], where to begin.
        target: float32 [n, k].
        hessian: Of the input.
        grid: Scales and zero-points.
        sweeps: How often to walk all inputs.
    """
    scales, zeros = grid.transposed()
    divisors = torch.where(scales == 0, torch.inf, scales)  # an empty group stays empty
    matrix = hessian.matrix
    pivots = matrix.diagonal().tolist()
    codes = codes.T.contiguous()  # [k, n]
    target = target.T.contiguous()
    k, g = len(codes), grid.group_size
    for _ in range(sweeps):
        wide_scales = scales.repeat_interleave(g, dim=0)[:k]
        weights = (codes - zeros.repeat_interleave(g, dim=0)[:k]) * wide_scales
        slopes = matrix @ (weights - target)
        for first in range(0, k, _BLOCK):
            end = min(first + _BLOCK, k)
            moves = torch.zeros_like(codes[first:end])
            local = slopes[first:end]
            for index in range(first, end):
                group = index // g
                zero, w = zeros[group], weights[index]
                wanted = w - local[index - first] / pivots[index]
                code = torch.round(wanted / divisors[group]).add_(zero)
                code.clamp_(0.0, grid.largest_code)
                moved = (code - zero) * scales[group] - w
                codes[index] = code
                moves[index - first] = moved
                local.addr_(matrix[first:end, index], moved)
            slopes[end:].addmm_(matrix[end:, first:end], moves)
    return codes.T.contiguous()


def refit_scales(codes: torch.Tensor, target: torch.Tensor, hessian: Hessian, grid: Grid) -> Grid:
    """The scales that suit the codes best: least squares over all groups of a row together."""
    n, k = codes.shape
    g = grid.group_size
    count = grid.scales.shape[1]
    steps = codes - grid.zeros.repeat_interleave(g, dim=1)[:, :k]
    right = torch.empty(n, count, dtype=torch.float64, device=codes.device)
    left = torch.empty(n, count, count, dtype=torch.float64, device=codes.device)
    wanted = target @ hessian.matrix
    for group in range(count):
        inside = slice(group * g, min((group + 1) * g, k))
        right[:, group] = (wanted[:, inside] * steps[:, inside]).sum(dim=1)
        product = steps[:, inside] @ hessian.matrix[inside]
        padded = torch.nn.functional.pad(product * steps, (0, count * g - k))
        left[:, group] = padded.reshape(n, count, g).sum(dim=2)
    # A group of zero-points alone has no say in its scale.
    empty = left.diagonal(dim1=1, dim2=2) <= 0
    left = left + torch.diag_embed(empty.double())
    fitted = torch.linalg.solve(left, right.unsqueeze(2)).squeeze(2).float()
    usable = ~empty & torch.isfinite(fitted) & (fitted > 0)
    return dataclasses.replace(grid, scales=torch.where(usable, to_half(fitted), grid.scales))
