"""The record of gated blocks, through which a decoder looks at pictures.

Owns the fields, their limits and their names in a model file (``native/format/FORMAT.md``, section
1), and that a block is a layer of the one decoder in a form of its own, whose attention reads keys
and values of pictures. Knows no model family.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from awq_edge.errors import InvalidArgumentError, UnsupportedError

if TYPE_CHECKING:
    from awq_edge.architecture import Architecture

PREFIX = "awq_edge.cross."


@dataclasses.dataclass(frozen=True)
class CrossAttention:
    """Blocks that stand before some layers of a decoder.

    A block is stream + W_o attention(W_q norm(stream)), then stream + feed-forward(norm(stream)).
    A position attends to the rows of one picture, the last one before it; where there is none,
    attention gives nothing. The gates of both branches lie in W_o and in the last matrix.

    Attributes:
        layers: Per layer of the decoder, 1 if a block stands before it.
        heads: Of attention.
        head_size: Width of a head.
        feed_forward_size: Width between the matrices of the feed-forward.
        norm: ``rms``, or ``layer``, which has biases.
        norm_epsilon: Of every norm.
        feed_forward: ``gated`` or ``plain``.
        activation: Of it.
        qk_norm: Whether queries and keys are normed, each head by one weight; with ``rms`` alone.
    """

    layers: tuple[int, ...]
    heads: int
    head_size: int
    feed_forward_size: int
    norm: str
    norm_epsilon: float
    feed_forward: str
    activation: str
    qk_norm: bool = False

    def __post_init__(self) -> None:
        """Refuses what no file can hold; the form's own limits are those of a decoder."""
        if any(block not in (0, 1) for block in self.layers) or not any(self.layers):
            raise InvalidArgumentError(
                "A layer has a gated block before it (1) or none (0), and at least one has."
            )
        if self.qk_norm and self.norm != "rms":
            raise UnsupportedError(
                "The gated blocks norm queries and keys by their mean and deviation; no decoder "
                "here computes that."
            )

    @property
    def size(self) -> int:
        """Width of queries, of keys and of values."""
        return self.heads * self.head_size

    @property
    def numbers(self) -> tuple[int, ...]:
        """The layers that have a block before them."""
        return tuple(number for number, block in enumerate(self.layers) if block)

    @property
    def row_size(self) -> int:
        """Numbers of a picture's row: its key and its value in each block, one after the other."""
        return len(self.numbers) * 2 * self.size

    def form(self, hidden_size: int) -> Architecture:
        """A block as a decoder's layer."""
        from awq_edge.architecture import Architecture

        return Architecture(
            layers=1,
            hidden_size=hidden_size,
            vocabulary_size=1,  # no tokens: the stream comes in their place
            context_length=1,
            heads=self.heads,
            kv_heads=self.heads,
            head_size=self.head_size,
            feed_forward_size=self.feed_forward_size,
            norm_epsilon=self.norm_epsilon,
            rope_theta=10000.0,  # of no meaning: a picture's rows have no positions
            activation=self.activation,
            norm=self.norm,
            norm_bias=self.norm == "layer",
            position="learned",
            feed_forward=self.feed_forward,
        )

    def linear_parameters(self, hidden_size: int) -> int:
        """Weights in the decoder's matrices of all blocks; keys and values are the pictures'."""
        matrices = 3 if self.feed_forward == "gated" else 2
        one = hidden_size * (2 * self.size + matrices * self.feed_forward_size)
        return len(self.numbers) * one

    def to_metadata(self) -> dict[str, Any]:
        """The entries of a model file."""
        entries: dict[str, Any] = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self)
        }
        entries["layers"] = list(self.layers)
        entries["norm_epsilon"] = float(self.norm_epsilon)
        if not self.qk_norm:
            del entries["qk_norm"]
        return {f"{PREFIX}{name}": value for name, value in entries.items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> CrossAttention | None:
        """The inverse of :meth:`to_metadata`; None: the decoder has no such blocks."""
        if f"{PREFIX}layers" not in metadata:
            return None
        ours = [key for key in metadata if key.startswith(PREFIX)]
        value = {key[len(PREFIX) :]: metadata[key] for key in ours}
        return cls(
            layers=tuple(int(block) for block in value["layers"]),
            heads=int(value["heads"]),
            head_size=int(value["head_size"]),
            feed_forward_size=int(value["feed_forward_size"]),
            norm=str(value["norm"]),
            norm_epsilon=float(value["norm_epsilon"]),
            feed_forward=str(value["feed_forward"]),
            activation=str(value["activation"]),
            qk_norm=bool(value.get("qk_norm", False)),
        )
