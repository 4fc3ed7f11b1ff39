"""The container of llama.cpp's models (GGUF, versions 2 and 3): its entries, and where tensors lie.

Owns the checks of a header: whatever is found lies inside the file, and nothing is made in a number
that the file merely announces. The package ``gguf`` has a reader too, which trusts those numbers
and turns every entry of a vocabulary into arrays; its table of types is the one that counts here.
Refuses the meaning of entries and names: ``gguf_checkpoint.py`` knows it.
"""

from __future__ import annotations

import dataclasses
import math
import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np

from awq_edge.checkpoints.files import open_regular, refuse_pointer
from awq_edge.errors import AwqEdgeError, CheckpointError, FileUnreadableError, UnsupportedError
from awq_edge.unreadable_files import before_mapping

MAGIC = b"GGUF"
# What llama.cpp wrote before: files without entries, in three variants.
_OLDER_MAGICS = (b"lmgg", b"fmgg", b"tjgg", b"algg")
_VERSIONS = (2, 3)
_LARGEST_NAME = 1 << 16  # bytes of a key or of a tensor's name
_MOST_DIMENSIONS = 4

# Value types of the format by their numbers: what struct and numpy call them.
_SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_STRING, _ARRAY = 8, 9

# The fewest bytes that an entry (an empty key, a type, a byte) or a tensor's record can take.
_LEAST_ENTRY, _LEAST_TENSOR, _LEAST_STRING = 13, 32, 8


