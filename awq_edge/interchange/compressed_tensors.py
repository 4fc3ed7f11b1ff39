"""The ``pack-quantized`` format of compressed-tensors, as llm-compressor writes it (W4A16, W8A16).

Owns the order of its bits, its signed offset and the reading of its ``config_groups``. Refuses
files: ``importer.py`` reads them. Every weight is ``scale * (code - zero-point)``; codes are stored
without a sign, and the zero-point of a symmetric matrix is the middle code.

weight_packed: int32 [n, ceil(k bits / 32)], code i of a row at bits i * bits … of the row.
weight_zero_point: packed the same way along the rows, int32 [ceil(n bits / 32), groups], or plain
int8 [n, groups] with a sign. weight_scale: [n, groups], any float.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from awq_edge.errors import CheckpointError, UnsupportedError
from awq_edge.interchange.quantization_keys import (
    COMPRESSED_HARMLESS,
    COMPRESSED_READ,
    GROUP_HARMLESS,
    GROUP_READ,
    WEIGHTS_HARMLESS,
    WEIGHTS_READ,
    refuse_unknown,
)

Bytes = npt.NDArray[np.uint8]

_BITS = (2, 3, 4, 8)
_BLOCK_ROWS = 512  # a row is unpacked into single bits, one byte each


@dataclasses.dataclass(frozen=True)
class Scheme:
    """How the matrices of a config group are quantised."""

    bits: int
    group_size: int  # 0: one group per row
    symmetric: bool


def read_scheme(config: Mapping[str, Any]) -> Scheme:
    """The one scheme of a ``quantization_config`` whose quant_method is compressed-tensors.

    Raises:
        UnsupportedError: It is not weight-only integers in groups, or there are several schemes.
        CheckpointError: An entry is missing or of the wrong type.
    """
    refuse_unknown("quantization_config", config, COMPRESSED_READ, COMPRESSED_HARMLESS)
    style = config.get("format")
    groups = config.get("config_groups")
    status = config.get("quantization_status") or "compressed"
    if status not in ("compressed", "frozen"):
        raise UnsupportedError(
            f"quantization_config has the quantization_status {status!r}: its matrices are not "
            "quantised yet."
        )
    sparsity = config.get("sparsity_config") or {}
    if not isinstance(sparsity, Mapping) or sparsity.get("format", "dense") != "dense":
        raise UnsupportedError(
            "quantization_config has a sparsity_config: matrices that leave zeros out are not "
            "supported."
        )
    if not isinstance(groups, Mapping) or not groups:
        raise CheckpointError("quantization_config has no config_groups; is config.json complete?")
    schemes = {_read_group(style, name, group) for name, group in groups.items()}
    if len(schemes) > 1:
        raise UnsupportedError(
            "quantization_config quantises matrices in several ways (config_groups); only "
            "checkpoints with one way are supported."
        )
    return schemes.pop()


def _read_group(style: Any, name: str, group: Any) -> Scheme:
    where = f"quantization_config.config_groups.{name}"
    if not isinstance(group, Mapping) or not isinstance(group.get("weights"), Mapping):
        raise CheckpointError(f"{where} has no table weights; is config.json complete?")
    refuse_unknown(where, group, GROUP_READ, GROUP_HARMLESS)
    refuse_unknown(f"{where}.weights", group["weights"], WEIGHTS_READ, WEIGHTS_HARMLESS)
    style = group.get("format") or style
    if style != "pack-quantized":
        raise UnsupportedError(
            f"The compressed-tensors format {style!r} is not supported; pack-quantized "
            "(W4A16, W8A16) is."
        )
    if group.get("input_activations") or group.get("output_activations"):
        raise UnsupportedError(
            f"{where} also quantises activations; only weight-only checkpoints are supported."
        )
    weights = group["weights"]
    for key in ("dynamic", "block_structure"):
        if weights.get(key):
            raise UnsupportedError(
                f"{where}.weights has {key} {weights[key]!r}; only weights that were quantised "
                "once, in groups, are supported."
            )
    bits, size = weights.get("num_bits"), weights.get("group_size")
    strategy = weights.get("strategy") or ("channel" if size in (None, -1) else "group")
    if weights.get("type", "int") != "int" or bits not in _BITS:
        raise UnsupportedError(
            f"{where} has {bits!r}-bit {weights.get('type', 'int')} weights; integers of 2, 3, 4 "
            "or 8 bits are supported."
        )
    if strategy not in ("group", "channel"):
        raise UnsupportedError(
            f"{where} has the strategy {strategy!r}; group and channel are supported."
        )
    if strategy == "group" and (isinstance(size, bool) or not isinstance(size, int)):
        raise CheckpointError(f"{where} should have a whole number group_size; it has {size!r}.")
    return Scheme(
        bits=int(bits),
        group_size=size if strategy == "group" else 0,
        symmetric=weights.get("symmetric", True) is not False,
    )


def unpack_codes(name: str, packed: npt.NDArray[np.int32], n: int, k: int, bits: int) -> Bytes:
    """weight_packed -> codes, uint8 [n, k]."""
    _require_words(f"{name}.weight_packed", packed, (n, -(-k * bits // 32)))
    return _unpack_rows(packed, k, bits)


def unpack_zeros(
    name: str, stored: npt.NDArray[np.int32] | npt.NDArray[np.int8], n: int, groups: int, bits: int
) -> Bytes:
    """weight_zero_point -> zero-points, uint8 [n, groups]."""
    where = f"{name}.weight_zero_point"
    if stored.dtype == np.int8:
        _require_words(where, stored, (n, groups))
        unsigned = stored.astype(np.int16) + (1 << (bits - 1))
        if unsigned.min() < 0 or unsigned.max() >> bits:
            raise CheckpointError(f"The tensor {where} holds a zero-point beyond {bits} bits.")
        return unsigned.astype(np.uint8)
    _require_words(where, stored, (-(-n * bits // 32), groups))
    return np.ascontiguousarray(_unpack_rows(np.ascontiguousarray(stored.T), n, bits).T)


def _unpack_rows(packed: npt.NDArray[np.generic], count: int, bits: int) -> Bytes:
    """int32 [rows, words] -> the first ``count`` codes of each row, uint8 [rows, count]."""
    rows = packed.shape[0]
    stored = np.ascontiguousarray(packed.astype("<i4", copy=False)).view(np.uint8)
    codes = np.empty((rows, count), dtype=np.uint8)
    for first in range(0, rows, _BLOCK_ROWS):
        block = stored[first : first + _BLOCK_ROWS]
        single = np.unpackbits(block, axis=1, count=count * bits, bitorder="little")
        fields = single.reshape(len(block), count, bits)
        codes[first : first + _BLOCK_ROWS] = np.packbits(fields, axis=2, bitorder="little")[:, :, 0]
    return codes


def _require_words(where: str, values: npt.NDArray[np.generic], shape: tuple[int, int]) -> None:
    if values.shape != shape:
        raise CheckpointError(
            f"The tensor {where} is {list(values.shape)}, but config.json asks for {list(shape)}; "
            "num_bits or group_size in quantization_config is probably wrong."
        )
