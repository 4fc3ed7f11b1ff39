"""The slopes of attention with linear biases (ALiBi): how fast each head's scores fall.

Owns the one rule by which every family makes them. numpy only.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from awq_edge.errors import InvalidArgumentError


def alibi_slopes(heads: int, largest_bias: float = 8.0) -> npt.NDArray[np.float32]:
    """By what a score falls for each position between query and key, float32 [heads].

    Press, Smith and Lewis 2021 (arXiv 2108.12409): a geometric sequence from 2^(-B / P) to 2^-B for
    P heads, a power of two. Where there are more heads than the largest such P, the rest takes
    every second slope of 2 P heads.

    Args:
        heads: How many.
        largest_bias: B.

    Raises:
        InvalidArgumentError: B is not positive.
    """
    if not largest_bias > 0:
        raise InvalidArgumentError(
            f"The largest ALiBi exponent is {largest_bias:g}; it must be positive."
        )
    power = 1 << (heads.bit_length() - 1)
    whole = np.arange(1, power + 1) / power
    between = (2 * np.arange(1, heads - power + 1) - 1) / (2 * power)
    slopes = np.exp2(-largest_bias * np.concatenate((whole, between)))
    return slopes.astype(np.float32)
