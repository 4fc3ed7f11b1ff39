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
from awq_edge.quantize.halves import Half, parts_of

# Share of a typical input's mean square that a Hessian's diagonal grows by, for few tokens tell it:
# that of GPTQ's paper.
DAMPING = 0.01
_SOLVABLE = 1e-9  # of the largest mean square: less than this is lost when float64 factorises
# Weights refined together: bounds the memory. A GPU has more of it, and wants long rows.
_WEIGHTS_AT_ONCE = {"cpu": 1 << 24, "cuda": 1 << 27}
_BLOCK = 64  # inputs rounded before the rest of the matrix hears of their errors
# Rows of a Hessian or its factor that lie together, once all is solved: a multiple of a block. Up
# to so many inputs nothing has to be put together, beyond them half is kept.
_STRIP = 2048

# Gives the grid of some rows, for their weights and which they are.
ChooseGrid = Callable[[torch.Tensor, slice], Grid]


@dataclasses.dataclass(frozen=True)
class Factor:
    """What rounding with compensation needs of means of x_i * x_j: a factor of their inverse.

    ``order`` lists inputs by falling diagonal. In that order the inverse is upper^T @ upper, with
    ``upper`` upper triangular; ``lower`` is ``upper`` read backwards, rows and columns.
    """

    order: torch.Tensor  # int64 [k]
    lower: Half  # float32 [k, k]

    @classmethod
    def of(cls, products: Half, damping: float = DAMPING) -> Factor:
        """Damps means of products; an input that never was anything but zero is kept.

        Args:
            products: Means of x_i * x_j, float64, symmetric. Used up: the factor is computed in
                their memory, which is the largest of a conversion.
            damping: Share of a typical input's mean square.
        """
        _damp(products, damping)
        return cls(*_solved(products))

    @property
    def size(self) -> int:
        """Inputs."""
        return self.lower.size

    def upper(self, part: slice) -> torch.Tensor:
        """Some rows of ``upper``, from the first one's diagonal on, [rows, k - part.start]."""
        k = self.size
        return self.lower.triangle(slice(k - part.stop, k - part.start)).flip(0, 1)

    def conditional(self) -> torch.Tensor:
        """What an input's error costs once the later ones have made up for it, [k]."""
        diagonal = self.lower.diagonal().flip(0)
        costs = torch.empty_like(diagonal)
        costs[self.order] = diagonal.square().reciprocal()
        return costs

    def solve(self, right: torch.Tensor) -> torch.Tensor:
        """``right`` [n, k] times the inverse."""
        in_order = right[:, self.order]
        halfway = torch.zeros_like(in_order)
        for part in parts_of(self.size, _STRIP):
            upper = self.upper(part)
            halfway[:, part.start :] += in_order[:, part.start :] @ upper.T @ upper
        solved = torch.empty_like(halfway)
        solved[:, self.order] = halfway
        return solved


@dataclasses.dataclass(frozen=True)
class Hessian(Factor):
    """The damped means themselves besides, which refining codes and scales needs."""

    matrix: Half  # float32 [k, k], symmetric

    @classmethod
    def of(cls, products: Half, damping: float = DAMPING) -> Hessian:
        """As :meth:`Factor.of`."""
        _damp(products, damping)
        damped = Half([_kept(products, part) for part in parts_of(products.size, _STRIP)])
        return cls(*_solved(products), damped)


def conditional(products: Half, damping: float = DAMPING) -> torch.Tensor:
    """``Hessian.of(products).conditional()``, without the Hessian; the products are used up."""
    _damp(products, damping)
    order = _factorise(products)
    costs = torch.empty(len(order), device=order.device)
    costs[order] = products.diagonal().reciprocal().float().square().reciprocal().flip(0)
    products.strips.clear()
    return costs


def _damp(products: Half, damping: float) -> None:
    """Adds to the diagonal."""
    diagonal = products.diagonal()
    alive = diagonal > 0
    typical = torch.ones_like(diagonal[0])
    if bool(alive.any()):
        # The geometric mean: of the plain one, a few large inputs could be most.
        typical = diagonal[alive].log().mean().exp().clamp(min=_SOLVABLE * diagonal.max())
    products.add_to_diagonal(torch.where(alive, typical * damping, typical))


def _solved(products: Half) -> tuple[torch.Tensor, Half]:
    """The order and the factor of damped means, which are used up."""
    order = _factorise(products)
    _invert(products)
    return order, _narrowed(products)


def _kept(products: Half, part: slice) -> torch.Tensor:
    """A strip of a symmetric matrix in float32, its square on the diagonal whole."""
    rows = products.triangle(part, torch.float32)
    square = rows[:, part]
    square.copy_(square.tril() + square.tril(-1).T)
    return rows


