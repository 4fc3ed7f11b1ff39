"""The gated blocks within a model whose decoder looks at pictures.

Owns, for each type of such models: how its config.json fills the record of ``cross_attention.py``,
how a block's tensors are called, and which of them are gates. Refuses mathematics and weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from awq_edge.cross_attention import CrossAttention
from awq_edge.errors import CheckpointError, UnsupportedError

from .open_flamingo import MODEL_TYPE
from .values import Values, shown

BLOCKS = "blocks."  # in front of the names of blocks' tensors, theirs made ours

# What the class of Idefics takes for keys that are absent.
_IDEFICS = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "cross_layer_interval": 1,
}
_IDEFICS_NAMES = {
    "cross_attn_norm": "input_layernorm",
    "cross_attn_q": "cross_attn.q_proj",
    "cross_attn_q_norm": "cross_attn.q_layer_norm",
    "cross_attn_output": "cross_attn.o_proj",
    "cross_ffn_norm": "post_attention_layernorm",
    "cross_ffn_gate": "mlp.gate_proj",
    "cross_ffn_up": "mlp.up_proj",
    "cross_ffn_down": "mlp.down_proj",
    "k": "cross_attn.k_proj",
    "v": "cross_attn.v_proj",
    "k_norm": "cross_attn.k_layer_norm",
}
_OPEN_FLAMINGO_NAMES = {
    "cross_attn_norm": "attn.norm",
    "cross_attn_q": "attn.to_q",
    "cross_attn_output": "attn.to_out",
    "cross_ffn_norm": "ff.0",
    "cross_ffn_up": "ff.1",
    "cross_ffn_down": "ff.3",
    "k": "attn.to_k",
    "v": "attn.to_v",
}


@dataclasses.dataclass(frozen=True)
class CrossPart:
    """What a config.json says of gated blocks.

    Attributes:
        record: Their form.
        blocks: The number that a block's tensors are called by, for the layer behind it.
        names: Our names of a block's tensors to theirs, those of keys and values too.
        gates: The gate of a branch by our name of the matrix that ends it: its outputs count by
            the hyperbolic tangent of this, one number or one for each.
    """

    record: CrossAttention
    blocks: Mapping[int, int]
    names: Mapping[str, str]
    gates: Mapping[str, str]

    def stored_name(self, layer: int, name: str) -> str:
        """What a checkpoint calls a block's tensor, ``cross_attn_q.weight`` or ``k.weight``."""
        stem, _, kind = name.rpartition(".")
        return f"{BLOCKS}{self.blocks[layer]}.{self.names[stem]}.{kind}"

    def gate(self, layer: int, name: str) -> str | None:
        """The gate that a tensor's rows are multiplied by, if it is such a matrix."""
        stem, _, kind = name.rpartition(".")
        if kind != "weight" or stem not in self.gates:
            return None
        return f"{BLOCKS}{self.blocks[layer]}.{self.gates[stem]}"


def block_tensor(name: str) -> str | None:
    """A tensor's name with its prefix made ours; None if it is none of a gated block."""
    prefix = "model.gated_cross_attn_layers."
    return BLOCKS + name[len(prefix) :] if name.startswith(prefix) else None


def cross_part(config: Mapping[str, Any]) -> CrossPart | None:
    """The gated blocks of a model; None for a type without such.

    Args:
        config: config.json of the whole.

    Raises:
        UnsupportedError: They are of a form that is not computed here.
        CheckpointError: config.json contradicts itself.
    """
    model_type = config.get("model_type")
    reader = _READERS.get(model_type) if isinstance(model_type, str) else None
    return None if reader is None else reader(config)


def _idefics(config: Mapping[str, Any]) -> CrossPart:
    """Idefics 1: blocks in the form of the decoder's own layers, before every so many."""
    values = Values(config, _IDEFICS)
    layers, every = values.integer("num_hidden_layers"), values.integer("cross_layer_interval")
    width, heads = values.integer("hidden_size"), values.integer("num_attention_heads")
    if every < 1 or layers < 1 or layers % every:
        raise CheckpointError(
            f"config.json has {every} for cross_layer_interval, and {layers} layers, which are no "
            "multiple of it."
        )
    if heads < 1 or width % heads:
        raise CheckpointError(
            f"config.json has {heads} heads for a width of {width}, which is no multiple of them."
        )
    if values.get("hidden_act") != "silu":
        raise UnsupportedError(
            f"The activation {shown(values.get('hidden_act'))} is not supported; only silu is."
        )
    record = CrossAttention(
        layers=tuple(int(layer % every == 0) for layer in range(layers)),
        heads=heads,
        head_size=width // heads,
        feed_forward_size=values.integer("intermediate_size"),
        norm="rms",
        norm_epsilon=values.number("rms_norm_eps"),
        feed_forward="gated",
        activation="silu",
        qk_norm=values.flag("qk_layer_norms"),
    )
    return CrossPart(
        record,
        {layer: layer // every for layer in record.numbers},
        _IDEFICS_NAMES,
        {"cross_attn_output": "alpha_cross_attn", "cross_ffn_down": "alpha_dense"},
    )


def _open_flamingo(config: Mapping[str, Any]) -> CrossPart:
    """OpenFlamingo: LayerNorm and two plain matrices, called by the layer behind the block."""
    values = Values(config, {})
    layers, every = values.integer("num_hidden_layers"), values.integer("cross_attn_every_n_layers")
    record = CrossAttention(
        layers=tuple(int((layer + 1) % every == 0) for layer in range(layers)),
        heads=values.integer("cross_heads"),
        head_size=values.integer("cross_head_dim"),
        feed_forward_size=values.integer("cross_intermediate_size"),
        norm="layer",
        norm_epsilon=1e-5,
        feed_forward="plain",
        activation="gelu",
    )
    return CrossPart(
        record,
        {layer: layer for layer in record.numbers},
        _OPEN_FLAMINGO_NAMES,
        {"cross_attn_output": "attn_gate", "cross_ffn_down": "ff_gate"},
    )


_READERS: Mapping[str, Callable[[Mapping[str, Any]], CrossPart]] = {
    "idefics": _idefics,
    MODEL_TYPE: _open_flamingo,
}
