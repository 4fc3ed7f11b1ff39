"""``convert --from-awq``: a quantised checkpoint becomes a packed file with the same integers.

Owns what goes where in the file, and the widths of what the checkpoint keeps in floats. Refuses
calibration: no code, scale or zero-point of the checkpoint is touched. Streams: one matrix is in
memory at a time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from awq_edge import __version__, layouts, model_file
from awq_edge.architecture import Architecture, MetadataValue
from awq_edge.conversion.checks import check_export, place_of
from awq_edge.conversion.manifest import read_manifest
from awq_edge.conversion.report import Events
from awq_edge.conversion.trial import check_runs
from awq_edge.conversion.work_directory import WorkDirectory
from awq_edge.hf_tokenizer import read_tokenizer
from awq_edge.interchange.export import Export
from awq_edge.interchange.quantised_checkpoint import QuantisedCheckpoint
from awq_edge.outputs.place import Place, check_room, checkpoint_files
from awq_edge.outputs.workplace import remove_left
from awq_edge.quantize.grouped import quantise
from awq_edge.stages import head_name, positions_name, tensor_names

# A decoder matrix that the checkpoint keeps in floats was judged too sensitive for its width.
_FLOAT_MATRIX_BITS = 8
_ROWS_AT_ONCE = 1024  # of a float matrix; a multiple of the rows of a block


@dataclasses.dataclass
class ImportReport:
    """What an import did.

    Attributes:
        format_name: What the checkpoint was.
        exact: Matrices whose integers were taken over.
        quantised: Matrices that were floats, with the bits that they got.
        rounded_scales: Scales that were no fp16 numbers.
        file_bytes: Size of the packed file.
    """

    format_name: str
    exact: list[str] = dataclasses.field(default_factory=list)
    quantised: dict[str, int] = dataclasses.field(default_factory=dict)
    rounded_scales: int = 0
    file_bytes: int = 0


def import_checkpoint(
    source: QuantisedCheckpoint,
    output: Path,
    *,
    embedding_bits: int = 8,
    head_bits: int = 8,
    force: bool = False,
    export: Export | None = None,
    report_progress: Callable[[str], None] | None = None,
) -> ImportReport:
    """Writes a packed file, or nothing.

    Args:
        source: An open quantised checkpoint.
        output: The file to write.
        embedding_bits: Width of the embedding, if the checkpoint keeps it in floats.
        head_bits: The same of the head; a tied head is the embedding.
        force: Replace an existing file.
        export: What else to write, once the file has its name.
        report_progress: Called with the name of each tensor once it is written.
    """
    directory = source.checkpoint.directory
    place = place_of(output, force)
    place.refuse_inputs({"the checkpoint": checkpoint_files(directory)})
    report = ImportReport(source.format_name)
    tensors: list[tuple[str, model_file.TensorSource]] = []
    widths: dict[str, int] = {}

    def add_matrix(name: str, float_bits: int) -> None:
        n, k = source.shape(name)
        exact = source.is_integer(name)
        bits = source.bits if exact else float_bits
        layout = layouts.Layout(n, k, bits, source.group_size)
        widths[name] = bits
        if exact:
            report.exact.append(name)
        else:
            report.quantised[name] = bits

        def pieces() -> Iterator[bytes]:
            yield from (
                _integer_pieces(source, name) if exact else _float_pieces(source, name, layout)
            )
            if report_progress is not None:
                report_progress(name)

        tensors.append((name, model_file.Streamed(layout.total_bytes, pieces)))

    def add_vector(name: str) -> None:
        tensors.append((name, source.vector(name)))

    architecture = source.architecture
    float_bits = {"token_embd.weight": embedding_bits, "output.weight": head_bits}
    for name in _in_order(architecture):
        if len(source.shape(name)) == 2:
            add_matrix(name, float_bits.get(name, _FLOAT_MATRIX_BITS))
        else:
            add_vector(name)

    metadata: dict[str, MetadataValue] = {
        "general.name": source.checkpoint.name,
        **architecture.to_metadata(),
        "awq_edge.quantization.method": "awq",
        "awq_edge.quantization.bits": source.bits,
        "awq_edge.quantization.group_size": source.group_size,
        "awq_edge.quantization.head_bits": widths[head_name(architecture)],
        "awq_edge.quantization.embedding_bits": widths["token_embd.weight"],
        "awq_edge.quantization.tool_version": __version__,
    }
    tokenizer = read_tokenizer(source.checkpoint.directory, source.checkpoint.config)
    if tokenizer is not None:
        metadata.update(tokenizer.to_metadata())
    needs = [(output, sum(model_file.source_bytes(tensor) for _, tensor in tensors))]
    if export is not None:
        check_export(export, output)
        export.check_model(architecture, metadata, source.bits, source.group_size)
        needs.append((export.path, export.size_bytes(architecture, source.group_size)))
    key = _key(source, embedding_bits, head_bits)
    left = read_manifest(output)
    if not force and (left is None or left.key != key):
        place = Place(output)  # what is there is another conversion's
        place.refuse_inputs({"the checkpoint": checkpoint_files(directory)})
    if left is None or left.model is None:
        check_room(needs)
    with WorkDirectory(
        output, key, Events(), export=None if export is None else export.path
    ) as work:
        if not work.has_output:
            place.check()  # another conversion may have ended since
        if not work.has_model:
            work.write_model(
                metadata, tensors, check_runs, lambda: {"rounded_scales": source.rounded_scales}
            )
        if not work.has_output:
            place.appear(work.model)
        if export is not None and work.has_export:
            remove_left(export.path)
        elif export is not None:
            export.write(work.model, announce=work.export_made)
        report.rounded_scales = work.numbers["rounded_scales"]
    report.file_bytes = output.stat().st_size
    return report


def _in_order(architecture: Architecture) -> list[str]:
    """Every tensor; what attention knows of positions stands where imports have always had it."""
    names, positions = tensor_names(architecture), positions_name(architecture)
    if positions is not None and architecture.final_norm:
        names.remove(positions)
        names.insert(names.index("output_norm.weight") + 1, positions)
    return names


def _key(source: QuantisedCheckpoint, embedding_bits: int, head_bits: int) -> str:
    """Changes with anything that changes a tensor."""
    identity = [__version__, source.checkpoint.identity(), "import", embedding_bits, head_bits]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def _integer_pieces(source: QuantisedCheckpoint, name: str) -> Iterator[bytes]:
    matrix = source.integers(name)
    yield layouts.pack(matrix.codes, matrix.scales, matrix.zeros, matrix.bits, matrix.group_size)


def _float_pieces(
    source: QuantisedCheckpoint, name: str, layout: layouts.Layout
) -> Iterator[bytes]:
    yield layouts.header(layout)
    for _, rows in source.row_blocks(name, _ROWS_AT_ONCE):
        part = quantise(rows, layout.bits, layout.group_size, name=name)
        yield layouts.pack_blocks(
            part.codes.numpy(), part.scales.numpy(), part.zeros.numpy(), part.bits, part.group_size
        )
