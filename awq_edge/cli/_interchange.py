"""Import and export as ``awq-edge convert`` and ``awq-edge export`` offer them.

Owns what is printed. Heavy imports come late.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from awq_edge.cli._output import Output
from awq_edge.quantities import size_text

if TYPE_CHECKING:
    from awq_edge.interchange.export import Export
    from awq_edge.interchange.importer import ImportReport


def report_export(export: Export, output: Output) -> None:
    """Prints what an export has become."""
    path = export.path
    files = [path] if path.is_file() else sorted(path.iterdir())
    size = sum(file.stat().st_size for file in files)
    output.line(f"exported  {path}, {size_text(size)} ({export.kind})")


def import_quantised(
    model: str,
    packed: Path,
    *,
    embedding_bits: int,
    head_bits: int,
    force: bool,
    export: Export | None,
    output: Output,
) -> ImportReport:
    """``convert --from-awq``.

    Args:
        model: A directory or a hub id of a quantised checkpoint.
        packed: The file to write.
        embedding_bits: Width of an embedding that the checkpoint keeps in floats.
        head_bits: The same of the head.
        force: Replace an existing file.
        export: What else to write.
        output: Prints.
    """
    from awq_edge.conversion.checks import check_export, place_of
    from awq_edge.interchange.importer import import_checkpoint
    from awq_edge.interchange.quantised_checkpoint import open_quantised

    place_of(packed, force)  # before a checkpoint is fetched
    if export is not None:
        check_export(export, packed)
    source = open_quantised(model)
    a = source.architecture
    matrices = 7 * a.layers + (1 if a.tied_head else 2)
    with output.progress("Importing", matrices) as bar:
        report = import_checkpoint(
            source,
            packed,
            embedding_bits=embedding_bits,
            head_bits=head_bits,
            force=force,
            export=export,
            report_progress=lambda name: bar.advance(1, name),
        )
    widths = [f"{name} at {bits} bits" for name, bits in report.quantised.items()]
    fields = {
        "checkpoint": f"{report.format_name}, groups of {source.group_size}",
        "taken over": f"{len(report.exact)} matrices, every code, scale and zero-point",
        "rounded here": ", ".join(widths) or "nothing",
        "file": f"{packed}, {size_text(report.file_bytes)}",
    }
    output.fields(fields)
    if source.checkpoint.vision is not None:
        output.warning(
            "The file reads text alone: the part that sees pictures is not imported; convert the "
            "checkpoint in floats for it."
        )
    if report.rounded_scales:
        output.warning(
            f"{report.rounded_scales} scales of the checkpoint are no fp16 numbers and were "
            "rounded."
        )
    output.json(
        {
            "file": str(packed),
            "format": report.format_name,
            "group_size": source.group_size,
            "exact_matrices": len(report.exact),
            "rounded_matrices": report.quantised,
            "rounded_scales": report.rounded_scales,
            "file_bytes": report.file_bytes,
        }
    )
    return report
