"""The entries of a file as Python values."""

from __future__ import annotations

import struct
from typing import Any, Union

from awq_edge import errors
from awq_edge._native.library import call, load, structure, text_at

Scalar = Union[int, float, bool, str]
Value = Union[Scalar, list[Scalar]]


def entries(model: Any) -> dict[str, Value]:
    """All entries of an open model, in file order.

    Args:
        model: The C object, which the caller holds.

    Raises:
        FileInvalidError: A text is not UTF-8.
    """
    ffi, library = load()
    found: dict[str, Value] = {}
    for index in range(library.awqe_model_metadata_count(model)):
        entry = structure("awqe_metadata")
        call(library.awqe_model_metadata_at, model, index, entry)
        key = text_at(ffi, entry.key)
        is_array = entry.type == library.AWQE_VALUE_ARRAY
        found[key] = _array(entry, key) if is_array else _scalar(entry, key)
    return found


def _scalar(value: Any, key: str) -> Scalar:
    """The Python value of an ``awqe_metadata`` that is no array."""
    ffi, library = load()
    if value.type == library.AWQE_VALUE_STRING:
        return _decoded(bytes(ffi.buffer(value.string_value, value.count)), key)
    if value.type == library.AWQE_VALUE_BOOLEAN:
        return bool(value.unsigned_value)
    if value.type == library.AWQE_VALUE_REAL:
        return float(value.real_value)
    if value.type == library.AWQE_VALUE_SIGNED:
        return int(value.signed_value)
    return int(value.unsigned_value)


def _array(value: Any, key: str) -> list[Scalar]:
    """The elements of an ``awqe_metadata`` that is an array."""
    ffi, library = load()
    data = bytes(ffi.buffer(value.array_value, value.array_bytes))
    if value.element_type == library.AWQE_VALUE_STRING:
        return _strings(data, key)
    # The letters of struct, by size.
    letters = {
        library.AWQE_VALUE_UNSIGNED: {1: "B", 2: "H", 4: "I", 8: "Q"},
        library.AWQE_VALUE_SIGNED: {1: "b", 2: "h", 4: "i", 8: "q"},
        library.AWQE_VALUE_REAL: {4: "f", 8: "d"},
        library.AWQE_VALUE_BOOLEAN: {1: "?"},
    }
    letter = letters[value.element_type][value.element_bytes]
    return list(struct.unpack(f"<{value.count}{letter}", data))


def _strings(data: bytes, key: str) -> list[Scalar]:
    """Strings that lie one behind the other, each with its length in front."""
    strings: list[Scalar] = []
    at = 0
    while at < len(data):
        begin = at + 8
        at = begin + int.from_bytes(data[at:begin], "little")
        strings.append(_decoded(data[begin:at], key))
    return strings


def _decoded(data: bytes, key: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise errors.FileInvalidError(
            f"The text of the key {key} is not UTF-8, from its byte {error.start} on: the model "
            "file is damaged, copy or convert it again"
        ) from error
