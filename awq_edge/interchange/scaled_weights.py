"""Keeps the weights that a conversion scaled, until they are exported.

Owns one file per layer in a directory beside the export, so that a conversion that is interrupted
and resumed finds them again. Values are kept as fp16, as the export stores them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from awq_edge.errors import FileUnreadableError
from awq_edge.float_model import FloatModel
from awq_edge.model_file import write_error


class ScaledWeights:
    """A ``FloatSource`` of ``export_gguf.py``, filled layer by layer."""

    def __init__(self, directory: Path) -> None:
        """Keeps files in ``directory``, which is made with the first layer."""
        self._directory = directory
        self._source: FloatModel | None = None
        self._layer: tuple[int, Mapping[str, npt.NDArray[np.float32]]] = (-1, {})

    def keep(self, layer: int, weights: Mapping[str, torch.Tensor]) -> None:
        """Stores a layer, by its names without ``blk.N.``: what ``Events.layer_scaled`` gives."""
        arrays = {
            name: values.cpu().half().numpy() if values.dim() == 2 else values.cpu().numpy()
            for name, values in weights.items()
        }
        path = self._directory / f"layer.{layer}.npz"
        partial = path.with_name(path.name + ".writing")
        try:
            if layer == 0:  # what is there belongs to another conversion
                self.remove()
            self._directory.mkdir(exist_ok=True)
            with partial.open("wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type,unused-ignore]  # numpy's stubs
            partial.replace(path)
        except OSError as error:
            raise write_error(path, error) from error

    def complete(self, source: FloatModel) -> None:
        """Adds what no scale touches: embedding, head and last norm.

        Raises:
            FileUnreadableError: A layer is missing.
        """
        for layer in range(source.architecture.layers):
            if not (self._directory / f"layer.{layer}.npz").is_file():
                raise FileUnreadableError(
                    f"The scaled weights of layer {layer} are missing in {self._directory}: the "
                    "conversion was begun without --export gguf; run it again from the start."
                )
        self._source = source

    def __call__(self, name: str) -> npt.NDArray[np.float32]:
        """A tensor by our name, float32."""
        if not name.startswith("blk."):
            assert self._source is not None  # complete() comes first
            return self._source(name).numpy()
        _, number, part = name.split(".", 2)
        if self._layer[0] != int(number):
            with np.load(self._directory / f"layer.{number}.npz") as file:
                self._layer = (int(number), {key: file[key] for key in file.files})
        return self._layer[1][part].astype(np.float32)

    def remove(self) -> None:
        """Deletes what was kept, and the directory if nothing else is in it."""
        for path in self._directory.glob("layer.*.npz*"):
            path.unlink()
        with contextlib.suppress(OSError):
            self._directory.rmdir()
