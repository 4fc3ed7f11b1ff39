"""The loops of ``columns.py`` for a CPU, compiled by Numba when they are first used.

Owns two functions on arrays. Inputs are walked one after the other, and for each of them all rows,
which lie together: the compiler makes vectors of them. It is told neither to fuse nor to reorder,
so these loops round alike on every machine.
"""

from __future__ import annotations

import numba
import numpy as np

# Adding it leaves no bits behind the point: 1.5 * 2^23.
_WHOLE = np.float32(12582912.0)
_ZERO = np.float32(0.0)


@numba.njit(nogil=True, error_model="numpy", inline="always")
def _step(value, scale, zero, largest):
    """The steps from the zero-point that are nearest to a value, half to even."""
    step = value / scale if scale != _ZERO else _ZERO
    step = min(max(step, -zero), largest - zero)
    return (step + _WHOLE) - _WHOLE


@numba.njit(nogil=True, error_model="numpy")
def compensate(scales, zeros, largest, upper, weights, codes, errors):
    """As ``columns.compensate``, for float32 arrays whose rows lie together."""
    count, n = weights.shape
    for index in range(count):
        pivot = upper[index, index]
        for row in range(n):
            scale, zero, value = scales[index, row], zeros[index, row], weights[index, row]
            step = _step(value, scale, zero, largest)
            codes[index, row] = step + zero
            errors[index, row] = (value - step * scale) / pivot
        for later in range(index + 1, count):
            factor = upper[index, later]
            for row in range(n):
                weights[later, row] -= factor * errors[index, row]


@numba.njit(nogil=True, error_model="numpy")
def descend(scales, zeros, largest, matrix, weights, slopes, codes, moves):
    """As ``columns.descend``, for float32 arrays whose rows lie together."""
    count, n = weights.shape
    for index in range(count):
        pivot = matrix[index, index]
        for row in range(n):
            scale, zero, weight = scales[index, row], zeros[index, row], weights[index, row]
            step = _step(weight - slopes[index, row] / pivot, scale, zero, largest)
            codes[index, row] = step + zero
            moves[index, row] = step * scale - weight
        for later in range(index + 1, count):
            factor = matrix[index, later]
            for row in range(n):
                slopes[later, row] += factor * moves[index, row]
