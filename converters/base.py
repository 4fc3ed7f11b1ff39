"""The Converter record, the registry by ``config.model_type``, and how a config.json is read.

Owns what families share in their configurations. Refuses mathematics and weights: a converter says
which names to read and what the decoder looks like. A new family is a new file in this folder.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import pkgutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from awq_edge.architecture import (
    MAX_CONTEXT,
    MAX_HEAD_SIZE,
    Architecture,
    RopeScaling,
    check_layers,
)
from awq_edge.errors import CheckpointError, InvalidArgumentError, UnsupportedError

# Our tensor names to theirs, for the many families that follow Llama; N stands for the layer.
LLAMA_NAMES = {
    "token_embd": "model.embed_tokens",
    "output": "lm_head",
    "output_norm": "model.norm",
    "blk.N.attn_norm": "model.layers.N.input_layernorm",
    "blk.N.attn_q": "model.layers.N.self_attn.q_proj",
    "blk.N.attn_k": "model.layers.N.self_attn.k_proj",
    "blk.N.attn_v": "model.layers.N.self_attn.v_proj",
    "blk.N.attn_output": "model.layers.N.self_attn.o_proj",
    "blk.N.ffn_norm": "model.layers.N.post_attention_layernorm",
    "blk.N.ffn_gate": "model.layers.N.mlp.gate_proj",
    "blk.N.ffn_up": "model.layers.N.mlp.up_proj",
    "blk.N.ffn_down": "model.layers.N.mlp.down_proj",
}


# What the classes of transformers take for keys that a config.json leaves out, where all agree.
SHARED_DEFAULTS: Mapping[str, Any] = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
}

_STATES = "its layers keep a recurrent state, and the decoder here attends to positions"
_ENCODER = "it has an encoder, and the decoder here has none to attend to"
# Families that people ask for, and why no converter can make them a decoder of ours.
_REFUSED: Mapping[str, str] = {
    **dict.fromkeys(
        ("mamba", "mamba2", "falcon_mamba", "rwkv", "recurrent_gemma", "jamba", "zamba2"), _STATES
    ),
    **dict.fromkeys(("lfm2", "qwen3_next", "granitemoehybrid", "falcon_h1", "nemotron_h"), _STATES),
    **dict.fromkeys(("t5", "mt5", "umt5", "bart", "t5gemma", "whisper"), _ENCODER),
    "gpt_oss": "its attention has sink weights, and its experts are stored in 4-bit floats",
    "gemma3n": "its layers read embeddings of their own and predict each other's streams",
    "minicpm3": "its keys and values are compressed together (latent attention)",
    "deepseek_v2": "its keys and values are compressed together (latent attention)",
    "deepseek_v3": "its keys and values are compressed together (latent attention)",
    "phi3small": "its attention is sparse by blocks",
    "gpt_bigcode-santacoder": "it is code of its own; use the files of the type gpt_bigcode",
    "chatglm": "it is code of its own; use the files of the type glm",
}

# What configurations call the functions of Architecture.activation. All spellings of the tanh form
# are one function within rounding; "gelu" alone is the exact one.
_ACTIVATIONS: Mapping[str, str] = {
    **dict.fromkeys(("silu", "swish"), "silu"),
    **dict.fromkeys(("gelu", "gelu_python"), "gelu"),
    **dict.fromkeys(("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate"), "gelu_tanh"),
    "relu": "relu",
}

_LAYER_TYPES = ("full_attention", "sliding_attention")
# Sizes beyond are refused where they are read, so that nothing is ever made in such a number.
_LARGEST = (1 << 31) - 1
_LARGEST_ATTENTION_FACTOR = 100.0  # published ones lie between 1 and 1.5


@dataclasses.dataclass(frozen=True)
class Stored:
    """One of our tensors as a checkpoint holds it: ours = offset + factor * theirs[rows].

    ``parts`` tensors, numbered where the name has an A, may hold it one after the other; and one
    that no checkpoint holds has its ``values`` here.
    """

    rows: npt.NDArray[np.int64] | None = None  # of a fused or otherwise ordered tensor; None: all
    all_rows: int = 0  # of the tensor that they are rows of
    factor: float = 1.0
    offset: float = 0.0
    row_factors: npt.NDArray[np.float32] | None = None  # of our rows, where they differ
    parts: int = 0  # 0: one tensor
    values: npt.NDArray[np.float32] | None = None


_AS_IT_IS = Stored()


def _no_changes(config: Config, architecture: Architecture, stem: str) -> Stored:
    return _AS_IT_IS


@dataclasses.dataclass(frozen=True)
class Converter:
    """One model family, or an older form of one under a type of its own.

    ``stored`` absorbs what a family does otherwise than the decoder, exactly: fused rows, other
    pairs of the rotary embedding, multipliers, norms around one. It gets a name of ours without
    ``blk.N.`` and without ``.weight`` or ``.bias``, whose rows and factor are the same.
    """

    model_type: str  # of config.json
    names: Mapping[str, str]  # ours to theirs, without ".weight" and ".bias"
    read_config: Callable[[Config], Architecture]
    defaults: Mapping[str, Any]  # of the family's class, for keys that are absent
    stored: Callable[[Config, Architecture, str], Stored] = _no_changes
    # What the family calls the keys that Config reads for all, those in front first.
    keys: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    # Names, ours to theirs, that a configuration decides about; find() puts them into ``names``.
    names_of: Callable[[Config], Mapping[str, str]] = lambda _: {}

    def config(self, values: Mapping[str, Any]) -> Config:
        """A config.json of the family."""
        return Config(values, self.defaults, self.keys)

    def architecture(self, config: Mapping[str, Any]) -> Architecture:
        """The decoder that a config.json describes."""
        return self.read_config(self.config(config))

    def query_factor(self, config: Mapping[str, Any]) -> float:
        """What queries are multiplied by beyond the decoder's own 1/sqrt(d).

        Some rotary scalings multiply cosines and sines by a constant m. A score then has the factor
        m * m; taken into the queries it needs nothing of the decoder.
        """
        return self.config(config).rope(partial=True).attention_factor ** 2

    def changes(self, config: Mapping[str, Any], architecture: Architecture, name: str) -> Stored:
        """What makes a tensor of the checkpoint ours, for example ``blk.3.attn_q.weight``."""
        stem = name.rpartition(".")[0].rpartition(".")[2]
        change = self.stored(self.config(config), architecture, stem)
        scaled = "attn_q_norm" if architecture.qk_norm else "attn_q"
        if stem != scaled:
            return change
        factor = self.query_factor(config)
        d, r = architecture.head_size, architecture.rotary_size
        if r and factor != 1 and not architecture.qk_norm:
            # What stands still has no cosine and no sine that would be multiplied.
            half = np.where(np.arange(d // 2) < r // 2, factor, 1.0)
            factors = np.tile(half, 2 * architecture.heads).astype(np.float32)
            return dataclasses.replace(change, row_factors=factors)
        return dataclasses.replace(
            change, factor=change.factor * factor, offset=change.offset * factor
        )

    def checkpoint_name(self, name: str) -> str:
        """The checkpoint's name of one of our tensors, for example ``blk.3.attn_q.weight``."""
        stem, _, kind = name.rpartition(".")
        parts = stem.split(".")
        if parts[0] == "blk":
            layer = parts[1]
            return f"{self.names[f'blk.N.{parts[2]}'].replace('.N.', f'.{layer}.')}.{kind}"
        return f"{self.names[stem]}.{kind}"


