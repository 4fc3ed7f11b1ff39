"""Layers of the float model, one after the other, with their weights on a device.

Owns how much of them is in memory: a whole layer, beside a GPU's work the next one too, and of a
mixture of experts a few experts (``layer_weights.py``). Refuses to know what is done with them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from awq_edge.conversion.layer_weights import LayerWeights
from awq_edge.float_model import FloatModel
from awq_edge.quantize.probe import Weights
from awq_edge.stages import layer_tensor_names

_READERS = 4  # tensors that are read at once beside a GPU's work


class LayerReader:
    """Reads the layers of one model; what is read may be changed, and is read anew next time."""

    def __init__(self, source: FloatModel, device: torch.device, folder: Path) -> None:
        """Reads ``source``; ``folder`` takes changed experts that have no room in memory."""
        self._source = source
        self._device = device
        self._folder = folder

    def __call__(self, numbers: Iterable[int]) -> Iterator[tuple[int, Weights]]:
        """Layers by number; the caller lets go of one before it asks for the next."""
        if self._source.architecture.experts:
            return self._in_parts(numbers)
        if self._device.type == "cpu":
            return ((number, self._source.layer(number)) for number in numbers)
        return self._ahead(numbers)

    def _in_parts(self, numbers: Iterable[int]) -> Iterator[tuple[int, Weights]]:
        for layer in numbers:
            with contextlib.closing(
                LayerWeights(self._source, layer, self._device, self._folder)
            ) as weights:
                yield layer, weights

    def _ahead(self, numbers: Iterable[int]) -> Iterator[tuple[int, Weights]]:
        """While a layer is worked on, the next one is read."""
        # The GPU of this thread: other threads begin with the first one.
        device = torch.device("cuda", torch.cuda.current_device())
        left = list(numbers)
        with ThreadPoolExecutor(_READERS) as readers:

            def begin(layer: int) -> dict[str, Future[torch.Tensor]]:
                return {
                    name: readers.submit(self._source, f"blk.{layer}.{name}", device)
                    for name in layer_tensor_names(self._source.architecture, layer)
                }

            ahead = begin(left[0]) if left else {}
            while left:
                layer = left.pop(0)
                ready = [{name: ahead.pop(name).result() for name in list(ahead)}]
                ahead = begin(left[0]) if left else {}
                yield layer, ready.pop()  # the caller alone holds them, and may let go of them
