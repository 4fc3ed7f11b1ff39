"""What is in a scene: up to six objects and perhaps a number, as tensors over a batch of scenes.

Owns which scenes there are; ``pixels`` paints them and ``questions`` asks about them.
"""

from __future__ import annotations

import dataclasses

import torch

from scenes.draws import Draws

SIDE = 96  # pixels
OBJECTS = 6
SHAPES = ("circle", "square", "triangle", "cross", "ring", "star")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SIZES = ("small", "large")

# Scenes of different purposes never meet: each has its own range of seeds.
TRAINING_SEEDS = 0
CALIBRATION_SEEDS = 1 << 31
TEST_SEEDS = 3 << 30

_RADII = ((6.0, 8.0), (11.0, 14.0))  # pixels, small and large
# How deep two objects may reach into one another, in radii of the smaller: a fifth of its area.
_OVERLAP = 0.5
# Places tried for an object; one that fits nowhere stays out of its scene.
_TRIES = 16
_NUMBERS = 0.4  # of the scenes show one


@dataclasses.dataclass(frozen=True)
class Scenes:
    """A batch of scenes; b scenes, o = OBJECTS places for objects in the order of painting."""

    seeds: torch.Tensor  # int64 [b]
    present: torch.Tensor  # bool [b, o]
    size: torch.Tensor  # int64 [b, o], index into SIZES
    colour: torch.Tensor  # int64 [b, o], index into COLOURS
    shape: torch.Tensor  # int64 [b, o], index into SHAPES
    x: torch.Tensor  # float32 [b, o], centre in pixels from the left
    y: torch.Tensor  # float32 [b, o], centre in pixels from the top
    radius: torch.Tensor  # float32 [b, o], pixels
    shows_number: torch.Tensor  # bool [b]
    number: torch.Tensor  # int64 [b], 10 to 99
    number_scale: torch.Tensor  # int64 [b], pixels per cell of the 5 x 7 font
    number_left: torch.Tensor  # int64 [b], pixels
    number_top: torch.Tensor  # int64 [b], pixels
    number_colour: torch.Tensor  # int64 [b], index into COLOURS

    def rows(self, index: torch.Tensor) -> Scenes:
        """The scenes with these numbers in the batch, int64 or bool as torch indexes."""
        return Scenes(*(getattr(self, field.name)[index] for field in dataclasses.fields(self)))


def seeds_from(first: int, count: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Seeds of consecutive scenes, int64 [count]."""
    return torch.arange(first, first + count, device=device)


def draw_scenes(seeds: torch.Tensor) -> Scenes:
    """The scenes of these seeds.

    Args:
        seeds: int64 [b], each in [0, 2^32).
    """
    draws = Draws(seeds, stream=0)
    wanted = draws.below(OBJECTS, 1) + 1
    size = draws.below(2, OBJECTS)
    radius = torch.where(
        size == 1, draws.uniform(*_RADII[1], OBJECTS), draws.uniform(*_RADII[0], OBJECTS)
    )
    shows_number = draws.chance(_NUMBERS)
    scale = 2 + draws.below(2)
    width, height = 11 * scale, 7 * scale
    left = 1 + ((draws.integers() * (SIDE - 1 - width)) >> 32)
    top = 1 + ((draws.integers() * (SIDE - 1 - height)) >> 32)
    x, y, present = _place(draws, radius, shows_number, left, top, width, height)
    return Scenes(
        seeds=seeds,
        present=present & (torch.arange(OBJECTS, device=seeds.device) < wanted),
        size=size,
        colour=_alike(draws, len(COLOURS)),
        shape=_alike(draws, len(SHAPES)),
        x=x,
        y=y,
        radius=radius,
        shows_number=shows_number,
        number=10 + draws.below(90),
        number_scale=scale,
        number_left=left,
        number_top=top,
        number_colour=draws.below(len(COLOURS)),
    )


def _alike(draws: Draws, kinds: int) -> torch.Tensor:
    """An attribute of every object, int64 [b, o]: in half of the scenes one of two kinds only.

    Without such scenes nothing could be counted beyond two, and objects that differ in one
    attribute alone would be rare.
    """
    free = draws.below(kinds, OBJECTS)
    pair = draws.below(kinds, 2)
    return torch.where(draws.chance(0.5, 1), pair.gather(1, draws.below(2, OBJECTS)), free)


def _place(
    draws: Draws,
    radius: torch.Tensor,
    shows_number: torch.Tensor,
    left: torch.Tensor,
    top: torch.Tensor,
    width: torch.Tensor,
    height: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Centres [b, o] and whether a place was found [b, o], for objects in their order."""
    span = SIDE - 2 - 2 * radius[:, :, None]
    tries_x = radius[:, :, None] + 1 + span * draws.uniform(0.0, 1.0, OBJECTS, _TRIES)
    tries_y = radius[:, :, None] + 1 + span * draws.uniform(0.0, 1.0, OBJECTS, _TRIES)
    # Distance from the number's box, for all tries at once.
    half = torch.stack([width, height], 1).float() / 2
    from_x = (tries_x - (left + half[:, 0])[:, None, None]).abs() - half[:, 0, None, None]
    from_y = (tries_y - (top + half[:, 1])[:, None, None]).abs() - half[:, 1, None, None]
    free = torch.maximum(from_x, from_y) > radius[:, :, None]
    free |= ~shows_number[:, None, None]
    xs: list[torch.Tensor] = []
    ys: list[torch.Tensor] = []
    placed: list[torch.Tensor] = []
    for i in range(OBJECTS):
        fits = free[:, i]
        for j in range(i):
            reach = radius[:, i] + radius[:, j]
            reach = reach - _OVERLAP * torch.minimum(radius[:, i], radius[:, j])
            distance = torch.hypot(tries_x[:, i] - xs[j][:, None], tries_y[:, i] - ys[j][:, None])
            fits = fits & ((distance >= reach[:, None]) | ~placed[j][:, None])
        first = fits.to(torch.uint8).argmax(1, keepdim=True)
        xs.append(tries_x[:, i].gather(1, first)[:, 0])
        ys.append(tries_y[:, i].gather(1, first)[:, 0])
        placed.append(fits.any(1))
    return torch.stack(xs, 1), torch.stack(ys, 1), torch.stack(placed, 1)
