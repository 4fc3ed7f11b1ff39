"""What a decoder layer consists of: the one description that every walk through a layer follows.

Owns the order of a layer's matrices and which of them share an input, how that input is made, what
is added to the stream and what may absorb a scale; and the names and shapes of all tensors. Refuses
arithmetic: ``torch_decoder.py`` has an operation for everything that is said here.
``docs/layers.md`` shows how the families that exist fit into this record.
"""

from __future__ import annotations

import dataclasses
import enum
import functools

from awq_edge.architecture import Architecture

_MOST_SQUARES = 1 << 26  # of all experts' outputs: 256 MiB for each half of the tokens


class Origin(enum.Enum):
    """What the input of a stage is made of."""

    STREAM = "stream"  # the hidden states
    ATTENTION = "attention"  # queries, keys and values
    PICTURES = "pictures"  # queries, and keys and values of the picture that a position looks at
    ACTIVATION = "activation"  # of a gate, times what it lets through, or of one matrix's output


@dataclasses.dataclass(frozen=True)
class Stage:
    """Matrices of a layer that read the same input.

    A branch of the layer begins with a stage that reads the stream, and ends with stages that add
    to it; each of these reads what the matrices of the first one give, combined. A mixture of
    experts is one branch that ends with a stage for each expert: it reads the rows that a router
    sends there, and what it gives is weighed by the router's share before it is added.

    Attributes:
        name: What reports call it.
        matrices: "attn_q" and so on; exactly one where ``adds``.
        origin: How the input is made.
        made_of: The matrices whose outputs are combined, in the operation's order; they belong to
            the stage that begins the branch. None of them if the stage reads the stream.
        norm: What the stream passes before the matrices read it, "attn_norm" and so on.
        beside: Whether the branch that the stage begins lies beside the others of the layer: it
            reads the layer's input, not the stream behind them.
        adds: Whether the output is added to the stream.
        post_norm: What the output passes before it is added.
        sum_norm: What the sum with the stream passes to become the stream.
        absorber: What the input may be divided by a scale through: a norm, the rows of a matrix, or
            the scales behind an activation; None if there is nothing.
        window: Positions that attention sees, the present one included; 0 sees all before it.
        routers: Float vectors, rows of a router one after the other, that read the same input.
        expert: Whose output the stage adds, by its place among the router's shares; the shared
            expert's is behind those of all others. None: the output counts as it is.
        cross: Whether it belongs to a gated block, whose form is not the decoder's.
    """

    name: str
    matrices: tuple[str, ...]
    origin: Origin
    made_of: tuple[str, ...] = ()
    norm: str | None = None
    beside: bool = False
    adds: bool = False
    post_norm: str | None = None
    sum_norm: str | None = None
    absorber: str | None = None
    window: int = 0
    routers: tuple[str, ...] = ()
    expert: int | None = None
    cross: bool = False


@functools.lru_cache(maxsize=2048)  # asked for again with every batch
def stages(architecture: Architecture, layer: int) -> tuple[Stage, ...]:
    """The stages of a layer, in the order in which they are computed."""
    a = architecture
    queries_keys_values = ("attn_q", "attn_k", "attn_v")
    attention = _norms_of(a, "attn")
    return (
        *(_gated_block(a) if a.has_cross(layer) else ()),
        Stage(
            "qkv",
            queries_keys_values,
            Origin.STREAM,
            norm=attention.before,
            absorber=attention.before,
        ),
        Stage(
            "output",
            ("attn_output",),
            Origin.ATTENTION,
            made_of=queries_keys_values,
            adds=True,
            post_norm=attention.after,
            sum_norm=attention.of_sum,
            absorber=None if a.qkv_clamp else "attn_v",  # a clamped value does not shrink in step
            window=a.sliding_windows[layer],
        ),
        *(_mixture(a) if a.has_experts(layer) else _feed_forward(a)),
    )


