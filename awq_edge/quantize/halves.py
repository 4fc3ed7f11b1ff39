"""Square matrices of which one half is kept, in strips of rows: symmetric and triangular ones.

Owns how the half lies in memory and what needs the other one: whole rows, and another order of the
inputs, in place. A matrix of products is the largest tensor of a conversion, up to a gigabyte and
more; strips can be let go of one by one. Refuses to solve anything: ``gptq.py`` does.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

STRIP_ROWS = 512  # computed at once: enough for every processor to be busy
_MOVED = 128  # rows that are put into their places at once, with those that make room for them


class Half:
    """What lies left of the diagonal and on it, of a matrix [k, k].

    A strip's rows reach as far as the last one's diagonal, so that a square on the diagonal is
    whole: ``strips[i]`` is [rows, end], where ``end`` counts its rows and all before.
    """

    def __init__(self, strips: list[torch.Tensor]) -> None:
        """Takes the strips, those of the first rows first."""
        self.strips = strips

    @classmethod
    def of(cls, whole: torch.Tensor, rows: int) -> Half:
        """A copy of half of a symmetric matrix [k, k], in strips of so many rows."""
        return cls([whole[part, : part.stop].clone() for part in parts_of(len(whole), rows)])

    @property
    def size(self) -> int:
        """Rows, and columns."""
        return self.strips[-1].shape[1]

    @property
    def device(self) -> torch.device:
        """Where the strips are."""
        return self.strips[0].device

    def placed(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """Every strip, with the rows that it has."""
        for strip in self.strips:
            rows, end = strip.shape
            yield slice(end - rows, end), strip

    def diagonal(self) -> torch.Tensor:
        """A copy, [k]."""
        return torch.cat([strip[:, inside].diagonal() for inside, strip in self.placed()])

    def add_to_diagonal(self, values: torch.Tensor) -> None:
        """Adds ``values`` [k]."""
        for inside, strip in self.placed():
            strip[:, inside].diagonal().add_(values[inside])

    def triangle(self, part: slice, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Some rows up to the last one's diagonal, [rows, part.stop]; what is not kept is 0.

        Args:
            part: Which rows; not a copy where they lie in one strip.
            dtype: Of the result, if another one.
        """
        dtype, height = dtype or self.strips[0].dtype, part.stop - part.start
        pieces = []
        for inside, strip in self.placed():
            first, end = max(inside.start, part.start), min(inside.stop, part.stop)
            if first < end:
                rows = strip[first - inside.start : end - inside.start, : part.stop].to(dtype)
                if len(rows) == height:
                    return rows
                pieces.append((slice(first - part.start, end - part.start), rows))
        found = torch.zeros(height, part.stop, dtype=dtype, device=self.device)
        for at, rows in pieces:
            found[at, : rows.shape[1]] = rows
        return found

    def rows(self, part: slice) -> torch.Tensor:
        """Some rows of a symmetric matrix, [rows, k]; not a copy where one strip has all."""
        if len(self.strips) == 1:
            return self.strips[0][part]
        return self.rows_at(torch.arange(part.start, part.stop, device=self.device))

    def rows_at(self, numbers: torch.Tensor) -> torch.Tensor:
        """A copy of the rows of these numbers of a symmetric matrix, [len(numbers), k]."""
        found = self.strips[0].new_empty(len(numbers), self.size)
        for inside, strip in self.placed():
            here, above = _in(numbers, inside), numbers < inside.start
            found[here, : inside.stop] = strip[numbers[here] - inside.start]
            found[above, inside] = strip[:, numbers[above]].T
        return found

    def times(self, right: torch.Tensor) -> torch.Tensor:
        """A symmetric matrix times ``right`` [k, n]."""
        return torch.cat([self.rows(inside) @ right for inside, _ in self.placed()])

    def reorder(self, order: torch.Tensor) -> None:
        """Puts rows and columns of a symmetric matrix into an order, in place.

        Some places after the others: inputs that belong there change places with those that lie
        there, and no more rows than that takes are in memory twice.

        Args:
            order: int64 [k], which input is to come first, which second and so on.
        """
        lying = torch.arange(self.size, device=order.device)  # which input lies where
        place = lying.clone()  # and where each one does
        for inside in parts_of(self.size, _MOVED):
            wanted, here = order[inside], lying[inside]
            outside = place[wanted]
            outside = outside[~_in(outside, inside)]
            to = torch.cat([torch.arange(inside.start, inside.stop, device=order.device), outside])
            inputs = torch.cat([wanted, here[~torch.isin(here, wanted)]])
            self._move(place[inputs], to)
            lying[to], place[inputs] = inputs, to

    def _move(self, origin: torch.Tensor, to: torch.Tensor) -> None:
        """Moves rows and columns from some places [m] to the same places in another order [m]."""
        columns = torch.arange(self.size, device=to.device)
        columns[to] = origin
        moved = self.rows_at(origin)
        for inside, strip in self.placed():
            here, across = _in(to, inside), to < inside.stop
            strip[to[here] - inside.start] = moved[here][:, columns[: inside.stop]]
            strip[:, to[across]] = moved[across][:, columns[inside]].T


def parts_of(k: int, rows: int) -> list[slice]:
    """Cuts k rows into strips of so many; the last may have fewer."""
    return [slice(first, min(first + rows, k)) for first in range(0, k, rows)]


def _in(numbers: torch.Tensor, part: slice) -> torch.Tensor:
    inside: torch.Tensor = (numbers >= part.start) & (numbers < part.stop)
    return inside
