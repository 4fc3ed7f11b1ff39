"""The Architecture record: all that the decoder needs to know about a model apart from its weights.

Owns the fields, their limits and their names in a model file's metadata
(``native/format/FORMAT.md``, section 1), and the rotary frequencies. Knows no model family:
``awq_edge.converters`` fills the record in. numpy only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Mapping
from typing import Any, ClassVar, Union

import numpy as np
import numpy.typing as npt

from awq_edge.cross_attention import CrossAttention
from awq_edge.errors import InvalidArgumentError, UnsupportedError
from awq_edge.layouts import MAX_COLUMNS
from awq_edge.rope_scaling import Floats, RopeScaling

MetadataValue = Union[bool, int, float, str, list[int]]

# The limits that the reader of model files enforces too.
MAX_LAYERS = 1024
MAX_HEAD_SIZE = 256
MAX_VOCABULARY = 1 << 24
MAX_CONTEXT = 1 << 24
_MAX_ANGLE = 1 << 22  # in radians: beyond it, sine and cosine lose their meaning as floats
_MAX_U32 = (1 << 32) - 1

_PREFIX = "awq_edge.decoder."

# gelu by erf, gelu_tanh by its usual approximation.
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu")
# Words that a field may hold, the default first.
_WORDS = {
    "norm": ("rms", "layer"),
    "norm_places": ("before", "after", "both", "stream"),
    "position": ("rotary", "learned", "alibi"),
    "qk_norm_kind": ("head", "heads", "width"),
    "feed_forward": ("gated", "plain"),
    "routing": ("softmax", "softmax_renormalised", "sparsemixer"),
}
# Keys that are absent where they hold this.
_FLAGS = {"final_norm": True, "embedding_norm": False, "parallel": False}
# Keys that are absent where they are 0.
_NUMBERS = ("local_rope_theta", "qkv_clamp", "score_cap", "logit_cap", "router_epsilon")
_COUNTS = ("experts", "experts_per_token", "expert_size", "shared_expert_size")
# Fields that tensors of a model file show: any of these.
_SHOWN_BY = {
    "qkv_bias": ("blk.0.attn_q.bias",),
    "output_bias": ("blk.0.attn_output.bias",),
    "feed_forward_bias": ("blk.0.ffn_down.bias",),
    "norm_bias": ("blk.0.attn_norm.bias", "blk.0.attn_post_norm.bias"),
    "qk_norm_bias": ("blk.0.attn_q_norm.bias",),
    "head_bias": ("output.bias",),
    "activation_scales": ("blk.0.ffn_act.scales",),
}
# Tables of rotary frequencies that the layers of one model may turn by.
_MAX_ROPE_TABLES = 2
MAX_EXPERTS = 1024


def check_layers(layers: int) -> None:
    """Refuses a number of layers that no model file can have."""
    if layers < 1:
        raise InvalidArgumentError(f"The model's layers is {layers}; it must be positive.")
    if layers > MAX_LAYERS:
        raise UnsupportedError(
            f"The model has {layers} layers; at most {MAX_LAYERS} are supported."
        )


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One decoder, described by data.

    Biases and activation scales say which tensors a checkpoint holds; a model file shows the same
    by holding them.

    Attributes:
        layers: How many.
        hidden_size: Width of the stream.
        vocabulary_size: Rows of the embedding and of the head.
        context_length: Positions that the model knows.
        heads: Query heads.
        kv_heads: Key-value heads; a whole number of query heads shares each.
        head_size: Width of a head.
        feed_forward_size: Width between the matrices of the feed-forward.
        norm_epsilon: Of every norm.
        rope_theta: Base of the rotary frequencies.
        rope_scaling: What stretches them.
        activation: Of the feed-forward, one of ``ACTIVATIONS``; of its gate where there is one.
        sliding_windows: Positions that each layer sees, 0 = all; empty = 0 for every layer.
        qk_norm: Whether queries and keys are normed.
        tied_head: Whether the head is the embedding.
        qkv_bias: Of queries, keys and values.
        output_bias: Of the matrix that ends attention.
        feed_forward_bias: Of every matrix of the feed-forward.
        rotary_size: Dimensions of a head that are rotated; 0 = all of them.
        norm: Every norm divides by the root mean square (``rms``), or subtracts the mean and
            divides by the deviation (``layer``).
        norm_bias: Of the norms of the stream, all of them.
        norm_places: ``before`` a branch; ``after`` it, before its output is added; ``both``; or
            ``stream``: the stream becomes the norm of its sum with the branch's output.
        final_norm: Whether the head reads a norm of the stream.
        embedding_norm: Whether the stream begins with a norm of the embedding.
        parallel: Whether both branches of a layer read its input, each through its own norm.
        position: ``rotary``; ``learned``: a table that is added to the embedding; ``alibi``: each
            head's scores fall with the distance, by a slope of its own.
        rope_tables: Which table of rotary frequencies each layer turns by; empty = the first one.
        rope_sections: How many angles of a head turn by the first, the second and the third number
            of a position; empty: positions have one. Those of a token are equal.
        rope_interleaved: Whether the three take turns from angle to angle, the first has what is
            left; otherwise section follows section.
        local_rope_theta: Base of the second table; 0: it turns nothing.
        local_rope_scaling: What stretches the second table.
        qk_norm_kind: ``head``: over each head, one weight for all of them; ``heads``: each head has
            a weight of its own; ``width``: over all heads together.
        qk_norm_bias: Of the norms of queries and keys.
        qkv_clamp: Largest magnitude of queries, keys and values, behind the norms; 0 = none.
        score_cap: c in c * tanh(score / c), for scaled scores; 0 = none.
        logit_cap: The same for logits.
        feed_forward: ``gated``: down(act(gate(x)) * up(x)); ``plain``: down(act(up(x))).
        head_bias: Of the logits, beside a tied head too.
        activation_scales: Whether what the activation gives is multiplied by a vector.
        experts: Gated feed-forwards of a layer that a router chooses among; 0 = none.
        experts_per_token: How many it chooses for each token.
        expert_size: Width between the matrices of one.
        routing: How. ``softmax``: those of the largest probabilities, which weigh their outputs;
            ``softmax_renormalised``: the same, divided by their sum; ``sparsemixer``: two, each
            weighed among those that come near it.
        router_epsilon: Of sparsemixer: half of the relative distance that counts as near.
        expert_layers: Per layer, 1 if it has experts and 0 if it has one feed-forward; empty = all
            have, if there are experts.
        shared_expert_size: Width of a further one that every token passes; 0 = none.
        shared_router: Whether a router of its own weighs the shared expert, or nothing does.
        cross: Gated blocks that look at pictures; None: the decoder has none.
    """

    # What the record of a tower for pictures has otherwise (``vision/architecture.py``).
    activations: ClassVar[tuple[str, ...]] = ACTIVATIONS
    causal: ClassVar[bool] = True  # whether a position sees none behind it

    layers: int
    hidden_size: int
    vocabulary_size: int
    context_length: int
    heads: int
    kv_heads: int
    head_size: int
    feed_forward_size: int
    norm_epsilon: float
    rope_theta: float
    rope_scaling: RopeScaling | None = None
    activation: str = "silu"
    sliding_windows: tuple[int, ...] = ()
    qk_norm: bool = False
    tied_head: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    feed_forward_bias: bool = False
    rotary_size: int = 0
    norm: str = "rms"
    norm_bias: bool = False
    norm_places: str = "before"
    final_norm: bool = True
    embedding_norm: bool = False
    parallel: bool = False
    position: str = "rotary"
    rope_tables: tuple[int, ...] = ()
    rope_sections: tuple[int, ...] = ()
    rope_interleaved: bool = False
    local_rope_theta: float = 0.0
    local_rope_scaling: RopeScaling | None = None
    qk_norm_kind: str = "head"
    qk_norm_bias: bool = False
    qkv_clamp: float = 0.0
    score_cap: float = 0.0
    logit_cap: float = 0.0
    feed_forward: str = "gated"
    head_bias: bool = False
    activation_scales: bool = False
    experts: int = 0
    experts_per_token: int = 0
    expert_size: int = 0
    routing: str = "softmax"
    router_epsilon: float = 0.0
    expert_layers: tuple[int, ...] = ()
    shared_expert_size: int = 0
    shared_router: bool = False
    cross: CrossAttention | None = None

    def __post_init__(self) -> None:
        """Checks the limits of ``native/format/FORMAT.md`` and spells out what is per layer."""
        check_layers(self.layers)
        for name in ("sliding_windows", "rope_tables"):
            if not getattr(self, name):
                object.__setattr__(self, name, (0,) * self.layers)
        for name in (
            "hidden_size",
            "vocabulary_size",
            "context_length",
            "heads",
            "kv_heads",
            "head_size",
            "feed_forward_size",
        ):
            if getattr(self, name) < 1:
                raise InvalidArgumentError(
                    f"The model's {name} is {getattr(self, name)}; it must be positive."
                )
        if self.heads % self.kv_heads:
            raise InvalidArgumentError(
                f"The model has {self.heads} query heads for {self.kv_heads} key-value heads; "
                "the first must be a multiple of the second."
            )
        if self.head_size % 2 or self.head_size > MAX_HEAD_SIZE:
            raise UnsupportedError(
                f"The model's head size is {self.head_size}; "
                f"it must be even and at most {MAX_HEAD_SIZE}."
            )
        if self.vocabulary_size > MAX_VOCABULARY:
            raise UnsupportedError(
                f"The model's vocabulary has {self.vocabulary_size} tokens; at most "
                f"{MAX_VOCABULARY} are supported."
            )
        if self.context_length > MAX_CONTEXT:
            raise UnsupportedError(
                f"The model's context has {self.context_length} positions; at most {MAX_CONTEXT} "
                "are supported."
            )
        widest = max(
            self.hidden_size,
            self.feed_forward_size,
            self.expert_size,
            self.shared_expert_size,
            self.heads * self.head_size,
        )
        if widest > MAX_COLUMNS:
            raise UnsupportedError(
                f"A matrix of the model has {widest} columns; at most {MAX_COLUMNS} are supported."
            )
        if self.activation not in self.activations:
            raise UnsupportedError(
                f"The activation {self.activation!r} is none of {', '.join(self.activations)}."
            )
        if not 0 <= self.rotary_size <= self.head_size or self.rotary_size % 2:
            raise UnsupportedError(
                f"A head rotates {self.rotary_size} of {self.head_size} dimensions; it must be an "
                "even number of them."
            )
        if len(self.sliding_windows) != self.layers:
            raise InvalidArgumentError(
                f"{len(self.sliding_windows)} sliding windows are given for {self.layers} layers."
            )
        for window in self.sliding_windows:
            if not 0 <= window <= _MAX_U32:
                raise InvalidArgumentError(
                    f"A sliding window of {window} positions is none; allowed are 0 to {_MAX_U32}."
                )
        for what, value in (
            ("epsilon of its norms", self.norm_epsilon),
            ("base of its rotary frequencies", self.rope_theta),
        ):
            with np.errstate(over="ignore"):  # kept as float32
                kept = np.float32(value)
            if not (np.isfinite(kept) and kept > 0):
                raise UnsupportedError(
                    f"The model's {what} is {value:g}; it must be a positive float32."
                )
        if self.expert_layers == (1,) * self.layers:  # what empty says
            object.__setattr__(self, "expert_layers", ())
        self._check_form()
        largest = np.abs(self.inverse_frequencies()).max()
        most = max(1.0, _MAX_ANGLE / self.context_length)
        if not largest <= most:  # NaN neither
            raise UnsupportedError(
                f"The model turns a pair of its heads by {largest:g} radians per position; at most "
                f"{most:g} are supported: base or scaling of its rotary embedding is out of range."
            )

    def _check_form(self) -> None:
        """Refuses words that mean nothing and combinations that no decoder of ours computes."""
        for name, words in _WORDS.items():
            if getattr(self, name) not in words:
                raise UnsupportedError(
                    f"The model's {name} is {getattr(self, name)!r}; it must be one of "
                    f"{', '.join(words)}."
                )
        if len(self.rope_tables) != self.layers:
            raise InvalidArgumentError(
                f"{len(self.rope_tables)} rotary tables are named for {self.layers} layers."
            )
        if any(not 0 <= table < _MAX_ROPE_TABLES for table in self.rope_tables):
            raise UnsupportedError(
                f"A layer turns by the rotary table {max(self.rope_tables)}; at most "
                f"{_MAX_ROPE_TABLES} are supported."
            )
        for what, value in (
            ("base of its second rotary table", self.local_rope_theta),
            ("clamp of queries, keys and values", self.qkv_clamp),
            ("cap of its scores", self.score_cap),
            ("cap of its logits", self.logit_cap),
            ("distance of its routers", self.router_epsilon),
        ):
            with np.errstate(over="ignore"):  # kept as float32
                kept = np.float32(value)
            if not (np.isfinite(kept) and kept >= 0 and (kept > 0) == (value > 0)):
                raise UnsupportedError(
                    f"The model's {what} is {value:g}; it must be a positive float32, or 0."
                )
        self._check_experts()
        self._check_cross()
        rotary = self.position == "rotary"
        layer_norms = self.norm == "layer"
        for refused, why in (
            (
                self.parallel and self.norm_places != "before",
                "has parallel branches, and norms elsewhere than before them",
            ),
            (
                not rotary and (self.rotary_size or any(self.rope_tables) or self.rope_sections),
                f"has {self.position} positions, and says how its heads rotate",
            ),
            (
                bool(self.rope_sections)
                and (len(self.rope_sections), sum(self.rope_sections)) != (3, self.head_size // 2),
                f"turns {list(self.rope_sections)} angles by the numbers of a position",
            ),
            (
                self.rope_interleaved
                and (
                    len(self.rope_sections) != 3
                    or [self.turned_by.count(number) for number in range(3)]
                    != list(self.rope_sections)
                ),
                f"turns {list(self.rope_sections)} angles by numbers that take turns",
            ),
            (
                self.position == "alibi" and self.score_cap,
                "caps its scores, and biases them by the distance",
            ),
            (
                (self.norm_bias or self.qk_norm_bias) and not layer_norms,
                "has biases of norms that divide by the root mean square",
            ),
            (
                not self.qk_norm and (self.qk_norm_kind != "head" or self.qk_norm_bias),
                "says how queries and keys are normed, and norms none",
            ),
            (
                self.activation_scales and self.feed_forward != "plain",
                "scales what its activation gives, and has a gate",
            ),
            (
                not any(self.rope_tables) and (self.local_rope_theta or self.local_rope_scaling),
                "has a second rotary table that no layer turns by",
            ),
        ):
            if refused:
                raise UnsupportedError(f"The model {why}; no decoder here computes that.")

    def _check_cross(self) -> None:
        """Refuses gated blocks that do not fit this decoder, or are of no form that is computed."""
        if self.cross is None:
            return
        if len(self.cross.layers) != self.layers:
            raise InvalidArgumentError(
                f"{len(self.cross.layers)} layers are said to have a gated block or none, of "
                f"{self.layers} layers."
            )
        if self.parallel or self.experts:
            raise UnsupportedError(
                "The model has gated blocks beside parallel branches or experts; no decoder here "
                "computes that."
            )
        self.cross.form(self.hidden_size)  # has limits of its own

    def _check_experts(self) -> None:
        """Refuses numbers of experts that no router can choose by."""
        if self.expert_layers and len(self.expert_layers) != self.layers:
            raise InvalidArgumentError(
                f"{len(self.expert_layers)} layers are said to have experts or none, of "
                f"{self.layers} layers."
            )
        if not self.experts:
            if any(getattr(self, name) for name in _COUNTS) or self.expert_layers:
                raise InvalidArgumentError(
                    "The model has no experts, and says how many or how large they are."
                )
            return
        if not 1 <= self.experts <= MAX_EXPERTS:
            raise UnsupportedError(
                f"The model has {self.experts} experts; at most {MAX_EXPERTS} are supported."
            )
        if not 1 <= self.experts_per_token <= self.experts:
            raise InvalidArgumentError(
                f"The model chooses {self.experts_per_token} of {self.experts} experts."
            )
        if self.expert_size < 1 or self.shared_expert_size < 0:
            raise InvalidArgumentError(
                f"The model's experts have {self.expert_size} rows and its shared one "
                f"{self.shared_expert_size}."
            )
        layers = self.expert_layers or (1,)
        if any(value not in (0, 1) for value in layers) or not any(layers):
            raise InvalidArgumentError(
                "A layer has experts (1) or none (0), and at least one of a model with experts has."
            )
        sparsely = self.routing == "sparsemixer"
        for refused, why in (
            (sparsely and self.experts_per_token != 2, "chooses other than two by sparsemixer"),
            (not sparsely and self.router_epsilon, "has a distance of routers that know none"),
            (
                self.shared_router and not self.shared_expert_size,
                "weighs a shared expert, and has none",
            ),
            (self.norm_places != "before", "has experts, and norms elsewhere than before them"),
            (self.parallel, "has experts beside attention"),
            (self.feed_forward != "gated", "has experts without a gate"),
            (self.feed_forward_bias, "has experts, and biases of feed-forwards"),
        ):
            if refused:
                raise UnsupportedError(f"The model {why}; no decoder here computes that.")

    @property
    def turned_by(self) -> list[int]:
        """Which number of a position each angle of a head turns by; empty: there is one."""
        sections = self.rope_sections
        if not self.rope_interleaved:
            return [number for number, count in enumerate(sections) for _ in range(count)]
        angles = range(self.head_size // 2)
        return [i % 3 if i % 3 and i < 3 * sections[i % 3] else 0 for i in angles]

    def to_metadata(self) -> dict[str, MetadataValue]:
        """Keys and values of a model file: an int is a u32, a float an f32, a list a [u32].

        What came with later families is written only where it differs from its default.
        """
        scaling = self.rope_scaling.describe() if self.rope_scaling else "none"
        later: dict[str, MetadataValue] = {}
        if self.rotary_size:
            later["rotary_size"] = self.rotary_size
        for name, words in _WORDS.items():
            if getattr(self, name) != words[0]:
                later[name] = getattr(self, name)
        for name, default in _FLAGS.items():
            if getattr(self, name) is not default:
                later[name] = getattr(self, name)
        for name in _NUMBERS:
            if getattr(self, name):
                later[name] = float(getattr(self, name))
        for name in _COUNTS:
            if getattr(self, name):
                later[name] = getattr(self, name)
        if not all(self.expert_layers):
            later["expert_layers"] = list(self.expert_layers)
        if any(self.rope_tables):
            later["rope_tables"] = list(self.rope_tables)
        if self.rope_sections:
            later["rope_sections"] = list(self.rope_sections)
        if self.rope_interleaved:
            later["rope_interleaved"] = True
        if self.local_rope_scaling is not None:
            later["local_rope_scaling"] = self.local_rope_scaling.describe()
        return {
            f"{_PREFIX}layers": self.layers,
            f"{_PREFIX}hidden_size": self.hidden_size,
            f"{_PREFIX}vocabulary_size": self.vocabulary_size,
            f"{_PREFIX}context_length": self.context_length,
            f"{_PREFIX}heads": self.heads,
            f"{_PREFIX}kv_heads": self.kv_heads,
            f"{_PREFIX}head_size": self.head_size,
            f"{_PREFIX}feed_forward_size": self.feed_forward_size,
            f"{_PREFIX}norm_epsilon": float(self.norm_epsilon),
            f"{_PREFIX}activation": self.activation,
            f"{_PREFIX}sliding_windows": list(self.sliding_windows),
            f"{_PREFIX}qk_norm": self.qk_norm,
            f"{_PREFIX}tied_head": self.tied_head,
            f"{_PREFIX}rope_theta": float(self.rope_theta),
            f"{_PREFIX}rope_scaling": scaling,
            **{f"{_PREFIX}{name}": value for name, value in later.items()},
            **({} if self.cross is None else self.cross.to_metadata()),
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], tensors: Container[str]) -> Architecture:
        """The inverse of :meth:`to_metadata`.

        Args:
            metadata: Entries of a model file.
            tensors: Names of its tensors: they show whether there are biases.
        """
        value = {
            key[len(_PREFIX) :]: value for key, value in metadata.items() if key.startswith(_PREFIX)
        }
        later: dict[str, Any] = {
            **{name: str(value.get(name, words[0])) for name, words in _WORDS.items()},
            **{name: bool(value.get(name, default)) for name, default in _FLAGS.items()},
            **{name: float(value.get(name, 0.0)) for name in _NUMBERS},
            **{name: int(value.get(name, 0)) for name in _COUNTS},
            **{
                name: any(tensor in tensors for tensor in shown_by)
                for name, shown_by in _SHOWN_BY.items()
            },
        }
        return cls(
            layers=int(value["layers"]),
            hidden_size=int(value["hidden_size"]),
            vocabulary_size=int(value["vocabulary_size"]),
            context_length=int(value["context_length"]),
            heads=int(value["heads"]),
            kv_heads=int(value["kv_heads"]),
            head_size=int(value["head_size"]),
            feed_forward_size=int(value["feed_forward_size"]),
            norm_epsilon=float(value["norm_epsilon"]),
            rope_theta=float(value["rope_theta"]),
            rope_scaling=RopeScaling.parse(value["rope_scaling"]),
            activation=value["activation"],
            sliding_windows=tuple(int(window) for window in value["sliding_windows"]),
            qk_norm=bool(value["qk_norm"]),
            tied_head=bool(value["tied_head"]),
            rotary_size=int(value.get("rotary_size", 0)),
            rope_tables=tuple(int(table) for table in value.get("rope_tables", ())),
            rope_sections=tuple(int(count) for count in value.get("rope_sections", ())),
            rope_interleaved=bool(value.get("rope_interleaved", False)),
            expert_layers=tuple(int(has) for has in value.get("expert_layers", ())),
            shared_router=any(
                f"blk.{layer}.shared_router.weight" in tensors for layer in range(value["layers"])
            ),
            local_rope_scaling=RopeScaling.parse(value.get("local_rope_scaling", "none")),
            cross=CrossAttention.from_metadata(metadata),
            **later,
        )

    def inverse_frequencies(self) -> npt.NDArray[np.float32]:
        """Radians per position of each pair of a head, scaling included.

        Computed in float64 and rounded once, so that every workstation writes the same file; within
        a millionth of what transformers computes in float32, a rounding at every step.

        Returns:
            float32 [tables * head_size / 2], one table after the other.
        """
        tables = [self._frequencies(self.rope_theta, self.rope_scaling)]
        if any(self.rope_tables):
            tables.append(self._frequencies(self.local_rope_theta, self.local_rope_scaling))
        with np.errstate(all="ignore"):  # what comes of it is checked when the record is made
            return np.concatenate(tables).astype(np.float32)

    def _frequencies(self, theta: float, scaling: RopeScaling | None) -> Floats:
        """One table, float64 [head_size / 2]; a base of 0 turns nothing."""
        rotated = self.rotary_size or self.head_size
        # A pair of the rest stands still: the cosine of 0 is 1 and its sine 0, exactly.
        table = np.zeros(self.head_size // 2)
        if theta:
            exponents = np.arange(0, rotated, 2, dtype=np.float64) / rotated
            with np.errstate(all="ignore"):
                frequencies: Floats = 1.0 / np.float64(theta) ** exponents
                if scaling is not None:
                    frequencies = scaling.scaled(frequencies, theta)
            table[: rotated // 2] = frequencies
        return table

    def has_cross(self, layer: int) -> bool:
        """Whether a gated block stands before a layer."""
        return self.cross is not None and self.cross.layers[layer] == 1

    def has_experts(self, layer: int) -> bool:
        """Whether a layer has a mixture of experts in the place of a feed-forward."""
        return self.experts > 0 and (not self.expert_layers or self.expert_layers[layer] == 1)

    def linear_parameters(self) -> int:
        """Weights in the decoder's packed matrices, embedding and head apart."""
        attention = self.head_size * (2 * self.heads + 2 * self.kv_heads)
        matrices = 3 if self.feed_forward == "gated" else 2
        mixtures = sum(self.has_experts(layer) for layer in range(self.layers))
        rows = (self.layers - mixtures) * self.feed_forward_size
        rows += mixtures * (self.experts * self.expert_size + self.shared_expert_size)
        cross = 0 if self.cross is None else self.cross.linear_parameters(self.hidden_size)
        return self.hidden_size * (self.layers * attention + matrices * rows) + cross
