"""``awq-edge export``: a packed file for tools that do not read it."""

# No `from __future__ import annotations` here: on Python 3.9 typer reads annotations as they stand.

from typing import Annotated

import typer

from awq_edge.cli._interchange import report_export
from awq_edge.cli._options import Json, ModelFile, Quiet
from awq_edge.cli._output import Output
from awq_edge.model import Model


def export(
    file: ModelFile,
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            help="hf-awq: an AutoAWQ directory for transformers and vLLM (4 bits only). "
            "gguf: a stock llama.cpp file of the same weights as F16.",
        ),
    ],
    path: Annotated[str, typer.Argument(metavar="PATH", help="Directory or file to write.")],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a packed model as an AutoAWQ directory or a stock llama.cpp file."""
    output = Output(as_json=as_json, quiet=quiet)
    from awq_edge.interchange.export import export_packed, export_to

    wanted = export_to(kind, path)
    with Model.open(file) as model:  # validates the file as the runtime does, and its texts
        if "tokenizer.huggingface.json" in model.metadata:
            _ = model.tokenizer
    export_packed(file, wanted)
    report_export(wanted, output)
    output.json({"file": str(file), "kind": kind, "exported": str(path)})
