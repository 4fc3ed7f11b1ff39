"""Arguments and options that several commands share. Owns their names, help texts and lists."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Optional, Union

import typer


def model_path(text: Union[str, Path]) -> Path:
    """For ``typer``: a packed file, or the name of one of the user's models."""
    path = Path(text)
    if len(path.parts) != 1 or os.path.lexists(path):
        return path
    from awq_edge.store.folder import find

    return find(str(text)) or path


# Aliases and not annotations in place: typer evaluates annotations, and Python 3.9 has no `|`.
ModelFile = Annotated[
    Path,
    typer.Argument(
        metavar="FILE",
        parser=model_path,
        help="A file that 'awq-edge convert' wrote, or a name that 'awq-edge list' tells.",
    ),
]
Context = Annotated[
    Optional[int],
    typer.Option(min=1, help="Tokens to keep in the context; by default the model's, up to 4096."),
]
Kv = Annotated[
    str,
    typer.Option("--kv", metavar="TYPE", help="Keys and values: fp16, or int8, half as large."),
]
EvaluatedModel = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        parser=model_path,
        help="A packed file or its name in 'awq-edge list', or a Hugging Face directory in floats.",
    ),
]
Chunks = Annotated[
    Optional[int], typer.Option(min=1, help="Score at most this many chunks; by default all.")
]
ChunkTokens = Annotated[int, typer.Option(min=4, help="Tokens per chunk.")]
FirstBytes = Annotated[
    Optional[int],
    typer.Option("--bytes", min=1, max=1 << 62, help="Use only the first bytes of the text."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No status lines, no progress.")]


def file_path(text: Union[str, Path]) -> Path:
    """For ``typer``: the name of a file to write; an empty one and a directory's are refused."""
    if str(text).endswith(("/", os.sep)):
        raise typer.BadParameter(f"{text} is the name of a directory; give the name of a file.")
    return place_path(text)


def place_path(text: Union[str, Path]) -> Path:
    """For ``typer``: the name of a file or directory to write; an empty one is refused."""
    if not str(text):
        raise typer.BadParameter("the name is empty.")
    return Path(text)


def listed(values: Iterable[str]) -> list[str]:
    """The entries of an option that takes ``a,b`` and may be given again."""
    return [part.strip() for value in values for part in value.split(",") if part.strip()]
