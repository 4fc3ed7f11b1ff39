"""The record of a tower for pictures and of what connects it to the decoder.

Owns the fields, their names in a model file (``native/format/FORMAT.md``), the names and shapes of
the tensors, and that a tower's layers are layers of the one decoder: with LayerNorm, one matrix up
and one down, and no causal mask. Knows no model family.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from awq_edge.architecture import (
    ACTIVATIONS,
    MAX_HEAD_SIZE,
    Architecture,
    MetadataValue,
    check_layers,
)
from awq_edge.cross_attention import CrossAttention
from awq_edge.errors import InvalidArgumentError, UnsupportedError

_PREFIX = "awq_edge.vision."
_MOST_POSITIONS = 65536
_MOST_COLUMNS = 1 << 20
_MOST_TOGETHER = 1024  # rows of a picture that the runtime reads in one block

# Our names of a layer's tensors to those of the file; the others are the same.
_IN_FILE = {"attn_norm": "ln1", "ffn_norm": "ln2", "attn_output": "attn_out"}


@dataclasses.dataclass(frozen=True)
class Tower(Architecture):
    """The layers of a tower, as a decoder that sees every position."""

    activations: ClassVar[tuple[str, ...]] = (*ACTIVATIONS, "quick_gelu")
    causal: ClassVar[bool] = False


@dataclasses.dataclass(frozen=True)
class Resampler:
    """Learned rows that attend to a tower's rows and to themselves, layer after layer.

    A layer is stream + W_o attention, queries of norm(stream), keys and values of norm(tower's
    rows) and of norm(stream) behind them; then stream + feed-forward(norm(stream)). A norm ends it.

    Attributes:
        layers: How many.
        rows: How many it learned.
        heads: Of attention.
        head_size: Width of a head.
        feed_forward_size: Width between the matrices of the feed-forward.
        activation: Of it.
        norm_epsilon: Of every norm.
        qk_norm: Whether queries and keys are normed, each head by one weight and bias.
    """

    layers: int
    rows: int
    heads: int
    head_size: int
    feed_forward_size: int
    activation: str
    norm_epsilon: float
    qk_norm: bool = False

    def __post_init__(self) -> None:
        """Refuses what no file can hold."""
        check_layers(self.layers)
        widest = max(self.heads * self.head_size, self.feed_forward_size)
        smallest = min(self.heads, self.head_size, self.feed_forward_size, self.rows)
        if smallest < 1 or widest > _MOST_COLUMNS or self.head_size > MAX_HEAD_SIZE:
            raise UnsupportedError("The resampler's sizes are none that a model file can have.")
        if self.rows > _MOST_POSITIONS:
            raise UnsupportedError(
                f"The resampler has {self.rows} rows; at most {_MOST_POSITIONS} are supported."
            )
        if self.activation not in Tower.activations:
            raise UnsupportedError(
                f"The resampler's activation {self.activation!r} is none of "
                f"{', '.join(Tower.activations)}."
            )

    @property
    def size(self) -> int:
        """Width of queries, of keys and of values."""
        return self.heads * self.head_size

    def to_metadata(self) -> dict[str, MetadataValue]:
        """The entries of a model file."""
        entries = dataclasses.asdict(self)
        if not self.qk_norm:
            del entries["qk_norm"]
        return {f"{_PREFIX}resampler.{name}": value for name, value in entries.items()}

    def tensor_names(self) -> list[str]:
        """Its tensors, in file order."""
        names = ["v.resampler.latents"]
        for layer in range(self.layers):
            names += [f"v.resampler.{layer}.{name}" for name in self.layer_tensor_names()]
        return [*names, "v.resampler.post_ln.weight", "v.resampler.post_ln.bias"]

    def layer_tensor_names(self) -> list[str]:
        """Those of one layer, without ``v.resampler.N.``."""
        norms = ["ln_rows", "ln1"] + (["attn_q_norm", "attn_k_norm"] if self.qk_norm else [])
        matrices = ("attn_q", "attn_k", "attn_v", "attn_out", "ffn_up", "ffn_down")
        names = [f"{norm}.{kind}" for norm in (*norms, "ln2") for kind in ("weight", "bias")]
        return names + [f"{matrix}.weight" for matrix in matrices]

    def tensor_shape(self, name: str, width: int) -> tuple[int, ...]:
        """The shape of one of its tensors, for the tower's width."""
        if name == "v.resampler.latents":
            return (self.rows * width,)
        shapes = {
            "attn_out": (width, self.size),
            "ffn_up": (self.feed_forward_size, width),
            "ffn_down": (width, self.feed_forward_size),
            **dict.fromkeys(("attn_q", "attn_k", "attn_v"), (self.size, width)),
            **dict.fromkeys(("attn_q_norm", "attn_k_norm"), (self.head_size,)),
        }
        return shapes.get(name.split(".")[-2], (width,))


