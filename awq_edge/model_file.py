"""Writes model files (GGUF v3, ``native/format/FORMAT.md``); reads them back as float weights.

Owns the container: metadata types, tensor order, checksum, padding, and that a failed write leaves
nothing behind. The reader here is the slow one, for tests and as an oracle; the runtime's is
``native/format/gguf_reader.cpp``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Union

import numpy as np
import numpy.typing as npt

from awq_edge import layouts
from awq_edge.architecture import Architecture, MetadataValue
from awq_edge.errors import FileInvalidError, FileUnreadableError, InternalError
from awq_edge.outputs.place import Place, write_error
from awq_edge.outputs.workplace import Workplace

ARCHITECTURE_NAME = "awq-edge"
FORMAT_VERSION = 1
TRAILING_BYTES = 64  # a full-vector load at the end of the last block stays inside the mapping
_CHECKSUM_KEY = "awq_edge.sha256"
_CHUNK_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Streamed:
    """A packed matrix that is made piece by piece when its place in the file is reached."""

    size_bytes: int
    pieces: Callable[[], Iterable[bytes]]


# float32 vector, the bytes of a packed matrix, or where they come from.
TensorSource = Union[npt.NDArray[np.float32], bytes, Path, Streamed]


def write_model(
    path: Path, metadata: Mapping[str, MetadataValue], tensors: Iterable[tuple[str, TensorSource]]
) -> str:
    """Writes a whole model file, or nothing.

    The bytes go to a directory of our own beside it, are synced and then get their name.

    Args:
        path: The file to write; an older one is replaced.
        metadata: Everything but the keys that describe the container itself. bool, int (u32), float
            (f32), str, and list of int ([u32]).
        tensors: Names and sources, in file order: a float32 array becomes F32; bytes, a file of
            bytes and streamed bytes become I8.

    Returns:
        The SHA-256 of all tensor bytes, in hexadecimal.
    """
    place = Place(path, replace=True)
    try:
        with Workplace(path) as work:
            checksum = write_unnamed(work.path / "model", metadata, tensors)
            place.appear(work.path / "model")
    except OSError as error:
        raise write_error(path, error) from error
    return checksum


def write_unnamed(
    path: Path, metadata: Mapping[str, MetadataValue], tensors: Iterable[tuple[str, TensorSource]]
) -> str:
    """Writes a whole and synced model file, for a caller who gives it its name afterwards.

    Args:
        path: A new file in a directory that is the caller's alone.
        metadata: As for :func:`write_model`.
        tensors: The same.

    Returns:
        The SHA-256 of all tensor bytes, in hexadecimal.
    """
    return _write_container(path, metadata, list(tensors))


def _write_container(
    path: Path, metadata: Mapping[str, MetadataValue], sources: list[tuple[str, TensorSource]]
) -> str:
    from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter

    writer = GGUFWriter(None, ARCHITECTURE_NAME)
    writer.add_custom_alignment(layouts.ALIGNMENT)
    writer.add_uint32("awq_edge.format_version", FORMAT_VERSION)
    writer.add_string("awq_edge.layout", layouts.LAYOUT_NAME)
    for key, value in metadata.items():
        if isinstance(value, list):
            writer.add_key_value(key, value, GGUFValueType.ARRAY, sub_type=GGUFValueType.UINT32)
        else:
            writer.add_key_value(key, value, _value_type(key, value))
    # Last, so that its 64 digits are the last bytes before the tensor descriptions and can be
    # filled in at the end.
    writer.add_string(_CHECKSUM_KEY, "0" * 64)
    for name, source in sources:
        size = source_bytes(source)
        if isinstance(source, np.ndarray):
            writer.add_tensor_info(name, source.shape, source.dtype, size, GGMLQuantizationType.F32)
        else:
            writer.add_tensor_info(name, (size,), np.dtype(np.int8), size, GGMLQuantizationType.I8)
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()

    hasher = hashlib.sha256()
    with path.open("r+b") as file:
        digits_offset = _checksum_offset(file.read())
        _pad(file)
        for _, source in sources:
            for chunk in _chunks(source):
                hasher.update(chunk)
                file.write(chunk)
            _pad(file)
        file.write(bytes(TRAILING_BYTES))
        file.seek(digits_offset)
        file.write(hasher.hexdigest().encode())
        file.flush()
        os.fsync(file.fileno())
    return hasher.hexdigest()


def _value_type(key: str, value: MetadataValue) -> Any:
    from gguf import GGUFValueType

    types = {
        bool: GGUFValueType.BOOL,
        int: GGUFValueType.UINT32,
        float: GGUFValueType.FLOAT32,
        str: GGUFValueType.STRING,
    }
    if type(value) not in types:
        raise InternalError(
            f"The metadata {key} is a {type(value).__name__}, which a model file cannot hold."
        )
    return types[type(value)]


def source_bytes(source: TensorSource) -> int:
    """Bytes of a tensor in the file."""
    if isinstance(source, Path):
        return source.stat().st_size
    if isinstance(source, np.ndarray):
        if source.dtype != np.float32 or source.ndim != 1:
            raise InternalError(
                f"A plain tensor is a float32 vector, not {source.dtype} {list(source.shape)}."
            )
        return source.nbytes
    return source.size_bytes if isinstance(source, Streamed) else len(source)


def _chunks(source: TensorSource) -> Iterator[bytes]:
    if isinstance(source, Path):
        with source.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk
    elif isinstance(source, np.ndarray):
        yield source.astype("<f4", copy=False).tobytes()
    elif isinstance(source, Streamed):
        written = 0
        for piece in source.pieces():
            written += len(piece)
            yield piece
        if written != source.size_bytes:
            raise InternalError(f"A tensor of {source.size_bytes} bytes came with {written}.")
    else:
        yield source


def _checksum_offset(header: bytes) -> int:
    """Where the value of the checksum's key begins: key, value type (u32), length (u64), value."""
    key = _CHECKSUM_KEY.encode()
    needle = (
        len(key).to_bytes(8, "little")
        + key
        + (8).to_bytes(4, "little")
        + (64).to_bytes(8, "little")
        + b"0" * 64
    )
    return header.rindex(needle) + len(needle) - 64


