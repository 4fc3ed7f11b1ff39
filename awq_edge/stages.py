"""What a decoder layer consists of: the one description that every walk through a layer follows.

Owns the order of a layer's matrices and which of them share an input, how that input is made, what
is added to the stream and what may absorb a scale; and the names and shapes of all tensors. Refuses
arithmetic: ``torch_decoder.py`` has an operation for everything that is said here.
``docs/layers.md`` shows how the families that exist fit into this record.
"""

from __future__ import annotations

import dataclasses
import enum

from awq_edge.architecture import Architecture


class Origin(enum.Enum):
    """What the input of a stage is made of."""

    STREAM = "stream"  # the hidden states
    ATTENTION = "attention"  # queries, keys and values
    ACTIVATION = "activation"  # gates and what they let through


@dataclasses.dataclass(frozen=True)
class Stage:
    """Matrices of a layer that read the same input.

    A branch of the layer begins with a stage that reads the stream, and ends with stages that add
    to it; each of these reads what the matrices of the first one give, combined.

    Attributes:
        name: What reports call it.
        matrices: "attn_q" and so on; exactly one where ``adds``.
        origin: How the input is made.
        made_of: The matrices whose outputs are combined, in the operation's order; they belong to
            the stage that begins the branch. None of them if the stage reads the stream.
        norm: What the stream passes before the matrices read it, "attn_norm" and so on.
        adds: Whether the output is added to the stream.
        absorber: What the input may be divided by a scale through: a norm, or the rows of a matrix;
            None if there is nothing.
        window: Positions that attention sees, the present one included; 0 sees all before it.
    """

    name: str
    matrices: tuple[str, ...]
    origin: Origin
    made_of: tuple[str, ...] = ()
    norm: str | None = None
    adds: bool = False
    absorber: str | None = None
    window: int = 0


def stages(architecture: Architecture, layer: int) -> tuple[Stage, ...]:
    """The stages of a layer, in the order in which they are computed."""
    queries_keys_values = ("attn_q", "attn_k", "attn_v")
    gate_up = ("ffn_gate", "ffn_up")
    return (
        Stage("qkv", queries_keys_values, Origin.STREAM, norm="attn_norm", absorber="attn_norm"),
        Stage(
            "output",
            ("attn_output",),
            Origin.ATTENTION,
            made_of=queries_keys_values,
            adds=True,
            absorber="attn_v",
            window=architecture.sliding_windows[layer],
        ),
        Stage("gate_up", gate_up, Origin.STREAM, norm="ffn_norm", absorber="ffn_norm"),
        Stage(
            "down",
            ("ffn_down",),
            Origin.ACTIVATION,
            made_of=gate_up,
            adds=True,
            absorber="ffn_up",  # never the gate, which passes the activation
        ),
    )


def matrices(architecture: Architecture, layer: int) -> tuple[str, ...]:
    """The packed matrices of a layer, in the order of its stages."""
    return tuple(name for stage in stages(architecture, layer) for name in stage.matrices)


def fed_by(architecture: Architecture, layer: int, first: Stage) -> tuple[Stage, ...]:
    """The stages that read what the matrices of a branch's first stage give."""
    return tuple(
        stage for stage in stages(architecture, layer) if set(stage.made_of) & set(first.matrices)
    )


def layer_tensor_names(architecture: Architecture, layer: int) -> list[str]:
    """Every tensor of one layer, without "blk.N."."""
    a = architecture
    names = [f"{stage.norm}.weight" for stage in stages(a, layer) if stage.norm is not None]
    names += [f"{name}.weight" for name in matrices(a, layer)]
    if a.qk_norm:
        names += ["attn_q_norm.weight", "attn_k_norm.weight"]
    if a.qkv_bias:
        names += ["attn_q.bias", "attn_k.bias", "attn_v.bias"]
    if a.output_bias:
        names += ["attn_output.bias"]
    if a.feed_forward_bias:
        names += ["ffn_gate.bias", "ffn_up.bias", "ffn_down.bias"]
    return names


def head_name(architecture: Architecture) -> str:
    """The matrix that makes logits of the last states."""
    return "token_embd.weight" if architecture.tied_head else "output.weight"


def tensor_names(architecture: Architecture) -> list[str]:
    """Every tensor of a model but the rotary frequencies, as a token meets them."""
    names = ["token_embd.weight"]
    for layer in range(architecture.layers):
        names += [f"blk.{layer}.{name}" for name in layer_tensor_names(architecture, layer)]
    names.append("output_norm.weight")
    return names if architecture.tied_head else [*names, "output.weight"]


def tensor_shape(architecture: Architecture, name: str) -> tuple[int, ...]:
    """The shape of the tensor of a name (``blk.N.`` included or not)."""
    a = architecture
    queries, keys = a.heads * a.head_size, a.kv_heads * a.head_size
    shapes = {
        "token_embd": (a.vocabulary_size, a.hidden_size),
        "output": (a.vocabulary_size, a.hidden_size),
        "attn_q": (queries, a.hidden_size),
        "attn_k": (keys, a.hidden_size),
        "attn_v": (keys, a.hidden_size),
        "attn_output": (a.hidden_size, queries),
        "ffn_gate": (a.feed_forward_size, a.hidden_size),
        "ffn_up": (a.feed_forward_size, a.hidden_size),
        "ffn_down": (a.hidden_size, a.feed_forward_size),
    }
    stem, _, kind = name.rpartition(".")
    stem = stem.split(".")[-1]
    if stem in shapes:
        return shapes[stem] if kind == "weight" else shapes[stem][:1]
    return (a.head_size,) if stem in ("attn_q_norm", "attn_k_norm") else (a.hidden_size,)


def input_width(architecture: Architecture, stage: Stage) -> int:
    """How wide the input of a stage is."""
    return tensor_shape(architecture, f"{stage.matrices[0]}.weight")[1]
