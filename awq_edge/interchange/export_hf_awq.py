"""Writes a packed 4-bit file as an AutoAWQ ``gemm`` directory, as transformers and vLLM load it.

Owns what such a directory holds. The integers are those of the packed file; embedding and head come
from the float checkpoint where there is one, otherwise from the packed file, rounded to fp16.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from awq_edge import layouts
from awq_edge.architecture import Architecture
from awq_edge.checkpoints import Checkpoint
from awq_edge.converters import Converter, find
from awq_edge.errors import InvalidArgumentError, UnsupportedError
from awq_edge.interchange import autoawq, hf_config
from awq_edge.interchange.safetensors_writer import Announced, write_safetensors
from awq_edge.model_file import PackedFile
from awq_edge.outputs.place import Identity, sync_tree, write_error
from awq_edge.outputs.workplace import Workplace
from awq_edge.stages import layer_tensor_names, positions_name, tensor_names, tensor_shape

_TABLES = ("token_embd.weight", "output.weight")
_INTEGER_PARTS = ("qweight", "qzeros", "scales")


def export_hf_awq(
    packed: Path,
    directory: Path,
    checkpoint: Checkpoint | None = None,
    announce: Callable[[Identity], None] | None = None,
) -> None:
    """Writes the directory, or nothing.

    Args:
        packed: A packed file with 4-bit decoder matrices.
        directory: Where to write; must not exist, or be empty.
        checkpoint: The float checkpoint that the file was converted from: its tokenizer files are
            taken, and its config.json, its embedding and its head if the file's tensors are its.
        announce: Told by what the directory can be known, right before it has its name.

    Raises:
        UnsupportedError: The format cannot hold this model.
        InvalidArgumentError: The directory holds something already.
    """
    file = PackedFile(packed)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise InvalidArgumentError(f"{directory} exists already; choose a new directory.")
    config, tables = _described(file.architecture, file.metadata, checkpoint)
    group_size = _require_one_gemm(file)
    try:
        with Workplace(directory) as work:
            partial = work.path / "export"
            partial.mkdir()
            _write_config(partial, config, group_size)
            if checkpoint is not None:
                hf_config.copy_tokenizer(checkpoint.directory, partial)
            else:
                hf_config.write_tokenizer(file.metadata, partial)
            _Weights(file, find(config), tables).write(partial / "model.safetensors")
            sync_tree(partial)
            identity = Identity.of(partial)
            if announce is not None and identity is not None:
                announce(identity)
            os.rename(partial, directory)  # noqa: PTH104  # never over anything but an empty one
    except OSError as error:
        raise write_error(directory, error) from error


def _described(
    architecture: Architecture, metadata: Mapping[str, Any], checkpoint: Checkpoint | None
) -> tuple[dict[str, Any], Checkpoint | None]:
    """The config.json of a file, and the checkpoint whose embedding and head belong to it.

    That of the checkpoint where each of our tensors is one of its; where we hold them otherwise
    (fused rows apart, multipliers taken in), that of the family which holds them so.
    """
    if checkpoint is not None and _holds_as_they_are(checkpoint, architecture):
        return dict(checkpoint.config), checkpoint
    return hf_config.describe(architecture, metadata), None


def _holds_as_they_are(checkpoint: Checkpoint, architecture: Architecture) -> bool:
    converter, positions = find(checkpoint.config), positions_name(architecture)
    names = [name for name in tensor_names(architecture) if name != positions]
    return all(converter.changes(checkpoint.config, architecture, name).as_it_is for name in names)


def check_exportable(
    architecture: Architecture,
    bits: int | None,
    group_size: int,
    metadata: Mapping[str, Any],
    checkpoint: Checkpoint | None,
) -> None:
    """Refuses what :func:`export_hf_awq` would refuse of a file that is still to be made.

    Args:
        architecture: The decoder.
        bits: Of all decoder matrices; None if widths are mixed.
        group_size: Of all decoder matrices.
        metadata: Entries of its tokenizer.
        checkpoint: That of its floats, if it will be at hand.

    Raises:
        UnsupportedError: The format cannot hold such a file.
    """
    _described(architecture, metadata, checkpoint)
    if bits is None:
        raise UnsupportedError(
            f"AutoAWQ's format holds {autoawq.BITS}-bit matrices only; convert with --bits "
            f"{autoawq.BITS} and without --size."
        )
    for layer in range(architecture.layers):
        for part in layer_tensor_names(architecture, layer):
            shape = tensor_shape(architecture, part)
            if len(shape) == 2:
                n, k = shape
                _require_gemm(f"blk.{layer}.{part}", layouts.Layout(n, k, bits, group_size))


def _require_one_gemm(file: PackedFile) -> int:
    """The one group size of all decoder matrices, if the format can hold them."""
    sizes: set[int] = set()
    for name in _decoder_matrices(file):
        layout = file.layout(name)
        sizes.add(layout.group_size)
        _require_gemm(name, layout)
    if len(sizes) > 1:
        raise UnsupportedError(
            "AutoAWQ's format has one group size for all matrices; this file has "
            f"{', '.join(map(str, sorted(sizes)))}."
        )
    return sizes.pop()


def _require_gemm(name: str, layout: layouts.Layout) -> None:
    """Refuses a matrix that the format cannot hold."""
    if layout.bits != autoawq.BITS:
        raise UnsupportedError(
            f"AutoAWQ's format holds {autoawq.BITS}-bit matrices only, and {name} has "
            f"{layout.bits} bits; convert with --bits {autoawq.BITS}, and with --without widths if "
            "the method is auto."
        )
    if layout.n % autoawq.CODES_PER_WORD or layout.k % layout.group_size:
        raise UnsupportedError(
            f"AutoAWQ's format needs rows in multiples of {autoawq.CODES_PER_WORD} and columns "
            f"in multiples of the group size; {name} is {layout.n} x {layout.k} in groups of "
            f"{layout.group_size}."
        )


def _decoder_matrices(file: PackedFile) -> list[str]:
    return [name for name in file.names() if name.startswith("blk.") and file.is_packed(name)]


def _write_config(directory: Path, config: dict[str, Any], group_size: int) -> None:
    for key in ("torch_dtype", "dtype"):
        config.pop(key, None)
    config["torch_dtype"] = "float16"
    config["quantization_config"] = {
        "quant_method": "awq",
        "bits": autoawq.BITS,
        "group_size": group_size,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": None,
    }
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (directory / "config.json").write_text(text, encoding="utf-8")


class _Weights:
    """The tensors of the directory, each made when its turn comes."""

    def __init__(
        self, file: PackedFile, converter: Converter, checkpoint: Checkpoint | None
    ) -> None:
        self._file = file
        self._converter = converter
        self._checkpoint = checkpoint
        self._ours = {str(converter.checkpoint_name(name)): name for name in self._kept()}
        self._unpacked: tuple[str, dict[str, npt.NDArray[Any]]] = ("", {})

    def write(self, path: Path) -> None:
        """Writes model.safetensors."""
        write_safetensors(path, self._announced(), self._give)

    def _kept(self) -> list[str]:
        return [name for name in self._file.names() if name != "rope.inverse_frequencies"]

    def _announced(self) -> Iterator[Announced]:
        for theirs, ours in self._ours.items():
            shape = tensor_shape(self._file.architecture, ours)
            if ours in _TABLES or not self._file.is_packed(ours):
                yield theirs, "F16", shape
                continue
            n, k = shape
            groups = k // self._file.layout(ours).group_size
            words = n // autoawq.CODES_PER_WORD
            base = theirs.removesuffix(".weight")
            yield f"{base}.qweight", "I32", (k, words)
            yield f"{base}.qzeros", "I32", (groups, words)
            yield f"{base}.scales", "F16", (groups, n)

    def _give(self, name: str) -> npt.NDArray[Any]:
        base, _, part = name.rpartition(".")
        if part in _INTEGER_PARTS:
            if self._unpacked[0] != base:
                matrix = self._file.matrix(self._ours[f"{base}.weight"])
                self._unpacked = (base, dict(zip(_INTEGER_PARTS, autoawq.pack_gemm(matrix))))
            return self._unpacked[1][part]
        ours = self._ours[name]
        if ours in _TABLES and self._checkpoint is not None:
            values = self._checkpoint.tensor(name, tensor_shape(self._file.architecture, ours))
            return _halves(name, values.numpy())
        return _halves(name, self._file.floats(ours))


def _halves(name: str, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    if not np.isfinite(halves).all():
        raise UnsupportedError(f"The values of {name} are too large for fp16.")
    return halves
