"""MiniCPM 1, 2 and 4 (dense): Llama with multipliers that its weights absorb exactly."""

from __future__ import annotations

import math

from awq_edge.architecture import Architecture
from awq_edge.errors import UnsupportedError

from .base import LLAMA_NAMES, SHARED_DEFAULTS, Config, Converter, Stored, multiplied

_DEFAULTS = {
    **SHARED_DEFAULTS,
    "vocab_size": 32000,
    "intermediate_size": 11008,
    "num_key_value_heads": None,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "scale_emb": 1.0,
    "scale_depth": 1.0,
    "dim_model_base": 1,
}


def _architecture(config: Config) -> Architecture:
    if config.integer("num_experts", 0) > 0:
        raise UnsupportedError("MiniCPM-MoE is not supported; MiniCPM's dense models are.")
    return config.decoder(qkv_bias=config.flag("attention_bias"))


def _stored(config: Config, a: Architecture, stem: str) -> Stored:
    return multiplied(
        a,
        stem,
        embedding=config.divisor("scale_emb"),
        residual=config.number("scale_depth") / math.sqrt(a.layers),
        logits=config.number("dim_model_base") / a.hidden_size,
    )


CONVERTER = Converter("minicpm", LLAMA_NAMES, _architecture, _DEFAULTS, _stored)
