"""The Architecture record: all that the decoder needs to know about a model apart from its weights.

Owns the fields, their limits and their names in a model file's metadata
(``native/format/FORMAT.md``, section 1), and the rotary frequencies. Knows no model family:
``awq_edge.converters`` fills the record in. numpy only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Union

import numpy as np
import numpy.typing as npt

from awq_edge.errors import InvalidArgumentError, UnsupportedError

MetadataValue = Union[bool, int, float, str, list[int]]

# The limits that the reader of model files enforces too.
MAX_LAYERS = 1024
MAX_HEAD_SIZE = 256
MAX_COLUMNS = 1 << 20

_PREFIX = "awq_edge.decoder."


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the context of a model's first training."""

    kind: str  # "linear" or "llama3"
    factor: float
    low_frequency_factor: float = 1.0  # llama3 only, like the next two
    high_frequency_factor: float = 4.0
    original_context_length: int = 8192

    def describe(self) -> str:
        """The text kept in a model file, for example ``llama3:8:1:4:8192``."""
        if self.kind == "linear":
            return f"linear:{self.factor:g}"
        return (
            f"llama3:{self.factor:g}:{self.low_frequency_factor:g}"
            f":{self.high_frequency_factor:g}:{self.original_context_length}"
        )

    @classmethod
    def parse(cls, text: str) -> RopeScaling | None:
        """The inverse of :meth:`describe`; ``none`` gives None."""
        kind, *numbers = text.split(":")
        if kind == "none" and not numbers:
            return None
        if kind == "linear" and len(numbers) == 1:
            return cls(kind, float(numbers[0]))
        if kind == "llama3" and len(numbers) == 4:
            factor, low, high, original = numbers
            return cls(kind, float(factor), float(low), float(high), int(original))
        raise UnsupportedError(f"The rotary scaling {text!r} is none of none, linear, llama3.")


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
    activation: str = "silu"
    sliding_windows: tuple[
        int, ...
    ] = ()  # per layer, 0 = sees everything; empty = 0 for every layer
    qk_norm: bool = False
    tied_head: bool = False
    qkv_bias: bool = False
    output_bias: bool = False  # of the matrix that ends attention
    feed_forward_bias: bool = False

    def __post_init__(self) -> None:
        """Checks the limits of ``native/format/FORMAT.md`` and spells the sliding windows out."""
        if not self.sliding_windows:
            object.__setattr__(self, "sliding_windows", (0,) * self.layers)
        for name in (
            "layers",
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
        if self.layers > MAX_LAYERS:
            raise UnsupportedError(
                f"The model has {self.layers} layers; at most {MAX_LAYERS} are supported."
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
        widest = max(self.hidden_size, self.feed_forward_size, self.heads * self.head_size)
        if widest > MAX_COLUMNS:
            raise UnsupportedError(
                f"A matrix of the model has {widest} columns; at most {MAX_COLUMNS} are supported."
            )
        if self.activation != "silu":
            raise UnsupportedError(
                f"The activation {self.activation!r} is not supported; only silu is."
            )
        if len(self.sliding_windows) != self.layers:
            raise InvalidArgumentError(
                f"{len(self.sliding_windows)} sliding windows are given for {self.layers} layers."
            )

    def to_metadata(self) -> dict[str, MetadataValue]:
        """Keys and values of a model file: an int is a u32, a float an f32, a list a [u32]."""
        scaling = self.rope_scaling.describe() if self.rope_scaling else "none"
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
        )

    def inverse_frequencies(self) -> npt.NDArray[np.float32]:
        """Radians per position of each pair of a head, float32 [head_size / 2], scaling included.

        Computed in float64 and rounded once, so that every workstation writes the same file; within
        a millionth of what transformers computes in float32, a rounding at every step.
        """
        exponents = np.arange(0, self.head_size, 2, dtype=np.float64) / self.head_size
        frequencies = 1.0 / np.float64(self.rope_theta) ** exponents
        scaling = self.rope_scaling
        if scaling is None:
            return frequencies.astype(np.float32)
        if scaling.kind == "linear":
            return (frequencies / scaling.factor).astype(np.float32)
        if scaling.kind != "llama3":
            raise UnsupportedError(
                f"The rotary scaling {scaling.kind!r} is none of none, linear, llama3."
            )
        # Wavelengths that fit the original context often are kept, those that do not fit once are
        # stretched by the whole factor, and the ones between are blended.
        wavelengths = 2.0 * np.pi / frequencies
        low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
        turns = scaling.original_context_length / wavelengths
        blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
        return ((1.0 - blend) * frequencies / scaling.factor + blend * frequencies).astype(
            np.float32
        )

    def linear_parameters(self) -> int:
        """Weights in the decoder's packed matrices, embedding and head apart."""
        attention = self.hidden_size * self.head_size * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden_size * self.feed_forward_size)
