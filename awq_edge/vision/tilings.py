"""Large pictures as tiles of the size that a tower reads, beside one picture of the whole.

Owns the ways in which families choose a grid: rows and columns of a picture that was made a whole
number of tiles large (SmolVLM and Idefics3; nanoVLM by a rule of its own), the best of a list of
sizes (LLaVA 1.6 and OneVision, "any resolution") and the grid of the nearest shape (NVILA). Refuses
tokens: what stands around tiles is a prompt's.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from awq_edge.vision.resize import Pixels, resized

_LONGEST = 4096  # of a side that idefics-style tiling makes


@dataclasses.dataclass(frozen=True)
class Tiled:
    """Tiles of one picture, in the order in which a model reads them.

    Attributes:
        tiles: uint8 [n, side, side, 3].
        rows: Of the grid, without the picture of the whole; 0: there is no grid.
        columns: The same.
        size: Height and width of the picture before anything was done to it.
    """

    tiles: Pixels
    rows: int = 0
    columns: int = 0
    size: tuple[int, int] = (0, 0)


def cut(pixels: Pixels, side: int) -> list[Pixels]:
    """Tiles of a picture whose sides are multiples of ``side``, row after row."""
    rows, columns = pixels.shape[0] // side, pixels.shape[1] // side
    return [
        pixels[row * side : (row + 1) * side, column * side : (column + 1) * side]
        for row in range(rows)
        for column in range(columns)
    ]


def split_rows_and_columns(
    pixels: Pixels, side: int, longest_edge: int, kind: str, *, split: bool = True
) -> Tiled:
    """The tiling of SmolVLM and Idefics3.

    The longer side becomes ``longest_edge``, also of a small picture; then both sides grow to whole
    tiles. The picture of the whole is the last tile.

    Args:
        pixels: uint8 [H, W, 3].
        side: Of a tile.
        longest_edge: Of the picture that is cut.
        kind: The filter.
        split: Whether there are tiles; otherwise the whole alone.
    """
    size = (pixels.shape[0], pixels.shape[1])
    height, width = _to_longest(*size, longest_edge)
    pixels = resized(pixels, height, width, kind)
    if not split:
        return Tiled(resized(pixels, side, side, kind)[None], size=size)
    height, width = _to_whole_tiles(height, width, side)
    pixels = resized(pixels, height, width, kind)
    whole = resized(pixels, side, side, kind)
    if height <= side and width <= side:
        return Tiled(whole[None], size=size)
    tiles = [*cut(pixels, side), whole]
    return Tiled(np.stack(tiles), height // side, width // side, size)


def _to_longest(height: int, width: int, longest: int) -> tuple[int, int]:
    aspect = width / height
    if width >= height:
        width, height = longest, int(longest / aspect)
        height += height % 2
    else:
        height, width = longest, int(longest * aspect)
        width += width % 2
    height, width = max(height, 1), max(width, 1)
    # Beyond what position tables were made for, the longer side is cut again.
    if max(height, width) > _LONGEST:
        aspect = width / height
        if width >= height:
            width, height = _LONGEST, int(_LONGEST / aspect)
        else:
            height, width = _LONGEST, int(_LONGEST * aspect)
    return height, width


def _to_whole_tiles(height: int, width: int, side: int) -> tuple[int, int]:
    aspect = width / height
    if width >= height:
        width = math.ceil(width / side) * side
        height = math.ceil(int(width / aspect) / side) * side
    else:
        height = math.ceil(height / side) * side
        width = math.ceil(int(height * aspect) / side) * side
    return height, width


def whole_tiles(pixels: Pixels, side: int, longest_edge: int, kind: str, *, enlarge: bool) -> Tiled:
    """The tiling of nanoVLM: the whole first, unless it is the only tile.

    The longer side becomes ``longest_edge``, or the next whole number of tiles if that is less; the
    shorter one the next whole number of tiles behind what keeps the shape. The whole is made of the
    picture in this size.

    Args:
        pixels: uint8 [H, W, 3].
        side: Of a tile.
        longest_edge: Of the picture that is cut.
        kind: The filter; the whole takes bilinear.
        enlarge: Whether a picture with less than ``longest_edge`` becomes as large.
    """
    size = (pixels.shape[0], pixels.shape[1])
    long = max(size)
    target = longest_edge
    if not enlarge:
        target = min(longest_edge, math.ceil(long / side) * side)
    scale = target / long
    short = max(math.ceil(min(size) * scale / side) * side, side)
    height, width = (short, target) if size[1] >= size[0] else (target, short)
    pixels = resized(pixels, height, width, kind)
    if height == width == side:
        return Tiled(pixels[None], size=size)
    tiles = [resized(pixels, side, side, "bilinear"), *cut(pixels, side)]
    return Tiled(np.stack(tiles), height // side, width // side, size)


def best_resolution(height: int, width: int, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Which of some sizes (height, width) keeps most of a picture, and then wastes least."""
    best, best_kept, least_waste = sizes[0], -1, math.inf
    for size in sizes:
        scale = min(size[1] / width, size[0] / height)
        fit = int(width * scale) * int(height * scale)
        kept = min(fit, width * height)
        waste = size[0] * size[1] - kept
        if kept > best_kept or (kept == best_kept and waste < least_waste):
            best, best_kept, least_waste = size, kept, waste
    return best


