"""Reads safetensors files: the header, and the bytes of one tensor at a time.

Owns the checks of a header: a tensor that is found lies inside the file with as many bytes as its
type and shape ask for. Types that nothing here computes with are told by name only when somebody
asks for such a tensor. Refuses names: whoever asks knows them.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import torch

from awq_edge.checkpoints.files import open_regular, refuse_pointer
from awq_edge.checkpoints.json_files import is_whole_number
from awq_edge.checkpoints.stored_tensor import StoredTensor
from awq_edge.errors import CheckpointError, FileUnreadableError
from awq_edge.limited_json import parse_json

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I8": torch.int8,  # integers: parts of quantised matrices
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format itself
_MAX_DIMENSIONS = 8


def tensors_of(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of a file, by its name; checks that all of their bytes are there."""
    truncated = f"{path} is truncated; download it again."
    try:
        with open_regular(path) as file:
            size = file.seek(0, 2)
            file.seek(0)
            refuse_pointer(path, file.read(64))
            file.seek(0)
            header_bytes = int.from_bytes(file.read(8), "little")
            if size < 8 or header_bytes > size - 8 or header_bytes > _MAX_HEADER_BYTES:
                # A damaged length is as likely as a cut file when it is beyond every limit.
                damaged = size >= 8 and header_bytes > _MAX_HEADER_BYTES
                raise CheckpointError(
                    f"{path} is not a safetensors file." if damaged else truncated
                )
            text = file.read(header_bytes)
    except FileUnreadableError:
        raise
    except OSError as error:
        raise FileUnreadableError(f"Cannot read {path}: {error.strerror}.") from error
    try:
        header = parse_json(text)
        if not isinstance(header, dict):
            raise ValueError("it is not an object")
        return {
            name: _parsed(path, name, 8 + header_bytes, size, entry)
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except ValueError as error:
        raise CheckpointError(f"The header of {path} is not valid: {error}.") from error


def _parsed(path: Path, name: str, data_offset: int, size: int, entry: Any) -> StoredTensor:
    """One entry of the header.

    Raises:
        ValueError: It contradicts itself.
        CheckpointError: Its bytes are not all there.
    """
    shown = name if name.isprintable() and len(name) <= 256 else f"{name[:256]!r} …"
    if not isinstance(entry, dict):
        raise ValueError(f"the entry of {shown} is not an object")
    kind, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(kind, str):
        raise ValueError(f"{shown} has no type")
    if not isinstance(shape, list) or len(shape) > _MAX_DIMENSIONS:
        raise ValueError(f"{shown} has no shape")
    if not all(map(is_whole_number, shape)):
        raise ValueError(f"{shown} has a shape that is not of whole numbers")
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(map(is_whole_number, offsets))
        or not 0 <= offsets[0] <= offsets[1]
        or min(shape, default=0) < 0
    ):
        raise ValueError(f"{shown} cannot hold {kind} {shape} in the bytes {offsets}")
    begin, end = offsets
    dtype = _DTYPES.get(kind)
    if dtype is not None and end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"bytes {begin} to {end} of {shown} cannot hold {kind} {shape}")
    if data_offset + end > size:
        raise CheckpointError(f"{path} is truncated in the tensor {shown}; download it again.")
    read = functools.partial(_read, path, dtype or torch.uint8, data_offset + begin)
    return StoredTensor(path, kind, dtype, tuple(shape), read)


def _read(path: Path, dtype: torch.dtype, offset: int, first: int, count: int) -> torch.Tensor:
    values = torch.empty(count, dtype=dtype)
    try:
        with open_regular(path) as file:
            file.seek(offset + first * dtype.itemsize)
            read = file.readinto(values.view(torch.uint8).numpy().data)
    except FileUnreadableError:
        raise
    except OSError as error:
        raise FileUnreadableError(f"Cannot read {path}: {error.strerror}.") from error
    if read != values.nbytes:
        raise CheckpointError(f"{path} became shorter while it was read.")
    return values
