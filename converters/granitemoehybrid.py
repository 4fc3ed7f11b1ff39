"""Granite 4 without state-space layers and experts (350M, 1B, micro): Granite with fused gates.

The type's other models are refused by what their configurations say.
"""

from __future__ import annotations

from awq_edge.architecture import Architecture
from awq_edge.errors import CheckpointError, UnsupportedError

from .base import LLAMA_NAMES, Config, Converter, Stored, fused_gate_up
from .granite import GRANITE_DEFAULTS, granite_stored
from .rotary import LayerRopes, without_some
from .values import shown

_NAMES = {
    **LLAMA_NAMES,
    "blk.N.ffn_gate": "model.layers.N.shared_mlp.input_linear",
    "blk.N.ffn_up": "model.layers.N.shared_mlp.input_linear",
    "blk.N.ffn_down": "model.layers.N.shared_mlp.output_linear",
}

_DEFAULTS = {
    **GRANITE_DEFAULTS,
    "shared_intermediate_size": 1024,
    "num_local_experts": 8,
    "position_embedding_type": None,
}

_ATTENTION = ("attention", "full_attention")  # an older word and today's


def _require_attention_alone(config: Config) -> None:
    kinds = config.get("layer_types")
    kinds = config.get("layers_block_type") if kinds is None else kinds
    layers = config.layers()
    if kinds is not None and (not isinstance(kinds, list) or len(kinds) != layers):
        raise CheckpointError(f"config.json should have a list layer_types of {layers} words.")
    if kinds is None or any(kind not in _ATTENTION for kind in kinds):
        raise UnsupportedError(
            "The model mixes state-space layers with attention; of the type granitemoehybrid only "
            "models with attention in every layer are supported, such as Granite 4.0 350M, 1B and "
            "micro."
        )
    experts = config.get("num_local_experts")
    if experts != 0:
        raise UnsupportedError(
            f"The model has {shown(experts)} experts in each layer; of the type granitemoehybrid "
            "only models without are supported."
        )


def _ropes(config: Config) -> LayerRopes:
    rotates = config.get("position_embedding_type") == "rope"  # every other word: no positions
    return without_some(config.rope(), [rotates] * config.layers())


def _architecture(config: Config) -> Architecture:
    _require_attention_alone(config)
    attention_bias = config.flag("attention_bias")
    return config.decoder(
        ropes=_ropes(config),
        feed_forward_size=config.integer("shared_intermediate_size"),
        qkv_bias=attention_bias,
        output_bias=attention_bias,
    )


def _stored(config: Config, a: Architecture, stem: str) -> Stored:
    return fused_gate_up(a, stem) or granite_stored(config, a, stem)


CONVERTER = Converter("granitemoehybrid", _NAMES, _architecture, _DEFAULTS, _stored, ropes=_ropes)
