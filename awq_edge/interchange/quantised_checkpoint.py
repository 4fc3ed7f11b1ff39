"""A quantised Hugging Face checkpoint seen by our tensor names: integers where it holds integers.

Owns reading ``quantization_config`` and deciding, tensor by tensor and by what the file holds, how
each matrix is stored. The bits themselves belong to ``autoawq.py`` and ``compressed_tensors.py``.
Refuses to write and to quantise.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from awq_edge.architecture import Architecture
from awq_edge.checkpoints import Checkpoint, DecoderTensors, open_checkpoint, read_json
from awq_edge.errors import CheckpointError, UnsupportedError
from awq_edge.interchange import autoawq, compressed_tensors
from awq_edge.interchange.quantization_keys import (
    AUTOAWQ_HARMLESS,
    AUTOAWQ_READ,
    refuse_unknown,
)
from awq_edge.layouts import GROUP_SIZES, Unpacked
from awq_edge.stages import matrices

_SCALES = ".scales"
_OLD_SETTINGS = "quant_config.json"  # beside config.json, written by early releases of AutoAWQ
_KNOWN = "AutoAWQ (gemm, gemv) and compressed-tensors (pack-quantized) checkpoints can be imported"

_AUTOAWQ_PARTS = frozenset(("qweight", "qzeros", "scales", "bias"))
_COMPRESSED_PARTS = frozenset(
    ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx", "bias")
)


@dataclasses.dataclass(frozen=True)
class _Packing:
    """One way to store a matrix."""

    name: str  # for people
    bits: int
    group_size: int  # 0: one group per row
    marker: str  # a matrix is stored this way if this part of it is there
    parts: frozenset[str]  # what there may be of a matrix
    # Reads a matrix [n, k] by the checkpoint's name, its scales in float32.
    read: Callable[[Checkpoint, str, int, int], Unpacked]


class QuantisedCheckpoint:
    """A checkpoint with integer matrices, read one tensor at a time.

    Attributes:
        architecture: The decoder.
        format_name: What the checkpoint is, for people.
        bits: Of the integer matrices.
        group_size: Ours: 32, 64 or 128, whatever groups the checkpoint has.
        rounded_scales: How many scales read so far were no fp16 numbers and had to be rounded.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Reads the settings of an open checkpoint, and no weights.

        Raises:
            CheckpointError: It is not quantised, or its settings contradict themselves.
            UnsupportedError: It is quantised in a way that a packed file cannot hold exactly.
        """
        self.checkpoint = checkpoint
        self._packing = _find_packing(checkpoint)
        self._tensors = DecoderTensors(checkpoint, self._holds_integers)
        self.architecture: Architecture = self._tensors.architecture
        if self.architecture.cross is not None:
            raise UnsupportedError(
                f"{checkpoint.directory} looks at pictures through layers of its own, which are "
                "not imported; convert the original float checkpoint instead."
            )
        self.format_name = self._packing.name
        self.bits = self._packing.bits
        self.group_size = _our_group_size(self._packing.group_size)
        self.rounded_scales = 0
        self._refuse_unknown_parts()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one of our tensors."""
        return self._tensors.shape(name)

    def is_integer(self, name: str) -> bool:
        """Whether the checkpoint holds a matrix (``blk.0.attn_q.weight``) as integers."""
        return self._holds_integers(self._tensors.stored_name(name))

    def integers(self, name: str) -> Unpacked:
        """Codes, scales and zero-points of a matrix, exactly as stored, in groups of ours.

        Rows of a fused matrix are those of ours alone, in our order. What the decoder of the family
        multiplies weights by is in their scales.
        """
        n, k = self._tensors.stored_shape(name)
        base = self._tensors.stored_name(name).removesuffix(".weight")
        change = self._tensors.changes(name)
        matrix = self._packing.read(self.checkpoint, base, n, k)
        if change.rows is not None:
            matrix = dataclasses.replace(
                matrix,
                codes=matrix.codes[change.rows],
                scales=matrix.scales[change.rows],
                zeros=matrix.zeros[change.rows],
            )
        factors = np.float32(change.factor)
        if change.row_factors is not None:
            factors = factors * change.row_factors[:, None]
        wanted = matrix.scales * factors
        with np.errstate(over="ignore"):  # refused right below
            halves = wanted.astype(np.float16)
        if not np.isfinite(halves).all():
            raise UnsupportedError(f"A scale of {base} is too large for fp16.")
        self.rounded_scales += int((halves != wanted).sum())
        return _regrouped(dataclasses.replace(matrix, scales=halves), k, self.group_size)

    def vector(self, name: str) -> npt.NDArray[np.float32]:
        """A norm or a bias."""
        return self._tensors.tensor(name).numpy()

    def row_blocks(self, name: str, rows: int) -> Iterator[tuple[int, torch.Tensor]]:
        """A matrix that is stored in floats, as ``Checkpoint.row_blocks`` gives it."""
        return self._tensors.row_blocks(name, rows)

    def _refuse_unknown_parts(self) -> None:
        """Refuses tensors that change the function and that nobody here computes with.

        Matrices may have parts beside their integers, and activations scales of their own.
        """
        known = self._tensors.activation_scales()
        for name in self.checkpoint.ending(_SCALES):
            base = name[: -len(_SCALES)]
            if f"{base}.qweight" in self.checkpoint:  # a matrix, whatever the settings say
                continue
            if not any(scales.endswith(name) for scales in known):  # with and without its base
                raise UnsupportedError(
                    f"The checkpoint holds {name}, scales of what is no matrix and no activation "
                    "that they are known for; what they change cannot be imported."
                )
        a = self.architecture
        for layer in range(a.layers):
            for matrix in matrices(a, layer):
                base = self._tensors.stored_name(f"blk.{layer}.{matrix}.weight")
                base = base.removesuffix(".weight")
                if not self._holds_integers(base):
                    continue
                for part in self.checkpoint.parts(base):
                    if part not in self._packing.parts:
                        raise UnsupportedError(
                            f"The matrix {base} has the part {part}, which {self.format_name} does "
                            "not know; what it changes cannot be imported."
                        )

    def _holds_integers(self, stored_name: str) -> bool:
        return f"{stored_name.removesuffix('.weight')}.{self._packing.marker}" in self.checkpoint


