"""The rotary embedding of a config.json, from every place where transformers has kept it.

Owns the words for bases and scalings, what a scaling reaches, and layers that differ in them.
Refuses the frequencies themselves: ``awq_edge.rope_scaling`` has their formulas.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from awq_edge.architecture import MAX_CONTEXT, MAX_HEAD_SIZE
from awq_edge.errors import CheckpointError, UnsupportedError
from awq_edge.rope_scaling import RopeScaling

from .values import Values, shown

FULL, SLIDING = "full_attention", "sliding_attention"
LAYER_TYPES = (FULL, SLIDING)

_LARGEST_ATTENTION_FACTOR = 100.0  # published ones lie between 1 and 1.5


@dataclasses.dataclass(frozen=True)
class Rope:
    """One rotary embedding."""

    theta: float  # 0: nothing is rotated
    scaling: RopeScaling | None
    context_length: int  # positions for which the frequencies are right
    attention_factor: float = 1.0  # of cosines and sines
    rotated: int = 0  # dimensions of a head; 0 = all

    def same_frequencies(self, other: Rope) -> bool:
        """Whether one table of frequencies serves both."""
        return (self.theta, self.scaling) == (other.theta, other.scaling)


@dataclasses.dataclass(frozen=True)
class LayerRopes:
    """The rotary embeddings of a model's layers: at most two tables of frequencies.

    Attributes:
        of_layers: One per layer.
        tables: Per layer, the number of its table.
        main: Made table 0.
        local: Made table 1, if there is one.
        context_length: Positions for which all are right.
    """

    of_layers: tuple[Rope, ...]
    tables: tuple[int, ...]
    main: Rope
    local: Rope | None
    context_length: int

    @classmethod
    def of(cls, main: Rope, local: Rope, is_local: Sequence[bool]) -> LayerRopes:
        """Two kinds of layers; a table that no layer reads, or that is the other, is not made."""
        used = {local if at else main for at in is_local}
        if all(is_local) and local.theta:
            main = local
        two = any(is_local) and not main.same_frequencies(local)
        # What nothing stretches holds at any distance; only a scaling ends.
        ends = [rope.context_length for rope in used if rope.scaling is not None]
        return cls(
            of_layers=tuple(local if at else main for at in is_local),
            tables=tuple(int(two and at) for at in is_local),
            main=main,
            local=local if two else None,
            context_length=min(ends, default=main.context_length),
        )


def rope_table(config: Values) -> Mapping[str, Any]:
    """The table of rotary parameters; the older name counts before the newer one."""
    values = config.get("rope_scaling") or config.get("rope_parameters")
    values = values or config.of_the_class("rope_parameters") or {}
    if not isinstance(values, Mapping):
        raise CheckpointError(f"config.json has rotary parameters {shown(values)}, not a table.")
    return values


def read_rope(config: Values, head_size: int, partial: bool) -> Rope:
    """The one rotary embedding of all layers.

    Args:
        config: The config.json.
        head_size: Dimensions of a head.
        partial: The family may rotate a part of each head.
    """
    values = rope_table(config)
    if _is_by_layer_type(values):
        raise UnsupportedError(
            "config.json has rotary parameters of their own for each type of layer; this family "
            "has one table for all layers."
        )
    beside = config.get("original_max_position_embeddings")
    theta = config.number_or("rope_theta", config.of_the_class("rope_theta"))
    rope = _read(config, values, theta, beside)
    share = _without_nulls(values).number(
        "partial_rotary_factor",
        config.number_or(
            "partial_rotary_factor", config.of_the_class("partial_rotary_factor") or 1.0
        ),
    )
    if not 0 < share <= 1 or (share != 1 and not partial):
        raise UnsupportedError("Models that rotate only a part of each head are not supported.")
    return rope if share == 1 else dataclasses.replace(rope, rotated=int(head_size * share))


def read_ropes_by_layer_type(
    config: Values, layer_types: Sequence[str], thetas: Mapping[str, float]
) -> LayerRopes:
    """Full layers and those with a window, each with a table of its own.

    Newer files have both in ``rope_parameters``; in older ones a ``rope_scaling`` is that of the
    full layers.

    Args:
        config: The config.json.
        layer_types: One of LAYER_TYPES per layer.
        thetas: The base of each type where its table has none.
    """
    tables = config.table("rope_parameters")
    if tables.values and not _is_by_layer_type(tables.values):
        raise UnsupportedError(
            "config.json has one table of rotary parameters; this family has one for each type of "
            "layer."
        )
    scaling = config.table("rope_scaling").values
    if _is_by_layer_type(scaling):
        raise UnsupportedError(
            "config.json has rotary parameters for each type of layer in rope_scaling; they belong "
            "into rope_parameters."
        )
    full, sliding = ({**tables.table(kind).values} for kind in LAYER_TYPES)
    if scaling:
        # Either word names the kind; the later table counts.
        full = {key: value for key, value in full.items() if key not in ("type", "rope_type")}
        full.update(scaling)
    for table in (full, sliding):
        if _without_nulls(table).number("partial_rotary_factor", 1.0) != 1:
            raise UnsupportedError("Models that rotate only a part of each head are not supported.")
    return LayerRopes.of(
        _read(config, full, thetas[FULL], None),
        _read(config, sliding, thetas[SLIDING], None),
        [kind == SLIDING for kind in layer_types],
    )


def without_some(rope: Rope, rotates: Sequence[bool]) -> LayerRopes:
    """Layers of which some rotate nothing.

    Args:
        rope: Of the layers that rotate.
        rotates: Whether a layer does.
    """
    nothing = Rope(0.0, None, rope.context_length)
    return LayerRopes.of(rope, nothing, [not does for does in rotates])


def _is_by_layer_type(values: Mapping[str, Any]) -> bool:
    return any(isinstance(value, Mapping) for value in values.values()) or any(
        kind in values for kind in LAYER_TYPES
    )


def _without_nulls(values: Mapping[str, Any]) -> Values:
    return Values({key: value for key, value in values.items() if value is not None}, {})


def _read(config: Values, values: Mapping[str, Any], theta: float, beside: Any) -> Rope:
    """One table of rotary parameters.

    Args:
        config: The config.json around it.
        values: The table.
        theta: The base if the table has none.
        beside: An original context that stands beside the table and counts before one in it.
    """
    table = _without_nulls(values)
    theta = table.number("rope_theta", theta)
    context = config.integer("max_position_embeddings")
    kind = table.get("rope_type", table.get("type", "default"))
    if kind == "default":
        return Rope(theta, None, context)
    if kind in ("linear", "dynamic"):
        return Rope(theta, RopeScaling(kind, table.number("factor")), context)
    stated = beside if beside is not None else table.get("original_max_position_embeddings")
    original = context
    if stated is not None:
        key = "original_max_position_embeddings"
        original = Values({key: stated}, {}).integer(key)
    if kind == "llama3":
        scaling = RopeScaling(
            "llama3",
            factor=table.number("factor"),
            low_frequency_factor=table.number("low_freq_factor"),
            high_frequency_factor=table.number("high_freq_factor"),
            original_context_length=original,
        )
        return Rope(theta, scaling, context)
    if kind == "yarn":
        return _yarn(values, table, theta, context, original)
    if kind == "longrope":
        return _longrope(table, theta, context, original)
    raise UnsupportedError(
        f"The rotary scaling {shown(kind)} is not supported; linear, dynamic, llama3, yarn and "
        "longrope are."
    )


def _yarn(
    values: Mapping[str, Any],
    table: Values,
    theta: float,
    context: int,
    original: int,
) -> Rope:
    """Yarn stretches at every length, so its reach is what the original one is stretched to."""
    if "factor" not in values:
        raise CheckpointError("config.json should have a number factor beside the rope_type yarn.")
    # Null stands for the ratio of the two lengths.
    factor = table.number("factor", context / max(original, 1))
    scaling = RopeScaling(
        "yarn",
        factor,
        original_context_length=original,
        beta_fast=table.number("beta_fast", 0) or 32.0,
        beta_slow=table.number("beta_slow", 0) or 1.0,
        truncate=table.flag("truncate", True),
    )

    def magnitude(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    numerator, denominator = table.number("mscale", 0), table.number("mscale_all_dim", 0)
    usual = magnitude(1.0)
    if numerator and denominator:
        usual = magnitude(numerator) / (magnitude(denominator) or math.nan)
    context = max(context, int(min(factor * original, MAX_CONTEXT)))
    return Rope(theta, scaling, context, _attention_factor(table, usual))


def _longrope(table: Values, theta: float, context: int, original: int) -> Rope:
    """The short factors, and with them the original context alone.

    Beyond it transformers turns every position by the long factors, the earlier ones too, so the
    two never hold within one text.
    """
    factors = table.get("short_factor")
    if not isinstance(factors, list) or not factors or len(factors) > MAX_HEAD_SIZE:
        raise CheckpointError("config.json should have a list short_factor beside longrope.")
    numbers = tuple(Values({"short_factor": value}, {}).number("short_factor") for value in factors)
    scaling = RopeScaling("longrope", 1.0, original_context_length=original, factors=numbers)
    stretched = table.number("factor", context / max(original, 1))
    usual = 1.0
    if stretched > 1:
        if original < 2:
            raise CheckpointError(f"config.json has an original context of {original} positions.")
        usual = math.sqrt(1.0 + math.log(stretched) / math.log(original))
    return Rope(theta, scaling, min(context, original), _attention_factor(table, usual))


def _attention_factor(table: Values, usual: float) -> float:
    factor = table.number("attention_factor", usual)
    if not 0 < factor <= _LARGEST_ATTENTION_FACTOR:
        raise UnsupportedError(
            f"The attention factor {factor:g} of the rotary scaling is out of range; it must lie "
            f"between 0 and {_LARGEST_ATTENTION_FACTOR:g}."
        )
    return factor


def turned_sections(config: Values) -> tuple[int, ...]:
    """How many angles of a head turn by each of the numbers of a position; empty: nothing is said.

    Raises:
        CheckpointError: What is said are no numbers.
    """
    sections = rope_table(config).get("mrope_section") or []
    if not isinstance(sections, list) or any(type(one) is not int for one in sections):
        raise CheckpointError(
            f"config.json has {shown(sections)} for mrope_section, which are no numbers of angles."
        )
    return tuple(sections)
