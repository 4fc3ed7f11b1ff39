"""The Converter record, the registry by ``config.model_type``, and how a config.json is read.

Owns what families share in their configurations. Refuses mathematics and weights: a converter says
which names to read and what the decoder looks like. A new family is a new file in this folder.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from awq_edge.architecture import Architecture, check_layers
from awq_edge.errors import CheckpointError, InvalidArgumentError, UnsupportedError
from awq_edge.stages import tensor_shape

from .refused import reason, refuse_other_models
from .rotary import FULL, LAYER_TYPES, SLIDING, LayerRopes, Rope, read_rope
from .text_part import WRAPPERS
from .values import Values, shown

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

# What configurations call the functions of Architecture.activation. All spellings of the tanh form
# are one function within rounding; "gelu" alone is the exact one.
_ACTIVATIONS: Mapping[str, str] = {
    **dict.fromkeys(("silu", "swish"), "silu"),
    **dict.fromkeys(("gelu", "gelu_python"), "gelu"),
    **dict.fromkeys(("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate"), "gelu_tanh"),
    "relu": "relu",
}


@dataclasses.dataclass(frozen=True)
class Product:
    """A matrix of the checkpoint that each row of ours is multiplied by."""

    name: str  # whole, with ".weight"
    shape: tuple[int, int]
    transposed: bool = False


@dataclasses.dataclass(frozen=True)
class Stored:
    """One of our tensors as a checkpoint holds it.

    ours = (offset + factor * theirs[rows]) * row_factors @ product.

    ``parts`` tensors, numbered where the name has an A, may hold it one after the other; and one
    that no checkpoint holds has its ``values`` here.
    """

    rows: npt.NDArray[np.int64] | None = None  # of a fused or otherwise ordered tensor; None: all
    all_rows: int = 0  # of the tensor that they are rows of
    factor: float = 1.0
    offset: float = 0.0
    row_factors: npt.NDArray[np.float32] | None = None  # of our rows, where they differ
    parts: int = 0  # 0: one tensor
    columns: int = 0  # of a stored matrix whose rows, one after the other, are our vector
    product: Product | None = None
    values: npt.NDArray[np.float32] | None = None
    inverted: bool = False  # theirs divides what ours multiplies: 1 / theirs

    @property
    def as_it_is(self) -> bool:
        """Whether ours is theirs."""
        numbers = (self.factor, self.offset, self.parts, self.columns, self.inverted)
        others = (self.rows, self.row_factors, self.product, self.values)
        return numbers == (1.0, 0.0, 0, 0, False) and all(other is None for other in others)


@dataclasses.dataclass(frozen=True)
class Slice:
    """Rows of one of the matrices that a checkpoint holds in one tensor [matrices, n, k]."""

    name: str  # whole
    shape: tuple[int, int, int]
    matrix: int
    first_row: int


_AS_IT_IS = Stored()


def _one_rope(config: Config) -> LayerRopes:
    rope = config.rope(partial=True)
    return LayerRopes.of(rope, rope, [False] * config.layers())


def _no_slices(architecture: Architecture, name: str, stored: str) -> Slice | None:
    return None


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
    # Keys that other families read, and whose values this one's class takes no notice of.
    unread: frozenset[str] = frozenset()
    # Parts of their names by what the class itself calls them; a file of a state dict has those.
    other_names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    # Names, ours to theirs, that a configuration decides about; find() puts them into ``names``.
    names_of: Callable[[Config], Mapping[str, str]] = lambda _: {}
    # Whether head and embedding are made of one table though they differ, by their products.
    shares_table: Callable[[Config], bool] = lambda _: False
    ropes: Callable[[Config], LayerRopes] = _one_rope  # the layers' rotary embeddings
    # Where a tensor of ours may lie instead, for our name and theirs.
    stacked: Callable[[Architecture, str, str], Slice | None] = _no_slices

    def config(self, values: Mapping[str, Any]) -> Config:
        """A config.json of the family."""
        read = {key: value for key, value in values.items() if key not in self.unread}
        return Config(read, self.defaults, self.keys)

    def architecture(self, config: Mapping[str, Any]) -> Architecture:
        """The decoder that a config.json describes."""
        return self.read_config(self.config(config))

    def query_factor(self, config: Mapping[str, Any], layer: int = 0) -> float:
        """What queries of a layer are multiplied by beyond the decoder's own 1/sqrt(d).

        Some rotary scalings multiply cosines and sines by a constant m. A score then has the factor
        m * m; taken into the queries it needs nothing of the decoder.
        """
        return self.ropes(self.config(config)).of_layers[layer].attention_factor ** 2

    def changes(self, config: Mapping[str, Any], architecture: Architecture, name: str) -> Stored:
        """What makes a tensor of the checkpoint ours, for example ``blk.3.attn_q.weight``."""
        a, parts = architecture, name.split(".")
        stem = parts[-2]
        if stem == "ffn_act":
            return Stored(inverted=True)  # as the one tool that writes such scales does
        change = self.stored(self.config(config), a, stem)
        if stem != ("attn_q_norm" if a.qk_norm else "attn_q") or a.position != "rotary":
            return change
        factor = self.query_factor(config, int(parts[1]))
        if factor == 1:
            return change
        d, r = a.head_size, a.rotary_size
        if r:
            # What stands still has no cosine and no sine that would be multiplied.
            half = np.where(np.arange(d // 2) < r // 2, factor, 1.0)
            heads = tensor_shape(a, name)[0] // d
            factors = np.tile(half, 2 * heads).astype(np.float32)
            return dataclasses.replace(change, row_factors=factors)
        return dataclasses.replace(
            change, factor=change.factor * factor, offset=change.offset * factor
        )

    def checkpoint_name(self, name: str) -> str:
        """The checkpoint's name of one of our tensors, for example ``blk.3.attn_q.weight``."""
        stem, _, kind = name.rpartition(".")
        parts = stem.split(".")
        if parts[0] == "blk":
            # blk.3.attn_q, or blk.3.expert.7.ffn_up
            numbers = dict(zip(("N", "E"), (part for part in parts if part.isdigit())))
            letters = iter(numbers)
            ours = ".".join(next(letters) if part.isdigit() else part for part in parts)
            theirs = self.names[ours]
            for letter, number in numbers.items():
                theirs = theirs.replace(f".{letter}.", f".{number}.")
            return f"{theirs}.{kind}"
        return f"{self.names[stem]}.{kind}"