def open_quantised(model: str) -> QuantisedCheckpoint:
    """Opens a directory or a hub id; reads no weights yet."""
    return QuantisedCheckpoint(open_checkpoint(model, quantised=True))


def _find_packing(checkpoint: Checkpoint) -> _Packing:
    config = checkpoint.config
    settings = config.get("quantization_config") or config.get("compression_config")
    if not settings and (checkpoint.directory / _OLD_SETTINGS).is_file():
        settings = {"quant_method": "awq", **read_json(checkpoint.directory / _OLD_SETTINGS)}
    if not settings:
        raise CheckpointError(
            f"{checkpoint.directory} is not quantised: its config.json has no quantization_config; "
            "convert it without --from-awq."
        )
    if not isinstance(settings, Mapping):
        raise CheckpointError(
            f"quantization_config in {checkpoint.directory}/config.json is no table; {_KNOWN}."
        )
    method = settings.get("quant_method")
    if method == "awq":
        return _autoawq_packing(settings)
    if method == "compressed-tensors":
        return _compressed_tensors_packing(settings)
    raise UnsupportedError(f"{checkpoint.directory} is quantised with {method!r}; {_KNOWN}.")


def _autoawq_packing(settings: Mapping[str, Any]) -> _Packing:
    refuse_unknown("quantization_config", settings, AUTOAWQ_READ, AUTOAWQ_HARMLESS)
    bits = _one_of(settings, "bits", "w_bit", default=autoawq.BITS)
    group_size = _one_of(settings, "group_size", "q_group_size", default=128)
    # Tools that came later call the version "format", or "checkpoint_format".
    version = str(
        _one_of(settings, "version", "format", "checkpoint_format", default="gemm")
    ).lower()
    if settings.get("desc_act"):
        raise UnsupportedError(
            "quantization_config says desc_act: columns are grouped out of order, which a packed "
            "file cannot hold."
        )
    if settings.get("pack_dtype") not in (None, "int32"):
        raise UnsupportedError(
            f"quantization_config packs codes into {settings['pack_dtype']!r}; int32 is read."
        )
    if "llm" in str(settings.get("backend")).lower():
        raise UnsupportedError(
            f"quantization_config is for the program {settings['backend']!r}; {_KNOWN}."
        )
    if bits != autoawq.BITS:
        raise UnsupportedError(
            f"quantization_config says {bits!r} bits; AutoAWQ's packings hold {autoawq.BITS}."
        )
    if settings.get("zero_point", True) is not True:
        raise UnsupportedError(
            "quantization_config says zero_point false; AutoAWQ's packings always hold zero-points."
        )
    if isinstance(group_size, bool) or not isinstance(group_size, int):
        raise CheckpointError(
            f"quantization_config should have a whole number group_size; it has {group_size!r}."
        )
    unpackers = {"gemm": autoawq.unpack_gemm, "gemv": autoawq.unpack_gemv}
    if version not in unpackers:
        raise UnsupportedError(f"The AutoAWQ version {version!r} is not supported; {_KNOWN}.")
    unpack = unpackers[version]

    def read(checkpoint: Checkpoint, base: str, n: int, k: int) -> Unpacked:
        scales = _scales(checkpoint, f"{base}.scales")
        words = _integers(checkpoint, f"{base}.qweight"), _integers(checkpoint, f"{base}.qzeros")
        size = group_size if group_size > 0 else k
        return unpack(base, n, k, size, *words, scales)

    return _Packing(f"AutoAWQ {version}", bits, max(group_size, 0), "qweight", _AUTOAWQ_PARTS, read)


