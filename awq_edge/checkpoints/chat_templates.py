"""Which chat templates a checkpoint has: names and texts.

Owns the order of the places, which is that of transformers' AutoTokenizer: files before
tokenizer_config.json. ``chat_template.json`` belongs to a processor of images and does not count.
Refuses to run a template (``awq_edge.chat``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from awq_edge.checkpoints.files import open_regular
from awq_edge.errors import CheckpointError, FileUnreadableError

_LARGEST_BYTES = 4 << 20


def read_chat_templates(directory: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """Templates by name; the one without a name is "default".

    Args:
        directory: The checkpoint.
        settings: Its tokenizer_config.json.

    Raises:
        CheckpointError: A template's file is not a text.
    """
    found = {}
    if (directory / "chat_template.jinja").is_file():
        found["default"] = _read(directory / "chat_template.jinja")
    for path in sorted((directory / "additional_chat_templates").glob("*.jinja")):
        found[path.stem] = _read(path)
    if found:
        return found
    value = settings.get("chat_template")
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, list):
        value = {
            entry.get("name"): entry.get("template")
            for entry in value
            if isinstance(entry, Mapping)
        }
    if not isinstance(value, Mapping):
        return {}
    return {
        name: text
        for name, text in value.items()
        if isinstance(name, str) and isinstance(text, str)
    }


def _read(path: Path) -> str:
    try:
        with open_regular(path) as file:
            content = file.read(_LARGEST_BYTES + 1)
    except OSError as error:
        raise FileUnreadableError(f"Cannot read {path}: {error.strerror}.") from error
    if len(content) > _LARGEST_BYTES:
        raise CheckpointError(f"{path} is larger than {_LARGEST_BYTES >> 20} MiB: no template is.")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text.") from error