def _gated_block(architecture: Architecture) -> tuple[Stage, ...]:
    """A block that looks at pictures, before the layer itself.

    Its keys and values are made of pictures alone, once for each: they belong to the tower.
    """
    cross = architecture.cross
    assert cross is not None
    gated = cross.feed_forward == "gated"
    upwards = ("cross_ffn_gate", "cross_ffn_up") if gated else ("cross_ffn_up",)
    divides = gated or cross.activation == "relu"
    return (
        Stage(
            "cross_q",
            ("cross_attn_q",),
            Origin.STREAM,
            norm="cross_attn_norm",
            absorber="cross_attn_norm",
            cross=True,
        ),
        Stage(
            "cross_output",
            ("cross_attn_output",),
            Origin.PICTURES,
            made_of=("cross_attn_q",),
            adds=True,
            cross=True,
        ),
        Stage(
            "cross_gate_up" if gated else "cross_up",
            upwards,
            Origin.STREAM,
            norm="cross_ffn_norm",
            absorber="cross_ffn_norm",
            cross=True,
        ),
        Stage(
            "cross_down",
            ("cross_ffn_down",),
            Origin.ACTIVATION,
            made_of=upwards,
            adds=True,
            absorber="cross_ffn_up" if divides else None,
            cross=True,
        ),
    )


def _feed_forward(architecture: Architecture) -> tuple[Stage, ...]:
    """One feed-forward that every token passes."""
    a = architecture
    gated = a.feed_forward == "gated"
    upwards = ("ffn_gate", "ffn_up") if gated else ("ffn_up",)
    norms = _norms_of(a, "ffn")
    return (
        Stage(
            "gate_up" if gated else "up",
            upwards,
            Origin.STREAM,
            norm=norms.before,
            beside=a.parallel,
            absorber=norms.before,
        ),
        Stage(
            "down",
            ("ffn_down",),
            Origin.ACTIVATION,
            made_of=upwards,
            adds=True,
            post_norm=norms.after,
            sum_norm=norms.of_sum,
            absorber=_absorber_of_down(a),
        ),
    )


def _mixture(architecture: Architecture) -> tuple[Stage, ...]:
    """Experts and a router; one scale of the norm reaches all of them."""
    a = architecture
    experts = [f"expert.{number}." for number in range(a.experts)]
    if a.shared_expert_size:
        experts.append("shared.")
    upwards = [(f"{expert}ffn_gate", f"{expert}ffn_up") for expert in experts]
    first = Stage(
        "gate_up",
        tuple(name for pair in upwards for name in pair),
        Origin.STREAM,
        norm="ffn_norm",
        absorber="ffn_norm",
        routers=("ffn_router", "shared_router") if a.shared_router else ("ffn_router",),
    )
    ends = [
        Stage(
            f"{expert}down",
            (f"{expert}ffn_down",),
            Origin.ACTIVATION,
            made_of=pair,
            adds=True,
            absorber=pair[1],
            expert=number,
        )
        for number, (expert, pair) in enumerate(zip(experts, upwards))
    ]
    return (first, *ends)


@dataclasses.dataclass(frozen=True)
class _Norms:
    """The norms of one branch."""

    before: str | None = None
    after: str | None = None
    of_sum: str | None = None


def _norms_of(architecture: Architecture, branch: str) -> _Norms:
    """Where a branch's norms are; what they absorb is what nothing else reads."""
    before, after = f"{branch}_norm", f"{branch}_post_norm"
    return {
        "before": _Norms(before=before),
        "after": _Norms(after=after),
        "both": _Norms(before=before, after=after),
        "stream": _Norms(of_sum=after),
    }[architecture.norm_places]


def _absorber_of_down(architecture: Architecture) -> str | None:
    """What may divide the input of the matrix that ends the feed-forward."""
    a = architecture
    if a.feed_forward == "gated":
        return "ffn_up"  # never the gate, which passes the activation
    if a.activation_scales:
        return "ffn_act"
    return "ffn_up" if a.activation == "relu" else None  # relu(x / s) is relu(x) / s