def any_resolution(pixels: Pixels, side: int, sizes: Sequence[tuple[int, int]], kind: str) -> Tiled:
    """The tiling of LLaVA 1.6 and OneVision.

    The picture is fitted into the best of ``sizes``, in the middle of black, and cut; the whole,
    squashed to one tile, comes first.
    """
    height, width = pixels.shape[:2]
    target = best_resolution(height, width, sizes)
    by_width, by_height = target[1] / width, target[0] / height
    if by_width < by_height:
        fitted = (min(math.ceil(height * by_width), target[0]), target[1])
    else:
        fitted = (target[0], min(math.ceil(width * by_height), target[1]))
    canvas = np.zeros((*target, 3), dtype=np.uint8)
    top, left = (target[0] - fitted[0]) // 2, (target[1] - fitted[1]) // 2
    canvas[top : top + fitted[0], left : left + fitted[1]] = resized(pixels, *fitted, kind)
    tiles = [resized(pixels, side, side, kind), *cut(canvas, side)]
    return Tiled(np.stack(tiles), target[0] // side, target[1] // side, (height, width))


def closest_grid(height: int, width: int, side: int, least: int, most: int) -> tuple[int, int]:
    """Rows and columns of ``least`` to ``most`` tiles, of the shape nearest to a picture's.

    Of grids that are as near, a larger one counts if the picture has more than half of its pixels;
    of as large ones, the one with more columns. Their program leaves this last case to the order of
    a set.

    Args:
        height: Of the picture.
        width: The same.
        side: Of a tile.
        least: Tiles of a grid.
        most: The same.
    """
    grids = [
        (rows, columns)
        for count in range(least, most + 1)
        for columns in range(1, count + 1)
        for rows in [count // columns]
        if rows * columns == count
    ]
    chosen, smallest = (1, 1), math.inf
    for rows, columns in grids:
        apart = abs(width / height - columns / rows)
        enough = 2 * width * height > side * side * rows * columns
        if apart < smallest or (apart == smallest and enough):
            chosen, smallest = (rows, columns), apart
    return chosen


def grid_of_tiles(pixels: Pixels, side: int, least: int, most: int, kind: str) -> Tiled:
    """The tiling of NVILA: the picture becomes :func:`closest_grid`, its shape is not kept.

    The whole, squashed to one tile, comes last, unless there is one tile anyway.
    """
    height, width = pixels.shape[:2]
    rows, columns = closest_grid(height, width, side, least, most)
    tiles = cut(resized(pixels, rows * side, columns * side, kind), side)
    if len(tiles) > 1:
        tiles.append(resized(pixels, side, side, kind))
    return Tiled(np.stack(tiles), rows, columns, (height, width))
