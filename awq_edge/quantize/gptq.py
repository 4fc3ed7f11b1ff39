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

import dataclasses
from collections.abc import Callable, Iterator

import torch

from awq_edge.layouts import BLOCK_ROWS
from awq_edge.quantize import columns, grouped
from awq_edge.quantize.grids import Grid, to_half

# Share of a typical input's mean square that a Hessian's diagonal grows by, for few tokens tell it:
# that of GPTQ's paper.
DAMPING = 0.01
_SOLVABLE = 1e-9  # of the largest mean square: less than this is lost when float64 factorises
# Weights refined together: bounds the memory. A GPU has more of it, and wants long rows.
_WEIGHTS_AT_ONCE = {"cpu": 1 << 24, "cuda": 1 << 27}
_BLOCK = 64  # inputs rounded before the rest of the matrix hears of their errors
_STRIP = 512  # rows or columns of a Hessian or its factor that are copied at once

# Gives the grid of some rows, for their weights and which they are.
ChooseGrid = Callable[[torch.Tensor, slice], Grid]


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
        """Damps means of products; an input that never was anything but zero is kept.

        Args:
            products: Means of x_i * x_j, float64 [k, k], symmetric. Used up: the factor is computed
                in its memory, which is the largest of a conversion.
            damping: Share of a typical input's mean square.
        """
        _damp(products, damping)
        damped = _lower_half(products)
        order = _factorise(products)
        _invert(products)
        inverse = _lower_half(products)
        _release(products)
        return cls(_mirrored(damped), order, _backwards(inverse))

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


def conditional(products: torch.Tensor, damping: float = DAMPING) -> torch.Tensor:
    """``Hessian.of(products).conditional()``, without the Hessian; the products are used up."""
    _damp(products, damping)
    order = _factorise(products)
    costs = torch.empty(len(order), device=order.device)
    costs[order] = products.diagonal().reciprocal().float().square().reciprocal().flip(0)
    _release(products)
    return costs


def _release(used_up: torch.Tensor) -> None:
    """Gives a tensor's memory back at once: callers up the stack may still hold the tensor."""
    used_up.untyped_storage().resize_(0)


def _damp(products: torch.Tensor, damping: float) -> None:
    """Adds to the diagonal."""
    diagonal = products.diagonal()
    alive = diagonal > 0
    typical = torch.ones_like(diagonal[0])
    if bool(alive.any()):
        # The geometric mean: of the plain one, a few large inputs could be most.
        typical = diagonal[alive].log().mean().exp().clamp(min=_SOLVABLE * diagonal.max())
    diagonal += torch.where(alive, typical * damping, typical)


def _reorder(matrix: torch.Tensor, order: torch.Tensor) -> None:
    """Puts rows and columns [k, k] into an order, in place."""
    for first in range(0, len(matrix), _STRIP):
        rows = matrix[first : first + _STRIP]
        rows.copy_(rows[:, order])
    for first in range(0, len(matrix), _STRIP):
        across = matrix[:, first : first + _STRIP]
        across.copy_(across[order])


def _factorise(matrix: torch.Tensor) -> torch.Tensor:
    """Puts a Cholesky factor into a symmetric matrix's lower triangle [k, k], strip by strip.

    H = V V^T with V upper triangular, in the order of falling diagonals, comes from the Cholesky
    factor of H read backwards; the factor of the inverse is then V's inverse. Nothing useful is
    left above the diagonal strips. (PyTorch's own factorisation needs the memory three times.)

    Returns:
        The order, [k]; the factor is that of the matrix with inputs in the opposite order.
    """
    order = torch.argsort(matrix.diagonal(), descending=True, stable=True)
    _reorder(matrix, order.flip(0))
    k = len(matrix)
    for first in range(0, k, _STRIP):
        end = min(first + _STRIP, k)
        inside = slice(first, end)
        if first:
            matrix[first:, inside] -= matrix[first:, :first] @ matrix[inside, :first].T
        factor = torch.linalg.cholesky(matrix[inside, inside])
        matrix[inside, inside] = factor
        if end < k:
            matrix[end:, inside] = torch.linalg.solve_triangular(
                factor.T, matrix[end:, inside], upper=True, left=False
            )
    return order


def _invert(lower: torch.Tensor) -> None:
    """Inverts a triangular matrix [k, k] in place; what lies above its diagonal strips is not read.

    A block of the inverse needs those above it, and of the matrix only what is still there.
    """
    strips = _strips(len(lower))
    for number, strip in enumerate(strips):
        identity = torch.eye(strip.stop - strip.start, dtype=lower.dtype, device=lower.device)
        lower[strip, strip] = torch.linalg.solve_triangular(
            lower[strip, strip], identity, upper=False
        )
        for below in strips[number + 1 :]:
            known = slice(strip.start, below.start)
            right = lower[below, known] @ lower[known, strip]
            lower[below, strip] = torch.linalg.solve_triangular(
                lower[below, below], right.neg_(), upper=False
            )


