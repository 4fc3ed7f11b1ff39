"""From bytes to the numbers that a tower reads: a table, made once when a model is converted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def pixel_values(
    mean: Sequence[float], deviation: Sequence[float], factor: float = 1.0 / 255.0
) -> npt.NDArray[np.float32]:
    """The number of every byte in every channel, float32 [3, 256].

    Rounds where the processors of transformers that work with numpy round: once behind the factor,
    which is a double, and once behind each operation of floats.

    Args:
        mean: Of R, G and B, on the scale behind the factor.
        deviation: The same.
        factor: What a byte is multiplied by.
    """
    scaled = (np.arange(256, dtype=np.float64) * factor).astype(np.float32)
    centred = scaled[None, :] - np.array(mean, dtype=np.float32)[:, None]
    return centred / np.array(deviation, dtype=np.float32)[:, None]
