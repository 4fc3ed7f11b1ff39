"""Scenes as pixels: signed distance functions over a batch, no files and no loops over scenes.

Owns every pixel. A signed distance is negative inside a shape; half a pixel on either side of zero
is shaded, which smooths the edges.
"""

from __future__ import annotations

import math

import torch

from scenes.draws import Draws
from scenes.layout import OBJECTS, SHAPES, SIDE, Scenes

# Degrees, in the order of COLOURS: the nearest two are as far apart as jitter moves both.
_HUES = (0.0, 24.0, 50.0, 115.0, 178.0, 225.0, 265.0, 318.0)
_HUE_JITTER = 12.0  # degrees either way
# Standard deviation of the noise, in levels of 255: each scene draws its own in training.
TRAINING_NOISE = (4.0, 48.0)
TEST_NOISE = (36.0, 36.0)
# Pixels on a side that hold the largest object.
_WINDOW = 32

_DIGITS = (
    "01110 10001 10011 10101 11001 10001 01110",
    "00100 01100 00100 00100 00100 00100 01110",
    "01110 10001 00001 00010 00100 01000 11111",
    "11111 00010 00100 00010 00001 10001 01110",
    "00010 00110 01010 10010 11111 00010 00010",
    "11111 10000 11110 00001 00001 10001 01110",
    "00110 01000 10000 11110 10001 10001 01110",
    "11111 00001 00010 00100 01000 01000 01000",
    "01110 10001 10001 01110 10001 10001 01110",
    "01110 10001 10001 01111 00001 00010 01100",
)


def paint(scenes: Scenes, noise: tuple[float, float] = TRAINING_NOISE) -> torch.Tensor:
    """The pictures of scenes.

    Args:
        scenes: b of them.
        noise: Between which standard deviations, in levels, each scene draws its own.

    Returns:
        uint8 [b, 3, SIDE, SIDE], red, green, blue.
    """
    draws = Draws(scenes.seeds, stream=1)
    picture = _background(draws)
    colours = _hue_to_rgb(draws, scenes.colour)
    coverage = _coverage(draws, scenes)
    for i in range(OBJECTS):
        alpha = coverage[:, i, None]
        picture = picture + alpha * (colours[:, i, :, None, None] - picture)
    ink = _hue_to_rgb(draws, scenes.number_colour[:, None])[:, 0, :, None, None]
    picture = torch.where(_number(scenes)[:, None], ink, picture)
    level = draws.uniform(*noise)
    return (picture + level[:, None, None, None] * _noise(draws)).round().clamp(0, 255).byte()


def _background(draws: Draws) -> torch.Tensor:
    """A nearly grey slope, float32 [b, 3, SIDE, SIDE]."""
    base = draws.uniform(70.0, 180.0, 1) + draws.uniform(-12.0, 12.0, 3)
    slope = draws.uniform(-35.0, 35.0, 2) / SIDE
    along = torch.arange(SIDE, device=base.device) - (SIDE - 1) / 2
    plane = slope[:, 0, None, None] * along + slope[:, 1, None, None] * along[:, None]
    return base[:, :, None, None] + plane[:, None]


def _hue_to_rgb(draws: Draws, colour: torch.Tensor) -> torch.Tensor:
    """A shade of each colour: [b, n] to float32 [b, n, 3] in levels."""
    count = colour.shape[1]
    hue = torch.tensor(_HUES, device=colour.device)[colour]
    hue = hue + draws.uniform(-_HUE_JITTER, _HUE_JITTER, count)
    saturation = draws.uniform(0.55, 0.95, count)
    value = draws.uniform(160.0, 250.0, count)
    channel = torch.tensor([5.0, 3.0, 1.0], device=colour.device)
    # The hexagon of hues: each channel is a trapezium, a third of a turn apart.
    turn = torch.remainder(channel + hue[:, :, None] / 60, 6.0)
    dip = torch.minimum(turn, 4 - turn).clamp(0.0, 1.0)
    return value[:, :, None] * (1 - saturation[:, :, None] * dip)


def _noise(draws: Draws) -> torch.Tensor:
    """Nearly normal noise of deviation 1: four bytes added, float32 [b, 3, SIDE, SIDE]."""
    bits = draws.integers(3, SIDE, SIDE)
    total = (bits & 255) + ((bits >> 8) & 255) + ((bits >> 16) & 255) + (bits >> 24)
    # A uniform byte has mean 127.5 and variance (256^2 - 1) / 12.
    return (total.float() - 510.0) * (1 / math.sqrt(4 * 65535 / 12))


