"""Qwen3: a norm on each query and key head instead of Qwen2's biases.

The decoder of Qwen3-VL is the same where it reads text; the three numbers by which it turns a
position take turns among the angles of a head.
"""

from __future__ import annotations

import dataclasses

from awq_edge.architecture import Architecture

from .base import LLAMA_NAMES, SHARED_DEFAULTS, Config, Converter
from .rotary import turned_sections

_NAMES = {
    **LLAMA_NAMES,
    "blk.N.attn_q_norm": "model.layers.N.self_attn.q_norm",
    "blk.N.attn_k_norm": "model.layers.N.self_attn.k_norm",
}

_DEFAULTS = {
    **SHARED_DEFAULTS,
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "head_dim": 128,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "max_window_layers": 28,
}


def _architecture(config: Config) -> Architecture:
    attention_bias = config.flag("attention_bias")
    return config.decoder(
        qk_norm=True,
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        sliding_windows=config.qwen_windows(),
    )


def _seeing_architecture(config: Config) -> Architecture:
    attention_bias = config.flag("attention_bias")
    decoder = config.decoder(qk_norm=True, qkv_bias=attention_bias, output_bias=attention_bias)
    sections = turned_sections(config) or _SECTIONS
    return dataclasses.replace(decoder, rope_sections=sections, rope_interleaved=True)


_SECTIONS = (24, 20, 20)  # that the class takes
# Of the class of text within models that see.
_SEEING_DEFAULTS = {
    **SHARED_DEFAULTS,
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "head_dim": 128,
    "max_position_embeddings": 128000,
    "rope_theta": 500000.0,
}
CONVERTER = Converter("qwen3", _NAMES, _architecture, _DEFAULTS)
CONVERTERS = (
    CONVERTER,
    Converter("qwen3_vl_text", _NAMES, _seeing_architecture, _SEEING_DEFAULTS),
)
