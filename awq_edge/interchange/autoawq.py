"""The two 4-bit packings of AutoAWQ checkpoints, ``gemm`` and ``gemv``: their integers in and out.

Owns the order of the nibbles and the shapes. Refuses files and names: ``importer.py`` reads and
``export_hf_awq.py`` writes them. Every weight is ``scale * (code - zero-point)`` with both integers
in 0 … 15, so nothing is rounded on the way.

gemm: qweight int32 [k, n / 8], qzeros int32 [groups, n / 8], scales f16 [groups, n].
gemv: qweight int32 [n, k / 8], qzeros int32 [n, words], scales f16 [n, 8 words]; ``words`` is
rounded up, so both end with padding.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from awq_edge.errors import CheckpointError
from awq_edge.layouts import Unpacked

BITS = 4
CODES_PER_WORD = 8

Words = npt.NDArray[np.int32]
Halves = npt.NDArray[np.float16]
Bytes = npt.NDArray[np.uint8]

# gemm: nibble i of a word (bits 4 i … 4 i + 3) holds this one of the word's eight outputs.
_GEMM_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_GEMV_ORDER = (0, 1, 2, 3, 4, 5, 6, 7)


def unpack_gemm(
    name: str, n: int, k: int, group_size: int, qweight: Words, qzeros: Words, scales: Halves
) -> Unpacked:
    """The integers of one matrix in the gemm packing.

    Args:
        name: For the error text.
        n: Rows (outputs).
        k: Columns (inputs).
        group_size: Inputs that share a scale.
        qweight: int32 [k, n / 8].
        qzeros: int32 [groups, n / 8].
        scales: float16 or float32 [groups, n].
    """
    groups = -(-k // group_size)
    words = -(-n // CODES_PER_WORD)
    _require_shape(name, "qweight", "gemm", qweight, (k, words))
    _require_shape(name, "qzeros", "gemm", qzeros, (groups, words))
    _require_shape(name, "scales", "gemm", scales, (groups, n))
    return Unpacked(
        codes=np.ascontiguousarray(_nibbles(qweight, _GEMM_ORDER)[:, :n].T),
        scales=np.ascontiguousarray(scales.T),
        zeros=np.ascontiguousarray(_nibbles(qzeros, _GEMM_ORDER)[:, :n].T),
        bits=BITS,
        group_size=group_size,
    )


def unpack_gemv(
    name: str, n: int, k: int, group_size: int, qweight: Words, qzeros: Words, scales: Halves
) -> Unpacked:
    """The integers of one matrix in the gemv packing.

    Args:
        name: For the error text.
        n: Rows (outputs).
        k: Columns (inputs).
        group_size: Inputs that share a scale.
        qweight: int32 [n, k / 8].
        qzeros: int32 [n, words].
        scales: float16 or float32 [n, 8 words].
    """
    groups = -(-k // group_size)
    words = gemv_zero_words(k, group_size)
    _require_shape(name, "qweight", "gemv", qweight, (n, -(-k // CODES_PER_WORD)))
    _require_shape(name, "qzeros", "gemv", qzeros, (n, words))
    _require_shape(name, "scales", "gemv", scales, (n, words * CODES_PER_WORD))
    return Unpacked(
        codes=np.ascontiguousarray(_nibbles(qweight, _GEMV_ORDER)[:, :k]),
        scales=np.ascontiguousarray(scales[:, :groups]),
        zeros=np.ascontiguousarray(_nibbles(qzeros, _GEMV_ORDER)[:, :groups]),
        bits=BITS,
        group_size=group_size,
    )


def gemv_zero_words(k: int, group_size: int) -> int:
    """Words of zero-points in a row of the gemv packing: for smaller groups, padded further."""
    groups = -(-k // group_size)
    words = -(-groups // CODES_PER_WORD)
    multiple = 1 if group_size >= 128 else 2 if group_size == 64 else 4
    return -(-words // multiple) * multiple


def pack_gemm(matrix: Unpacked) -> tuple[Words, Words, Halves]:
    """The inverse of :func:`unpack_gemm`: qweight, qzeros and scales.

    Args:
        matrix: 4 bits; rows a multiple of 8 and columns a multiple of the group size, which the
            loaders of this format take for granted.
    """
    return (
        _words(np.ascontiguousarray(matrix.codes.T)),
        _words(np.ascontiguousarray(matrix.zeros.T)),
        np.ascontiguousarray(matrix.scales.T),
    )


def _nibbles(words: Words, order: tuple[int, ...]) -> Bytes:
    """int32 [rows, words] -> uint8 [rows, 8 words]; ``order`` says what each nibble holds."""
    unsigned = words.astype("<i4", copy=False).view("<u4")
    values = np.empty((*words.shape, CODES_PER_WORD), dtype=np.uint8)
    for nibble, position in enumerate(order):
        values[:, :, position] = unsigned >> (4 * nibble) & 15
    return values.reshape(words.shape[0], -1)


def _words(codes: Bytes) -> Words:
    """uint8 [rows, n] below 16 -> int32 [rows, n / 8] in the order of the gemm packing."""
    octets = codes.reshape(codes.shape[0], -1, CODES_PER_WORD)
    words = np.zeros(octets.shape[:2], dtype="<u4")
    for nibble, position in enumerate(_GEMM_ORDER):
        words |= octets[:, :, position].astype("<u4") << (4 * nibble)
    return words.view("<i4")


def _require_shape(
    name: str, part: str, packing: str, values: npt.NDArray[np.generic], shape: tuple[int, ...]
) -> None:
    if values.shape != shape:
        raise CheckpointError(
            f"The tensor {name}.{part} is {list(values.shape)}, but config.json and the {packing} "
            f"packing ask for {list(shape)}; the version or the group size in quantization_config "
            "is probably wrong."
        )
