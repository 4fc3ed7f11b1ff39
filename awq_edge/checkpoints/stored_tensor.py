"""One tensor of a checkpoint as a file holds it: where it lies, its type and its shape.

Owns the record that every kind of file gives for its tensors, rows that lie in two of them, and
rows that are some of one.
Refuses to open files.
"""

from __future__ import annotations

import dataclasses
import math
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


def some_rows(whole: StoredTensor, first: int, count: int) -> StoredTensor:
    """Rows of a tensor, which follow each other, as a tensor of their own."""
    columns = math.prod(whole.shape[1:])

    def read(begin: int, wanted: int) -> torch.Tensor:
        return whole.read(first * columns + begin, wanted)

    return dataclasses.replace(whole, shape=(count, *whole.shape[1:]), read=read)


def with_zeros(whole: StoredTensor, rows: int) -> StoredTensor:
    """A tensor with so many rows of zeros behind its own."""
    dtype = torch.float32 if whole.dtype is None else whole.dtype
    shape = (rows, *whole.shape[1:])
    zeros = StoredTensor(
        whole.path, whole.type_name, dtype, shape, lambda _, count: torch.zeros(count, dtype=dtype)
    )
    return joined(whole, zeros)


def joined(first: StoredTensor, second: StoredTensor) -> StoredTensor:
    """The rows of one matrix and, behind them, those of another, as one tensor.

    Where they differ in type they are float32.
    """
    dtype = first.dtype if first.dtype == second.dtype else torch.float32
    if None in (first.dtype, second.dtype):
        dtype = None
    border = math.prod(first.shape)

    def read(begin: int, count: int) -> torch.Tensor:
        end = begin + count
        parts = []
        if begin < border:
            parts.append(first.read(begin, min(end, border) - begin))
        if end > border or not parts:
            at = max(begin - border, 0)
            parts.append(second.read(at, end - border - at))
        return parts[0] if len(parts) == 1 else torch.cat([part.to(dtype) for part in parts])

    return StoredTensor(
        first.path,
        first.type_name,
        dtype,
        (first.shape[0] + second.shape[0], *first.shape[1:]),
        read,
    )
