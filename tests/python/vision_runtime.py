"""Pictures through the C++ runtime, as tests that compare it with plain numpy ask for them."""

from __future__ import annotations

import numpy as np

from awq_edge import _native


def encoded(model: _native.NativeModel, pixels: np.ndarray) -> np.ndarray:
    """What the decoder reads of pictures [pictures, height, width, 3], or looks at."""
    vision = model.vision()
    assert vision is not None
    tokens = vision.tokens
    if vision.step:
        tokens = pixels.shape[1] // vision.step * (pixels.shape[2] // vision.step)
    out = np.full((len(pixels), tokens, vision.embedding_size), np.nan, dtype=np.float32)
    model.encode_pictures(pixels, out, threads=2)
    return out


def relative_errors(rows: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Of each row, in norm."""
    return np.linalg.norm(rows - expected, axis=1) / np.linalg.norm(expected, axis=1)
