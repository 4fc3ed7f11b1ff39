"""Tensors of a GGUF file as a Hugging Face checkpoint of the same model would hold them.

Owns turning blocks of any type into floats, some rows at a time, by the package ``gguf``; and the
three things that llama.cpp's own converter does to tensors: rows of queries and keys in the order
of rotary pairs, norms with one added, and several matrices cut from a fused one. Refuses names.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from awq_edge.checkpoints.gguf_file import GgufTensor, bytes_of
from awq_edge.checkpoints.stored_tensor import StoredTensor
from awq_edge.errors import UnsupportedError

# Types that need no arithmetic.
_PLAIN = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
# Bits of a weight, beyond which a source counts as the original.
_LOSSLESS_BITS = 8


def stored_tensor(
    tensor: GgufTensor, rows: npt.NDArray[np.int64] | None = None, addend: float = 0.0
) -> StoredTensor:
    """The record by which a checkpoint reads a tensor.

    Args:
        tensor: Where it lies.
        rows: Numbers of the rows that are wanted, in their order; None for all.
        addend: What is added to each number.
    """
    shape = tensor.shape if rows is None else (len(rows), *tensor.shape[1:])
    dtype = _PLAIN.get(tensor.type_name)
    if dtype is None or addend:
        dtype = torch.float32
    read = functools.partial(_read, tensor, rows, addend, dtype)
    return StoredTensor(tensor.path, tensor.type_name, dtype, shape, read)


def neighbours_apart(n: int, heads: int) -> npt.NDArray[np.int64]:
    """Rows of queries or keys in Hugging Face's order: row i of a head turns with row i + d / 2.

    llama.cpp's converter puts the two beside each other.

    Args:
        n: Rows of the matrix.
        heads: How many heads they make.
    """
    return np.arange(n, dtype=np.int64).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)


def bits_per_weight(tensor: GgufTensor) -> float:
    """How many bits a weight takes."""
    return 8 * tensor.size_bytes / max(1, int(np.prod(tensor.shape)))


def is_rounded(tensor: GgufTensor) -> bool:
    """Whether its weights lie on fewer values than any that a conversion would make of them."""
    return len(tensor.shape) > 1 and bits_per_weight(tensor) < _LOSSLESS_BITS


def _read(
    tensor: GgufTensor,
    rows: npt.NDArray[np.int64] | None,
    addend: float,
    dtype: torch.dtype,
    first: int,
    count: int,
) -> torch.Tensor:
    """So many numbers from the one with the first number on, a vector."""
    if not count:
        return torch.empty(0, dtype=dtype)
    width = tensor.shape[-1] if len(tensor.shape) > 1 else 1
    begin, end = first // width, -(-(first + count) // width)
    if len(tensor.shape) < 2:  # a vector's blocks are no rows
        values = _floats(tensor, bytes_of(tensor, 0, tensor.size_bytes))
        values = values if rows is None else values[torch.from_numpy(rows)]
        values = values[first : first + count]
    else:
        row_bytes = tensor.size_bytes // (int(np.prod(tensor.shape)) // width)
        if rows is None:
            content = bytes_of(tensor, begin * row_bytes, (end - begin) * row_bytes)
            content = content.reshape(end - begin, row_bytes)
        else:
            wanted = rows[begin:end]
            lowest, highest = int(wanted.min()), int(wanted.max())
            content = bytes_of(tensor, lowest * row_bytes, (highest + 1 - lowest) * row_bytes)
            content = content.reshape(-1, row_bytes)[wanted - lowest]
        values = _floats(tensor, content).reshape(-1)[first - begin * width :][:count]
    values = values.to(dtype)
    return values + addend if addend else values


def _floats(tensor: GgufTensor, content: npt.NDArray[np.uint8]) -> torch.Tensor:
    plain = _PLAIN.get(tensor.type_name)
    if plain is not None:
        return torch.from_numpy(np.ascontiguousarray(content).reshape(-1)).view(plain)
    return torch.from_numpy(np.ascontiguousarray(_dequantised(tensor.path, tensor, content)))


def _dequantised(path: Path, tensor: GgufTensor, content: npt.NDArray[np.uint8]) -> Any:
    from gguf import GGMLQuantizationType, dequantize

    try:
        return dequantize(content, GGMLQuantizationType[tensor.type_name])
    except NotImplementedError as error:
        raise UnsupportedError(
            f"{path} holds weights of the type {tensor.type_name}, which this release of the "
            "package gguf cannot turn into floats."
        ) from error
