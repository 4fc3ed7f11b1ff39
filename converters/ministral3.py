"""Ministral 3: Mistral stretched by yarn, as far as its queries are not scaled by position.

Beyond the original context the class multiplies queries by 1 + beta * log(1 + floor(position /
original context)); the decoder here does not, so the context ends where that begins.
"""

from __future__ import annotations

import dataclasses

from awq_edge.architecture import Architecture

from .base import LLAMA_NAMES, SHARED_DEFAULTS, Config, Converter
from .rotary import rope_table
from .values import Values

_DEFAULTS = {
    **SHARED_DEFAULTS,
    "vocab_size": 131072,
    "intermediate_size": 14336,
    "num_hidden_layers": 34,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 262144,
    "rms_norm_eps": 1e-5,
    "sliding_window": None,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 1e6,
        "factor": 16.0,
        "original_max_position_embeddings": 16384,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1,
    },
}


def _architecture(config: Config) -> Architecture:
    window = 0 if config.get("sliding_window") is None else config.integer("sliding_window")
    a = config.decoder(sliding_windows=(window,) * config.layers())
    table = Values(rope_table(config), {})
    if not table.number_or("llama_4_scaling_beta", 0.0):
        return a
    # An absent length is the whole context, as yarn takes it.
    whole = config.integer("max_position_embeddings")
    original = table.integer("original_max_position_embeddings", whole)
    return dataclasses.replace(a, context_length=min(a.context_length, original))


CONVERTER = Converter("ministral3", LLAMA_NAMES, _architecture, _DEFAULTS)
