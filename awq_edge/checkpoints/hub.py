"""Models by their hub id: fetched into the hub's cache, and what a directory there is called.

Owns which files are fetched. Refuses to read them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from awq_edge.checkpoints.json_files import read_optional_json
from awq_edge.checkpoints.resolver import INDEX_FILE, SINGLE_FILE
from awq_edge.converters.text_part import FOLDERS
from awq_edge.errors import CheckpointError

_ID = re.compile(r"[\w.-]+/[\w.-]+")
_FILES = ("*.json", "*.safetensors", "*.model", "*.tiktoken", "merges.txt", "*.jinja")
_TOKENIZER_FILES = ("tokenizer*.json", "special_tokens_map.json", "tokenizer.model")
_PICKLED_FILES = ("pytorch_model*.bin",)  # only where there are no safetensors
# Copies of the same weights under other names, which some repositories hold too.
_UNNEEDED = ("consolidated*", "original/*", "*/*")

# The hub's cache: models--OWNER--NAME/snapshots/COMMIT.
_CACHED = re.compile(r"models--(?:.*--)?(?P<name>.+)")


def download(model: str) -> Path:
    """Fetches a model; gives the directory in the hub's cache.

    Raises:
        CheckpointError: It is no hub id, or the hub does not give it.
    """
    with _answering(model):
        directory = _fetched(model, _FILES)
        kind = read_optional_json(directory / "config.json").get("model_type")
        folders = FOLDERS.get(str(kind), {})
        if folders:
            inside = (*_FILES, *_PICKLED_FILES)
            patterns = tuple(f"{folder}/{file}" for folder in folders for file in inside)
            _fetched(model, patterns, unneeded=())
        elif not any((directory / name).exists() for name in (SINGLE_FILE, INDEX_FILE)):
            directory = _fetched(model, (*_FILES, *_PICKLED_FILES))
        return directory


def download_tokenizer(model: str) -> Path:
    """Fetches the files of a model's tokenizer; gives their directory in the hub's cache.

    Raises:
        CheckpointError: As :func:`download`.
    """
    with _answering(model):
        return _fetched(model, _TOKENIZER_FILES)


def _fetched(model: str, patterns: tuple[str, ...], unneeded: tuple[str, ...] = _UNNEEDED) -> Path:
    import huggingface_hub

    return Path(
        huggingface_hub.snapshot_download(
            model, allow_patterns=list(patterns), ignore_patterns=list(unneeded)
        )
    )


@contextmanager
def _answering(model: str) -> Iterator[None]:
    """Refuses what is no hub id, and says what the hub answered where it gives nothing."""
    if not _ID.fullmatch(model) or model.startswith("."):
        raise CheckpointError(
            f"There is no directory {model}, and it is not a hub id such as owner/name."
        )
    try:
        yield
    except Exception as error:  # the hub's client raises the errors of several HTTP libraries
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"There is no directory {model}, and the hub did not give a model of that name "
            f"({reason.removeprefix('Got: ').rstrip('.')})."
        ) from error


def model_name(directory: Path) -> str:
    """What a model is called: its directory's name, or the one that the hub knows it by."""
    place = directory.resolve()
    if place.parent.name == "snapshots":
        cached = _CACHED.fullmatch(place.parent.parent.name)
        if cached is not None:
            return cached["name"]
    return os.fsencode(place.name).decode("utf-8", "replace")
