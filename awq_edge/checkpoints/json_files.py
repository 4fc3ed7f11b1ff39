"""JSON of a checkpoint: read within limits, refused in a sentence.

Owns the limit of size and the sentences; ``limited_json.py`` has the other limits. Refuses meaning:
whoever asks for an object knows what belongs in it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from awq_edge.checkpoints.files import open_regular, refuse_pointer
from awq_edge.errors import AwqEdgeError, CheckpointError, FileUnreadableError
from awq_edge.limited_json import parse_json

# The longest string of a model file, and a hundred times what any published configuration takes.
_MAX_BYTES = 64 << 20


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object from a file.

    Raises:
        CheckpointError: It is missing, too large, nested too deeply or no JSON object.
        FileUnreadableError: The system refuses it.
    """
    try:
        with open_regular(path) as file:
            text = file.read(_MAX_BYTES + 1)
    except FileUnreadableError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise CheckpointError(f"{path.parent} holds no {path.name}.") from error
        raise
    except OSError as error:
        raise FileUnreadableError(f"Cannot read {path}: {error.strerror}.") from error
    if len(text) > _MAX_BYTES:
        raise CheckpointError(f"{path} is larger than {_MAX_BYTES >> 20} MiB; is it the right one?")
    refuse_pointer(path, text)
    try:
        value = parse_json(text)
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object.")
    return value


def read_optional_json(path: Path) -> dict[str, Any]:
    """A side file that a model does without: empty if it is missing, broken or unreadable."""
    try:
        return read_json(path)
    except AwqEdgeError:
        return {}


def is_whole_number(value: Any) -> bool:
    """Whether a value is a JSON number without a fraction; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)
