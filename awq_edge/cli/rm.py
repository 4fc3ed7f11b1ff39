"""``awq-edge rm``: takes models away that commands know by name."""

# No `from __future__ import annotations` here: on Python 3.9 typer reads annotations as they stand.

from typing import Annotated

import typer

from awq_edge.cli._options import Json, Quiet
from awq_edge.cli._output import Output
from awq_edge.quantities import size_text


def rm(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME...", help="Models that 'awq-edge list' tells.")
    ],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Remove models, or what was fetched of them."""
    from awq_edge.store.folder import remove

    output = Output(as_json=as_json, quiet=quiet)
    freed = {}
    for name in names:
        freed[name] = remove(name)
        output.status(f"{name} is gone: {size_text(freed[name])} are free again.")
    output.json({"removed": freed})