def matrices(architecture: Architecture, layer: int) -> tuple[str, ...]:
    """The packed matrices of a layer, in the order of its stages."""
    return tuple(name for stage in stages(architecture, layer) for name in stage.matrices)


def coupled_matrices(architecture: Architecture, layer: int) -> list[str]:
    """Those whose outputs may make up for each other's errors.

    Experts' only where what is measured for it, a square of every matrix's outputs, is not larger
    than everything else that a conversion keeps of a layer.
    """
    names = matrices(architecture, layer)
    routed = [name for name in names if is_routed(name)]
    squares = sum(tensor_shape(architecture, f"{name}.weight")[0] ** 2 for name in routed)
    return [name for name in names if squares <= _MOST_SQUARES or name not in routed]


def fed_by(architecture: Architecture, layer: int, first: Stage) -> tuple[Stage, ...]:
    """The stages that read what the matrices of a branch's first stage give."""
    return tuple(
        stage for stage in stages(architecture, layer) if set(stage.made_of) & set(first.matrices)
    )


def read_together(stage: Stage) -> list[tuple[str, ...]]:
    """A stage's matrices in parts that are rounded together: experts one by one."""
    if not stage.routers:
        return [stage.matrices]
    return list(zip(stage.matrices[::2], stage.matrices[1::2]))


def is_kept(stage: Stage) -> bool:
    """Whether what a stage reads is kept while its layer is rounded, or made again.

    Of a mixture of experts the input of all is kept, and what each of them makes of it is not.
    """
    if stage.origin is Origin.STREAM:
        return bool(stage.routers)
    return stage.expert is None


def is_routed(matrix: str) -> bool:
    """Whether only the tokens that a router sends there reach a matrix of a layer."""
    return matrix.startswith("expert.")


def layer_norms(architecture: Architecture, layer: int) -> list[str]:
    """The norms of the stream in a layer, "attn_norm" and so on; not those of a gated block."""
    described = [stage for stage in stages(architecture, layer) if not stage.cross]
    before = [stage.norm for stage in described]
    behind = [norm for stage in described for norm in (stage.post_norm, stage.sum_norm)]
    return [norm for norm in (*before, *behind) if norm is not None]


def layer_tensor_names(architecture: Architecture, layer: int) -> list[str]:
    """Every tensor of one layer, without "blk.N."."""
    a = architecture
    norms = layer_norms(a, layer)
    names = _cross_vectors(a) if a.has_cross(layer) else []
    names += [f"{norm}.weight" for norm in norms]
    names += [f"{name}.weight" for stage in stages(a, layer) for name in stage.routers]
    names += [f"{name}.weight" for name in matrices(a, layer)]
    if a.qk_norm:
        names += ["attn_q_norm.weight", "attn_k_norm.weight"]
    if a.qk_norm_bias:
        names += ["attn_q_norm.bias", "attn_k_norm.bias"]
    if a.qkv_bias:
        names += ["attn_q.bias", "attn_k.bias", "attn_v.bias"]
    if a.output_bias:
        names += ["attn_output.bias"]
    if a.feed_forward_bias:
        names += [f"{name}.bias" for name in matrices(a, layer) if name.startswith("ffn_")]
    if a.norm_bias:
        names += [f"{norm}.bias" for norm in norms]
    if a.activation_scales:
        names += ["ffn_act.scales"]
    return names


def _cross_vectors(architecture: Architecture) -> list[str]:
    """What is no matrix of a gated block."""
    cross = architecture.cross
    assert cross is not None
    kinds = ("weight", "bias") if cross.norm == "layer" else ("weight",)
    norms = [f"{norm}.{kind}" for norm in ("cross_attn_norm", "cross_ffn_norm") for kind in kinds]
    return norms + (["cross_attn_q_norm.weight"] if cross.qk_norm else [])


