"""A layer's weights, of which a mixture of experts is in memory a few experts at a time.

Owns which of them are in memory: everything but the experts' matrices always, of these as many as a
budget allows, those used last. What is not there is read again: from the checkpoint if it stands
there as it is, from a file of the work directory if it was changed. Refuses to change anything.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, MutableMapping
from pathlib import Path

import numpy as np
import torch

from awq_edge.float_model import FloatModel
from awq_edge.stages import is_routed, layer_tensor_names

# Of experts' matrices, whatever the model's size: one of Mixtral's experts has 0.7 GiB.
_BUDGET_BYTES = {"cpu": 1 << 30, "cuda": 8 << 30}


class LayerWeights(MutableMapping[str, torch.Tensor]):
    """Tensors of one layer by their names without ``blk.N.``; use :meth:`close` in the end."""

    def __init__(
        self,
        source: FloatModel,
        layer: int,
        device: torch.device,
        folder: Path,
        budget_bytes: int | None = None,
    ) -> None:
        """Reads what is always in memory.

        Args:
            source: The float model.
            layer: Which one.
            device: Where the tensors are.
            folder: For changed ones that have no room in memory.
            budget_bytes: Of experts' matrices in memory; None: the device's own.
        """
        self._source = source
        self._layer = layer
        self._device = device
        self._folder = folder
        self._budget = _BUDGET_BYTES[device.type] if budget_bytes is None else budget_bytes
        self._names = dict.fromkeys(layer_tensor_names(source.architecture, layer))
        self._always = {
            name: source(f"blk.{layer}.{name}", device)
            for name in self._names
            if not is_routed(name)
        }
        self._routed: OrderedDict[str, torch.Tensor] = OrderedDict()  # used last: at the end
        self._changed: set[str] = set()  # in memory, and nowhere else
        self._kept: set[str] = set()  # in a file

    def __getitem__(self, name: str) -> torch.Tensor:
        """A tensor, float32, on the device."""
        if name in self._always:
            return self._always[name]
        if name not in self._names:
            raise KeyError(name)
        if name in self._routed:
            self._routed.move_to_end(name)
            return self._routed[name]
        if name in self._kept:
            tensor = torch.from_numpy(np.load(self._path(name))).to(self._device)
        else:
            tensor = self._source(f"blk.{self._layer}.{name}", self._device)
        self._take(name, tensor)
        return tensor

    def __setitem__(self, name: str, tensor: torch.Tensor) -> None:
        """Replaces a tensor."""
        if name not in self._names:
            raise KeyError(name)
        if name in self._always:
            self._always[name] = tensor
            return
        self._routed.pop(name, None)
        self._changed.add(name)
        self._take(name, tensor)

    def __delitem__(self, name: str) -> None:
        """No tensor of a layer ever goes."""
        raise TypeError("A layer keeps its tensors.")

    def __contains__(self, name: object) -> bool:
        """Whether there is such a tensor; reads none."""
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        """Their names."""
        return iter(self._names)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._names)

    def close(self) -> None:
        """Removes the files."""
        for name in self._kept:
            self._path(name).unlink(missing_ok=True)
        self._kept.clear()
        self._routed.clear()

    def _take(self, name: str, tensor: torch.Tensor) -> None:
        """Puts a tensor into memory, and others out of it where there is no room."""
        self._routed[name] = tensor
        size = sum(one.nbytes for one in self._routed.values())
        while size > self._budget and len(self._routed) > 1:
            spent, out = self._routed.popitem(last=False)
            size -= out.nbytes
            if spent in self._changed:
                np.save(self._path(spent), out.cpu().numpy())
                self._changed.discard(spent)
                self._kept.add(spent)

    def _path(self, name: str) -> Path:
        return self._folder / f"weights.{name}.npy"
