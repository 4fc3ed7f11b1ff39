"""Rounding in which outputs make up for each other's errors, as inputs do in GPTQ.

Owns the walk over the rows of a matrix. With H the mean of x x^T over what a matrix reads and G
that of g g^T over the loss's gradients by what it gives (``gradients.py``), errors E [n, k] of its
weights make the loss grow by about tr(G E H E^T): the Kronecker-factored Fisher information of
Martens and Grosse, "Optimizing Neural Networks with Kronecker-factored Approximate Curvature" (ICML
2015); Tseng et al., "Model-Preserving Adaptive Rounding" (2025), round with it. GPTQ knows H alone.
Here some rows are rounded by GPTQ, and the targets of the rows that are still to come make good
what went wrong, by G's inverse: GPTQ once more, along the outputs, rows of large gradients first.

Outputs are coupled within runs of neighbours: heads and residual states are, and G stays small.
Refuses to choose codes: ``gptq.py`` does.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from awq_edge.quantize import gptq, grouped
from awq_edge.quantize.grids import Grid

_LONGEST_RUN = 1024
# Parts of a run, one of them rounded before the others hear of its errors. On novels-45m, 4 bits, 4
# parts lower the divergence by 10 %, 8 by 16 %, 16 by 18 %; each doubling takes more time.
_PARTS = 8
# Share of the mean diagonal that is added to G: it is known from few tokens.
_DAMPING = 0.1


def runs(n: int) -> tuple[int, int]:
    """How many runs n outputs are cut into, and how long these are; the last may be shorter."""
    count = -(-n // _LONGEST_RUN)
    return count, -(-n // count)


def in_runs(values: torch.Tensor) -> torch.Tensor:
    """[n, …] -> [runs, outputs, …], filled up with zeros."""
    n = len(values)
    count, length = runs(n)
    filled = values.new_zeros(count * length, *values.shape[1:])
    filled[:n] = values
    return filled.view(count, length, *values.shape[1:])


def scaled(moments: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Moments of outputs that were divided by ``factors`` [n]: their gradients grow as much."""
    factors = in_runs(factors)
    return moments * factors.unsqueeze(2) * factors.unsqueeze(1)


def quantise(
    weights: list[torch.Tensor],
    hessian: gptq.Hessian,
    moments: list[torch.Tensor],
    choose_grid: Callable[[torch.Tensor], Grid],
    rounds: int,
) -> list[grouped.Quantised]:
    """Rounds whole matrices that read the same input, together: that takes hardly more time.

    Args:
        weights: float32 [n, k] each; the list is used up, and that of the moments.
        hessian: Of their input.
        moments: Of the gradients by their outputs, float32 [runs, outputs, outputs] each.
        choose_grid: Gives the grid of some rows for their targets.
        rounds: As in ``gptq.quantise``.
    """
    matrices = []
    while weights:
        matrices.append(_Matrix(weights.pop(0), moments.pop(0)))
    for part in range(_PARTS):
        targets = [matrix.targets(part) for matrix in matrices]
        target = torch.cat(targets)
        if not len(target):
            continue  # all matrices have fewer rows than parts
        rounded, first = _rounded(target, hessian, choose_grid, rounds), 0
        for matrix, rows in zip(matrices, targets):
            if len(rows):
                matrix.take(part, rounded.rows(first, first + len(rows)))
            first += len(rows)
    return [matrix.whole() for matrix in matrices]


def _rounded(
    target: torch.Tensor,
    hessian: gptq.Hessian,
    choose_grid: Callable[[torch.Tensor], Grid],
    rounds: int,
) -> grouped.Quantised:
    """Rows that do not know of each other, no more at once than there is memory for."""
    pieces = torch.split(target, gptq.rows_at_once(target.shape[1], target.device))
    return grouped.joined(
        [gptq.rounded(piece, hessian, choose_grid(piece), rounds) for piece in pieces]
    )


class _Matrix:
    """A matrix on its way: parts of all of its runs, one after the other."""

    def __init__(self, weight: torch.Tensor, moments: torch.Tensor) -> None:
        self._n = len(weight)
        self._count, length = runs(self._n)
        order, self._upper = _factors(moments)
        numbers = order + length * torch.arange(self._count, device=order.device).unsqueeze(1)
        self._targets = weight[numbers.clamp(max=self._n - 1)]  # [runs, outputs, k]
        self._targets[numbers >= self._n] = 0
        bounds = [length * part // _PARTS for part in range(_PARTS + 1)]
        self._parts = [slice(*pair) for pair in zip(bounds, bounds[1:])]
        self._places = torch.cat([numbers[:, part].flatten() for part in self._parts])
        self._rounded: list[grouped.Quantised] = []

    def targets(self, part: int) -> torch.Tensor:
        """What the part's rows are to be rounded to, [rows, k]."""
        return self._targets[:, self._parts[part]].flatten(0, 1)

    def take(self, part: int, rounded: grouped.Quantised) -> None:
        """Takes what became of the part's rows; those still to come make up for the errors."""
        inside = self._parts[part]
        self._rounded.append(rounded)
        errors = self._targets[:, inside] - rounded.dequantise().view(
            self._count, inside.stop - inside.start, -1
        )
        pivots = self._upper[:, inside, inside].mT.contiguous()
        errors = torch.linalg.solve_triangular(pivots, errors, upper=False)
        self._targets[:, inside.stop :] -= self._upper[:, inside, inside.stop :].mT @ errors

    def whole(self) -> grouped.Quantised:
        """All rows, in the matrix's order."""
        return grouped.joined(self._rounded).take(torch.argsort(self._places)[: self._n])


def _factors(moments: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each run the order of falling diagonals and, in it, the inverse's upper factor.

    With damped moments, inverse = upper^T @ upper.
    """
    diagonals = moments.diagonal(dim1=1, dim2=2).double()
    mean = diagonals.sum() / (diagonals > 0).sum().clamp(min=1)
    # Outputs that nothing depends on are coupled with none; any number on the diagonal will do.
    added = torch.where(mean > 0, _DAMPING * mean, 1.0)
    orders, factors = [], []
    for run, diagonal in zip(moments, diagonals):
        order = torch.argsort(diagonal, descending=True, stable=True)
        wide = run[order][:, order].double()
        wide.diagonal().add_(added)
        # Read backwards, the factor of the matrix is the inverse of the factor of the inverse.
        factor = torch.linalg.cholesky(wide.flip(0, 1)).flip(0, 1)  # upper triangular: wide = V V^T
        identity = torch.eye(len(wide), dtype=wide.dtype, device=wide.device)
        factors.append(torch.linalg.solve_triangular(factor, identity, upper=True).float())
        orders.append(order)
    return torch.stack(orders), torch.stack(factors)
