"""The packed layout r4k32 in numpy: pack(), unpack() and the sizes.

Owns the bytes that ``native/format/FORMAT.md`` (section 3) draws; ``native/format/layouts.h`` is
the counterpart in C++. Chooses no codes: ``awq_edge.quantize.grouped`` does. numpy only.
"""

from __future__ import annotations

import dataclasses
import struct
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from awq_edge.errors import FileInvalidError, InvalidArgumentError

MAGIC = b"AWQE"
LAYOUT_R4K32 = 1
LAYOUT_NAME = "r4k32"
HEADER_BYTES = 64
BLOCK_ROWS = 4  # one row per 128-bit lane of a 512-bit register
BITS = (2, 3, 4, 5, 6, 8)
BITS_TEXT = "2, 3, 4, 5, 6 or 8"
GROUP_SIZES = (32, 64, 128)
MAX_COLUMNS = 1 << 20

_HEADER = struct.Struct("<4sIQQII32x")
ALIGNMENT = 64  # of what begins in a file or a block: a cache line and a 512-bit register

Bytes = npt.NDArray[np.uint8]
_Scalar = TypeVar("_Scalar", bound=np.generic)

Halves = npt.NDArray[np.float16]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Sizes of a packed matrix of n rows (outputs) and k columns (inputs).

    Offsets count from the beginning of a block.
    """

    n: int
    k: int
    bits: int
    group_size: int

    def __post_init__(self) -> None:
        """Checks that the four numbers describe a legal matrix."""
        if self.bits not in BITS:
            raise InvalidArgumentError(f"A packed matrix has {BITS_TEXT} bits, not {self.bits}.")
        if self.group_size not in GROUP_SIZES:
            raise InvalidArgumentError(f"A group has 32, 64 or 128 inputs, not {self.group_size}.")
        if self.n < 1 or not 1 <= self.k <= MAX_COLUMNS:
            raise InvalidArgumentError(
                f"A packed matrix has at least one row and 1 to {MAX_COLUMNS} columns, "
                f"not {self.n} x {self.k}."
            )

    @property
    def groups(self) -> int:
        """Groups of a row; the last one may be short."""
        return -(-self.k // self.group_size)

    @property
    def padded_k(self) -> int:
        """Columns including the padding: a multiple of 32 (4 and 8 bits) or 64 (the others)."""
        return _round_up(self.k, 32 if self.bits in (4, 8) else 64)

    @property
    def blocks(self) -> int:
        """Blocks of four rows."""
        return -(-self.n // BLOCK_ROWS)

    @property
    def zero_points_offset(self) -> int:
        """The zero-points follow the fp16 scales."""
        return self.groups * BLOCK_ROWS * 2

    @property
    def codes_offset(self) -> int:
        """The (low) plane of codes."""
        return _round_up(self.groups * BLOCK_ROWS * 3, ALIGNMENT)

    @property
    def low_bits(self) -> int:
        """Bits of a code in the first plane; the rest lies in a second one."""
        return {3: 2, 5: 4, 6: 4}.get(self.bits, self.bits)

    @property
    def high_plane_offset(self) -> int:
        """The plane of what the first one does not hold; for 3, 5 and 6 bits."""
        return self.codes_offset + self.padded_k * BLOCK_ROWS * self.low_bits // 8

    @property
    def block_bytes(self) -> int:
        """Bytes of a block, padding included."""
        return _round_up(self.codes_offset + self.padded_k * BLOCK_ROWS * self.bits // 8, ALIGNMENT)

    @property
    def total_bytes(self) -> int:
        """Bytes of the whole tensor, header included."""
        return HEADER_BYTES + self.blocks * self.block_bytes


@dataclasses.dataclass(frozen=True)
class Unpacked:
    """What a packed matrix holds: w = scale * (code - zero-point)."""

    codes: Bytes  # [n, k]
    scales: Halves  # [n, groups]
    zeros: Bytes  # [n, groups]
    bits: int
    group_size: int

    def dequantise(self) -> npt.NDArray[np.float32]:
        """The weights, float32 [n, k]."""
        k = self.codes.shape[1]
        scales = np.repeat(self.scales.astype(np.float32), self.group_size, axis=1)[:, :k]
        zeros = np.repeat(self.zeros.astype(np.float32), self.group_size, axis=1)[:, :k]
        weights: npt.NDArray[np.float32] = scales * (self.codes.astype(np.float32) - zeros)
        return weights


def header(layout: Layout) -> bytes:
    """The 64 bytes before the first block."""
    return _HEADER.pack(MAGIC, LAYOUT_R4K32, layout.n, layout.k, layout.bits, layout.group_size)


def pack(codes: Bytes, scales: Halves, zeros: Bytes, bits: int, group_size: int) -> bytes:
    """Packs one matrix, its 64-byte header included. The arguments are those of pack_blocks()."""
    layout = Layout(codes.shape[0], codes.shape[1], bits, group_size)
    return header(layout) + pack_blocks(codes, scales, zeros, bits, group_size)


def pack_blocks(codes: Bytes, scales: Halves, zeros: Bytes, bits: int, group_size: int) -> bytes:
    """Packs rows into blocks without a header; large matrices go 4, 8, 12 … rows at a time.

    Args:
        codes: uint8 [n, k], below 2**bits.
        scales: float16 [n, groups], finite.
        zeros: uint8 [n, groups], below 2**bits.
        bits: One of BITS.
        group_size: 32, 64 or 128 inputs.
    """
    if codes.ndim != 2 or codes.dtype != np.uint8:
        raise InvalidArgumentError(f"Codes are a uint8 matrix, not {codes.dtype} {codes.shape}.")
    n, k = codes.shape
    layout = Layout(n, k, bits, group_size)
    if scales.dtype != np.float16 or scales.shape != (n, layout.groups):
        raise InvalidArgumentError(
            f"Scales are float16 [{n}, {layout.groups}], not {scales.dtype} {list(scales.shape)}."
        )
    if zeros.dtype != np.uint8 or zeros.shape != (n, layout.groups):
        raise InvalidArgumentError(
            f"Zero-points are uint8 [{n}, {layout.groups}], not {zeros.dtype} {list(zeros.shape)}."
        )
    if bits < 8 and (int(codes.max()) >> bits or int(zeros.max()) >> bits):
        raise InvalidArgumentError(f"A code or a zero-point does not fit {bits} bits.")
    if not np.isfinite(scales).all():
        raise InvalidArgumentError("A scale is not finite.")

    rows = layout.blocks * BLOCK_ROWS
    blocks = np.zeros((layout.blocks, layout.block_bytes), dtype=np.uint8)

    # [n, groups] -> [blocks, groups, 4 rows]
    by_group = np.zeros((rows, layout.groups), dtype="<f2")
    by_group[:n] = scales
    by_group = np.ascontiguousarray(by_group.reshape(-1, BLOCK_ROWS, layout.groups).swapaxes(1, 2))
    blocks[:, : layout.zero_points_offset] = by_group.reshape(layout.blocks, -1).view(np.uint8)
    zeros_end = layout.zero_points_offset + layout.groups * BLOCK_ROWS
    padded_zeros = np.zeros((rows, layout.groups), dtype=np.uint8)
    padded_zeros[:n] = zeros
    blocks[:, layout.zero_points_offset : zeros_end] = (
        padded_zeros.reshape(-1, BLOCK_ROWS, layout.groups)
        .swapaxes(1, 2)
        .reshape(layout.blocks, -1)
    )

    padded = np.zeros((rows, layout.padded_k), dtype=np.uint8)
    padded[:n, :k] = codes
    padded[:n, k:] = zeros[:, -1:]
    low_bits = layout.low_bits
    planes = [(low_bits, _pack_plane(padded, low_bits))]
    high = padded >> np.uint8(low_bits)
    if bits - low_bits == 1:
        planes.append((1, _pack_single_bits(high)))
    elif bits - low_bits == 2:
        planes.append((2, _pack_plane(high, 2)))
    begin = layout.codes_offset
    for width, plane in planes:
        end = begin + _plane_bytes(layout, width)
        blocks[:, begin:end] = plane.reshape(layout.blocks, -1)
        begin = end

    return blocks.tobytes()


def read_header(data: bytes) -> Layout:
    """The inverse of :func:`header`."""
    if len(data) < HEADER_BYTES:
        raise FileInvalidError(
            f"A packed matrix has at least {HEADER_BYTES} bytes, not {len(data)}."
        )
    magic, layout_id, n, k, bits, group_size = _HEADER.unpack(data)
    if magic != MAGIC or layout_id != LAYOUT_R4K32:
        raise FileInvalidError("A packed matrix begins with AWQE and layout 1; these bytes do not.")
    return Layout(n, k, bits, group_size)


def unpack(data: bytes | memoryview | Bytes) -> Unpacked:
    """The inverse of :func:`pack`. Refuses bytes that are not one whole packed matrix."""
    raw = np.frombuffer(data, dtype=np.uint8)
    layout = read_header(raw[:HEADER_BYTES].tobytes())
    n, k, bits, group_size = layout.n, layout.k, layout.bits, layout.group_size
    if len(raw) != layout.total_bytes:
        raise FileInvalidError(
            f"A packed {n} x {k} matrix takes {layout.total_bytes} bytes, not {len(raw)}."
        )
    blocks = raw[HEADER_BYTES:].reshape(layout.blocks, layout.block_bytes)

    def rows_of_groups(values: npt.NDArray[_Scalar]) -> npt.NDArray[_Scalar]:
        shaped = values.reshape(layout.blocks, layout.groups, BLOCK_ROWS).swapaxes(1, 2)
        return np.ascontiguousarray(shaped.reshape(-1, layout.groups)[:n])

    zeros_end = layout.zero_points_offset + layout.groups * BLOCK_ROWS
    scales = (
        np.ascontiguousarray(blocks[:, : layout.zero_points_offset]).view("<f2").astype(np.float16)
    )
    zeros = blocks[:, layout.zero_points_offset : zeros_end]
    low_bits = layout.low_bits
    low = blocks[:, layout.codes_offset : layout.high_plane_offset]
    codes: Bytes = _unpack_plane(low, layout, low_bits)
    if bits > low_bits:
        high_end = layout.high_plane_offset + _plane_bytes(layout, bits - low_bits)
        plane = blocks[:, layout.high_plane_offset : high_end]
        high = (
            _unpack_single_bits(plane, layout)
            if bits - low_bits == 1
            else _unpack_plane(plane, layout, 2)
        )
        codes = (codes | high << low_bits).astype(np.uint8, copy=False)
    return Unpacked(
        codes=np.ascontiguousarray(codes[:n, :k]),
        scales=rows_of_groups(scales),
        zeros=rows_of_groups(zeros),
        bits=bits,
        group_size=group_size,
    )


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _plane_bytes(layout: Layout, bits: int) -> int:
    return layout.padded_k * BLOCK_ROWS * bits // 8


def _pack_plane(codes: Bytes, bits: int) -> Bytes:
    """The low 2, 4 or 8 bits of codes [rows, K] -> bytes [blocks, K / w, 4, bytes of a row].

    A byte holds inputs 16 apart, the lowest input lowest.
    """
    if bits == 8:
        return codes.reshape(-1, BLOCK_ROWS, codes.shape[1] // 32, 32).swapaxes(1, 2)
    fields = 8 // bits
    shaped = codes.reshape(-1, BLOCK_ROWS, codes.shape[1] // (16 * fields), fields, 16)
    packed = np.zeros((*shaped.shape[:3], 16), dtype=np.uint8)
    for field in range(fields):
        packed |= (shaped[:, :, :, field] & ((1 << bits) - 1)) << (bits * field)
    return packed.swapaxes(1, 2)


def _unpack_plane(plane: Bytes, layout: Layout, bits: int) -> Bytes:
    """The inverse of :func:`_pack_plane`; plane: [blocks, bytes]."""
    if bits == 8:
        shaped = plane.reshape(layout.blocks, -1, BLOCK_ROWS, 32)
        return shaped.swapaxes(1, 2).reshape(-1, layout.padded_k)
    fields = 8 // bits
    packed = plane.reshape(layout.blocks, -1, BLOCK_ROWS, 16).swapaxes(1, 2)
    codes = np.stack(
        [packed >> (bits * field) & ((1 << bits) - 1) for field in range(fields)], axis=3
    )
    return codes.reshape(-1, layout.padded_k)


def _pack_single_bits(bits: Bytes) -> Bytes:
    """Bits [rows, K] -> [blocks, K / 64, 4, 8].

    Bit f is input 16 f + j, bit 4 + f is input 16 f + 8 + j.
    """
    shaped = bits.reshape(-1, BLOCK_ROWS, bits.shape[1] // 64, 4, 2, 8)
    packed = np.zeros((*shaped.shape[:3], 8), dtype=np.uint8)
    for field in range(4):
        for half in range(2):
            packed |= shaped[:, :, :, field, half] << (4 * half + field)
    return packed.swapaxes(1, 2)


def _unpack_single_bits(plane: Bytes, layout: Layout) -> Bytes:
    """The inverse of :func:`_pack_single_bits`, [rows, K] of 0 and 1."""
    packed = plane.reshape(layout.blocks, -1, BLOCK_ROWS, 8).swapaxes(1, 2)
    bits = np.stack([packed >> bit & 1 for bit in (0, 4, 1, 5, 2, 6, 3, 7)], axis=3)
    return bits.reshape(-1, layout.padded_k)
