"""CIDEr-D, the usual measure of a caption, over token ids.

Weights runs of one to four tokens by how few pictures' captions have them, compares the vectors by
cosine with each weight cut to the right caption's, and punishes another length (Vedantam and
others, 2015). Ten is a caption that equals the only right one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

Caption = Sequence[int]
_LONGEST = 4
# Tokens of difference in length that cost about a third.
_DEVIATION = 6.0


def cider_d(said: Sequence[Caption], right: Sequence[Sequence[Caption]]) -> float:
    """The mean over pictures, 0 to 10; arguments as for :func:`cider_d_each`."""
    return sum(cider_d_each(said, right)) / len(said)


def cider_d_each(said: Sequence[Caption], right: Sequence[Sequence[Caption]]) -> list[float]:
    """Of every picture, 0 to 10.

    Args:
        said: One caption per picture.
        right: The right ones of each picture.
    """
    frequency: list[Counter[tuple[int, ...]]] = [Counter() for _ in range(_LONGEST)]
    for references in right:
        for n, counts in enumerate(frequency, start=1):
            counts.update({run for caption in references for run in _runs(caption, n)})
    pictures = math.log(max(2, len(right)))

    def vector(caption: Caption, n: int) -> dict[tuple[int, ...], float]:
        seen = frequency[n - 1]
        return {
            run: count * (pictures - math.log(max(1, seen[run])))
            for run, count in Counter(_runs(caption, n)).items()
        }

    found = []
    for ours, references in zip(said, right, strict=True):
        total = 0.0
        for reference in references:
            penalty = math.exp(-((len(ours) - len(reference)) ** 2) / (2 * _DEVIATION**2))
            for n in range(1, _LONGEST + 1):
                cosine = _cut_cosine(vector(ours, n), vector(reference, n))
                total += 10 * penalty * cosine / (_LONGEST * len(references))
        found.append(total)
    return found


def _runs(caption: Caption, n: int) -> list[tuple[int, ...]]:
    return [tuple(caption[i : i + n]) for i in range(len(caption) - n + 1)]


def _cut_cosine(
    ours: dict[tuple[int, ...], float], reference: dict[tuple[int, ...], float]
) -> float:
    lengths = math.sqrt(sum(v * v for v in ours.values()) * sum(v * v for v in reference.values()))
    if lengths == 0:
        return 0.0
    return (
        sum(min(v, reference.get(run, 0.0)) * reference.get(run, 0.0) for run, v in ours.items())
        / lengths
    )