@dataclasses.dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies.

    Attributes:
        path: The file that holds it.
        type_name: ``Q4_K`` and so on, as the package ``gguf`` calls it.
        shape: Its sizes, rows first.
        offset: Of its first byte in the file.
        size_bytes: How many bytes it has.
    """

    path: Path
    type_name: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


@dataclasses.dataclass(frozen=True)
class GgufFile:
    """A file that was read up to its tensors.

    Attributes:
        path: Which.
        entries: Values by key: a bool, number, text or a list of them (numbers as a numpy array).
        tensors: By name, in the order of the file.
    """

    path: Path
    entries: dict[str, Any]
    tensors: dict[str, GgufTensor]


def is_gguf(path: Path) -> bool:
    """Whether a regular file begins as such a container does."""
    try:
        with open_regular(path) as file:
            return file.read(4) == MAGIC
    except (AwqEdgeError, OSError):
        return False


def read_gguf(path: Path) -> GgufFile:
    """Reads a file's header; no weights.

    Raises:
        CheckpointError: It is no such file, truncated or damaged.
        UnsupportedError: It is of another version or byte order.
        FileUnreadableError: The system refuses it.
    """
    try:
        with open_regular(path) as file:
            beginning = file.read(64)
            refuse_pointer(path, beginning)
            _refuse_others(path, beginning)
            before_mapping()
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _parsed(_Cursor(path, content))
    except FileUnreadableError:
        raise
    except OSError as error:
        raise FileUnreadableError(f"Cannot read {path}: {error.strerror}.") from error


def _refuse_others(path: Path, beginning: bytes) -> None:
    if beginning[:4] in _OLDER_MAGICS:
        raise UnsupportedError(
            f"{path} was written by a llama.cpp from before GGUF; convert the original checkpoint, "
            "or a newer file of the same model."
        )
    if beginning[:4] != MAGIC:
        raise CheckpointError(f"{path} is not a GGUF file.")
    if len(beginning) < 24:
        raise CheckpointError(f"{path} is truncated; download it again.")
    (version,) = struct.unpack("<I", beginning[4:8])
    if version in _VERSIONS:
        return
    if version and version & 0xFFFF == 0:
        raise UnsupportedError(
            f"{path} is a big-endian GGUF file; gguf-convert-endian of the package gguf turns it "
            "into a little-endian one."
        )
    raise UnsupportedError(
        f"{path} is a GGUF file of version {version}; versions 2 and 3 are read, so use a newer "
        "file of the same model."
    )


class _Cursor:
    """Reads a header from its beginning on, and never beyond the file."""

    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self.path = path
        self.content = content
        self.at = 8  # behind magic and version
        self.size = len(content)

    def take(self, count: int) -> bytes:
        """So many bytes."""
        if count > self.size - self.at:
            raise CheckpointError(f"{self.path} is truncated; download it again.")
        self.at += count
        return self.content[self.at - count : self.at]

    def number(self, form: str) -> int:
        """One whole number."""
        return int(struct.unpack(f"<{form}", self.take(struct.calcsize(form)))[0])

    def count(self, least_bytes: int, of: str) -> int:
        """How many of something follow, each of which takes at least so many bytes."""
        number = self.number("Q")
        if number * least_bytes > self.size - self.at:
            raise CheckpointError(
                f"{self.path} is truncated or damaged: it announces {number} {of}, more than it "
                "has room for; download it again."
            )
        return number

    def text(self, of: str, largest: int | None = None) -> str:
        """One string."""
        length = self.number("Q")
        if length > (self.size if largest is None else largest):
            raise CheckpointError(
                f"{self.path} is truncated or damaged: it announces a {of} of {length} bytes; "
                "download it again."
            )
        # A token may be a part of a character.
        return self.take(length).decode("utf-8", "replace")

    def value(self, kind: int, key: str) -> Any:
        """The value of an entry."""
        if kind == _STRING:
            return self.text("text")
        if kind in _SCALARS:
            dtype = np.dtype(_SCALARS[kind])
            return np.frombuffer(self.take(dtype.itemsize), dtype)[0].item()
        if kind != _ARRAY:
            raise CheckpointError(
                f"{self.path} is damaged: its entry {key} has a value of the unknown type {kind}."
            )
        inner = self.number("I")
        if inner == _STRING:
            return [self.text("text") for _ in range(self.count(_LEAST_STRING, "texts"))]
        if inner not in _SCALARS:
            raise CheckpointError(
                f"{self.path} is damaged: its entry {key} is a list of the unknown type {inner}."
            )
        dtype = np.dtype(_SCALARS[inner])
        return np.frombuffer(
            self.take(self.count(dtype.itemsize, "numbers") * dtype.itemsize), dtype
        )


def _parsed(cursor: _Cursor) -> GgufFile:
    path = cursor.path
    tensor_count = cursor.count(_LEAST_TENSOR, "tensors")
    entries: dict[str, Any] = {}
    for _ in range(cursor.count(_LEAST_ENTRY, "entries")):
        key = cursor.text("key", _LARGEST_NAME)
        value = cursor.value(cursor.number("I"), key)
        if key in entries:
            raise CheckpointError(f"{path} is damaged: it has the entry {key} twice.")
        entries[key] = value
    records: list[tuple[str, tuple[int, ...], int, int]] = []
    for _ in range(tensor_count):
        name = cursor.text("name", _LARGEST_NAME)
        if not name.isprintable() or not name:
            raise CheckpointError(f"{path} has a tensor of the name {name[:64]!r}, which none has.")
        dimensions = cursor.number("I")
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise CheckpointError(
                f"{path} is damaged: its tensor {name} has {dimensions} dimensions."
            )
        sizes = tuple(cursor.number("Q") for _ in range(dimensions))
        if 0 in sizes:
            # It would take no room, whatever its other sizes announce.
            raise CheckpointError(f"{path} is damaged: its tensor {name} has no numbers.")
        records.append((name, sizes[::-1], cursor.number("I"), cursor.number("Q")))
    alignment = entries.get("general.alignment", 32)
    if isinstance(alignment, bool) or not isinstance(alignment, int) or alignment < 1:
        raise CheckpointError(f"{path} is damaged: its tensors are aligned to {alignment!r} bytes.")
    begin = -(-cursor.at // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    for name, shape, kind, offset in records:
        if name in tensors:
            raise CheckpointError(f"{path} is damaged: it has the tensor {name} twice.")
        type_name, size_bytes = _size(path, name, shape, kind)
        if begin + offset + size_bytes > cursor.size:
            raise CheckpointError(f"{path} is truncated in the tensor {name}; download it again.")
        tensors[name] = GgufTensor(path, type_name, shape, begin + offset, size_bytes)
    return GgufFile(path, entries, tensors)


def _size(path: Path, name: str, shape: tuple[int, ...], kind: int) -> tuple[str, int]:
    """The name of a type, and the bytes of a tensor."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        known = GGMLQuantizationType(kind)
        block, block_bytes = GGML_QUANT_SIZES[known]
    except (ValueError, KeyError) as error:
        raise CheckpointError(
            f"The tensor {name} of {path} has the type {kind}, which this release of the package "
            "gguf does not know."
        ) from error
    if shape and shape[-1] % block:
        raise CheckpointError(
            f"{path} is damaged: rows of {shape[-1]} numbers in its tensor {name} are no whole "
            f"blocks of {known.name}."
        )
    return known.name, math.prod(shape) // block * block_bytes


def bytes_of(tensor: GgufTensor, first: int, count: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Reads so many bytes of a tensor, from the one with the first number on.

    Raises:
        CheckpointError: The file became shorter.
        FileUnreadableError: The system refuses it.
    """
    values = np.empty(count, np.uint8)
    try:
        with open_regular(tensor.path) as file:
            file.seek(tensor.offset + first)
            read = file.readinto(values.data)
    except FileUnreadableError:
        raise
    except OSError as error:
        raise FileUnreadableError(f"Cannot read {tensor.path}: {error.strerror}.") from error
    if read != count:
        raise CheckpointError(f"{tensor.path} became shorter while it was read.")
    return values
