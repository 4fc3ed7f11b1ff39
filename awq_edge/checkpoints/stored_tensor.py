"""One tensor of a checkpoint as a file holds it: where it lies, its type and its shape.

Owns the record that every kind of file gives for its tensors. Refuses to open files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor that can be read.

    Attributes:
        path: The file that holds it.
        type_name: Its type in the words of the file, for example ``BF16``.
        dtype: The same type here; None for one that nothing here computes with.
        shape: Its sizes.
        read: Reads so many elements from the one with the first number on, as a vector of
            ``dtype``. Raises AwqEdgeError if the file has changed or cannot be read.
    """

    path: Path
    type_name: str
    dtype: torch.dtype | None
    shape: tuple[int, ...]
    read: Callable[[int, int], torch.Tensor]