@dataclasses.dataclass(frozen=True)
class Rope:
    """The rotary embedding of a config.json."""

    theta: float
    scaling: RopeScaling | None
    context_length: int  # positions for which the frequencies are right
    attention_factor: float = 1.0  # of cosines and sines
    rotated: int = 0  # dimensions of a head; 0 = all


class Config:
    """A config.json whose values are fetched with their type, or refused in one sentence.

    A key that is absent has the value of the family's class; null is what the class makes of it,
    where it knows a meaning, and refused elsewhere.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        defaults: Mapping[str, Any],
        keys: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        """Takes the parsed file, or a table in it, the values of absent keys, and other names."""
        self._values = values
        self._defaults = defaults
        self._keys = {} if keys is None else keys

    def get(self, key: str, default: Any = None) -> Any:
        """A value as it stands, None for null; an absent one is the class's, or ``default``."""
        return self._values.get(self._called(key), self._defaults.get(key, default))

    def _called(self, key: str) -> str:
        """The name under which the file has a key; an absent one is called as in the family."""
        names = (*self._keys.get(key, ()), key)
        return next((name for name in names if name in self._values), names[0])

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number that counts something."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise CheckpointError(
                f"config.json should have a whole number {self._called(key)}; it has "
                f"{_shown(value)}."
            )
        if not -_LARGEST <= value <= _LARGEST:
            raise CheckpointError(
                f"config.json has {_shown(value)} for {self._called(key)}, which is too large."
            )
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number."""
        value = self.get(key, default)
        try:
            if not isinstance(value, bool) and math.isfinite(value):
                return float(value)
        except (TypeError, OverflowError):
            pass
        raise CheckpointError(
            f"config.json should have a number {self._called(key)}; it has {_shown(value)}."
        )

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false; null is the default."""
        value = self.get(key, default)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise CheckpointError(
                f"config.json should say true or false for {self._called(key)}, not "
                f"{_shown(value)}."
            )
        return value

    def table(self, key: str) -> Config:
        """A table of further keys; null and absent: an empty one."""
        values = {} if self.get(key) is None else self.get(key)
        if not isinstance(values, Mapping):
            raise CheckpointError(
                f"config.json should have a table {self._called(key)}, not {_shown(values)}."
            )
        return Config(values, {})

    def activation(self, key: str = "hidden_act") -> str:
        """The function of the feed-forward, in the words of the Architecture record."""
        name = self.get(key)
        if not isinstance(name, str) or name not in _ACTIVATIONS:
            raise UnsupportedError(
                f"The activation {_shown(name)} is not supported; {', '.join(_ACTIVATIONS)} are."
            )
        return _ACTIVATIONS[name]

    def layers(self) -> int:
        """How many layers there are, a number that a model file can have."""
        layers = self.integer("num_hidden_layers")
        check_layers(layers)
        return layers

    def heads(self) -> int:
        """How many query heads there are, at least one."""
        heads = self.integer("num_attention_heads")
        if heads < 1:
            raise InvalidArgumentError(f"The model's heads is {heads}; it must be positive.")
        return heads

    def kv_heads(self) -> int:
        """How many key-value heads there are; null: as many as query heads."""
        if self.get("num_key_value_heads") is None:
            return self.heads()
        return self.integer("num_key_value_heads")

    def head_size(self) -> int:
        """Width of a head; null: the hidden size is divided among the heads."""
        if self.get("head_dim") is None:
            return self.integer("hidden_size") // self.heads()
        return self.integer("head_dim")

    def rope(self, partial: bool = False) -> Rope:
        """Base, scaling and reach, from every place where transformers has kept them.

        Args:
            partial: The family may rotate a part of each head.
        """
        values = self.get("rope_scaling") or self.get("rope_parameters") or {}
        if not isinstance(values, Mapping):
            raise CheckpointError(
                f"config.json has rotary parameters {_shown(values)}, not a table."
            )
        if any(isinstance(value, Mapping) for value in values.values()) or any(
            kind in values for kind in _LAYER_TYPES
        ):
            raise UnsupportedError(
                "config.json has rotary parameters of their own for each type of layer; only one "
                "table for all layers is supported."
            )
        table = Config({key: value for key, value in values.items() if value is not None}, {})
        share = table.number(
            "partial_rotary_factor",
            self._or("partial_rotary_factor", self._defaults.get("partial_rotary_factor", 1.0)),
        )
        if not 0 < share <= 1 or (share != 1 and not partial):
            raise UnsupportedError("Models that rotate only a part of each head are not supported.")
        if partial:
            whole = self._rope(values, table)
            rotated = int(self.head_size() * share)
            return whole if share == 1 else dataclasses.replace(whole, rotated=rotated)
        return self._rope(values, table)

    def _rope(self, values: Mapping[str, Any], table: Config) -> Rope:
        theta = table.number("rope_theta", self._or("rope_theta", self._defaults["rope_theta"]))
        context = self.integer("max_position_embeddings")
        kind = table.get("rope_type", table.get("type", "default"))
        if kind == "default":
            return Rope(theta, None, context)
        if kind in ("linear", "dynamic"):
            return Rope(theta, RopeScaling(kind, table.number("factor")), context)
        # A length beside the table counts before one in it.
        beside = self.get("original_max_position_embeddings")
        stated = beside if beside is not None else table.get("original_max_position_embeddings")
        original = context
        if stated is not None:
            key = "original_max_position_embeddings"
            original = Config({key: stated}, {}).integer(key)
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
            f"The rotary scaling {_shown(kind)} is not supported; linear, dynamic, llama3, yarn "
            "and longrope are."
        )

    def decoder(self, **fields: Any) -> Architecture:
        """The fields that families name alike; ``fields`` adds or overrides.

        Where these say that positions are not rotary, nothing rotary is read.
        """
        if "activation" not in fields:
            activation = self.get("hidden_act")
            if activation not in ("silu", "swish"):
                raise UnsupportedError(
                    f"The activation {_shown(activation)} is not supported; only silu is."
                )
        partial = fields.pop("partial_rotary", False)
        if fields.get("position", "rotary") == "rotary":
            rope = self.rope(partial)
        else:
            rope = Rope(SHARED_DEFAULTS["rope_theta"], None, 0)
        readers: dict[str, Callable[[], Any]] = {
            "layers": self.layers,
            "hidden_size": lambda: self.integer("hidden_size"),
            "vocabulary_size": lambda: self.integer("vocab_size"),
            "context_length": lambda: (
                rope.context_length or self.integer("max_position_embeddings")
            ),
            "heads": self.heads,
            "kv_heads": self.kv_heads,
            "head_size": self.head_size,
            "feed_forward_size": lambda: self.integer("intermediate_size"),
            "norm_epsilon": lambda: self.number("rms_norm_eps"),
            "rope_theta": lambda: rope.theta,
            "rope_scaling": lambda: rope.scaling,
            "rotary_size": lambda: rope.rotated,
            "tied_head": lambda: self.flag(
                "tie_word_embeddings", self._defaults["tie_word_embeddings"]
            ),
        }
        values = {name: read() for name, read in readers.items() if name not in fields}
        return Architecture(**{**values, **fields})

    def qwen_windows(self) -> tuple[int, ...]:
        """Sliding windows as Qwen writes them: a switch, then the first layer or a list."""
        layers = self.layers()
        window = None
        if self.flag("use_sliding_window") and self.get("sliding_window") is not None:
            window = self.integer("sliding_window")
        kinds = self.get("layer_types")
        if kinds is None:
            first = self.integer("max_window_layers")
            return tuple(window or 0 if layer >= first else 0 for layer in range(layers))
        if not isinstance(kinds, list) or len(kinds) != layers:
            raise CheckpointError(f"config.json should have a list layer_types of {layers} words.")
        for kind in kinds:
            if kind not in _LAYER_TYPES:
                raise UnsupportedError(f"The layer type {_shown(kind)} is not supported.")
        if window is None and "sliding_attention" in kinds:
            raise CheckpointError(
                "config.json has layers with a sliding window in layer_types, but no window; set "
                "use_sliding_window and sliding_window, or make them full_attention."
            )
        return tuple(window or 0 if kind == "sliding_attention" else 0 for kind in kinds)

    def _or(self, key: str, default: float) -> float:
        """A number beside the rotary table; null counts as absent."""
        return default if self.get(key) is None else self.number(key)


