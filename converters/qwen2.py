"""Qwen2 and Qwen2.5: biases on query, key and value; some layers may have a sliding window.

The decoders of Qwen2-VL and Qwen2.5-VL are the same where they read text: the three numbers by
which they turn a position are then equal.
"""

from __future__ import annotations

import dataclasses

from awq_edge.architecture import Architecture

from .base import LLAMA_NAMES, SHARED_DEFAULTS, Config, Converter
from .rotary import turned_sections

_DEFAULTS = {
    **SHARED_DEFAULTS,
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "max_window_layers": 28,
}


def _architecture(config: Config) -> Architecture:
    return config.decoder(qkv_bias=True, sliding_windows=config.qwen_windows())


def _seeing_architecture(config: Config) -> Architecture:
    return dataclasses.replace(_architecture(config), rope_sections=turned_sections(config))


# Of the classes of text within models that see.
_SEEING_DEFAULTS = {
    **_DEFAULTS,
    "vocab_size": 152064,
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "max_window_layers": 80,
    "rope_theta": 1000000.0,
}
CONVERTER = Converter("qwen2", LLAMA_NAMES, _architecture, _DEFAULTS)
CONVERTERS = (
    CONVERTER,
    Converter("qwen2_vl_text", LLAMA_NAMES, _seeing_architecture, _SEEING_DEFAULTS),
    Converter("qwen2_5_vl_text", LLAMA_NAMES, _seeing_architecture, _SEEING_DEFAULTS),
)
