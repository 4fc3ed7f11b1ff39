"""How a checkpoint prepares pictures: its preprocessor_config.json in words of ours.

Owns the spellings of sizes and filters that processors of transformers have had. Refuses
processors whose pictures would differ from what the model was trained on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from awq_edge.errors import CheckpointError, UnsupportedError
from awq_edge.vision.preprocessing import MOST_TILES, Preprocessing

from .values import Values, shown

_FILTERS = {1: "lanczos", 2: "bilinear", 3: "bicubic"}
_CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
_CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
_HALF = [0.5, 0.5, 0.5]
# What processors' classes take for keys that are absent; the word behind "ImageProcessor" varies.
_CLIP = {
    "size": {"shortest_edge": 224},
    "resample": 3,
    "do_center_crop": True,
    "image_mean": _CLIP_MEAN,
    "image_std": _CLIP_STD,
}
_SIGLIP = {
    "size": {"height": 224, "width": 224},
    "resample": 3,
    "do_center_crop": False,
    "image_mean": _HALF,
    "image_std": _HALF,
}
_IDEFICS = {
    "size": {"longest_edge": 4 * 364},
    "max_image_size": {"longest_edge": 364},
    "resample": 1,
    "image_mean": _HALF,
    "image_std": _HALF,
}
_NEXT_SIZES = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
_ONEVISION_SIZES = [[h, w] for h in range(384, 2305, 384) for w in range(384, 2305, 384)]
_CLASSES: Mapping[str, Mapping[str, Any]] = {
    "CLIP": _CLIP,
    "Llava": {**_CLIP, "do_pad": False},
    "LlavaNext": {**_CLIP, "image_grid_pinpoints": _NEXT_SIZES},
    "LlavaOnevision": {
        **_CLIP,
        "size": {"height": 384, "width": 384},
        "do_center_crop": False,
        "image_grid_pinpoints": _ONEVISION_SIZES,
    },
    "Siglip": _SIGLIP,
    "Gemma3": {**_SIGLIP, "resample": 2},
    "Idefics": {**_CLIP, "size": {"height": 224, "width": 224}, "do_center_crop": False},
    "Idefics3": _IDEFICS,
    "SmolVLM": _IDEFICS,
    "NanoVLM": {**_IDEFICS, "resample": 3, "do_normalize": False},
    "Qwen2VL": {
        **_CLIP,
        "size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280},
        "patch_size": 14,
        "merge_size": 2,
    },
}


@dataclasses.dataclass(frozen=True)
class Processor:
    """What becomes of a picture, and of its bytes.

    Attributes:
        preprocessing: Which squares are made of it.
        mean: Of the three channels.
        deviation: The same.
        factor: What bytes are multiplied by first.
    """

    preprocessing: Preprocessing
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    factor: float


def processor(
    settings: Mapping[str, Any],
    family: str,
    side: int,
    aspect: str = "",
    tiles: tuple[int, int] = (0, 0),
    *,
    where: str,
) -> Processor:
    """What a preprocessor_config.json says.

    Args:
        settings: Its table.
        family: Of the model, ``VisionPart.family``.
        side: Of the squares that the tower reads.
        aspect: What the model's program does first, which leaves the processor nothing to do:
            squash, pad, grid, or nothing.
        tiles: Of such a grid, how many it has at least and at most.
        where: The checkpoint, for errors.

    Raises:
        UnsupportedError: The processor is unknown, or prepares pictures in a way that is not ours.
        CheckpointError: It contradicts the tower.
    """
    kind = _kind(settings)
    if kind == "Idefics" and settings.get("image_size") is not None:
        length = Values(settings, {}).integer("image_size")  # counts before size
        settings = {**settings, "size": {"height": length, "width": length}}
    values = Values(settings, _CLASSES[kind])
    number = values.get("resample")
    if not isinstance(number, int) or number not in _FILTERS:
        raise UnsupportedError(
            f"{where} resizes pictures by the filter {shown(number)}; 1 (Lanczos), 2 (bilinear) "
            "and 3 (bicubic) are supported."
        )
    if not values.flag("do_resize", True):
        raise UnsupportedError(
            f"{where} does not resize its pictures, which then have no size that a tower reads."
        )
    if values.flag("do_pan_and_scan", False):
        raise UnsupportedError(
            f"{where} cuts further tiles out of pictures (do_pan_and_scan), as nobody does here; "
            "set it to false, and whole pictures are read alone."
        )
    chosen = _FILTERS[number]
    made = _WAYS.get(kind, _square)(values, chosen, kind, where)
    if aspect == "squash":
        made = Preprocessing("squash", made.side, "bicubic")  # as Pillow does if nothing is said
    elif aspect == "pad":
        made = Preprocessing("pad", made.side, chosen, background=_mean_colour(values, where))
    elif aspect == "grid":
        if (made.way, made.filter) != ("squash", "bicubic"):
            raise UnsupportedError(
                f"{where} makes pictures by {made.way} and {made.filter}; where a grid of tiles is "
                "cut, squash and bicubic are supported."
            )
        least, most = tiles
        if not 1 <= least <= most <= MOST_TILES:
            raise CheckpointError(
                f"config.json asks for pictures of {least} to {most} tiles; 1 to {MOST_TILES} are "
                "possible."
            )
        made = Preprocessing(
            "closest_grid", made.side, alone=True, least_tiles=least, most_tiles=most
        )
    if made.side != side:
        raise CheckpointError(
            f"{where} makes pictures of {made.side} pixels on a side, and its tower reads {side}."
        )
    normal = values.flag("do_normalize", _CLASSES[kind].get("do_normalize", True))
    mean = _channels(values, "image_mean", where) if normal else (0.0, 0.0, 0.0)
    deviation = _channels(values, "image_std", where) if normal else (1.0, 1.0, 1.0)
    if not all(deviation):
        raise CheckpointError(f"{where} divides pictures by a deviation of 0.")
    factor = values.number("rescale_factor", 1 / 255) if values.flag("do_rescale", True) else 1.0
    return Processor(made, mean, deviation, factor)


def _kind(settings: Mapping[str, Any]) -> str:
    name = settings.get("image_processor_type", settings.get("feature_extractor_type"))
    text = name if isinstance(name, str) else ""
    for word in ("ImageProcessor", "FeatureExtractor"):
        text = text.partition(word)[0]
    if text not in _CLASSES:
        raise UnsupportedError(
            f"The pictures of this model are prepared by {shown(name)}; the processors of "
            f"{', '.join(_CLASSES)} are supported."
        )
    return text


def _square(values: Values, chosen: str, kind: str, where: str) -> Preprocessing:
    size = _size(values, "size", where)
    if values.flag("do_pad") and kind == "Llava":
        side = size.get("shortest_edge", size.get("height", 0))
        return Preprocessing("pad", side, chosen, background=_mean_colour(values, where))
    if "shortest_edge" in size:
        if not values.flag("do_center_crop"):
            raise UnsupportedError(
                f"{where} makes pictures that are no squares (size has shortest_edge, and nothing "
                "is cropped); a tower here reads squares."
            )
        crop = _size(values, "crop_size", where) or {"height": size["shortest_edge"]}
        side = crop.get("height", crop.get("shortest_edge", 0))
        if crop.get("width", side) != side:
            raise UnsupportedError(f"{where} crops pictures to no square: {shown(crop)}.")
        return Preprocessing("crop", side, chosen, shortest_edge=size["shortest_edge"])
    height, width = size.get("height", 0), size.get("width", 0)
    crop = _size(values, "crop_size", where) if values.flag("do_center_crop") else {}
    if height != width or any(edge != height for edge in crop.values()):
        raise UnsupportedError(f"{where} makes pictures that are no squares: {shown(size)}.")
    return Preprocessing("squash", height, chosen)


def _any_resolution(values: Values, chosen: str, kind: str, where: str) -> Preprocessing:
    whole = _square(values, chosen, kind, where)
    if whole.way == "crop" and whole.shortest_edge != whole.side:
        raise UnsupportedError(
            f"{where} makes tiles of {whole.side} pixels on a side after resizing to "
            f"{whole.shortest_edge}; both must be the same."
        )
    sizes = grid_sizes(values.get("image_grid_pinpoints"), where)
    if kind != "LlavaOnevision":
        return Preprocessing("any_resolution", whole.side, chosen, sizes=sizes)
    return Preprocessing(
        "any_resolution",
        whole.side,
        chosen,
        background=_mean_colour(values, where),
        sizes=sizes,
        alone=True,
    )


def _multiples(values: Values, chosen: str, _kind: str, where: str) -> Preprocessing:
    size = _size(values, "size", where)
    # Numbers of pixels, whatever they are called; the older names count before the newer ones.
    least = values.get("min_pixels") or size.get("shortest_edge", size.get("min_pixels", 0))
    most = values.get("max_pixels") or size.get("longest_edge", size.get("max_pixels", 0))
    if type(least) is not int or type(most) is not int:
        raise CheckpointError(
            f"{where} has {shown(least)} and {shown(most)} for min_pixels and max_pixels."
        )
    side = values.integer("patch_size") * values.integer("merge_size")
    return Preprocessing("multiples", side, chosen, least_pixels=least, most_pixels=most)


def grid_sizes(value: object, where: str) -> tuple[tuple[int, int], ...]:
    """Heights and widths that a picture may have before it is cut, as files write them."""
    sizes = []
    for pair in value if isinstance(value, list) else [value]:
        edges = pair if isinstance(pair, list) else []
        if len(edges) != 2 or not all(type(edge) is int and edge > 0 for edge in edges):
            raise CheckpointError(
                f"{where} has {shown(value)} for image_grid_pinpoints, which is no list of heights "
                "and widths."
            )
        sizes.append((edges[0], edges[1]))
    return tuple(sizes)


def _tiles(values: Values, chosen: str, _kind: str, where: str) -> Preprocessing:
    longest = _size(values, "size", where).get("longest_edge", 0)
    side = _size(values, "max_image_size", where).get("longest_edge", 0)
    split = values.flag("do_image_splitting", True)
    return Preprocessing("rows_and_columns", side, chosen, longest_edge=longest, split=split)


def _whole_tiles(values: Values, chosen: str, _kind: str, where: str) -> Preprocessing:
    longest = _size(values, "size", where).get("longest_edge", 0)
    side = _size(values, "max_image_size", where).get("longest_edge", 0)
    enlarge = values.flag("resize_to_max_side_len")
    return Preprocessing("whole_tiles", side, chosen, longest_edge=longest, enlarge=enlarge)


def _size(values: Values, key: str, where: str) -> dict[str, int]:
    """A table of lengths; older files have one number for the shorter side, or for both."""
    value = values.get(key)
    if value is None:
        return {}
    if type(value) is int:
        value = {"shortest_edge": value} if key == "size" else {"height": value, "width": value}
    if not isinstance(value, dict) or any(
        type(edge) is not int and edge is not None for edge in value.values()
    ):
        raise CheckpointError(f"{where} has {shown(value)} for {key}, which is no size.")
    return {name: edge for name, edge in value.items() if edge is not None}


def _channels(values: Values, key: str, where: str) -> tuple[float, ...]:
    value = values.get(key)
    if not isinstance(value, list) or len(value) != 3:
        raise CheckpointError(f"{where} has {shown(value)} for {key}; three numbers are needed.")
    one = [Values({key: number}, {}).number(key) for number in value]
    return tuple(one)


def _mean_colour(values: Values, where: str) -> tuple[int, int, int]:
    """What stands around a padded picture."""
    red, green, blue = (int(value * 255) for value in _channels(values, "image_mean", where))
    return red, green, blue


# Of processors that make more of a picture than one square.
_WAYS = {
    "Idefics3": _tiles,
    "SmolVLM": _tiles,
    "NanoVLM": _whole_tiles,
    "LlavaNext": _any_resolution,
    "LlavaOnevision": _any_resolution,
    "Qwen2VL": _multiples,
}
