"""The Architecture record: all that the decoder needs to know about a model apart from its weights.

Owns the fields, their limits and their names in a model file's metadata
(``native/format/FORMAT.md``, section 1), and the rotary frequencies. Knows no model family:
``awq_edge.converters`` fills the record in. numpy only.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Union

import numpy as np
import numpy.typing as npt

from awq_edge.errors import InvalidArgumentError, UnsupportedError
from awq_edge.layouts import MAX_COLUMNS

Floats = npt.NDArray[np.float64]
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
_KINDS = "none, linear, dynamic, llama3, yarn, longrope"


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the context of a model's first training.

    Attributes:
        kind: ``linear`` divides all; ``dynamic`` changes none within the trained context, which is
            the only one that we have; ``llama3`` and ``yarn`` divide the slow ones and blend;
            ``longrope`` divides each by a factor of its own, the short ones, for a context of at
            most the original length.
        factor: By what is divided; of ``longrope`` nothing.
        low_frequency_factor: llama3: turns in the original context below which all is divided.
        high_frequency_factor: llama3: turns above which nothing is.
        original_context_length: llama3, yarn and longrope.
        beta_fast: yarn: turns above which nothing is divided.
        beta_slow: yarn: turns below which all is.
        truncate: yarn: whether the ends of the blend are whole pairs.
        factors: longrope: one of each pair, [head_size / 2].
    """

    kind: str
    factor: float
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_context_length: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuses numbers that give no frequencies."""
        positive = (self.factor, self.beta_fast, self.beta_slow, *self.factors)
        ordered = 0 < self.low_frequency_factor < self.high_frequency_factor
        fit = all(math.isfinite(number) and number > 0 for number in positive)
        if not (fit and ordered and self.original_context_length > 0):
            raise InvalidArgumentError(
                f"The rotary scaling {self.kind} has numbers that give no frequencies: factors, "
                "turns and lengths must be positive and finite, low ones below high ones."
            )

    def describe(self) -> str:
        """The text kept in a model file, for example ``llama3:8:1:4:8192``."""
        original = str(self.original_context_length)
        parts = {
            "linear": (_text(self.factor),),
            "dynamic": (_text(self.factor),),
            "llama3": (
                _text(self.factor),
                _text(self.low_frequency_factor),
                _text(self.high_frequency_factor),
                original,
            ),
            "yarn": (
                _text(self.factor),
                _text(self.beta_fast),
                _text(self.beta_slow),
                original,
                "truncated" if self.truncate else "exact",
            ),
            "longrope": (original, ",".join(map(_text, self.factors))),
        }
        if self.kind not in parts:
            raise UnsupportedError(f"The rotary scaling {self.kind!r} is none of {_KINDS}.")
        return ":".join((self.kind, *parts[self.kind]))

    @classmethod
    def parse(cls, text: str) -> RopeScaling | None:
        """The inverse of :meth:`describe`; ``none`` gives None."""
        kind, *parts = text.split(":")
        try:
            if kind == "none" and not parts:
                return None
            if kind in ("linear", "dynamic"):
                (factor,) = parts
                return cls(kind, float(factor))
            if kind == "llama3":
                factor, low, high, original = parts
                return cls(kind, float(factor), float(low), float(high), int(original))
            if kind == "yarn":
                factor, fast, slow, original, ends = parts
                return cls(
                    kind,
                    float(factor),
                    original_context_length=int(original),
                    beta_fast=float(fast),
                    beta_slow=float(slow),
                    truncate=ends == "truncated",
                )
            if kind == "longrope":
                original, factors = parts
                return cls(
                    kind,
                    1.0,
                    original_context_length=int(original),
                    factors=tuple(float(factor) for factor in factors.split(",")),
                )
        except ValueError:  # too few or too many parts, or one that is no number
            pass
        raise UnsupportedError(f"The rotary scaling {text[:80]!r} is none of {_KINDS}.")

    def scaled(self, frequencies: Floats, theta: float) -> Floats:
        """The frequencies of a head's pairs, radians per position, float64 [d / 2].

        As transformers computes them (``modeling_rope_utils``), in float64. llama3 after Meta's
        Llama 3.1, yarn after Peng et al. 2023 (arXiv 2309.00071), longrope after Ding et al. 2024
        (arXiv 2402.13753).

        Args:
            frequencies: Without scaling.
            theta: The base that they were made of.
        """
        if self.kind == "dynamic":
            return frequencies
        if self.kind == "linear":
            return frequencies / self.factor
        if self.kind == "longrope":
            if len(self.factors) != len(frequencies):
                raise InvalidArgumentError(
                    f"The rotary scaling has {len(self.factors)} factors for {len(frequencies)} "
                    "pairs of a head."
                )
            return frequencies / np.array(self.factors, dtype=np.float64)
        if self.kind == "llama3":
            # Wavelengths that fit the original context often are kept, those that do not fit once
            # are stretched by the whole factor, and the ones between are blended.
            low, high = self.low_frequency_factor, self.high_frequency_factor
            turns = self.original_context_length / (2.0 * np.pi / frequencies)
            blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
        elif self.kind == "yarn":
            # The same, but the blend is linear in the pair's number instead of its turns.
            if theta <= 1:
                raise InvalidArgumentError(
                    f"The rotary scaling yarn needs a base above 1; it is {theta:g}."
                )
            pairs = len(frequencies)
            first, last = (
                pairs
                * math.log(self.original_context_length / (turns * 2 * math.pi))
                / math.log(theta)
                for turns in (self.beta_fast, self.beta_slow)
            )
            if self.truncate:
                first, last = math.floor(first), math.ceil(last)
            first, last = max(first, 0), min(last, 2 * pairs - 1)
            if first == last:
                last += 0.001
            blend = 1.0 - np.clip((np.arange(pairs) - first) / (last - first), 0.0, 1.0)
        else:
            raise UnsupportedError(f"The rotary scaling {self.kind!r} is none of {_KINDS}.")
        return (1.0 - blend) * frequencies / self.factor + blend * frequencies


def _text(number: float) -> str:
    """Short where that is exact."""
    short = f"{number:g}"
    return short if float(short) == number else repr(float(number))


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

    The biases say which tensors a checkpoint holds; a model file shows the same by holding them.
    """

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
    activation: str = "silu"  # of the gate: one of ACTIVATIONS
    sliding_windows: tuple[
        int, ...
    ] = ()  # per layer, 0 = sees everything; empty = 0 for every layer
    qk_norm: bool = False
    tied_head: bool = False
    qkv_bias: bool = False
    output_bias: bool = False  # of the matrix that ends attention
    feed_forward_bias: bool = False
    rotary_size: int = 0  # dimensions of a head that are rotated; 0 = all of them

    def __post_init__(self) -> None:
        """Checks the limits of ``native/format/FORMAT.md`` and spells the sliding windows out."""
        check_layers(self.layers)
        if not self.sliding_windows:
            object.__setattr__(self, "sliding_windows", (0,) * self.layers)
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
        widest = max(self.hidden_size, self.feed_forward_size, self.heads * self.head_size)
        if widest > MAX_COLUMNS:
            raise UnsupportedError(
                f"A matrix of the model has {widest} columns; at most {MAX_COLUMNS} are supported."
            )
        if self.activation not in ACTIVATIONS:
            raise UnsupportedError(
                f"The activation {self.activation!r} is none of {', '.join(ACTIVATIONS)}."
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
        largest = np.abs(self.inverse_frequencies()).max()
        most = max(1.0, _MAX_ANGLE / self.context_length)
        if not largest <= most:  # NaN neither
            raise UnsupportedError(
                f"The model turns a pair of its heads by {largest:g} radians per position; at most "
                f"{most:g} are supported: base or scaling of its rotary embedding is out of range."
            )

    def to_metadata(self) -> dict[str, MetadataValue]:
        """Keys and values of a model file: an int is a u32, a float an f32, a list a [u32]."""
        scaling = self.rope_scaling.describe() if self.rope_scaling else "none"
        partial = {f"{_PREFIX}rotary_size": self.rotary_size} if self.rotary_size else {}
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
            **partial,
        }

    @classmethod
    def from_metadata(
        cls,
        metadata: Mapping[str, Any],
        *,
        qkv_bias: bool = False,
        output_bias: bool = False,
        feed_forward_bias: bool = False,
    ) -> Architecture:
        """The inverse of :meth:`to_metadata`; a file's tensors show whether there are biases."""
        value = {
            key[len(_PREFIX) :]: value for key, value in metadata.items() if key.startswith(_PREFIX)
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
            qkv_bias=qkv_bias,
            output_bias=output_bias,
            feed_forward_bias=feed_forward_bias,
            rotary_size=int(value.get("rotary_size", 0)),
        )

    def inverse_frequencies(self) -> npt.NDArray[np.float32]:
        """Radians per position of each pair of a head, float32 [head_size / 2], scaling included.

        Computed in float64 and rounded once, so that every workstation writes the same file; within
        a millionth of what transformers computes in float32, a rounding at every step.
        """
        rotated = self.rotary_size or self.head_size
        exponents = np.arange(0, rotated, 2, dtype=np.float64) / rotated
        with np.errstate(all="ignore"):  # what comes of it is checked when the record is made
            frequencies: Floats = 1.0 / np.float64(self.rope_theta) ** exponents
            if self.rope_scaling is not None:
                frequencies = self.rope_scaling.scaled(frequencies, self.rope_theta)
            # A pair of the rest stands still: the cosine of 0 is 1 and its sine 0, exactly.
            still = np.zeros((self.head_size - rotated) // 2)
            return np.concatenate((frequencies, still)).astype(np.float32)

    def linear_parameters(self) -> int:
        """Weights in the decoder's packed matrices, embedding and head apart."""
        attention = self.hidden_size * self.head_size * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden_size * self.feed_forward_size)
