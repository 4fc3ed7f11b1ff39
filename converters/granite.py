"""Granite 3: Llama with four multipliers, which its weights absorb exactly."""

from __future__ import annotations

import math

from awq_edge.architecture import Architecture

from .base import LLAMA_NAMES, SHARED_DEFAULTS, Config, Converter, Stored, multiplied

GRANITE_DEFAULTS = {
    **SHARED_DEFAULTS,
    "vocab_size": 32000,
    "intermediate_size": 11008,
    "num_key_value_heads": None,
    "max_position_embeddings": 2048,
    "embedding_multiplier": 1.0,
    "logits_scaling": 1.0,
    "residual_multiplier": 1.0,
    "attention_multiplier": 1.0,
}


def _architecture(config: Config) -> Architecture:
    attention_bias = config.flag("attention_bias")
    return config.decoder(
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        feed_forward_bias=config.flag("mlp_bias"),
    )


def granite_stored(config: Config, a: Architecture, stem: str) -> Stored:
    """The four multipliers, in the matrices and the norm that they can be taken into."""
    if stem == "attn_q":
        # Our decoder divides scores by the root of the head's size.
        return Stored(factor=config.number("attention_multiplier") * math.sqrt(a.head_size))
    return multiplied(
        a,
        stem,
        embedding=config.divisor("embedding_multiplier"),
        residual=config.number("residual_multiplier"),
        logits=1.0 / config.divisor("logits_scaling"),
    )


CONVERTER = Converter("granite", LLAMA_NAMES, _architecture, GRANITE_DEFAULTS, granite_stored)
