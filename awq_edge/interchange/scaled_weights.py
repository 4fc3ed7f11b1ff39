"""The weights that a conversion scaled, as an export reads them.

Owns where each tensor comes from: layers from what the conversion kept (as fp16, as the export
stores them), the rest from the checkpoint, which no scale touches. Refuses to keep anything:
``conversion.work_directory`` does.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from awq_edge.float_model import FloatModel


class ScaledWeights:
    """A ``FloatSource`` of ``export_gguf.py``."""

    def __init__(
        self, source: FloatModel, kept: Callable[[int, str], npt.NDArray[np.float32]]
    ) -> None:
        """Takes a tensor of a layer from ``kept``, by the layer and its name without ``blk.N.``."""
        self._source = source
        self._kept = kept

    def __call__(self, name: str) -> npt.NDArray[np.float32]:
        """A tensor by our name, float32."""
        if not name.startswith("blk."):
            values: npt.NDArray[np.float32] = self._source(name).numpy()
            return values
        _, number, part = name.split(".", 2)
        return self._kept(int(number), part)
