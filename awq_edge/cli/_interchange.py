"""Import and export as ``awq-edge convert`` and ``awq-edge export`` offer them.

Owns the names of the formats and what is printed. Heavy imports come late.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from awq_edge.cli._output import Output
from awq_edge.errors import InvalidArgumentError
from awq_edge.model_file import check_place
from awq_edge.quantities import size_text

if TYPE_CHECKING:
    from awq_edge.conversion import Options
    from awq_edge.interchange.importer import ImportReport

EXPORT_KINDS = ("hf-awq", "gguf")


def check_export(kind: str, path: Path) -> None:
    """Refuses an export that could not be written in the end, before any work."""
    if kind not in EXPORT_KINDS:
        raise InvalidArgumentError(
            f"There is no export {kind!r}: hf-awq writes an AutoAWQ directory, gguf a stock "
            "llama.cpp file."
        )
    if path.exists():
        raise InvalidArgumentError(f"{path} exists already; choose another name for the export.")
    check_place(path)


def export_packed(packed: Path, kind: str, path: Path, output: Output) -> None:
    """Exports what a packed file holds."""
    check_export(kind, path)
    if kind == "hf-awq":
        from awq_edge.interchange.export_hf_awq import export_hf_awq

        export_hf_awq(packed, path)
    else:
        from awq_edge.interchange.export_gguf import write_gguf
        from awq_edge.model_file import PackedFile

        file = PackedFile(packed)
        write_gguf(path, file.architecture, file.metadata, file.floats)
    _report(kind, path, output)


class ConversionExport:
    """An export that belongs to a conversion: it also has the float checkpoint at hand."""

    def __init__(self, kind: str, path: Path, packed: Path) -> None:
        """Checks what can be checked without the checkpoint; ``packed`` is the other output."""
        check_export(kind, path)
        if path.resolve() == packed.resolve():
            raise InvalidArgumentError(
                f"The packed file and the export cannot both be {path}; choose another name for "
                "the export."
            )
        self._kind = kind
        self._path = path
        self.scaled_weights: Path | None = None  # where they are kept, for a kind that needs them
        self._scaled: Any = None
        if kind == "gguf":
            from awq_edge.interchange.scaled_weights import ScaledWeights

            self.scaled_weights = path.with_name(path.name + ".partial")
            self._scaled = ScaledWeights(self.scaled_weights)

    def check_model(self, model: str, options: Options) -> None:
        """Refuses a model or widths that the export cannot hold, before hours of work."""
        from awq_edge.float_model import open_float_model

        source = open_float_model(model)
        if self._kind == "hf-awq":
            from awq_edge.interchange import export_hf_awq

            bits = None if options.mixed else int(options.bits)
            export_hf_awq.check_exportable(source.architecture, bits, options.group_size)
        else:
            from awq_edge.hf_tokenizer import read_tokenizer
            from awq_edge.interchange import export_gguf

            tokenizer = read_tokenizer(source.checkpoint.directory, source.checkpoint.config)
            metadata = {} if tokenizer is None else tokenizer.to_metadata()
            export_gguf.check_exportable(source.architecture, metadata)

    @property
    def layer_scaled(self) -> Callable[[int, Any], None]:
        """For ``conversion.Events``: keeps a layer's scaled weights if this export needs them."""
        return self._scaled.keep if self._scaled is not None else lambda layer, weights: None

    def write(self, model: str, packed: Path, output: Output) -> None:
        """Writes the export of a finished conversion.

        Args:
            model: The checkpoint that was converted.
            packed: The file that came out.
            output: Prints.
        """
        from awq_edge.float_model import open_float_model

        source = open_float_model(model)
        if self._kind == "hf-awq":
            from awq_edge.interchange.export_hf_awq import export_hf_awq

            export_hf_awq(packed, self._path, source.checkpoint)
        else:
            from awq_edge.interchange.export_gguf import write_gguf
            from awq_edge.model_file import PackedFile

            try:
                self._scaled.complete(source)
                metadata = PackedFile(packed).metadata
                write_gguf(self._path, source.architecture, metadata, self._scaled)
            finally:
                self.give_up()
        _report(self._kind, self._path, output)

    def give_up(self) -> None:
        """Removes what was kept for the export: the conversion is over or will begin anew."""
        if self._scaled is not None:
            self._scaled.remove()


def import_quantised(
    model: str,
    packed: Path,
    *,
    embedding_bits: int,
    head_bits: int,
    force: bool,
    output: Output,
) -> ImportReport:
    """``convert --from-awq``.

    Args:
        model: A directory or a hub id of a quantised checkpoint.
        packed: The file to write.
        embedding_bits: Width of an embedding that the checkpoint keeps in floats.
        head_bits: The same of the head.
        force: Replace an existing file.
        output: Prints.
    """
    from awq_edge.conversion import check_output
    from awq_edge.interchange.importer import import_checkpoint
    from awq_edge.interchange.quantised_checkpoint import open_quantised

    check_output(packed, force)
    source = open_quantised(model)
    a = source.architecture
    matrices = 7 * a.layers + (1 if a.tied_head else 2)
    with output.progress("Importing", matrices) as bar:
        report = import_checkpoint(
            source,
            packed,
            embedding_bits=embedding_bits,
            head_bits=head_bits,
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


def _report(kind: str, path: Path, output: Output) -> None:
    files = [path] if path.is_file() else sorted(path.iterdir())
    size = sum(file.stat().st_size for file in files)
    output.line(f"exported  {path}, {size_text(size)} ({kind})")