def head_name(architecture: Architecture) -> str:
    """The matrix that makes logits of the last states."""
    return "token_embd.weight" if architecture.tied_head else "output.weight"


def positions_name(architecture: Architecture) -> str | None:
    """The tensor by which attention knows positions, where there is one."""
    names = {"rotary": "rope.inverse_frequencies", "alibi": "alibi.slopes"}
    return names.get(architecture.position)


def embedding_tensor_names(architecture: Architecture) -> list[str]:
    """What is in front of the first layer, the positions of attention apart."""
    a = architecture
    names = ["token_embd.weight"]
    if a.position == "learned":
        names.append("position_embd.weight")
    if a.embedding_norm:
        names += _norm_tensors(a, "token_embd_norm")
    return names


def head_tensor_names(architecture: Architecture) -> list[str]:
    """What is behind the last layer, a tied head apart."""
    a = architecture
    names = _norm_tensors(a, "output_norm") if a.final_norm else []
    if not a.tied_head:
        names.append("output.weight")
    if a.head_bias:
        names.append("output.bias")
    return names


def tensor_names(architecture: Architecture) -> list[str]:
    """Every tensor of a model file, in file order: as a token meets them."""
    first, *others = embedding_tensor_names(architecture)
    positions = positions_name(architecture)
    names = [first, *([] if positions is None else [positions]), *others]
    for layer in range(architecture.layers):
        names += [f"blk.{layer}.{name}" for name in layer_tensor_names(architecture, layer)]
    return names + head_tensor_names(architecture)


def _norm_tensors(architecture: Architecture, norm: str) -> list[str]:
    return [f"{norm}.weight", *([f"{norm}.bias"] if architecture.norm_bias else [])]


def tensor_shape(architecture: Architecture, name: str) -> tuple[int, ...]:
    """The shape of the tensor of a name (``blk.N.`` included or not).

    What has two dimensions is packed; a table of floats is one vector, row after row.
    """
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
        "expert.ffn_gate": (a.expert_size, a.hidden_size),
        "expert.ffn_up": (a.expert_size, a.hidden_size),
        "expert.ffn_down": (a.hidden_size, a.expert_size),
        "shared.ffn_gate": (a.shared_expert_size, a.hidden_size),
        "shared.ffn_up": (a.shared_expert_size, a.hidden_size),
        "shared.ffn_down": (a.hidden_size, a.shared_expert_size),
    }
    if a.cross is not None:
        block = (a.cross.feed_forward_size, a.hidden_size)
        shapes["cross_attn_q"] = (a.cross.size, a.hidden_size)
        shapes["cross_attn_output"] = (a.hidden_size, a.cross.size)
        shapes["cross_ffn_gate"] = shapes["cross_ffn_up"] = block
        shapes["cross_ffn_down"] = block[::-1]
    of_head = a.qk_norm_kind == "head"
    vectors = {
        "cross_attn_q_norm": 0 if a.cross is None else a.cross.head_size,
        "attn_q_norm": a.head_size if of_head else queries,
        "attn_k_norm": a.head_size if of_head else keys,
        "ffn_act": a.feed_forward_size,
        "ffn_router": a.experts * a.hidden_size,
        "position_embd": a.context_length * a.hidden_size,
        "alibi": a.heads,
        "rope": (1 + max(a.rope_tables)) * (a.head_size // 2),
    }
    stem, _, kind = name.rpartition(".")
    *_, whose, stem = ["", *(part for part in stem.split(".") if not part.isdigit())]
    stem = f"{whose}.{stem}" if whose in ("expert", "shared") else stem
    if stem in shapes:
        return shapes[stem] if kind == "weight" else shapes[stem][:1]
    return (vectors.get(stem, a.hidden_size),)


def input_width(architecture: Architecture, stage: Stage) -> int:
    """How wide the input of a stage is."""
    return tensor_shape(architecture, f"{stage.matrices[0]}.weight")[1]
