"""Gemma 2: Gemma with norms on both sides of a branch, caps on scores and logits, and windows."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from awq_edge.architecture import Architecture
from awq_edge.errors import UnsupportedError

from .base import LLAMA_NAMES, Config, Converter, Stored
from .gemma import GEMMA_DEFAULTS, gemma_stored, refuse_both_directions
from .values import shown

# What Llama calls post_attention_layernorm stands in front of a branch, Gemma's behind one.
SANDWICH_NAMES = {
    **LLAMA_NAMES,
    "blk.N.attn_post_norm": "model.layers.N.post_attention_layernorm",
    "blk.N.ffn_norm": "model.layers.N.pre_feedforward_layernorm",
    "blk.N.ffn_post_norm": "model.layers.N.post_feedforward_layernorm",
}

GEMMA2_DEFAULTS: dict[str, Any] = {
    **GEMMA_DEFAULTS,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}

# Null is no cap; an absent key has the class's.
_DEFAULTS = {
    **GEMMA2_DEFAULTS,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}


def _architecture(config: Config) -> Architecture:
    kinds = config.layer_types(lambda layer: layer % 2 == 0)
    return config.decoder(
        **sandwich_fields(config),
        sliding_windows=config.windows(kinds),
        score_cap=config.cap("attn_logit_softcapping"),
    )


def sandwich_fields(config: Config) -> dict[str, Any]:
    """What the record says of Gemma 2 and 3 alike."""
    activation = config.get("hidden_activation")
    if activation not in ("gelu_pytorch_tanh", "gelu_new"):
        raise UnsupportedError(
            f"The activation {shown(activation)} is not Gemma's: GELU by tanh is."
        )
    refuse_both_directions(config)
    _scalar(config)
    attention_bias = config.flag("attention_bias")
    return {
        "activation": "gelu_tanh",
        "norm_places": "both",
        "qkv_bias": attention_bias,
        "output_bias": attention_bias,
        "logit_cap": config.cap("final_logit_softcapping"),
    }


def _scalar(config: Config) -> float:
    scalar = config.number("query_pre_attn_scalar")
    if scalar <= 0:
        raise UnsupportedError(f"config.json has {scalar:g} for query_pre_attn_scalar.")
    return scalar


def scaled_queries(config: Config, a: Architecture, change: Stored) -> Stored:
    """The family's scale of scores, query_pre_attn_scalar^-1/2, where ours is head_size^-1/2."""
    factor = math.sqrt(a.head_size / _scalar(config))
    return dataclasses.replace(change, factor=change.factor * factor, offset=change.offset * factor)


def _stored(config: Config, a: Architecture, stem: str) -> Stored:
    change = gemma_stored(config, a, stem)
    return scaled_queries(config, a, change) if stem == "attn_q" else change


CONVERTER = Converter("gemma2", SANDWICH_NAMES, _architecture, _DEFAULTS, _stored)