class Config(Values):
    """A config.json, and what many families say alike in theirs."""

    def activation(self, key: str = "hidden_act") -> str:
        """The function of the feed-forward, in the words of the Architecture record."""
        name = self.get(key)
        if not isinstance(name, str) or name not in _ACTIVATIONS:
            raise UnsupportedError(
                f"The activation {shown(name)} is not supported; {', '.join(_ACTIVATIONS)} are."
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
        """The rotary embedding that all layers share.

        Args:
            partial: The family may rotate a part of each head.
        """
        return read_rope(self, self.head_size(), partial)

    def decoder(self, **fields: Any) -> Architecture:
        """The fields that families name alike.

        Args:
            fields: What to add or to override; beside fields of the record ``partial_rotary``
                (whether a part of each head may be rotated) or ``ropes`` (layers that differ in
                their rotary embedding). Where positions are not rotary, nothing rotary is read.
        """
        if "activation" not in fields:
            activation = self.get("hidden_act")
            if activation not in ("silu", "swish"):
                raise UnsupportedError(
                    f"The activation {shown(activation)} is not supported; only silu is."
                )
        if self.get("head_dim") is not None and self.integer("head_dim") < 1:
            # Families that divide the hidden size would not look, and transformers then turns none.
            raise InvalidArgumentError(
                f"The model's head_dim is {self.integer('head_dim')}; it must be positive."
            )
        partial, ropes = fields.pop("partial_rotary", False), fields.pop("ropes", None)
        context = 0
        if fields.get("position", "rotary") != "rotary":
            rope = Rope(SHARED_DEFAULTS["rope_theta"], None, 0)
        elif ropes is None:
            rope = self.rope(partial)
            context = rope.context_length
        else:
            rope, context = ropes.main, ropes.context_length
            if ropes.local is not None:
                fields = {
                    "rope_tables": ropes.tables,
                    "local_rope_theta": ropes.local.theta,
                    "local_rope_scaling": ropes.local.scaling,
                    **fields,
                }
        readers: dict[str, Callable[[], Any]] = {
            "layers": self.layers,
            "hidden_size": lambda: self.integer("hidden_size"),
            "vocabulary_size": lambda: self.integer("vocab_size"),
            "context_length": lambda: context or self.integer("max_position_embeddings"),
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

    def cap(self, key: str) -> float:
        """A soft cap c, which makes c * tanh(x / c) of x; null: none, which is 0 in the record."""
        if self.get(key) is None:
            return 0.0
        cap = self.number(key)
        if cap <= 0:
            raise UnsupportedError(f"config.json has {cap:g} for {key}; a cap must be positive.")
        return cap

    def layer_types(self, slides: Callable[[int], bool]) -> tuple[str, ...]:
        """``full_attention`` or ``sliding_attention`` for each layer.

        Args:
            slides: Whether a layer has a window where no list says so.
        """
        layers = self.layers()
        kinds = self.get("layer_types")
        if kinds is None:
            return tuple(SLIDING if slides(layer) else FULL for layer in range(layers))
        if not isinstance(kinds, list) or len(kinds) != layers:
            raise CheckpointError(f"config.json should have a list layer_types of {layers} words.")
        for kind in kinds:
            if kind not in LAYER_TYPES:
                raise UnsupportedError(f"The layer type {shown(kind)} is not supported.")
        return tuple(kinds)

    def windows(self, layer_types: Sequence[str], used: bool = True) -> tuple[int, ...]:
        """Sliding windows of layers, 0 where everything is seen.

        Args:
            layer_types: What each layer is.
            used: Whether ``sliding_window`` counts.
        """
        if SLIDING not in layer_types:
            return (0,) * len(layer_types)
        if not used or self.get("sliding_window") is None:
            raise CheckpointError(
                "config.json has layers with a sliding window in layer_types, but no window; set "
                "sliding_window, and use_sliding_window where the family has it, or make them "
                "full_attention."
            )
        window = self.integer("sliding_window")
        return tuple(window if kind == SLIDING else 0 for kind in layer_types)

    def qwen_windows(self) -> tuple[int, ...]:
        """Sliding windows as Qwen writes them: a switch, then the first layer or a list."""
        used = self.flag("use_sliding_window") and self.get("sliding_window") is not None
        # Read even where it does not count: a word in its place is refused.
        first = self.integer("max_window_layers") if self.get("layer_types") is None else 0
        return self.windows(self.layer_types(lambda layer: used and layer >= first), used)


def known_model_types() -> list[str]:
    """Every supported ``model_type``, in order; that of a model of more than text too."""
    return sorted([*_registry(), *WRAPPERS])


def find(config: Mapping[str, Any]) -> Converter:
    """The converter for a config.json, or for that of a text part (``text_part.py``).

    Raises:
        UnsupportedError: No file in this folder is for its family.
    """
    refuse_other_models(config)
    model_type = config.get("model_type")
    converter = _registry().get(model_type) if isinstance(model_type, str) else None
    if converter is None:
        why = reason(model_type) if isinstance(model_type, str) else None
        if why is not None:
            raise UnsupportedError(f"The model type {shown(model_type)} is not supported: {why}.")
        known = ", ".join(known_model_types())
        raise UnsupportedError(
            f"The model type {shown(model_type)} is not supported; the known ones are {known}."
        )
    names = {**converter.names, **converter.names_of(converter.config(config))}
    return dataclasses.replace(converter, names=names)


def _registry() -> dict[str, Converter]:
    """CONVERTER, or CONVERTERS, of every other file in this folder, by their model types."""
    package = __name__.rpartition(".")[0]
    modules = [
        importlib.import_module(f"{package}.{module.name}")
        for module in pkgutil.iter_modules([str(Path(__file__).parent)])
    ]
    converters = [converter for module in modules for converter in _converters(module)]
    return {converter.model_type: converter for converter in converters}


def _converters(module: ModuleType) -> tuple[Converter, ...]:
    one = (module.CONVERTER,) if hasattr(module, "CONVERTER") else ()
    return (*one, *getattr(module, "CONVERTERS", ()))


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
