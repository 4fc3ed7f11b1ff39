"""Random numbers that are a function of a scene's seed: the same on every device and batch size.

Owns nothing but the hash. A scene's number n draws the same picture and the same questions on a CPU
and on a GPU, alone or among thousands, because no generator's state is shared between scenes.
"""

from __future__ import annotations

import torch

_MASK = 0xFFFFFFFF


def scramble(x: torch.Tensor) -> torch.Tensor:
    """A 32-bit mixing function of integers.

    Args:
        x: int64, any shape; the low 32 bits count.

    Returns:
        int64 in [0, 2^32), the same shape. Products wrap, which leaves their low bits right.
    """
    x = x & _MASK
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & _MASK
    x = ((x ^ (x >> 15)) * 0x735A2D97) & _MASK
    return x ^ (x >> 15)


class Draws:
    """Draws for a batch of scenes; every call gives numbers of its own."""

    def __init__(self, seeds: torch.Tensor, stream: int) -> None:
        """Begins a series.

        Args:
            seeds: int64 [b], each in [0, 2^32).
            stream: Which of several independent series of draws: one per purpose.
        """
        self._state = scramble(scramble(seeds) + 0x9E3779B9 * (stream + 1))
        self._calls = 0

    def integers(self, *shape: int) -> torch.Tensor:
        """int64 [b, *shape], uniform in [0, 2^32)."""
        self._calls += 1
        count = 1
        for side in shape:
            count *= side
        index = torch.arange(count, device=self._state.device)
        row = scramble(self._state + 0x85EBCA6B * self._calls)
        return scramble(row[:, None] + scramble(index)).view(-1, *shape)

    def below(self, limit: int, *shape: int) -> torch.Tensor:
        """int64 [b, *shape], uniform in [0, limit)."""
        return (self.integers(*shape) * limit) >> 32

    def uniform(self, low: float, high: float, *shape: int) -> torch.Tensor:
        """float32 [b, *shape], uniform in [low, high)."""
        return low + (high - low) * ((self.integers(*shape) >> 8).float() * 2.0**-24)

    def chance(self, probability: float, *shape: int) -> torch.Tensor:
        """True with this probability, bool [b, *shape]."""
        return self.uniform(0.0, 1.0, *shape) < probability

    def pick(
        self, allowed: torch.Tensor, weight: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One of the allowed entries of each row, by chance.

        Args:
            allowed: bool [b, n].
            weight: float32, broadcastable to [b, n] and positive: how much likelier one is than
                another. All alike without it.

        Returns:
            Its index, int64 [b] (0 where nothing is allowed), and whether there was one, bool [b].
        """
        # The smallest of exponential waiting times with these rates.
        waiting = -torch.log(self.uniform(0.0, 1.0, allowed.shape[1]).clamp_min(2.0**-25))
        if weight is not None:
            waiting = waiting / weight
        waiting = torch.where(allowed, waiting, torch.inf)
        return waiting.argmin(1), allowed.any(1)