def _pad(file: Any) -> None:
    file.write(bytes(-file.tell() % layouts.ALIGNMENT))


class PackedFile:
    """A model file seen through the ``gguf`` package, one tensor at a time.

    Attributes:
        path: The file.
        metadata: All of its entries.
        architecture: The decoder.
    """

    def __init__(self, path: Path) -> None:
        """Opens a file; reads no weights.

        Raises:
            FileUnreadableError: There is no such file.
            FileInvalidError: It is no GGUF file, or not one of ours.
        """
        from gguf import GGUFReader

        if not path.is_file():
            raise FileUnreadableError(f"There is no file {path}.")
        try:
            reader = GGUFReader(path)
        except (ValueError, IndexError, KeyError) as error:
            raise FileInvalidError(f"{path} is not a GGUF file: {error}.") from error
        self.path = path
        self.metadata = {key: field.contents() for key, field in reader.fields.items()}
        if self.metadata.get("general.architecture") != ARCHITECTURE_NAME:
            raise FileInvalidError(f"{path} is a GGUF file, but not one written by awq-edge.")
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.architecture = Architecture.from_metadata(self.metadata, self._tensors)

    def names(self) -> list[str]:
        """Every tensor, in file order."""
        return list(self._tensors)

    def is_packed(self, name: str) -> bool:
        """Whether a tensor is a packed matrix and not a plain vector."""
        from gguf import GGMLQuantizationType

        return bool(self._tensors[name].tensor_type != GGMLQuantizationType.F32)

    def layout(self, name: str) -> layouts.Layout:
        """Rows, columns, bits and group size of a packed matrix; reads only its header."""
        data = self._tensors[name].data[: layouts.HEADER_BYTES]
        return layouts.read_header(np.ascontiguousarray(data).tobytes())

    def matrix(self, name: str) -> layouts.Unpacked:
        """Codes, scales and zero-points of a packed matrix."""
        return layouts.unpack(np.ascontiguousarray(self._tensors[name].data).view(np.uint8))

    def floats(self, name: str) -> npt.NDArray[np.float32]:
        """A tensor as the runtime computes with it: a matrix [n, k] or a vector [n]."""
        if self.is_packed(name):
            return self.matrix(name).dequantise()
        return np.array(self._tensors[name].data, dtype=np.float32)


@dataclasses.dataclass(frozen=True)
class DequantisedModel:
    """A packed file as plain weights."""

    architecture: Architecture
    metadata: dict[str, Any]
    tensors: dict[str, npt.NDArray[np.float32]]  # matrices [n, k], vectors [n]
    group_sizes: dict[str, int]  # of the packed ones: inputs are rounded in the same groups


def read_dequantised(path: Path) -> DequantisedModel:
    """Reads a whole model file; packed matrices become float32."""
    file = PackedFile(path)
    tensors: dict[str, npt.NDArray[np.float32]] = {}
    group_sizes: dict[str, int] = {}
    for name in file.names():
        if file.is_packed(name):
            matrix = file.matrix(name)
            tensors[name] = matrix.dequantise()
            group_sizes[name] = matrix.group_size
        else:
            tensors[name] = file.floats(name)
    return DequantisedModel(file.architecture, file.metadata, tensors, group_sizes)
