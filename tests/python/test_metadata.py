"""Metadata of a file as Python sees it: every type of array, in one call; text that is damaged."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from awq_edge import _native, errors
from awq_edge._native import NativeModel
from awq_edge._native import library as native_library
from awq_edge._native import metadata as native_metadata
from awq_edge._native import model as native_model

TINY = Path(__file__).parents[1] / "data/tiny.awq.gguf"

# GGUF's numbers of value types, their letters in struct, and numbers at both ends.
ARRAYS: dict[int, tuple[str, list[object]]] = {
    0: ("B", [0, 255]),
    1: ("b", [-128, 127]),
    2: ("H", [0, 65535]),
    3: ("h", [-32768, 32767]),
    4: ("I", [0, 2**32 - 1]),
    5: ("i", [-(2**31), 2**31 - 1]),
    6: ("f", [0.5, -1.25e30]),
    7: ("?", [True, False, True]),
    10: ("Q", [0, 2**64 - 1]),
    11: ("q", [-(2**63), 2**63 - 1]),
    12: ("d", [0.1, -1e300]),
}


def _string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _entry(key: str, kind: int, value: bytes) -> bytes:
    return _string(key.encode()) + struct.pack("<I", kind) + value


def _with_entries(path: Path, entries: list[bytes]) -> Path:
    """The tiny model with more entries in front of its own; the data keeps its alignment."""
    base = TINY.read_bytes()
    (count,) = struct.unpack_from("<Q", base, 16)
    begin = _data_begin(base)
    added = b"".join(entries)
    header = base[:16] + struct.pack("<Q", count + len(entries)) + added + base[24:begin]
    # The old padding stays in front of the new one: what follows the last tensor's description.
    header = header[: len(header) - _padding(base)]
    path.write_bytes(header + bytes(-len(header) % 64) + base[begin:])
    return path


def _data_begin(base: bytes) -> int:
    model = NativeModel(TINY)
    begin = min(t.offset for t in model.tensors())
    model.close()
    return begin


def _padding(base: bytes) -> int:
    """Zero bytes between the header and the data: behind the last offset, which is not 0."""
    begin = _data_begin(base)
    model = NativeModel(TINY)
    last = max(t.offset for t in model.tensors()) - begin
    model.close()
    return begin - (base.rindex(struct.pack("<Q", last), 0, begin) + 8)


def _metadata(path: Path) -> dict[str, _native.Value]:
    model = NativeModel(path)
    try:
        return model.metadata()
    finally:
        model.close()


def test_arrays_of_every_type_keep_their_numbers(tmp_path: Path) -> None:
    entries = [
        _entry(
            f"other.{kind}",
            9,
            struct.pack("<IQ", kind, len(values)) + struct.pack(f"<{len(values)}{letter}", *values),
        )
        for kind, (letter, values) in ARRAYS.items()
    ]
    texts = ["", "plain", "naïve ▁Ω", "a\0b"]
    encoded = b"".join(_string(text.encode()) for text in texts)
    entries.append(_entry("other.8", 9, struct.pack("<IQ", 8, len(texts)) + encoded))
    entries.append(_entry("other.empty", 9, struct.pack("<IQ", 4, 0)))
    entries.append(_entry("other.no_texts", 9, struct.pack("<IQ", 8, 0)))
    found = _metadata(_with_entries(tmp_path / "arrays.gguf", entries))
    for kind, (letter, values) in ARRAYS.items():
        rounded = list(
            struct.unpack(
                f"<{len(values)}{letter}", struct.pack(f"<{len(values)}{letter}", *values)
            )
        )
        got = found[f"other.{kind}"]
        assert got == rounded
        assert isinstance(got, list)
        assert [type(v) for v in got] == [type(v) for v in rounded]
    assert found["other.8"] == texts
    assert found["other.empty"] == found["other.no_texts"] == []
    assert {k: v for k, v in found.items() if not k.startswith("other.")} == _metadata(TINY)


def test_a_long_array_is_one_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 1 << 20
    long = _entry(
        "other.long", 9, struct.pack("<IQ", 0, count) + bytes(range(256)) * (count // 256)
    )
    path = _with_entries(tmp_path / "long.gguf", [long])
    calls: list[object] = []
    real = native_library.call

    def counted(*arguments: object) -> None:
        calls.append(arguments[0])
        real(*arguments)  # type: ignore[arg-type]  # passed on as they came

    for module in (native_model, native_metadata):
        monkeypatch.setattr(module, "call", counted)
    found = _metadata(path)
    assert found["other.long"] == list(range(256)) * (count // 256)
    assert len(calls) == len(found) + 1  # one for each entry, and opening


@pytest.mark.parametrize("bad", [b"\xf2", b"abc\xff\xfe", b"\xed\xa0\x80", b"half \xe2\x96"])
@pytest.mark.parametrize("array", [False, True])
def test_text_that_is_not_utf8_is_refused_by_its_key(
    tmp_path: Path, bad: bytes, array: bool
) -> None:
    value = _string(bad)
    if array:
        value = struct.pack("<IQ", 8, 2) + _string(b"sound") + value
    path = _with_entries(tmp_path / "text.gguf", [_entry("other.text", 9 if array else 8, value)])
    with pytest.raises(errors.FileInvalidError, match=r"key other\.text is not UTF-8"):
        _metadata(path)
