"""``awq-edge list``: the models that commands know by name."""

# No `from __future__ import annotations` here: on Python 3.9 typer reads annotations as they stand.

from awq_edge.cli._options import Json
from awq_edge.cli._output import Output
from awq_edge.errors import AwqEdgeError
from awq_edge.quantities import count_text, size_text


def list(as_json: Json = False) -> None:
    """List this machine's models by name, and what is being fetched."""
    from awq_edge.model import Model
    from awq_edge.store.download import partial_progress
    from awq_edge.store.folder import PARTIAL_ENDING, entries, models_folder, partial_folders

    output = Output(as_json=as_json)
    rows, documents = [], []
    for entry in entries():
        kind, parameters = "", None
        try:
            with Model.open(entry.path) as model:
                parameters = model.info.parameters
                kind = f"{count_text(parameters)} weights, {model.info.context_length} tokens"
        except AwqEdgeError as error:
            kind = f"damaged: {error}"
        rows.append((entry.name, size_text(entry.size_bytes), kind))
        documents.append(
            {
                "name": entry.name,
                "path": str(entry.path),
                "bytes": entry.size_bytes,
                "parameters": parameters,
                "complete": parameters is not None,
            }
        )
    for folder in partial_folders():
        name = folder.name[1:].removesuffix(PARTIAL_ENDING)
        have, size = partial_progress(folder) or (0, 0)
        share = f"{100 * have // size} %" if size else "0 %"
        rows.append((name, size_text(size), f"{share} fetched: pull it again to go on"))
        documents.append(
            {"name": name, "path": None, "bytes": size, "fetched_bytes": have, "complete": False}
        )
    if rows:
        output.table(("name", "size", ""), rows)
    else:
        output.line("There are no models here yet: awq-edge pull fetches one.")
    folder_path = models_folder()
    output.json({"folder": None if folder_path is None else str(folder_path), "models": documents})