def _strips(k: int) -> list[slice]:
    return [slice(first, min(first + _STRIP, k)) for first in range(0, k, _STRIP)]


def _lower_half(matrix: torch.Tensor) -> list[torch.Tensor]:
    """What lies left of the diagonal strips' ends, float32: half of a matrix [k, k]."""
    return [matrix[strip, : strip.stop].float() for strip in _strips(len(matrix))]


def _mirrored(half: list[torch.Tensor]) -> torch.Tensor:
    """The symmetric matrix [k, k] of a lower half; the half is used up."""
    k = half[-1].shape[1]
    whole = torch.empty(k, k, device=half[-1].device)
    while half:
        strip = half.pop()
        rows, end = strip.shape
        whole[end - rows : end, :end] = strip
        whole[: end - rows, end - rows : end] = strip[:, : end - rows].T
    return whole


def _backwards(half: list[torch.Tensor]) -> torch.Tensor:
    """A lower triangular matrix [k, k] read backwards; the half is used up."""
    k = half[-1].shape[1]
    upper = torch.zeros(k, k, device=half[-1].device)
    while half:
        strip = half.pop()
        rows, end = strip.shape
        upper[k - end : k - end + rows, k - end :] = strip.flip(0, 1)
    return upper


def quantise(
    weight: torch.Tensor,
    hessian: Hessian,
    choose_grid: ChooseGrid,
    rounds: int,
) -> Iterator[grouped.Quantised]:
    """Rounds a matrix, some rows at a time: rows do not know of each other (``coupling.py``).

    Args:
        weight: float32 [n, k].
        hessian: Of its input.
        choose_grid: Gives the grids.
        rounds: How often codes and scales are refined in turn.

    Yields:
        What rows became, whole blocks of them but for the last ones.
    """
    n, k = weight.shape
    at_once = rows_at_once(k, weight.device)
    for first in range(0, n, at_once):
        rows = slice(first, min(first + at_once, n))
        yield rounded(weight[rows], hessian, choose_grid(weight[rows], rows), rounds)


def rows_at_once(k: int, device: torch.device) -> int:
    """How many rows of k weights there is memory for to round together: whole blocks."""
    return max(_WEIGHTS_AT_ONCE[device.type] // k // BLOCK_ROWS, 1) * BLOCK_ROWS


def rounded(target: torch.Tensor, hessian: Hessian, grid: Grid, rounds: int) -> grouped.Quantised:
    """Rounds all rows of a target [n, k]; takes what :func:`quantise` takes."""
    codes = compensate(target, hessian, grid)
    for _ in range(rounds):
        codes = descend(codes, target, hessian, grid, 1)
        grid = refit_scales(codes, target, hessian, grid)
    if rounds:
        codes = descend(codes, target, hessian, grid, 1)
    return grid.with_codes(codes)


def compensate(target: torch.Tensor, hessian: Hessian, grid: Grid) -> torch.Tensor:
    """GPTQ: codes [n, k], as float32, for a target [n, k] on a grid."""
    scales, zeros = grid.transposed()
    weights = target.T[hessian.order].contiguous()  # [k, n]
    codes = torch.empty_like(weights)
    groups = hessian.order // grid.group_size
    upper, k = hessian.upper, len(weights)
    for first in range(0, k, _BLOCK):
        end = min(first + _BLOCK, k)
        inside = slice(first, end)
        errors = torch.empty_like(weights[inside])
        steps = columns.BlockGrid(scales[groups[inside]], zeros[groups[inside]], grid.largest_code)
        columns.compensate(steps, upper[inside, inside], weights[inside], codes[inside], errors)
        if end < k:
            weights[end:] -= upper[inside, end:].T @ errors
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
    matrix = hessian.matrix
    codes = codes.T.contiguous()  # [k, n]
    target = target.T.contiguous()
    k, g = len(codes), grid.group_size
    groups = torch.arange(k, device=codes.device) // g
    for _ in range(sweeps):
        weights = (codes - zeros[groups]) * scales[groups]
        slopes = matrix @ (weights - target)
        for first in range(0, k, _BLOCK):
            end = min(first + _BLOCK, k)
            inside = slice(first, end)
            moves = torch.empty_like(codes[inside])
            steps = columns.BlockGrid(
                scales[groups[inside]], zeros[groups[inside]], grid.largest_code
            )
            columns.descend(
                steps,
                matrix[inside, inside],
                weights[inside],
                slopes[inside],
                codes[inside],
                moves,
            )
            slopes[end:].addmm_(matrix[end:, inside], moves)
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
