"""The entries of a GGUF file that describe its decoder, each with its type or one sentence.

Owns that a number is as precise as whoever wrote it meant it: the file keeps float32, a config.json
has the decimal fraction. Refuses families: ``gguf_families.py`` knows which entries they have.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from awq_edge.errors import CheckpointError, UnsupportedError

# Entries of the format by which a decoder computes otherwise, and the values that change nothing.
# llama.cpp reads each in some families, the scalings of positions in all; what it reads in none, or
# what only names a size, is not here.
_CHANGES: Mapping[str, tuple[float | bool, ...]] = {
    "activation_sparsity_scale": (),
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.output_scale": (0.0, 1.0),
    "attention.scale": (0.0,),
    "attention.shared_kv_layers": (0,),
    "attention.temperature_length": (0,),
    "attention.temperature_scale": (0.0,),
    "attn_logit_softcapping": (0.0,),
    "embedding_scale": (0.0, 1.0),
    "expert_count": (0,),
    "final_logit_softcapping": (0.0,),
    "logit_scale": (0.0, 1.0),
    "nextn_predict_layers": (0,),
    "residual_scale": (0.0, 1.0),
    "rope.dimension_sections": (0,),
    "rope.scaling.alpha": (0.0, 1.0),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_ext_factor": (-1.0, 1.0),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "swin_norm": (False,),
    "use_parallel_residual": (False,),
}


def _shown(value: Any) -> str:
    text = repr(value.tolist() if isinstance(value, np.ndarray) else value)
    return text if len(text) <= 40 else f"{text[:40]} …"


def _says_nothing(value: Any, neutral: tuple[float | bool, ...]) -> bool:
    values = value.tolist() if isinstance(value, np.ndarray) else [value]
    return all(isinstance(one, (int, float)) and one in neutral for one in values)


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
        self._asked: set[str] = set()

    def get(self, key: str) -> Any:
        """A value as it stands; None if there is none."""
        self._asked.add(key)
        return self.values.get(f"{self.architecture}.{key}")

    def refuse_unread(self) -> None:
        """Refuses what changes the arithmetic of a family and nobody has asked for.

        Raises:
            UnsupportedError: Such an entry is there, and says more than that nothing is changed.
        """
        for key in sorted(set(_CHANGES) - self._asked):
            value = self.values.get(f"{self.architecture}.{key}")
            if value is None or _says_nothing(value, _CHANGES[key]):
                continue
            raise UnsupportedError(
                f"{self.path} says {_shown(value)} for {self.architecture}.{key}, which is not "
                "supported in this family."
            )

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
        """A finite number: the shortest decimal fraction that its float32 can stand for."""
        value = self.get(key)
        if value is None:
            value = default
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._missing(key, "number")
        found = decimal(value)
        if not math.isfinite(found):
            raise self._missing(key, "finite number")
        return found

    def positive(self, key: str, default: float | None = None) -> float:
        """A number that something is multiplied or divided by."""
        found = self.number(key, default)
        if found <= 0:
            raise self._missing(key, "positive number")
        return found

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