def _yarn(
    values: Mapping[str, Any],
    table: Config,
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


def _longrope(table: Config, theta: float, context: int, original: int) -> Rope:
    """The short factors, and with them the original context alone.

    Beyond it transformers turns every position by the long factors, the earlier ones too, so the
    two never hold within one text.
    """
    factors = table.get("short_factor")
    if not isinstance(factors, list) or not factors or len(factors) > MAX_HEAD_SIZE:
        raise CheckpointError("config.json should have a list short_factor beside longrope.")
    numbers = tuple(Config({"short_factor": value}, {}).number("short_factor") for value in factors)
    scaling = RopeScaling("longrope", 1.0, original_context_length=original, factors=numbers)
    stretched = table.number("factor", context / max(original, 1))
    usual = 1.0
    if stretched > 1:
        if original < 2:
            raise CheckpointError(f"config.json has an original context of {original} positions.")
        usual = math.sqrt(1.0 + math.log(stretched) / math.log(original))
    return Rope(theta, scaling, min(context, original), _attention_factor(table, usual))


def _attention_factor(table: Config, usual: float) -> float:
    factor = table.number("attention_factor", usual)
    if not 0 < factor <= _LARGEST_ATTENTION_FACTOR:
        raise UnsupportedError(
            f"The attention factor {factor:g} of the rotary scaling is out of range; it must lie "
            f"between 0 and {_LARGEST_ATTENTION_FACTOR:g}."
        )
    return factor


def _shown(value: Any) -> str:
    """A value of a config.json for an error text: as JSON, and short."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]} …"


def known_model_types() -> list[str]:
    """Every supported ``model_type``, in order."""
    return sorted(_registry())


def find(config: Mapping[str, Any]) -> Converter:
    """The converter for a config.json.

    Raises:
        UnsupportedError: No file in this folder is for its family.
    """
    model_type = config.get("model_type")
    converter = _registry().get(model_type) if isinstance(model_type, str) else None
    if converter is None:
        reason = _REFUSED.get(model_type) if isinstance(model_type, str) else None
        if reason is not None:
            raise UnsupportedError(
                f"The model type {_shown(model_type)} is not supported: {reason}."
            )
        known = ", ".join(known_model_types())
        raise UnsupportedError(
            f"The model type {_shown(model_type)} is not supported; the known ones are {known}."
        )
    names = {**converter.names, **converter.names_of(converter.config(config))}
    return dataclasses.replace(converter, names=names)


def _registry() -> dict[str, Converter]:
    """CONVERTER, or CONVERTERS, of every other file in this folder, by their model types."""
    package = __name__.rpartition(".")[0]
    modules = [
        importlib.import_module(f"{package}.{module.name}")
        for module in pkgutil.iter_modules([str(Path(__file__).parent)])
        if module.name != "base"
    ]
    converters = [
        converter
        for module in modules
        for converter in getattr(module, "CONVERTERS", None) or (module.CONVERTER,)
    ]
    return {converter.model_type: converter for converter in converters}


def head_rows(
    architecture: Architecture,
    heads: range,
    rows_of_head: Callable[[int], int],
    turned: bool,
    interleaved: bool = False,
) -> npt.NDArray[np.int64]:
    """Rows of a stored matrix that make the rows of our queries, keys or values.

    Our decoder turns dimension i of a head with i + d / 2, the last pairs by nothing where only a
    part is rotated. A common order of the rows of queries and keys changes no score.

    Args:
        architecture: The decoder.
        heads: Numbers of the heads.
        rows_of_head: The first stored row of a head.
        turned: They are queries or keys.
        interleaved: The family turns dimension 2 i with 2 i + 1.
    """
    d = architecture.head_size
    r = architecture.rotary_size or d
    order = np.arange(d)
    if turned:
        rotated = order[:r].reshape(-1, 2).T if interleaved else order[:r].reshape(2, -1)
        still = order[r:].reshape(2, -1)
        order = np.concatenate((rotated, still), axis=1).reshape(-1)
    return np.concatenate([rows_of_head(head) + order for head in heads]).astype(np.int64)


def fused_qkv(a: Architecture, stem: str, interleaved: bool = False) -> Stored | None:
    """Rows of q, k and v one after the other."""
    firsts = {"attn_q": 0, "attn_k": a.heads, "attn_v": a.heads + a.kv_heads}
    if stem not in firsts:
        return None
    first, d = firsts[stem], a.head_size
    heads = range(a.heads if stem == "attn_q" else a.kv_heads)
    rows = head_rows(a, heads, lambda head: (first + head) * d, stem != "attn_v", interleaved)
    return Stored(rows=rows, all_rows=(a.heads + 2 * a.kv_heads) * d)


def fused_by_kv_head(a: Architecture, stem: str, interleaved: bool = False) -> Stored | None:
    """Rows by key-value head: of the queries that share it, then of the key, then of the value."""
    if stem not in ("attn_q", "attn_k", "attn_v"):
        return None
    n, d = a.heads // a.kv_heads, a.head_size
    if stem == "attn_q":
        heads = range(a.heads)
        rows = head_rows(
            a, heads, lambda head: (head // n * (n + 2) + head % n) * d, True, interleaved
        )
    else:
        behind, heads = n + (stem == "attn_v"), range(a.kv_heads)
        rows = head_rows(
            a, heads, lambda head: (head * (n + 2) + behind) * d, stem == "attn_k", interleaved
        )
    return Stored(rows=rows, all_rows=a.kv_heads * (n + 2) * d)


def separate_qk(a: Architecture, stem: str, interleaved: bool = False) -> Stored | None:
    """Rows of queries and keys that have a matrix each."""
    if stem not in ("attn_q", "attn_k"):
        return None
    heads, d = a.heads if stem == "attn_q" else a.kv_heads, a.head_size
    rows = head_rows(a, range(heads), lambda head: head * d, True, interleaved)
    return Stored(rows=rows, all_rows=heads * d)


def fused_gate_up(a: Architecture, stem: str) -> Stored | None:
    """Rows of gate, then those of up."""
    if stem not in ("ffn_gate", "ffn_up"):
        return None
    width = a.feed_forward_size
    first = 0 if stem == "ffn_gate" else width
    return Stored(rows=np.arange(first, first + width), all_rows=2 * width)


def multiplied(
    a: Architecture, stem: str, *, embedding: float, residual: float, logits: float
) -> Stored:
    """Multipliers of the embedding, of both branches and of the logits, in the weights.

    A tied head reads the multiplied embedding, so the norm before it takes that back.
    """
    if stem == "token_embd":
        return Stored(factor=embedding)
    if stem in ("attn_output", "ffn_down"):
        return Stored(factor=residual)
    if stem == "output_norm":
        return Stored(factor=logits / embedding if a.tied_head else logits)
    return Stored()
