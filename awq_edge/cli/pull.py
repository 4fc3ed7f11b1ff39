"""``awq-edge pull``: fetches a packed model, so that other commands know it by name."""

# No `from __future__ import annotations` here: on Python 3.9 typer reads annotations as they stand.

import contextlib
import re
from typing import Annotated, Optional

import typer

from awq_edge.cli._options import Json, Quiet
from awq_edge.cli._output import Output, Progress
from awq_edge.errors import InvalidArgumentError
from awq_edge.quantities import size_text


def pull(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="An address of a packed file, or a hub id: owner/name, owner/name/file.gguf.",
        ),
    ],
    name: Annotated[
        Optional[str],
        typer.Option("--name", metavar="NAME", help="What it is called here; as its file."),
    ] = None,
    sha256: Annotated[
        Optional[str],
        typer.Option("--sha256", metavar="HEX", help="Of the whole file, to compare."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a model of that name.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fetch a packed model; what was interrupted goes on where it stopped."""
    from awq_edge.store.download import fetch
    from awq_edge.store.source import find_source

    output = Output(as_json=as_json, quiet=quiet)
    if sha256 is not None and re.fullmatch(r"[0-9a-fA-F]{64}", sha256) is None:
        raise InvalidArgumentError("--sha256 takes the 64 hexadecimal digits of a SHA-256.")
    found = find_source(source, name)
    with _Shown(output, found.name) as shown:
        path = fetch(found, shown, force=force, sha256=sha256)
    size = path.stat().st_size
    output.line(f"{path} ({size_text(size)})")
    short = found.name.removesuffix(".gguf").removesuffix(".awq")
    output.status(f"Now, for example: awq-edge chat {short}")
    output.json({"name": found.name, "path": str(path), "bytes": size, "source": found.address})


class _Shown:
    """The progress of a download. A context manager."""

    def __init__(self, output: Output, name: str) -> None:
        self._output = output
        self._name = name
        self._stack = contextlib.ExitStack()
        self._bar: Optional[Progress] = None

    def __enter__(self) -> "_Shown":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def begins(self, size_bytes: int, there_bytes: int) -> None:
        self._stack.close()
        if there_bytes:
            self._output.status(
                f"{size_text(there_bytes)} of {size_text(size_bytes)} are there already."
            )
        progress = self._output.progress(f"Fetching {self._name}", size_bytes)
        self._bar = self._stack.enter_context(progress)
        self._bar.advance(there_bytes)

    def advance(self, size_bytes: int) -> None:
        if self._bar is not None:
            self._bar.advance(size_bytes)

    def says(self, text: str) -> None:
        self._output.status(text)
