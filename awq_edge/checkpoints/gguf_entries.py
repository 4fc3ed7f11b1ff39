"""The entries of a GGUF file that describe its decoder, each with its type or one sentence.

Owns that a number is as precise as whoever wrote it meant it: the file keeps float32, a config.json
has the decimal fraction. Refuses families: ``gguf_families.py`` knows which entries they have.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from awq_edge.errors import CheckpointError, UnsupportedError


class Entries:
    """What a file says of its decoder, under ``general.architecture``'s own keys."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        """Takes every entry of a file.

        Raises:
            CheckpointError: It names no architecture.
        """
        self.path = path
        self.values = values
        architecture = values.get("general.architecture")
        if not isinstance(architecture, str) or not architecture.isprintable():
            raise CheckpointError(f"{path} does not say what it holds: it has no architecture.")
        self.architecture = architecture

    def get(self, key: str) -> Any:
        """A value as it stands; None if there is none."""
        return self.values.get(f"{self.architecture}.{key}")

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number; a list of the same one for every layer is that one."""
        value = self.get(key)
        if value is None:
            value = default
        if isinstance(value, np.ndarray) and len(value):
            if bool((value != value[0]).any()):
                raise UnsupportedError(
                    f"The layers of {self.path} differ in {key}; such models are not supported."
                )
            value = value[0].item()
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._missing(key, "whole number")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A number: the shortest decimal fraction that its float32 can stand for."""
        value = self.get(key)
        if value is None:
            value = default
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._missing(key, "number")
        return decimal(value)

    def text(self, key: str) -> str | None:
        """A text, None if there is none."""
        value = self.get(key)
        if value is not None and not isinstance(value, str):
            raise self._missing(key, "text")
        return value

    def _missing(self, key: str, kind: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path} should have a {kind} under {self.architecture}.{key}; it is incomplete "
            "or damaged."
        )


def decimal(value: float) -> float:
    """The shortest decimal fraction that a float32 can stand for."""
    with np.errstate(over="ignore"):
        return float(str(np.float32(value)))