@dataclasses.dataclass(frozen=True)
class VisionArchitecture:
    """One tower and its connector, described by data.

    Behind the last layer: the class token goes, a norm, the mean of ``pool`` x ``pool`` patches,
    ``regroup`` x ``regroup`` of these one after the other as one row, a norm, the connector. Or, in
    a model whose decoder looks at pictures: the resampler, if there is one, and keys and values of
    every gated block, of which a picture's rows consist.

    Attributes:
        layers: How many are computed.
        hidden_size: Width of the stream.
        heads: Of attention.
        head_size: Width of a head.
        feed_forward_size: Width between the matrices of the feed-forward.
        image_size: Side of the square picture that is read, in pixels.
        patch_size: Side of a patch; what is left over at the right and at the bottom is not read.
        norm_epsilon: Of every norm of the tower.
        activation: Of the feed-forward.
        decoder_size: Width of the decoder's stream.
        class_token: Whether a token that is no patch stands first.
        patch_bias: Whether patches have a bias.
        pre_norm: Whether the stream begins with a norm.
        post_norm: Whether it ends with one.
        pool: Side of the squares of patches that are averaged.
        regroup: Side of the squares of these that become one row.
        by_columns: Whether these rows leave column by column, and not line by line.
        connector_norm: none, layer or rms.
        connector_norm_epsilon: Of it.
        connector: linear: one matrix; mlp: two, with an activation between; cross: two for every
            gated block.
        connector_size: Width between the two.
        connector_activation: Between the two.
        connector_bias: Whether they have biases.
        newline: Whether the file holds the vector that ends rows of tiles.
        bidirectional: Whether a picture's rows see each other in the decoder.
        position: learned: every patch has a row of a table; rotary: queries and keys turn by the
            row and the column of their patch, and pictures have any height and width that are
            multiples of ``step``, up to ``image_size``.
        norm: Of the tower: layer or rms.
        feed_forward: Of its layers: plain or gated.
        window: Side of the squares of patches that see each other; 0: all do.
        full_layers: Those in which all do nevertheless.
        position_grid: Side of a table that the position of a patch that turns is interpolated from,
            the corners of the picture at those of the table; 0: there is none.
        taps: Layers behind which a connector of its own, a norm in front of it, reads the stream:
            the outputs of the decoder's first layers take up what these make.
        keep_class: Whether the class token stays behind the last layer.
        resampler: What makes a fixed number of rows of them; None: nothing does.
        cross: The decoder's gated blocks, which the connector makes keys and values for; None: a
            picture's rows stand in the text.
    """

    layers: int
    hidden_size: int
    heads: int
    head_size: int
    feed_forward_size: int
    image_size: int
    patch_size: int
    norm_epsilon: float
    activation: str
    decoder_size: int
    class_token: bool = False
    patch_bias: bool = True
    pre_norm: bool = False
    post_norm: bool = False
    pool: int = 1
    regroup: int = 1
    by_columns: bool = False
    connector_norm: str = "none"
    connector_norm_epsilon: float = 0.0
    connector: str = "linear"
    connector_size: int = 0
    connector_activation: str = "gelu"
    connector_bias: bool = True
    newline: bool = False
    bidirectional: bool = False
    position: str = "learned"
    norm: str = "layer"
    feed_forward: str = "plain"
    window: int = 0
    full_layers: tuple[int, ...] = ()
    position_grid: int = 0
    taps: tuple[int, ...] = ()
    keep_class: bool = False
    resampler: Resampler | None = None
    cross: CrossAttention | None = None

    def __post_init__(self) -> None:
        """Refuses what no file can hold."""
        for name in ("image_size", "patch_size", "pool", "regroup", "decoder_size"):
            if getattr(self, name) < 1:
                raise InvalidArgumentError(
                    f"The tower's {name} is {getattr(self, name)}; it must be positive."
                )
        if self.image_size < self.patch_size or self.image_size > 16384:
            raise UnsupportedError(
                f"The tower reads pictures of {self.image_size} pixels in patches of "
                f"{self.patch_size}; 1 patch to 16384 pixels are supported."
            )
        if self.rotary and (
            self.head_size % 4 or self.class_token or self.pool > 1 or self.image_size % self.step
        ):
            raise UnsupportedError(
                f"The tower turns heads of {self.head_size} by rows and columns, in pictures of up "
                f"to {self.image_size} pixels in squares of {self.step}: no tower here does."
            )
        if self.positions > _MOST_POSITIONS:
            raise UnsupportedError(
                f"The tower has {self.positions} positions; at most {_MOST_POSITIONS} are "
                "supported."
            )
        if self.grid % self.pool or self.regroup > self.grid // self.pool:
            raise UnsupportedError(
                f"The tower's {self.grid} patches on a side do not divide into squares of "
                f"{self.pool} and {self.regroup}."
            )
        if self.bidirectional and self.tokens > _MOST_TOGETHER:
            raise UnsupportedError(
                f"A picture becomes {self.tokens} rows that see each other; at most "
                f"{_MOST_TOGETHER} can."
            )
        ascending = all(one < two for one, two in zip(self.taps, self.taps[1:]))
        if not (ascending and all(0 <= layer < self.layers for layer in self.taps)):
            raise UnsupportedError(
                f"The tower has {self.layers} layers, and is read behind {list(self.taps)}: they "
                "must ascend, and be there."
            )
        if self.taps and self.connector != "mlp":
            raise UnsupportedError("A tower is read behind several layers by two matrices each.")
        if self.position_grid > 256:
            raise UnsupportedError(
                f"The tower has a table of {self.position_grid} positions on a side; at most 256 "
                "are supported."
            )
        if max(3 * self.patch_size**2, self.connector_input) > _MOST_COLUMNS:
            raise UnsupportedError(
                "The tower's patches, or what the connector reads, are too wide."
            )
        if (self.cross is None) != (self.connector != "cross"):
            raise InvalidArgumentError("A connector to gated blocks needs these blocks.")
        if self.cross is not None and self.row_size > _MOST_COLUMNS:
            raise UnsupportedError(
                f"A picture's row has {self.row_size} numbers in the gated blocks; at most "
                f"{_MOST_COLUMNS} are supported."
            )
        self.tower()  # has limits of its own

    def tower(self) -> Tower:
        """The layers."""
        return Tower(
            layers=self.layers,
            hidden_size=self.hidden_size,
            vocabulary_size=1,  # no tokens: patches come in their place
            context_length=self.positions,
            heads=self.heads,
            kv_heads=self.heads,
            head_size=self.head_size,
            feed_forward_size=self.feed_forward_size,
            norm_epsilon=self.norm_epsilon,
            rope_theta=10000.0,  # of no meaning where positions are learned
            activation=self.activation,
            tied_head=True,
            qkv_bias=True,
            output_bias=True,
            feed_forward_bias=True,
            norm=self.norm,
            norm_bias=self.norm == "layer",
            position=self.position,
            feed_forward=self.feed_forward,
        )

    @property
    def grid(self) -> int:
        """Patches on a side."""
        return self.image_size // self.patch_size

    @property
    def rotary(self) -> bool:
        """Whether patches have no learned positions, and pictures any size."""
        return self.position == "rotary"

    @property
    def step(self) -> int:
        """Pixels on a side of what becomes one row for the decoder."""
        return self.patch_size * self.pool * self.regroup

    @property
    def positions(self) -> int:
        """Rows that the layers read of one picture, at most."""
        if self.rotary:
            return _MOST_POSITIONS
        return self.grid**2 + self.class_token

    @property
    def tokens(self) -> int:
        """Rows that the decoder reads of one picture, or looks at, where they have one size."""
        if self.resampler is not None:
            return self.resampler.rows
        if self.cross is not None:
            return self.positions - (self.class_token and not self.keep_class)
        return int(-(-(self.grid // self.pool) // self.regroup)) ** 2

    @property
    def row_size(self) -> int:
        """Numbers of each of them."""
        if self.cross is not None:
            return self.cross.row_size
        return self.decoder_size * (1 + len(self.taps))

    @property
    def connector_input(self) -> int:
        """Width of the rows that the connector reads."""
        return self.hidden_size * self.regroup**2

    def to_metadata(self) -> dict[str, MetadataValue]:
        """The entries of a model file; those that hold the default are left out."""
        a = self
        entries: dict[str, MetadataValue] = {
            name: getattr(a, name)
            for name in (
                "layers",
                "hidden_size",
                "heads",
                "head_size",
                "feed_forward_size",
                "image_size",
                "patch_size",
                "norm_epsilon",
                "activation",
                "connector",
            )
        }
        for name, default in (
            ("class_token", False),
            ("pre_norm", False),
            ("post_norm", False),
            ("pool", 1),
            ("regroup", 1),
            ("by_columns", False),
            ("connector_norm", "none"),
            ("connector_norm_epsilon", 0.0),
            ("connector_size", 0),
            ("bidirectional", False),
            ("position", "learned"),
            ("norm", "layer"),
            ("feed_forward", "plain"),
            ("window", 0),
            ("position_grid", 0),
            ("keep_class", False),
        ):
            if getattr(a, name) != default:
                entries[name] = getattr(a, name)
        if a.full_layers:
            entries["full_layers"] = list(a.full_layers)
        if a.taps:
            entries["taps"] = list(a.taps)
        if a.connector == "mlp" and a.connector_activation != "gelu":
            entries["connector_activation"] = a.connector_activation
        resampler = {} if a.resampler is None else a.resampler.to_metadata()
        return {**{f"{_PREFIX}{name}": value for name, value in entries.items()}, **resampler}

    def tensor_names(self) -> list[str]:
        """Every tensor of the tower and the connector, in file order: as a picture meets them."""
        a = self
        names = ["v.pixel_values", "v.patch_embd.weight"]
        names += ["v.patch_embd.bias"] if a.patch_bias else []
        names += ["v.class_embd"] if a.class_token else []
        names += ["v.rope.inverse_frequencies"] if a.rotary else []
        names += ["v.position_embd.weight"] if a.position_grid or not a.rotary else []
        kinds = ("weight", "bias") if a.norm == "layer" else ("weight",)
        names += [f"v.pre_ln.{kind}" for kind in kinds] if a.pre_norm else []
        for layer in range(a.layers):
            names += [in_file(layer, name) for name in self.layer_tensor_names()]
        names += [f"v.post_ln.{kind}" for kind in kinds] if a.post_norm else []
        names += [] if a.resampler is None else a.resampler.tensor_names()
        if a.cross is not None:
            for number in a.cross.numbers:
                names += [f"mm.blk.{number}.k.weight", f"mm.blk.{number}.v.weight"]
                names += [f"mm.blk.{number}.k_norm.weight"] if a.cross.qk_norm else []
            return names
        names += ["mm.norm.weight"] if a.connector_norm != "none" else []
        names += ["mm.norm.bias"] if a.connector_norm == "layer" else []
        for number in range(-1, len(a.taps)):
            tap = f"mm.tap.{number}.norm"
            names += [f"{tap}.weight", f"{tap}.bias"] if number >= 0 else []
            for matrix in self.connector_matrices(number):
                names += [f"{matrix}.weight"] + ([f"{matrix}.bias"] if a.connector_bias else [])
        return names + (["mm.image_newline"] if a.newline else [])

    def layer_tensor_names(self) -> list[str]:
        """The tensors of a layer, by the decoder's names."""
        from awq_edge.stages import layer_tensor_names

        return layer_tensor_names(self.tower(), 0)

    def linear_parameters(self) -> int:
        """Weights of all matrices."""
        shapes = [self.tensor_shape(name) for name in self.tensor_names()]
        return sum(shape[0] * shape[1] for shape in shapes if len(shape) == 2)

    def connector_matrices(self, tap: int = -1) -> list[str]:
        """The connector's, or those of a tap's."""
        if tap >= 0:
            return [f"mm.tap.{tap}.0", f"mm.tap.{tap}.2"]
        if self.cross is not None:
            return [f"mm.blk.{number}.{kind}" for number in self.cross.numbers for kind in "kv"]
        return ["mm.0", "mm.2"] if self.connector == "mlp" else ["mm.0"]

    def tensor_shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor; what has two dimensions is packed."""
        from awq_edge.stages import tensor_shape

        a = self
        if name.startswith("v.blk."):
            return tensor_shape(self.tower(), by_decoder(name))
        if name.startswith("v.resampler.") and a.resampler is not None:
            return a.resampler.tensor_shape(name, a.hidden_size)
        if name.startswith("mm.blk.") and a.cross is not None:
            of_head = name.endswith(".k_norm.weight")
            return (a.cross.head_size,) if of_head else (a.cross.size, a.hidden_size)
        first = a.connector_size if a.connector == "mlp" else a.decoder_size
        matrices = {
            "v.patch_embd": (a.hidden_size, 3 * a.patch_size**2),
            "mm.0": (first, a.connector_input),
            "mm.2": (a.decoder_size, a.connector_size),
        }
        stem, _, kind = name.rpartition(".")
        if stem.startswith("mm.tap."):
            stem = f"mm.{stem.rpartition('.')[2]}"  # in the form of the connector
            name = f"{stem}.{kind}"
        if stem in matrices:
            return matrices[stem] if kind == "weight" else matrices[stem][:1]
        vectors = {
            "v.pixel_values": 3 * 256,
            "v.position_embd.weight": (a.position_grid**2 or a.positions) * a.hidden_size,
            "v.rope.inverse_frequencies": a.head_size // 4,
            "mm.norm.weight": a.connector_input,
            "mm.norm.bias": a.connector_input,
            "mm.image_newline": a.decoder_size,
        }
        return (vectors.get(name, a.hidden_size),)


def in_file(layer: int, name: str) -> str:
    """What a model file calls a layer's tensor that the decoder calls ``attn_norm.weight``."""
    stem, _, kind = name.rpartition(".")
    return f"v.blk.{layer}.{_IN_FILE.get(stem, stem)}.{kind}"


def by_decoder(name: str) -> str:
    """The opposite of :func:`in_file`, without the layer."""
    stem, _, kind = name.rpartition(".")
    stem = stem.rpartition(".")[2]
    ours = {theirs: ours for ours, theirs in _IN_FILE.items()}
    return f"{ours.get(stem, stem)}.{kind}"
