"""Pictures that a tower is calibrated on: those of a folder, or ones that are drawn here.

Owns which they are; every conversion without a folder of its own gets the same. Refuses towers:
``vision/preprocessing.py`` makes tiles of a picture.

What is drawn covers what inputs of a tower differ in: flat areas, slopes, edges at every angle,
fine texture, noise, strokes as thin as those of letters, dark and light, grey and strong colours.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from awq_edge.errors import InvalidArgumentError
from awq_edge.vision.decoding import read_picture

Pixels = npt.NDArray[np.uint8]

DRAWN = 32
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")
_SIZES = ((240, 320), (320, 240), (256, 256), (180, 360))


def files_of(folder: Path) -> list[Path]:
    """The pictures of a folder, in the order of their names; none where it is no folder."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)


def of_folder(folder: Path) -> Iterator[Pixels]:
    """Every picture of a folder, in the order of their names, uint8 [H, W, 3] each.

    One is in memory at a time.

    Raises:
        InvalidArgumentError: There is none, or, when it is its turn, one cannot be read.
    """
    if not folder.is_dir():
        raise InvalidArgumentError(f"{folder} is no folder of calibration pictures.")
    paths = files_of(folder)
    if not paths:
        raise InvalidArgumentError(
            f"{folder} holds no picture to calibrate on; files that end in {', '.join(_SUFFIXES)} "
            "count."
        )
    return (read_picture(path).rgb for path in paths)


def drawn(count: int = DRAWN) -> list[Pixels]:
    """Pictures that are the same everywhere, uint8 [H, W, 3] each."""
    return [_one(number) for number in range(count)]


def _one(number: int) -> Pixels:
    draw = np.random.Generator(np.random.PCG64(number))
    height, width = _SIZES[number % len(_SIZES)]
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    canvas = _slope(draw, x / width, y / height)
    for _ in range(int(draw.integers(3, 9))):
        _paint_shape(draw, canvas, x, y)
    if number % 2:
        _paint_waves(draw, canvas, x, y)
    if number % 3 == 0:
        _paint_strokes(draw, canvas)
    canvas += draw.normal(0, float(draw.uniform(0, 14)), canvas.shape)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def _colour(draw: np.random.Generator) -> npt.NDArray[np.float64]:
    grey, own = draw.uniform(0, 255), draw.uniform(0, 255, 3)
    share = draw.uniform(0, 1)
    return np.asarray(share * own + (1 - share) * grey, dtype=np.float64)


def _slope(
    draw: np.random.Generator, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """From one colour to another, in any direction."""
    turn = draw.uniform(0, 2 * np.pi)
    along = (np.cos(turn) * (x - 0.5) + np.sin(turn) * (y - 0.5) + 0.75) / 1.5
    first, last = _colour(draw), _colour(draw)
    return np.asarray(first + np.clip(along, 0, 1)[:, :, None] * (last - first))


def _paint_shape(
    draw: np.random.Generator,
    canvas: npt.NDArray[np.float64],
    x: npt.NDArray[np.float64],
    y: npt.NDArray[np.float64],
) -> None:
    """An ellipse, a box or a ring, turned by any angle."""
    height, width = x.shape
    turn, size = draw.uniform(0, np.pi), draw.uniform(0.05, 0.3) * min(height, width)
    dx, dy = x - draw.uniform(0, width), y - draw.uniform(0, height)
    u = (np.cos(turn) * dx + np.sin(turn) * dy) / size
    v = (np.cos(turn) * dy - np.sin(turn) * dx) / (size * draw.uniform(0.4, 1.0))
    kind = int(draw.integers(3))
    if kind == 0:
        inside = u * u + v * v < 1
    elif kind == 1:
        inside = np.maximum(np.abs(u), np.abs(v)) < 1
    else:
        inside = np.abs(np.hypot(u, v) - 0.8) < 0.2
    canvas[inside] = _colour(draw)


def _paint_waves(
    draw: np.random.Generator,
    canvas: npt.NDArray[np.float64],
    x: npt.NDArray[np.float64],
    y: npt.NDArray[np.float64],
) -> None:
    """Texture in one half of the picture, from coarse to as fine as two pixels."""
    turn, length = draw.uniform(0, np.pi), 2.0 ** draw.uniform(1, 5)
    phase = 2 * np.pi * (np.cos(turn) * x + np.sin(turn) * y) / length
    part = (np.cos(turn) * (x - x.mean()) - np.sin(turn) * (y - y.mean())) > 0
    canvas[part] += (draw.uniform(10, 60) * np.sin(phase))[part][:, None]


def _paint_strokes(draw: np.random.Generator, canvas: npt.NDArray[np.float64]) -> None:
    """Lines of short upright and level strokes, as a page of text has them."""
    height, width = canvas.shape[:2]
    thick, tall = int(draw.integers(1, 3)), int(draw.integers(6, 14))
    colour = _colour(draw)
    for top in range(tall, height - tall, 2 * tall):
        for left in range(tall, width - tall, tall):
            if draw.uniform() < 0.2:
                continue
            if draw.uniform() < 0.6:
                canvas[top : top + tall, left : left + thick] = colour
            if draw.uniform() < 0.6:
                row = top + int(draw.integers(0, tall))
                canvas[row : row + thick, left : left + tall * 2 // 3] = colour
