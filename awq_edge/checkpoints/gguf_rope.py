"""The rotary embedding of a GGUF file as a config.json writes it.

Owns the reading of llama.cpp's tables of factors: those of Llama 3 become its parameters again, so
that frequencies are computed as from the original config.json, and others stay a table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from awq_edge.checkpoints.gguf_entries import Entries, decimal
from awq_edge.errors import UnsupportedError

# Reads a small tensor of the file as float64; None if there is none.
Table = Callable[[str], "npt.NDArray[np.float64] | None"]

_FACTORS, _SHORT, _LONG = (
    "rope_freqs.weight",
    "rope_factors_short.weight",
    "rope_factors_long.weight",
)
# Of Llama 3's scaling in every published model; the other two numbers follow from the table.
_LOW, _HIGH = 1.0, 4.0
_SAME = 1e-5  # relative, of float32 tables computed in float32


def rope_config(entries: Entries, head_size: int, table: Table) -> dict[str, Any]:
    """Keys of a config.json.

    Args:
        entries: Of the file.
        head_size: Dimensions of a head.
        table: Reads a tensor.

    Raises:
        UnsupportedError: A scaling that no config.json has.
    """
    context = entries.integer("context_length")
    theta = entries.positive("rope.freq_base", 10000.0)
    config: dict[str, Any] = {"rope_theta": theta, "max_position_embeddings": context}
    rotated = entries.integer("rope.dimension_count", head_size)
    if rotated != head_size:
        share = rotated / head_size
        if int(head_size * share) < rotated:  # the quotient was rounded down
            share = math.nextafter(share, 1.0)
        config["partial_rotary_factor"] = share
    original = entries.integer("rope.scaling.original_context_length", context)
    scaling: Mapping[str, Any] | None = None
    short, long, factors = table(_SHORT), table(_LONG), table(_FACTORS)
    if short is not None and long is not None:
        scaling = {
            "rope_type": "longrope",
            "short_factor": [decimal(value) for value in short],
            "long_factor": [decimal(value) for value in long],
            **_attention_factor(entries, context, original),
        }
        config["original_max_position_embeddings"] = original
    elif factors is not None and not bool((factors == 1).all()):
        scaling = _llama3(factors, theta, rotated)
        if scaling is None:
            listed = [decimal(value) for value in factors]
            scaling = {"rope_type": "longrope", "short_factor": listed, "long_factor": listed}
            config["original_max_position_embeddings"] = context
    else:
        scaling = _named(entries, original)
    if scaling is not None:
        config["rope_scaling"] = scaling
    return config


def _named(entries: Entries, original: int) -> Mapping[str, Any] | None:
    kind = entries.text("rope.scaling.type")
    factor = entries.number("rope.scaling.factor", entries.number("rope.scale_linear", 1.0))
    if kind == "none" or factor == 1.0:
        return None
    if kind in (None, "linear"):
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        return {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original,
            "beta_fast": entries.number("rope.scaling.yarn_beta_fast", 32.0),
            "beta_slow": entries.number("rope.scaling.yarn_beta_slow", 1.0),
        }
    raise UnsupportedError(
        f"The rotary scaling {kind!r} of {entries.path} is not supported; linear, yarn and tables "
        "of factors are."
    )


def _attention_factor(entries: Entries, context: int, original: int) -> dict[str, float]:
    """What cosines are multiplied by, where it is not what follows from the two lengths."""
    stored = entries.number("rope.scaling.attn_factor", 0.0)
    stretched = context / max(original, 1)
    usual = 1.0
    if stretched > 1 and original > 1:
        usual = math.sqrt(1.0 + math.log(stretched) / math.log(original))
    if not stored or abs(stored / usual - 1) < _SAME:
        return {}
    return {"attention_factor": stored}


def _llama3(
    factors: npt.NDArray[np.float64], theta: float, rotated: int
) -> Mapping[str, Any] | None:
    """Parameters of Llama 3's scaling that give a table; None if there are none."""
    if 2 * len(factors) != rotated:
        return None
    turns = theta ** -(np.arange(0, rotated, 2, dtype=np.float64) / rotated) / (2 * np.pi)
    factor = decimal(factors.max())
    between = np.flatnonzero((factors > 1) & (factors < factor * (1 - _SAME)))
    if not len(between) or factor <= 1:
        return None
    pair = between[0]
    blend = (1 / factors[pair] - 1 / factor) / (1 - 1 / factor)
    original = round((blend * (_HIGH - _LOW) + _LOW) / turns[pair])
    blends = np.clip((original * turns - _LOW) / (_HIGH - _LOW), 0.0, 1.0)
    made = 1 / ((1 - blends) / factor + blends)
    if not np.allclose(made, factors, rtol=_SAME, atol=0):
        return None
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": _LOW,
        "high_freq_factor": _HIGH,
        "original_max_position_embeddings": original,
    }
