"""Exports: of a packed file, or of a conversion, which has the float checkpoint at hand too.

Owns the kinds of exports, what each can hold and how large it gets, and where it may be written.
Refuses formats: ``export_hf_awq`` and ``export_gguf`` know them. Heavy imports come late.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from awq_edge.errors import InvalidArgumentError, UnsupportedError
from awq_edge.outputs.place import (
    Identity,
    Place,
    check_new,
    check_room,
)
from awq_edge.stages import layer_tensor_names, tensor_shape

if TYPE_CHECKING:
    from awq_edge.architecture import Architecture, MetadataValue
    from awq_edge.checkpoints import Checkpoint
    from awq_edge.float_model import FloatModel
    from awq_edge.interchange.export_gguf import FloatSource

KINDS = ("hf-awq", "gguf")
_EXISTS = "{path} exists already; choose another name for the export."
# Tokenizers and headers, on top of the tensors.
_BESIDE_TENSORS_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True)
class Export:
    """What is to be written, and where.

    Attributes:
        kind: "hf-awq" or "gguf".
        path: A directory or a file that is not there yet.
    """

    kind: str
    path: Path

    def __post_init__(self) -> None:
        """Refuses kinds that do not exist."""
        if self.kind not in KINDS:
            raise InvalidArgumentError(
                f"There is no export {self.kind!r}: hf-awq writes an AutoAWQ directory, gguf a "
                "stock llama.cpp file."
            )

    @property
    def of_scaled_weights(self) -> bool:
        """Whether a conversion must keep its scaled weights for it."""
        return self.kind == "gguf"

    @property
    def of_one_width(self) -> bool:
        """Whether all decoder matrices must have the same bits."""
        return self.kind == "hf-awq"

    def check_place(self) -> None:
        """Refuses a place that could not be written in the end, before any work."""
        check_new(self.path, _EXISTS)

    def check_model(
        self,
        architecture: Architecture,
        metadata: Mapping[str, MetadataValue],
        bits: int | None,
        group_size: int,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        """Refuses a model or widths that the export cannot hold, before hours of work.

        Args:
            architecture: The decoder.
            metadata: Entries of its tokenizer.
            bits: Of all decoder matrices; None if widths are mixed.
            group_size: Of all decoder matrices.
            checkpoint: That of its floats, if it will be at hand.
        """
        if architecture.cross is not None:
            raise UnsupportedError(
                "The model looks at pictures through layers of its own, which no other program's "
                "file holds: it cannot be exported."
            )
        if self.kind == "hf-awq":
            from awq_edge.interchange import export_hf_awq

            export_hf_awq.check_exportable(architecture, bits, group_size, metadata, checkpoint)
        else:
            from awq_edge.interchange import export_gguf

            export_gguf.check_exportable(architecture, metadata)

    def size_bytes(self, architecture: Architecture, group_size: int) -> int:
        """About how large it gets."""
        tables = architecture.vocabulary_size * architecture.hidden_size
        tables *= 1 if architecture.tied_head else 2
        linears = architecture.linear_parameters()
        if self.kind == "hf-awq":  # 4 bits, and a scale and a zero-point for every group
            linears_bytes = linears // 2 + linears * 5 // (2 * group_size)
        else:
            linears_bytes = 2 * linears
        vectors = sum(
            math.prod(tensor_shape(architecture, f"blk.{layer}.{name}"))
            for layer in range(architecture.layers)
            for name in layer_tensor_names(architecture, layer)
            if len(tensor_shape(architecture, f"blk.{layer}.{name}")) == 1
        )
        return linears_bytes + 2 * tables + 4 * vectors + _BESIDE_TENSORS_BYTES

    def write(
        self,
        packed: Path,
        source: FloatModel | None = None,
        scaled: FloatSource | None = None,
        announce: Callable[[Identity], None] | None = None,
    ) -> None:
        """Writes it.

        Args:
            packed: The packed file.
            source: The float model that it was converted from, if there is one.
            scaled: The scaled weights, for a kind that is made of them.
            announce: Told by what the export can be known, right before it has its name.
        """
        if self.kind == "hf-awq":
            from awq_edge.interchange.export_hf_awq import export_hf_awq

            checkpoint = None if source is None else source.checkpoint
            export_hf_awq(packed, self.path, checkpoint, announce)
        else:
            from awq_edge.interchange.export_gguf import write_gguf
            from awq_edge.model_file import PackedFile

            file = PackedFile(packed)
            place = Place(self.path, exists=_EXISTS, announce=announce)
            architecture = file.architecture if source is None else source.architecture
            write_gguf(place, architecture, file.metadata, scaled or file.floats)


def export_to(kind: str, name: str) -> Export:
    """An export as a user writes it: only a directory's name may end with a slash."""
    if not name:
        raise InvalidArgumentError("The name of the export is empty.")
    if kind == "gguf" and name.endswith(("/", os.sep)):
        raise InvalidArgumentError(f"{name} is the name of a directory; give the name of a file.")
    return Export(kind, Path(name))


def export_packed(packed: Path, export: Export) -> None:
    """Exports what a packed file holds.

    Raises:
        UnsupportedError: The format cannot hold this model.
        InvalidArgumentError: Something is at the export's place.
        FileUnreadableError: The place takes no files, or not as many bytes.
    """
    from awq_edge.model_file import PackedFile

    export.check_place()
    file = PackedFile(packed)
    group = min(
        (file.layout(name).group_size for name in file.names() if file.is_packed(name)), default=128
    )
    check_room([(export.path, export.size_bytes(file.architecture, group))])
    export.write(packed)
