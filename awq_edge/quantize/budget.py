"""Widths for a byte budget: which matrices get how many bits.

Owns the choice, given what every width of a matrix costs in bytes and harms in accuracy. Refuses to
measure harm: ``sensitivity.py`` does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Item:
    """A matrix with its widths."""

    name: str
    sizes: Mapping[int, int]  # bytes, by bits
    harms: Mapping[int, float]  # growth of the loss, by bits

    def improvements(self) -> list[int]:
        """Widths worth having, rising: those on the lower convex hull of harm over size."""
        hull: list[int] = []
        for bits in sorted(self.sizes, key=lambda width: (self.sizes[width], self.harms[width])):
            if hull and self.harms[bits] >= self.harms[hull[-1]]:
                continue  # larger and no better
            while len(hull) > 1 and self.gain(hull[-1], bits) >= self.gain(hull[-2], hull[-1]):
                hull.pop()
            hull.append(bits)
        return hull

    def gain(self, less: int, more: int) -> float:
        """Harm avoided per byte when it goes from one width to a larger one."""
        return (self.harms[less] - self.harms[more]) / (self.sizes[more] - self.sizes[less])


def smallest(items: Sequence[Item]) -> int:
    """Bytes of all items at their smallest."""
    return sum(min(item.sizes.values()) for item in items)


def solve(items: Sequence[Item], budget: int) -> dict[str, int]:
    """The widths of the least harm that fit, by name.

    Widens matrices in the order of harm avoided per byte: optimal but for the last few bytes, which
    then go to whatever still fits.

    Args:
        items: All matrices.
        budget: Bytes; at least ``smallest(items)``.
    """
    chosen = {item.name: min(item.sizes, key=item.sizes.__getitem__) for item in items}
    left = budget - smallest(items)
    assert left >= 0
    steps = []
    for number, item in enumerate(items):
        hull = item.improvements()
        steps += [
            (-item.gain(less, more), number, less, more) for less, more in zip(hull, hull[1:])
        ]
    for _, number, less, more in sorted(steps):
        item = items[number]
        extra = item.sizes[more] - item.sizes[less]
        if chosen[item.name] == less and extra <= left:
            chosen[item.name] = more
            left -= extra
    for item in sorted(items, key=lambda item: -item.harms[chosen[item.name]]):
        for bits in sorted(item.sizes, reverse=True):
            extra = item.sizes[bits] - item.sizes[chosen[item.name]]
            if extra <= left and item.harms[bits] < item.harms[chosen[item.name]]:
                chosen[item.name] = bits
                left -= extra
    return chosen