def _factorise(matrix: Half) -> torch.Tensor:
    """Makes of a symmetric matrix a Cholesky factor, lower triangular, strip by strip.

    H = V V^T with V upper triangular, in the order of falling diagonals, comes from the Cholesky
    factor of H read backwards; the factor of the inverse is then V's inverse. Nothing useful is
    left above the diagonal. (PyTorch's own factorisation needs the whole matrix three times.)

    Returns:
        The order, [k]; the factor is that of the matrix with inputs in the opposite order.
    """
    order = torch.argsort(matrix.diagonal(), descending=True, stable=True)
    matrix.reorder(order.flip(0))
    for number, (inside, strip) in enumerate(matrix.placed()):
        known = strip[:, : inside.start]
        for below in matrix.strips[number:]:
            below[:, inside] -= below[:, : inside.start] @ known.T
        factor = torch.linalg.cholesky(strip[:, inside])
        strip[:, inside] = factor
        for below in matrix.strips[number + 1 :]:
            below[:, inside] = torch.linalg.solve_triangular(
                factor.T, below[:, inside], upper=True, left=False
            )
    return order


def _invert(lower: Half) -> None:
    """Inverts a triangular matrix in place; what lies above its diagonal is not read.

    A block of the inverse needs those above it, and of the matrix only what is still there.
    """
    placed = list(lower.placed())
    for number, (inside, strip) in enumerate(placed):
        width = inside.stop - inside.start
        identity = torch.eye(width, dtype=strip.dtype, device=strip.device)
        # The inverse's columns, from their diagonal down.
        columns = strip.new_empty(lower.size - inside.start, width)
        columns[:width] = torch.linalg.solve_triangular(strip[:, inside], identity, upper=False)
        strip[:, inside] = columns[:width]
        for below, others in placed[number + 1 :]:
            above = below.start - inside.start
            right = others[:, inside.start : below.start] @ columns[:above]
            found = torch.linalg.solve_triangular(others[:, below], right.neg_(), upper=False)
            others[:, inside] = columns[above : above + len(found)] = found


def _narrowed(lower: Half) -> Half:
    """A triangular matrix in float32 and in strips of ``_STRIP``; the other one is used up."""
    found = []
    for part in reversed(parts_of(lower.size, _STRIP)):
        found.append(lower.triangle(part, torch.float32))
        while lower.strips and lower.size - len(lower.strips[-1]) >= part.start:
            lower.strips.pop()
    return Half(found[::-1])


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


def compensate(target: torch.Tensor, factor: Factor, grid: Grid) -> torch.Tensor:
    """GPTQ: codes [n, k], as float32, for a target [n, k] on a grid."""
    scales, zeros = grid.transposed()
    weights = target.T[factor.order].contiguous()  # [k, n]
    codes = torch.empty_like(weights)
    groups = factor.order // grid.group_size
    for inside in parts_of(len(weights), _BLOCK):
        end, width = inside.stop, inside.stop - inside.start
        errors = torch.empty_like(weights[inside])
        steps = columns.BlockGrid(scales[groups[inside]], zeros[groups[inside]], grid.largest_code)
        upper = factor.upper(inside)
        columns.compensate(steps, upper[:, :width], weights[inside], codes[inside], errors)
        if end < len(weights):
            weights[end:] -= upper[:, width:].T @ errors
    unordered = torch.empty_like(codes)
    unordered[factor.order] = codes
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
    codes = codes.T.contiguous()  # [k, n]
    target = target.T.contiguous()
    k, g = len(codes), grid.group_size
    groups = torch.arange(k, device=codes.device) // g
    for _ in range(sweeps):
        weights = (codes - zeros[groups]) * scales[groups]
        slopes = hessian.matrix.times(weights - target)
        for inside in parts_of(k, _BLOCK):
            moves = torch.empty_like(codes[inside])
            steps = columns.BlockGrid(
                scales[groups[inside]], zeros[groups[inside]], grid.largest_code
            )
            columns.descend(
                steps,
                hessian.matrix.triangle(inside)[:, inside],
                weights[inside],
                slopes[inside],
                codes[inside],
                moves,
            )
            for rows, strip in hessian.matrix.placed():
                begin = max(inside.stop, rows.start)
                if begin < rows.stop:
                    slopes[begin : rows.stop].addmm_(strip[begin - rows.start :, inside], moves)
    return codes.T.contiguous()


def refit_scales(codes: torch.Tensor, target: torch.Tensor, hessian: Hessian, grid: Grid) -> Grid:
    """The scales that suit the codes best: least squares over all groups of a row together."""
    n, k = codes.shape
    g = grid.group_size
    count = grid.scales.shape[1]
    steps = codes - grid.zeros.repeat_interleave(g, dim=1)[:, :k]
    right = torch.empty(n, count, dtype=torch.float64, device=codes.device)
    left = torch.empty(n, count, count, dtype=torch.float64, device=codes.device)
    wanted = hessian.matrix.times(target.T).T
    for group in range(count):
        inside = slice(group * g, min((group + 1) * g, k))
        right[:, group] = (wanted[:, inside] * steps[:, inside]).sum(dim=1)
        product = steps[:, inside] @ hessian.matrix.rows(inside)
        padded = torch.nn.functional.pad(product * steps, (0, count * g - k))
        left[:, group] = padded.reshape(n, count, g).sum(dim=2)
    # A group of zero-points alone has no say in its scale.
    empty = left.diagonal(dim1=1, dim2=2) <= 0
    left = left + torch.diag_embed(empty.double())
    fitted = torch.linalg.solve(left, right.unsqueeze(2)).squeeze(2).float()
    usable = ~empty & torch.isfinite(fitted) & (fitted > 0)
    return dataclasses.replace(grid, scales=torch.where(usable, to_half(fitted), grid.scales))
