"""Rows of a picture's tiles as the rows that a decoder reads.

Owns LLaVA 1.6's and OneVision's arrangement: the whole, then the tiles as one grid, without what
shows padding, a learned row behind each of its lines. Every copy is exact, and where a large grid
is made smaller the order of the operations is fixed (``native/ARITHMETIC.md``, section 11): the
same bits on every machine. Refuses pixels and tokens.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from awq_edge.vision.tilings import Tiled

Rows = npt.NDArray[np.float32]

_LARGER = 1.1  # up to here a grid with more rows than are wanted stays as it is


def row_count(tiled: Tiled, side: int, most_tiles: int) -> int:
    """Rows that the decoder reads of a picture.

    Args:
        tiled: The picture.
        side: Of the square of rows that a tile becomes.
        most_tiles: Of how many tiles the grid may have the rows, roughly; 0: of any number.
    """
    if not tiled.rows:
        return side**2 + 1
    height, width = _shown(*_kept(tiled, side)[2:], side, most_tiles)
    return side**2 + height * (width + 1)


def arranged(rows: Rows, tiled: Tiled, newline: Rows, most_tiles: int) -> Rows:
    """The rows of a picture, float32 [rows, hidden].

    Args:
        rows: Of its tiles, the whole first, float32 [tiles, side * side, hidden].
        tiled: The picture.
        newline: The learned row, float32 [hidden].
        most_tiles: As for :func:`row_count`.
    """
    if not tiled.rows:
        return np.concatenate((rows[0], newline[None]))
    side, hidden = math.isqrt(rows.shape[1]), rows.shape[2]
    grid = rows[1:].reshape(tiled.rows, tiled.columns, side, side, hidden).transpose(0, 2, 1, 3, 4)
    grid = grid.reshape(tiled.rows * side, tiled.columns * side, hidden)
    top, left, height, width = _kept(tiled, side)
    grid = grid[top : top + height, left : left + width]
    size = _shown(height, width, side, most_tiles)
    if size != (height, width):
        grid = smaller(grid, *size)
    lines = np.broadcast_to(newline, (size[0], 1, hidden))
    return np.concatenate((rows[0], np.concatenate((grid, lines), axis=1).reshape(-1, hidden)))


def _kept(tiled: Tiled, side: int) -> tuple[int, int, int, int]:
    """Top, left, height and width of the part of a grid that shows the picture.

    Of a picture that is long enough nothing is left: its line is thinner than a tile's row.
    """
    height, width = tiled.rows * side, tiled.columns * side
    picture_height, picture_width = tiled.size
    if picture_width / picture_height > width / height:
        cut = (height - int(round(picture_height * (width / picture_width), 7))) // 2
        return cut, 0, height - 2 * cut, width
    cut = (width - int(round(picture_width * (height / picture_height), 7))) // 2
    return 0, cut, height, width - 2 * cut


def _shown(height: int, width: int, side: int, most_tiles: int) -> tuple[int, int]:
    """The size of a grid whose rows may be too many."""
    if not most_tiles:
        return height, width
    ratio = math.sqrt(height * width / (most_tiles * side**2))
    if ratio <= _LARGER:
        return height, width
    return int(height // ratio), int(width // ratio)


def smaller(grid: Rows, height: int, width: int) -> Rows:
    """A grid [h, w, hidden] in another size, by the two nearest on either side of each centre."""
    above, below, down = _neighbours(grid.shape[0], height)
    before, behind, across = _neighbours(grid.shape[1], width)
    share, other = across[:, None], (np.float32(1) - across)[:, None]
    result = np.empty((height, width, grid.shape[2]), np.float32)
    for row in range(height):
        lines = [
            grid[at][before] * other + grid[at][behind] * share for at in (above[row], below[row])
        ]
        result[row] = lines[0] * (np.float32(1) - down[row]) + lines[1] * down[row]
    return result


def _neighbours(
    inputs: int, outputs: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Rows]:
    """The inputs around the centre of each output, and how far it is from the first of them."""
    centres = (2 * np.arange(outputs, dtype=np.float64) + 1) * inputs / (2 * outputs) - 0.5
    centres = np.maximum(centres, 0.0)
    first = np.floor(centres).astype(np.int64)
    return first, np.minimum(first + 1, inputs - 1), (centres - first).astype(np.float32)
