"""How a model's pictures are made the squares that its tower reads.

Owns the record that a model file carries as ``awq_edge.vision.preprocessing``, and which of its
ways a picture goes. Refuses the arithmetic: ``resize.py``, ``crops.py`` and ``tilings.py`` have it.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from awq_edge.errors import FileInvalidError, InvalidArgumentError
from awq_edge.vision import crops, tilings
from awq_edge.vision.resize import FILTERS, Pixels, resized
from awq_edge.vision.tilings import Tiled

METADATA_KEY = "awq_edge.vision.preprocessing"
# crop: the shorter side fits, and the middle is kept; squash: both sides fit; pad: the longer side
# fits, on a square of one colour; rows_and_columns, whole_tiles, any_resolution and closest_grid:
# tilings; multiples: both sides become the nearest whole number of squares.
_CUT = ("rows_and_columns", "whole_tiles", "any_resolution", "closest_grid", "multiples")  # if high
WAYS = ("crop", "squash", "pad", *_CUT)
# How many tiles a picture may become: one, or what the family's rules say.
DETAILS = ("low", "high")
MAX_SIDE = 16384
_FEW_SQUARES = 256  # of a picture in low detail that keeps its shape
_CALIBRATION_SIDE = 224
MOST_TILES = 64  # of a grid of the nearest shape


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What a family does with a picture.

    Attributes:
        way: One of ``WAYS``.
        side: Of the squares that the tower reads, in pixels.
        filter: Which one resizes.
        shortest_edge: Of the picture that is cropped.
        background: Colour behind what is padded, RGB.
        longest_edge: Of the picture that is cut into rows and columns.
        split: Whether it is cut at all.
        enlarge: Whether whole tiles are made of a small picture as of one of ``longest_edge``.
        sizes: Heights and widths that any resolution may take.
        least_pixels: Of a picture whose sides become multiples of ``side``.
        most_pixels: The same.
        alone: Whether only a picture that is alone in its prompt is cut into tiles; beside others
            it is padded to a square of the background, and of closest_grid squashed.
        least_tiles: Of a grid of the nearest shape.
        most_tiles: The same.
    """

    way: str
    side: int
    filter: str = "bicubic"
    shortest_edge: int = 0
    background: tuple[int, int, int] = (0, 0, 0)
    longest_edge: int = 0
    split: bool = True
    enlarge: bool = False
    sizes: tuple[tuple[int, int], ...] = ()
    alone: bool = False
    least_pixels: int = 0
    most_pixels: int = 0
    least_tiles: int = 0
    most_tiles: int = 0

    def __post_init__(self) -> None:
        """Refuses what cannot be."""
        if self.way not in WAYS or self.filter not in FILTERS:
            raise InvalidArgumentError(
                f"Pictures are prepared by {self.way!r} and {self.filter!r}; known are "
                f"{', '.join(WAYS)} and {', '.join(FILTERS)}."
            )
        sizes = [size for pair in self.sizes for size in pair]
        wanted = {
            "crop": [self.shortest_edge],
            "rows_and_columns": [self.longest_edge],
            "whole_tiles": [self.longest_edge],
            "any_resolution": sizes or [0],
        }
        for number in (self.side, *wanted.get(self.way, ())):
            if not 1 <= number <= MAX_SIDE:
                raise InvalidArgumentError(
                    f"Pictures of {number} pixels on a side are asked for; 1 to {MAX_SIDE} are "
                    "possible."
                )
        if self.way == "multiples" and not 0 <= self.least_pixels <= self.most_pixels:
            raise InvalidArgumentError(
                f"Pictures of {self.least_pixels} to {self.most_pixels} pixels are asked for, "
                "which none can have."
            )
        if self.way == "closest_grid" and not (
            1 <= self.least_tiles <= self.most_tiles <= MOST_TILES
        ):
            raise InvalidArgumentError(
                f"Pictures of {self.least_tiles} to {self.most_tiles} tiles are asked for; 1 to "
                f"{MOST_TILES} are possible."
            )
        if self.way == "whole_tiles" and self.longest_edge % self.side:
            raise InvalidArgumentError(
                f"A picture of {self.longest_edge} pixels on its longer side is no whole number of "
                f"tiles of {self.side}."
            )
        if self.way == "any_resolution" and any(size % self.side for size in sizes):
            raise InvalidArgumentError(
                f"A picture of one of the sizes {list(self.sizes)} is no whole number of tiles of "
                f"{self.side} pixels."
            )

    def tiles(self, rgb: Pixels, detail: str = "high") -> Tiled:
        """What the tower reads of a picture.

        Args:
            rgb: uint8 [H, W, 3].
            detail: "low": one tile; "high": as many as the family's rules say.
        """
        if detail not in DETAILS:
            raise InvalidArgumentError(f"The detail {detail!r} is none of {', '.join(DETAILS)}.")
        split = self.split and detail == "high"
        if self.way == "rows_and_columns":
            return tilings.split_rows_and_columns(
                rgb, self.side, self.longest_edge, self.filter, split=split
            )
        if self.way == "whole_tiles":
            longest = self.longest_edge if split else self.side
            return tilings.whole_tiles(rgb, self.side, longest, self.filter, enlarge=self.enlarge)
        if self.way == "any_resolution" and split:
            return tilings.any_resolution(rgb, self.side, self.sizes, self.filter)
        if self.way == "closest_grid" and split:
            return tilings.grid_of_tiles(
                rgb, self.side, self.least_tiles, self.most_tiles, self.filter
            )
        if self.way == "multiples":
            most = self.most_pixels
            if not split:
                most = max(self.least_pixels, min(most, _FEW_SQUARES * self.side**2))
            height, width = crops.whole_squares(
                rgb.shape[0], rgb.shape[1], self.side, self.least_pixels, most
            )
            if max(height, width) > MAX_SIDE:
                raise InvalidArgumentError(
                    f"The picture becomes {width}x{height} pixels, and at most {MAX_SIDE} on a "
                    "side are possible: make it less long."
                )
            made = resized(rgb, height, width, self.filter)
            return Tiled(made[None], size=(rgb.shape[0], rgb.shape[1]))
        return Tiled(self._square(rgb)[None], size=(rgb.shape[0], rgb.shape[1]))

    def notices(self, tiled: Tiled, detail: str) -> tuple[str, ...]:
        """What a user should know of what became of a picture, each a sentence.

        Args:
            tiled: What :meth:`tiles` gave.
            detail: For which detail.
        """
        count, height, width, _ = tiled.tiles.shape
        if count > 1:
            return (
                f"The picture becomes {count} tiles, each of which the tower reads; in low detail "
                "it would be one, which shows no small text.",
            )
        if detail == "low" and self.way in _CUT and height * width < tiled.size[0] * tiled.size[1]:
            return (
                f"In low detail {width}x{height} pixels of the picture are read, which show no "
                "small text.",
            )
        return ()

    def of_one_size(self, rgb: Pixels) -> Pixels:
        """The tiles of a picture in a size that all pictures have, uint8 [n, side, side, 3].

        They are those of :meth:`tiles` unless pictures keep their shape: then a square.
        """
        if self.way != "multiples":
            return self.tiles(rgb).tiles
        side = max(1, _CALIBRATION_SIDE // self.side) * self.side
        return resized(rgb, side, side, self.filter)[None]

    def beside_others(self, rgb: Pixels) -> Tiled | None:
        """A picture, uint8 [H, W, 3], where others are in its prompt; None: as :meth:`tiles`."""
        if not self.alone:
            return None
        squashed = self.way == "closest_grid"
        square = rgb if squashed else crops.padded_to_square(rgb, self.background)
        tile = resized(square, self.side, self.side, self.filter)
        return Tiled(tile[None], size=(rgb.shape[0], rgb.shape[1]))

    def _square(self, rgb: Pixels) -> Pixels:
        if self.way == "crop":
            fitted = crops.shortest_edge(rgb, self.shortest_edge, self.filter)
            return crops.centre_crop(fitted, self.side, self.side)
        if self.way == "pad":
            rgb = crops.padded_to_square(rgb, self.background)
        return resized(rgb, self.side, self.side, self.filter)

    def to_json(self) -> str:
        """The record as a model file carries it; what holds its default is left out."""
        values = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        }
        return json.dumps(values, sort_keys=True)

    @classmethod
    def from_json(cls, text: object) -> Preprocessing:
        """Reads what :meth:`to_json` wrote.

        Raises:
            FileInvalidError: It is no such record.
        """
        try:
            if not isinstance(text, str):
                raise TypeError(f"it is {type(text).__name__}")
            return cls(**_typed(json.loads(text)))
        except (ValueError, TypeError, RecursionError, InvalidArgumentError) as error:
            raise FileInvalidError(
                f"The file's entry {METADATA_KEY} cannot be used ({str(error).rstrip('.')}): "
                "convert the model again with this release."
            ) from error


def _typed(values: object) -> dict[str, Any]:
    """A record's values as the class has them.

    Raises:
        TypeError: One is of another type.
    """
    if not isinstance(values, dict):
        raise TypeError("it is no table")
    kinds = {"way": str, "filter": str, "split": bool, "background": list, "sizes": list}
    kinds |= {"alone": bool, "enlarge": bool}
    for name, value in values.items():
        if type(value) is not kinds.get(name, int):
            raise TypeError(f"{name} is {value!r}")
    typed = dict(values)
    if "background" in typed:
        typed["background"] = _integers(typed["background"], 3)
    if "sizes" in typed:
        typed["sizes"] = tuple(_integers(pair, 2) for pair in typed["sizes"])
    return typed


def _integers(values: object, count: int) -> tuple[int, ...]:
    if not isinstance(values, list) or len(values) != count:
        raise TypeError(f"{values!r} are not {count} numbers")
    if any(type(value) is not int for value in values):
        raise TypeError(f"{values!r} are not whole numbers")
    return tuple(values)
