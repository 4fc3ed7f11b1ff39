"""Resizing pictures in integers, equal to Pillow's ``Image.resize`` on every machine.

Owns the filters and their 22-bit coefficients. Pillow's own result differs between its versions
and, for Lanczos, between C libraries; a picture that a board sees must not. Refuses everything but
8-bit channels: what has 16 bits or transparency was made 8-bit RGB before (``decoding.py``).
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from awq_edge.errors import InvalidArgumentError

Pixels = npt.NDArray[np.uint8]

# Half the width of a filter, in pixels of the larger of both pictures.
_SUPPORTS = {"bilinear": 1.0, "bicubic": 2.0, "lanczos": 3.0}
FILTERS = tuple(_SUPPORTS)
_ONE = 1 << 22  # as a coefficient: 8 bits of a channel, 2 of overshoot, and a sign make 32 bits
_HALF = _ONE >> 1
_WINDOW_FLOATS = 1 << 20  # of the pixels that one row of a result is made of: 8 MiB


def resized(pixels: Pixels, height: int, width: int, kind: str) -> Pixels:
    """A picture in another size.

    Args:
        pixels: uint8 [H, W, channels].
        height: Of the result, at least 1.
        width: The same.
        kind: One of ``FILTERS``.

    Raises:
        InvalidArgumentError: There is no such filter, or the result would be empty.
    """
    if kind not in _SUPPORTS:
        raise InvalidArgumentError(f"{kind!r} is no filter of ours; {', '.join(FILTERS)} are.")
    if height < 1 or width < 1:
        raise InvalidArgumentError(f"A picture cannot be made {width}x{height} pixels large.")
    rows_lost, columns_lost = pixels.shape[0] - height, pixels.shape[1] - width
    if rows_lost > 0 and rows_lost > 2 * columns_lost:
        # The order in which Pillow 13 takes the two axes; values are rounded to bytes in between.
        return _across(_down(pixels, height, kind), width, kind)
    return _down(_across(pixels, width, kind), height, kind)


def _across(pixels: Pixels, width: int, kind: str) -> Pixels:
    """Resizes rows, uint8 [H, W, c] to [H, width, c]."""
    if width == pixels.shape[1]:
        return pixels
    turned = np.ascontiguousarray(pixels.transpose(1, 0, 2))
    return np.ascontiguousarray(_down(turned, width, kind).transpose(1, 0, 2))


def _down(pixels: Pixels, height: int, kind: str) -> Pixels:
    """Resizes columns, uint8 [H, W, c] to [height, W, c]."""
    if height == pixels.shape[0]:
        return pixels
    first, weights = _coefficients(pixels.shape[0], height, kind)
    flat = pixels.reshape(len(pixels), -1)
    result = np.empty((height, flat.shape[1]), dtype=np.uint8)
    columns = max(1, _WINDOW_FLOATS // weights.shape[1])
    for begin in range(0, flat.shape[1], columns):
        part = flat[:, begin : begin + columns]
        for row, start in enumerate(first):
            window = part[start : start + weights.shape[1]]
            # Whole numbers below 2^53 are exact as doubles, in whatever order a library adds them.
            total = weights[row, : len(window)] @ window.astype(np.float64)
            whole = np.floor((total + _HALF) / _ONE)
            result[row, begin : begin + columns] = np.clip(whole, 0, 255)
    return result.reshape(height, *pixels.shape[1:])


@functools.lru_cache(maxsize=64)  # tiles of one picture ask for the same ones
def _coefficients(
    inputs: int, outputs: int, kind: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """What each output is made of.

    Returns:
        The first input of each output, int64 [outputs]; and the weights of the inputs from there
        on, whole numbers in 2^-22 as float64 [outputs, taps], 0 behind the end of a window.
    """
    scale = inputs / outputs
    stretch = max(scale, 1.0)  # a filter widens where pixels are lost, and never narrows
    support = _SUPPORTS[kind] * stretch
    centres = (np.arange(outputs, dtype=np.float64) + 0.5) * scale
    first = np.maximum(np.trunc(centres - support + 0.5), 0).astype(np.int64)
    end = np.minimum(np.trunc(centres + support + 0.5), inputs).astype(np.int64)
    taps = int((end - first).max())
    inverse = 1.0 / stretch
    x = first[:, None] + np.arange(taps)
    weights = _filter(kind, (x - centres[:, None] + 0.5) * inverse)
    weights[x >= end[:, None]] = 0.0
    total = np.zeros(outputs)
    for tap in range(taps):  # in this order: a pairwise sum would round otherwise
        total += weights[:, tap]
    total[total == 0.0] = 1.0  # Pillow leaves such windows as they are
    weights /= total[:, None]
    return first, np.trunc(weights * _ONE + np.where(weights < 0, -0.5, 0.5))


def _filter(kind: str, x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The value of a filter at distances x, as float64 of the same shape."""
    x = np.abs(x) if kind != "lanczos" else x
    if kind == "bilinear":
        return np.where(x < 1.0, 1.0 - x, 0.0)
    if kind == "bicubic":
        a = -0.5
        near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
        far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
        return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
    return np.where((x >= -3.0) & (x < 3.0), _sinc(x) * _sinc(x / 3.0), 0.0)


def _sinc(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """sin(pi x) / (pi x), for |x| up to 3 and a bit.

    The sine is ours, for a C library's last bit is its own: x loses its nearest whole number, which
    is exact, and what is left passes the series up to the 23rd power.
    """
    whole = np.rint(x)
    angle = (x - whole) * np.pi
    square = angle * angle
    total = np.zeros_like(angle)
    for n in range(23, 1, -2):
        total = (total + 1.0) * square * (-1.0 / (n * (n - 1)))
    sine = angle * (1.0 + total) * np.where(whole % 2 == 0, 1.0, -1.0)
    divisor = np.where(x == 0.0, 1.0, x * np.pi)
    return np.where(x == 0.0, 1.0, sine / divisor)