def _coverage(draws: Draws, scenes: Scenes) -> torch.Tensor:
    """How much of each pixel each object covers, float32 [b, o, SIDE, SIDE] in 0 to 1."""
    angle = draws.uniform(0.0, 2 * math.pi, OBJECTS)
    cosine, sine = angle.cos()[:, :, None, None], angle.sin()[:, :, None, None]
    # Distances within a window around each object; the rest of the picture is far from it.
    along = torch.arange(_WINDOW, device=angle.device)
    column = scenes.x.long()[:, :, None, None] - _WINDOW // 2 + along
    row = scenes.y.long()[:, :, None, None] - _WINDOW // 2 + along[:, None]
    right = column - scenes.x[:, :, None, None]
    down = row - scenes.y[:, :, None, None]
    u = cosine * right + sine * down
    v = cosine * down - sine * right
    radius = scenes.radius[:, :, None, None]
    shape = scenes.shape[:, :, None, None]
    distance = _circle(u, v, radius)
    others = (_square, _triangle, _cross, _ring, _star)
    for name, function in zip(SHAPES[1:], others, strict=True):
        distance = torch.where(shape == SHAPES.index(name), function(u, v, radius), distance)
    alpha = (0.5 - distance).clamp(0.0, 1.0) * scenes.present[:, :, None, None]
    inside = (column >= 0) & (column < SIDE) & (row >= 0) & (row < SIDE)
    # What lies outside goes to one place more, behind the last pixel.
    place = torch.where(inside, row * SIDE + column, SIDE * SIDE).flatten(2)
    covered = alpha.new_zeros(*alpha.shape[:2], SIDE * SIDE + 1)
    covered = covered.scatter(2, place, alpha.flatten(2))
    return covered[:, :, :-1].unflatten(2, (SIDE, SIDE))


def _circle(u: torch.Tensor, v: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    return torch.hypot(u, v) - 0.9 * radius


def _square(u: torch.Tensor, v: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    return torch.maximum(u.abs(), v.abs()) - 0.78 * radius


def _triangle(u: torch.Tensor, v: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """Three half planes, whose corners lie on the circle."""
    slanted = 0.5 * u + math.sqrt(0.75) * v.abs()
    return torch.maximum(-u, slanted) - 0.55 * radius


def _cross(u: torch.Tensor, v: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    u, v = u.abs(), v.abs()
    long, broad = 0.95 * radius, 0.3 * radius
    return torch.minimum(torch.maximum(u - long, v - broad), torch.maximum(u - broad, v - long))


def _ring(u: torch.Tensor, v: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    return (torch.hypot(u, v) - 0.72 * radius).abs() - 0.23 * radius


def _star(u: torch.Tensor, v: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """Five points: folded into half a point, whose only edge is a line."""
    wedge = 2 * math.pi / 5
    turn = torch.atan2(v, u)
    folded = (turn - wedge * torch.round(turn / wedge)).abs()
    away = torch.hypot(u, v)
    along, across = away * folded.cos(), away * folded.sin()
    inner = 0.45  # of the radius: where the notches are
    step_x = inner * math.cos(wedge / 2) - 1
    step_y = inner * math.sin(wedge / 2)
    length = math.hypot(step_x, step_y)
    return ((along - 1.05 * radius) * step_y - across * step_x) / length


def _number(scenes: Scenes) -> torch.Tensor:
    """Where the number's ink is, bool [b, SIDE, SIDE]."""
    device = scenes.number.device
    rows = [[[c == "1" for c in line] for line in digit.split()] for digit in _DIGITS]
    font = torch.tensor(rows, device=device)  # [10, 7, 5]
    tens, units = font[scenes.number // 10], font[scenes.number % 10]
    cells = torch.cat([tens, torch.zeros_like(tens[:, :, :1]), units], 2)  # [b, 7, 11]
    along = torch.arange(SIDE, device=device)
    scale = scenes.number_scale[:, None]
    column = torch.div(along - scenes.number_left[:, None], scale, rounding_mode="floor")
    row = torch.div(along - scenes.number_top[:, None], scale, rounding_mode="floor")
    inside = ((row >= 0) & (row < 7))[:, :, None] & ((column >= 0) & (column < 11))[:, None]
    index = row.clamp(0, 6)[:, :, None] * 11 + column.clamp(0, 10)[:, None]
    ink = cells.flatten(1).gather(1, index.flatten(1)).view(-1, SIDE, SIDE)
    return ink & inside & scenes.shows_number[:, None, None]


def blank(count: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Pictures that show nothing: the mean that the processor subtracts, as [b, 3, SIDE, SIDE]."""
    grey = torch.tensor([123, 117, 104], dtype=torch.uint8, device=device)
    return grey[None, :, None, None].expand(count, 3, SIDE, SIDE).contiguous()
