"""One square picture of any picture: cropped, squashed or padded.

Owns the rounding of sizes, which decides what of a picture a model sees. Sizes are whole pixels,
in the order height, width.
"""

from __future__ import annotations

import math

import numpy as np

from awq_edge.vision.resize import Pixels, resized


def shortest_edge(pixels: Pixels, edge: int, kind: str) -> Pixels:
    """Resizes so that the shorter side has ``edge`` pixels; the longer one is rounded down."""
    height, width = pixels.shape[:2]
    if width <= height:
        return resized(pixels, max(1, int(edge * height / width)), edge, kind)
    return resized(pixels, edge, max(1, int(edge * width / height)), kind)


def centre_crop(pixels: Pixels, height: int, width: int) -> Pixels:
    """The middle of a picture; what lies outside of a smaller one is black."""
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    if top >= 0 and left >= 0:
        return pixels[top : top + height, left : left + width]
    result = np.zeros((height, width, pixels.shape[2]), dtype=np.uint8)
    rows, columns = min(height, pixels.shape[0]), min(width, pixels.shape[1])
    inner = centre_crop(pixels, rows, columns)
    # Half a pixel more in front where it does not come out even, as the processors do.
    first, left = (height - rows + 1) // 2, (width - columns + 1) // 2
    result[first : first + rows, left : left + columns] = inner
    return result


def whole_squares(
    height: int, width: int, side: int, least_pixels: int, most_pixels: int
) -> tuple[int, int]:
    """The size of a picture whose sides become multiples of ``side``: height and width.

    To the nearest multiple, halves to the even one; where that gives too many pixels or too few,
    the shape is kept and both sides are rounded inwards or outwards.
    """
    rows, columns = round(height / side), round(width / side)
    if rows * columns * side**2 > most_pixels:
        ratio = math.sqrt(height * width / most_pixels)
        rows = max(1, math.floor(height / ratio / side))
        columns = max(1, math.floor(width / ratio / side))
    elif rows * columns * side**2 < least_pixels:
        ratio = math.sqrt(least_pixels / (height * width))
        rows = math.ceil(height * ratio / side)
        columns = math.ceil(width * ratio / side)
    return max(rows, 1) * side, max(columns, 1) * side


def padded_to_square(pixels: Pixels, colour: tuple[int, int, int]) -> Pixels:
    """The picture in the middle of a square as large as its longer side."""
    height, width = pixels.shape[:2]
    side = max(height, width)
    result = np.empty((side, side, 3), dtype=np.uint8)
    result[:] = np.array(colour, dtype=np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    result[top : top + height, left : left + width] = pixels
    return result
