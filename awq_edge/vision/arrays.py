"""Pictures that come as numpy arrays: which numbers they hold, and which axis is which.

Owns the refusal to guess. A guess by the values' range turns a black picture of bytes into one of
floats, and one by the first axis turns a picture three pixels wide on its side.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from awq_edge.errors import InvalidArgumentError

CHANNELS = ("first", "last")


def bytes_of(array: npt.NDArray[np.generic], channels: str | None = None) -> npt.NDArray[np.uint8]:
    """A picture's channels as bytes.

    Args:
        array: [H, W], [H, W, c] or [c, H, W], c one of 1, 3 and 4; bytes, larger integers of 0 to
            255, floats of 0 to 1, or floats that are whole numbers of 0 to 255.
        channels: "first" or "last"; None where the shape alone tells.

    Returns:
        uint8 [H, W, c].

    Raises:
        InvalidArgumentError: It is none of these.
    """
    if channels is not None and channels not in CHANNELS:
        raise InvalidArgumentError(f"channels is {channels!r}: use 'first' or 'last'.")
    if array.ndim == 2:
        array = array[:, :, None]
    elif array.ndim != 3:
        raise InvalidArgumentError(
            f"An array of the shape {list(array.shape)} is no picture: give [height, width], "
            "[height, width, channels] or [channels, height, width], one picture at a time."
        )
    elif _channels_first(array.shape, channels):
        array = array.transpose(1, 2, 0)
    if array.shape[2] not in (1, 3, 4):
        raise InvalidArgumentError(
            f"A picture has 1, 3 or 4 channels, not the {array.shape[2]} of the array's shape."
        )
    return np.ascontiguousarray(_as_bytes(array))


def _channels_first(shape: tuple[int, ...], channels: str | None) -> bool:
    if channels is not None:
        return channels == "first"
    first, last = shape[0] in (1, 3, 4), shape[2] in (1, 3, 4)
    if first and last:
        raise InvalidArgumentError(
            f"An array of the shape {list(shape)} may have its channels first or last: say "
            "channels='first' or channels='last'."
        )
    if not first and not last:
        raise InvalidArgumentError(
            f"An array of the shape {list(shape)} has no axis of 1, 3 or 4 channels."
        )
    return first


def _as_bytes(array: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return np.asarray(array, dtype=np.uint8)
    if array.dtype == np.bool_:
        return np.where(array, np.uint8(255), np.uint8(0))
    whole = np.issubdtype(array.dtype, np.integer)
    if not whole and not np.issubdtype(array.dtype, np.floating):
        raise InvalidArgumentError(f"An array of {array.dtype} is no picture: give bytes.")
    values = array.astype(np.float64)
    if not values.size or not np.isfinite(values).all():
        raise InvalidArgumentError("The array is empty, or holds numbers that are not finite.")
    low, high = float(values.min()), float(values.max())
    if not whole and low >= 0 and high <= 1:
        return np.rint(values * 255).astype(np.uint8)
    if low < 0 or high > 255 or (values != np.rint(values)).any():
        raise InvalidArgumentError(
            f"The array's numbers lie between {low:g} and {high:g}: give floats of 0 to 1, or "
            "whole numbers of 0 to 255."
        )
    return values.astype(np.uint8)
