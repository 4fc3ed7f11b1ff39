"""Widths for a byte budget: which matrices get how many bits.

Owns the choice, given what every width of a matrix costs in bytes and harms in accuracy. Refuses to
measure harm: ``sensitivity.py`` does.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

# Items so large that a step of theirs may be more than is left: all of their widths are tried. The
# embedding and the head; what is left over is then a step of a matrix of the decoder at most.
_LARGE = 2


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

    Args:
        items: All matrices.
        budget: Bytes; at least ``smallest(items)``.
    """
    assert budget >= smallest(items)
    by_size = sorted(items, key=lambda item: -max(item.sizes.values()))
    large, others = by_size[:_LARGE], by_size[_LARGE:]
    steps = _steps(others)
    best: dict[str, int] = {}
    least = float("inf")
    for widths in itertools.product(*(item.sizes for item in large)):
        left = budget - sum(item.sizes[bits] for item, bits in zip(large, widths))
        if left < smallest(others):
            continue
        chosen = _widened(others, steps, left)
        chosen.update({item.name: bits for item, bits in zip(large, widths)})
        harm = total_harm(items, chosen)
        if harm < least:
            best, least = chosen, harm
    return best


def total_harm(items: Sequence[Item], chosen: Mapping[str, int]) -> float:
    """The sum over all items at their chosen widths, by name."""
    return sum(item.harms[chosen[item.name]] for item in items)


def _steps(items: Sequence[Item]) -> list[tuple[float, int, int, int]]:
    """From each width worth having to the next one, what avoids most harm per byte first.

    Returns:
        Less than zero by the harm avoided per byte, the item's number, its width and the next one.
    """
    steps = []
    for number, item in enumerate(items):
        hull = item.improvements()
        steps += [
            (-item.gain(less, more), number, less, more) for less, more in zip(hull, hull[1:])
        ]
    return sorted(steps)


def _widened(
    items: Sequence[Item], steps: Sequence[tuple[float, int, int, int]], budget: int
) -> dict[str, int]:
    """Widens in the order of the steps: optimal but for the last few bytes.

    These then go to whatever still fits.
    """
    chosen = {item.name: min(item.sizes, key=item.sizes.__getitem__) for item in items}
    left = budget - smallest(items)
    for _, number, less, more in steps:
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