def _one_of(settings: Mapping[str, Any], *keys: str, default: Any) -> Any:
    """The value that has one of several names, or several of them and the same in each."""
    stated = {key: settings[key] for key in keys if settings.get(key) is not None}
    values = list(stated.values())
    if any(value != values[0] for value in values):
        raise CheckpointError(
            f"quantization_config contradicts itself: {' and '.join(stated)} are one thing by "
            "several names, but differ."
        )
    return values[0] if values else default


def _compressed_tensors_packing(settings: Mapping[str, Any]) -> _Packing:
    scheme = compressed_tensors.read_scheme(settings)
    bits = scheme.bits

    def read(checkpoint: Checkpoint, base: str, n: int, k: int) -> Unpacked:
        if f"{base}.weight_g_idx" in checkpoint:
            raise UnsupportedError(
                f"The columns of {base} are grouped out of order (act-order); a packed file cannot "
                "hold that."
            )
        size = scheme.group_size or k
        groups = -(-k // size)
        packed = _integers(checkpoint, f"{base}.weight_packed")
        codes = compressed_tensors.unpack_codes(base, packed, n, k, bits)
        scales = _scales(checkpoint, f"{base}.weight_scale")
        if scales.shape != (n, groups):
            raise CheckpointError(
                f"The tensor {base}.weight_scale is {list(scales.shape)}, but config.json asks for "
                f"{[n, groups]}; the group_size in quantization_config is probably wrong."
            )
        if scheme.symmetric:
            zeros = np.full((n, groups), 1 << (bits - 1), dtype=np.uint8)
        else:
            stored = _integers(checkpoint, f"{base}.weight_zero_point")
            zeros = compressed_tensors.unpack_zeros(base, stored, n, groups, bits)
        return Unpacked(codes, scales, zeros, bits, size)

    kind = "symmetric" if scheme.symmetric else "asymmetric"
    name = f"compressed-tensors W{bits}A16 {kind}"
    return _Packing(name, bits, scheme.group_size, "weight_packed", _COMPRESSED_PARTS, read)


def _integers(checkpoint: Checkpoint, name: str) -> Any:
    values = checkpoint.stored(name)
    if values.dtype not in (torch.int32, torch.int8):
        raise CheckpointError(f"The tensor {name} holds {values.dtype}, not packed integers.")
    return values.numpy()


def _scales(checkpoint: Checkpoint, name: str) -> Any:
    """Scales in float32, which holds those of every format exactly."""
    stored = checkpoint.stored(name)
    if not stored.dtype.is_floating_point:
        raise CheckpointError(f"The tensor {name} holds {stored.dtype}, not scales.")
    return stored.float().numpy()


def _our_group_size(group_size: int) -> int:
    """The largest of our group sizes that divides the checkpoint's; 0 is a whole row."""
    fitting = [size for size in GROUP_SIZES if group_size % size == 0]
    if not fitting:
        raise UnsupportedError(
            f"The checkpoint has groups of {group_size} inputs, which cannot be cut into groups of "
            "32, 64 or 128."
        )
    return max(fitting)


def _regrouped(matrix: Unpacked, k: int, group_size: int) -> Unpacked:
    """Cuts each group into several with the same scale and zero-point: the same weights."""
    if matrix.group_size == group_size:
        return matrix
    repeats = math.ceil(matrix.group_size / group_size)
    groups = -(-k // group_size)
    return dataclasses.replace(
        matrix,
        scales=np.ascontiguousarray(np.repeat(matrix.scales, repeats, axis=1)[:, :groups]),
        zeros=np.ascontiguousarray(np.repeat(matrix.zeros, repeats, axis=1)[:, :groups]),
        group_size=group_size,
    )
