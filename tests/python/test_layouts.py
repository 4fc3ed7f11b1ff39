"""r4k32: golden files, an independent scalar reading of FORMAT.md, and the round trip."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from awq_edge import layouts
from awq_edge.errors import FileInvalidError, InvalidArgumentError

DATA = Path(__file__).parents[1] / "data"
# Rows of 200 inputs: a short last group for every group size, padding for every bit width; 6 rows:
# half a block.
GOLDEN_ROWS, GOLDEN_COLUMNS, GOLDEN_GROUP = 6, 200, 64


def golden_matrix(bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, scales and zero-points by integer arithmetic alone: easy to make again in C++."""
    rows = np.arange(GOLDEN_ROWS)[:, None]
    columns = np.arange(GOLDEN_COLUMNS)[None, :]
    groups = np.arange(-(-GOLDEN_COLUMNS // GOLDEN_GROUP))[None, :]
    mask = (1 << bits) - 1
    codes = ((rows * 37 + columns * 11 + columns * columns // 7) & mask).astype(np.uint8)
    zeros = ((rows * 5 + groups * 3 + 1) & mask).astype(np.uint8)
    scales = ((rows * 4 + groups + 1) / 256).astype(np.float16)
    return codes, scales, zeros


@pytest.mark.parametrize("bits", layouts.BITS)
def test_golden_file(bits: int) -> None:
    packed = layouts.pack(*golden_matrix(bits), bits, GOLDEN_GROUP)
    assert packed == (DATA / f"layout_r4k32_{bits}bit.bin").read_bytes()


def read_code(block: bytes, layout: layouts.Layout, row: int, column: int) -> int:
    """One code, as FORMAT.md words it, a byte at a time."""
    codes = block[layout.codes_offset :]
    if layout.bits == 8:
        return codes[column // 32 * 128 + row * 32 + column % 32]
    if layout.bits in (4, 5, 6):
        byte = codes[column // 32 * 64 + row * 16 + column % 16]
        low, width = byte >> 4 if column % 32 >= 16 else byte & 15, 4
    else:
        byte = codes[column // 64 * 64 + row * 16 + column % 16]
        low, width = byte >> 2 * (column % 64 // 16) & 3, 2
    high = codes[layout.padded_k * 4 * width // 8 :]
    if layout.bits in (3, 5):
        byte = high[column // 64 * 32 + row * 8 + column % 8]
        bit = column % 64 // 16 + (4 if column % 16 >= 8 else 0)
        return low | (byte >> bit & 1) << width
    if layout.bits == 6:
        byte = high[column // 64 * 64 + row * 16 + column % 16]
        return low | (byte >> 2 * (column % 64 // 16) & 3) << 4
    return low


@pytest.mark.parametrize("bits", layouts.BITS)
@pytest.mark.parametrize("group_size", layouts.GROUP_SIZES)
@pytest.mark.parametrize(
    ("n", "k"), [(1, 1), (3, 31), (4, 32), (5, 33), (7, 172), (2, 257), (8, 128)]
)
def test_bytes_are_those_of_the_format(n: int, k: int, bits: int, group_size: int) -> None:
    generator = np.random.default_rng(n * 1000 + k)
    layout = layouts.Layout(n, k, bits, group_size)
    codes = generator.integers(0, 1 << bits, (n, k), dtype=np.uint8)
    zeros = generator.integers(0, 1 << bits, (n, layout.groups), dtype=np.uint8)
    scales = generator.random((n, layout.groups)).astype(np.float16)
    packed = layouts.pack(codes, scales, zeros, bits, group_size)
    assert len(packed) == layout.total_bytes
    assert layout.block_bytes % 64 == 0 and layout.codes_offset % 64 == 0
    for row in range(layout.blocks * 4):
        start = layouts.HEADER_BYTES + row // 4 * layout.block_bytes
        block = packed[start : start + layout.block_bytes]
        for group in range(layout.groups):
            at = (group * 4 + row % 4) * 2
            scale = np.frombuffer(block[at : at + 2], dtype="<f2")[0]
            zero = block[layout.zero_points_offset + group * 4 + row % 4]
            assert scale == (scales[row, group] if row < n else 0)
            assert zero == (zeros[row, group] if row < n else 0)
        for column in range(layout.padded_k):
            if row >= n:
                expected = 0
            else:
                expected = codes[row, column] if column < k else zeros[row, -1]
            assert read_code(block, layout, row % 4, column) == expected

    unpacked = layouts.unpack(packed)
    assert np.array_equal(unpacked.codes, codes)
    assert np.array_equal(unpacked.scales, scales)
    assert np.array_equal(unpacked.zeros, zeros)
    assert (unpacked.bits, unpacked.group_size) == (bits, group_size)


def test_dequantised_weight_is_scale_times_code_minus_zero_point() -> None:
    codes, scales, zeros = golden_matrix(4)
    weights = layouts.unpack(layouts.pack(codes, scales, zeros, 4, GOLDEN_GROUP)).dequantise()
    for row, column in [(0, 0), (5, 199), (3, 64), (2, 63)]:
        group = column // GOLDEN_GROUP
        expected = float(scales[row, group]) * (int(codes[row, column]) - int(zeros[row, group]))
        assert weights[row, column] == np.float32(expected)


def test_what_does_not_fit_is_refused() -> None:
    codes, scales, zeros = golden_matrix(4)
    with pytest.raises(InvalidArgumentError, match="does not fit 3 bits"):
        layouts.pack(codes, scales, zeros, 3, GOLDEN_GROUP)
    with pytest.raises(InvalidArgumentError, match="not finite"):
        layouts.pack(codes, np.full_like(scales, np.inf), zeros, 4, GOLDEN_GROUP)
    with pytest.raises(InvalidArgumentError, match=r"float16 \[6, 7\]"):
        layouts.pack(codes, scales, zeros, 4, 32)
    with pytest.raises(InvalidArgumentError, match="not 7"):
        layouts.Layout(4, 4, 7, 32)
    with pytest.raises(InvalidArgumentError, match="not 48"):
        layouts.Layout(4, 4, 4, 48)


def test_damaged_bytes_are_refused() -> None:
    packed = layouts.pack(*golden_matrix(4), 4, GOLDEN_GROUP)
    with pytest.raises(FileInvalidError, match="takes"):
        layouts.unpack(packed[:-1])
    with pytest.raises(FileInvalidError, match="AWQE"):
        layouts.unpack(b"XXXX" + packed[4:])
    with pytest.raises(FileInvalidError, match="at least 64"):
        layouts.unpack(packed[:63])


def test_golden_files_are_frozen() -> None:
    """r4k32 never changes: other bytes get another name."""
    digests = {
        bits: hashlib.sha256((DATA / f"layout_r4k32_{bits}bit.bin").read_bytes()).hexdigest()[:16]
        for bits in layouts.BITS
    }
    assert digests == GOLDEN_DIGESTS


GOLDEN_DIGESTS = {
    2: "1460bf8629cd43d4",
    3: "d03395fc150f6094",
    4: "6a6f34f465a6de42",
    5: "2387f7f4a7664516",
    6: "ad07d9b5c6409e9f",
    8: "8658740206a44343",
}
