"""Resizing in integers: bit-equal to the Pillow that is installed."""

import numpy as np
import pytest
from PIL import Image

from awq_edge.errors import InvalidArgumentError
from awq_edge.vision.resize import FILTERS, resized

NUMBERS = {"bilinear": 2, "bicubic": 3, "lanczos": 1}
SIZES = [(1, 1), (3, 5), (23, 237), (26, 28), (64, 48), (300, 17), (1, 9), (700, 5), (240, 320)]
TARGETS = [(1, 1), (7, 3), (24, 24), (96, 96), (33, 64), (336, 20), (129, 240)]


def by_pillow(pixels, height, width, kind):
    return np.asarray(Image.fromarray(pixels).resize((width, height), NUMBERS[kind]))


def picture(seed, height, width):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", FILTERS)
@pytest.mark.parametrize("size", SIZES)
def test_every_pixel_is_pillows(size, kind):
    pixels = picture(1, *size)
    for target in [*TARGETS, size, (size[0], 31), (31, size[1])]:
        np.testing.assert_array_equal(
            resized(pixels, *target, kind), by_pillow(pixels, *target, kind), str(target)
        )


def test_the_order_of_the_axes_is_pillows_for_any_sizes():
    drawn = np.random.default_rng(2)
    for number in range(300):
        height, width, to_height, to_width = np.exp(drawn.uniform(0, 5, 4)).astype(int)
        kind = FILTERS[number % 3]
        pixels = picture(number, height, width)
        np.testing.assert_array_equal(
            resized(pixels, to_height, to_width, kind),
            by_pillow(pixels, to_height, to_width, kind),
            f"{height}x{width} to {to_height}x{to_width}, {kind}",
        )


def test_black_white_and_edges_overshoot_like_pillows():
    steps = np.zeros((40, 40, 3), dtype=np.uint8)
    steps[:, 20:] = 255
    steps[::2] = 255 - steps[::2]
    for kind in FILTERS:
        np.testing.assert_array_equal(resized(steps, 97, 13, kind), by_pillow(steps, 97, 13, kind))


def test_the_same_size_is_the_same_picture():
    pixels = picture(3, 9, 7)
    np.testing.assert_array_equal(resized(pixels, 9, 7, "lanczos"), pixels)


def test_a_picture_of_any_width_is_resized_in_parts(monkeypatch):
    pixels = picture(4, 120, 200)
    whole = resized(pixels, 50, 60, "bicubic")
    monkeypatch.setattr("awq_edge.vision.resize._WINDOW_FLOATS", 100)
    np.testing.assert_array_equal(resized(pixels, 50, 60, "bicubic"), whole)


@pytest.mark.parametrize("arguments", [(8, 8, "nearest"), (0, 8, "bicubic"), (8, -1, "bicubic")])
def test_what_cannot_be_is_refused(arguments):
    with pytest.raises(InvalidArgumentError):
        resized(picture(5, 4, 4), *arguments)
