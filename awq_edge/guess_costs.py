"""What guessing costs, and what it may lose: times of steps, and an account of each text.

Owns both. Refuses the choice of how many tokens are guessed (``speculation.py``).
"""

from __future__ import annotations

from collections import deque

# Of a wider step that was not measured yet: optimistic, so that it is tried once.
_ROW_SHARE = 0.08
# And what is risked with it: as much as a model pays that is not bound by reading its weights.
_ROW_RISK = 0.5
# Times of a step that are kept: their median is not moved by one that waited for something else.
_TIMES = 7
# What guessing may lose: of each step so much, and so many steps before anything was gained. With
# both a text of 128 tokens loses 1.6 % at most, and 2 % where its first guess was dearer than was
# to be expected.
_ALLOWED_SHARE = 0.008
_ALLOWED_STEPS = 1.0


class StepCosts:
    """Seconds of a step by its rows, as they were measured."""

    def __init__(self) -> None:
        """Knows nothing."""
        self._times: dict[int, deque[float]] = {}

    def learn(self, rows: int, seconds: float) -> None:
        """Notes a step."""
        self._times.setdefault(rows, deque(maxlen=_TIMES)).append(seconds)

    def seconds(self, rows: int) -> float | None:
        """What a step of so many rows takes, or will; None until one was measured."""
        if rows in self._times:
            return self._median(rows)
        below = max((known for known in self._times if known < rows), default=None)
        above = min((known for known in self._times if known > rows), default=None)
        if below is None:
            return None if above is None else self._median(above)
        low = self._median(below)
        if above is None:
            return low * wider(1 + rows - below)
        share = (rows - below) / (above - below)
        return low + share * (self._median(above) - low)

    def most_seconds(self, rows: int) -> float | None:
        """What a step of so many rows should not exceed; None until one was measured."""
        top = max(self._times, default=rows)
        if rows <= top:
            return self.seconds(rows)
        high, least = self._median(top), min(self._times)
        if least == top:
            return high * (1 + _ROW_RISK * (rows - top))
        each = (high - self._median(least)) / (top - least)
        return high + max(each, 0.0) * (rows - top)

    def _median(self, rows: int) -> float:
        times = sorted(self._times[rows])
        return times[(len(times) - 1) // 2]


def wider(rows: int) -> float:
    """What a step of so many rows probably takes, by one of a single row."""
    return 1 + _ROW_SHARE * (rows - 1)


class Account:
    """What a text's guesses may still lose, in steps without guesses.

    Attributes:
        steps: What may be lost; below 0 where more was lost than was allowed.
    """

    def __init__(self, pool: Pool) -> None:
        """Takes what earlier texts have left."""
        self._pool = pool
        self.steps = pool.take()

    def step(self) -> None:
        """A step is about to be made."""
        self.steps += _ALLOWED_SHARE

    def spend(self, steps: float) -> None:
        """Guessing has cost so much; below 0: gained."""
        self.steps -= steps

    def close(self) -> None:
        """The text has ended; a second call does nothing."""
        self._pool.give_back(self.steps)
        self.steps = 0.0


class Pool:
    """What the guesses of a text may lose before it has gained anything, for all texts together."""

    def __init__(self) -> None:
        """Lends what may be lost at first."""
        self._steps = _ALLOWED_STEPS

    def take(self) -> float:
        """What is left."""
        steps, self._steps = self._steps, 0.0
        return steps

    def give_back(self, steps: float) -> None:
        """What a text has left, gained or lost; no text takes another's gains along."""
        self._steps = min(self._steps + steps, _ALLOWED_STEPS)
