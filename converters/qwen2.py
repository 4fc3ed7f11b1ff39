"""Qwen2 and Qwen2.5: biases on query, key and value; some layers may have a sliding window."""

from __future__ import annotations

from awq_edge.architecture import Architecture

from .base import LLAMA_NAMES, SHARED_DEFAULTS, Config, Converter

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


CONVERTER = Converter("qwen2", LLAMA_NAMES, _architecture, _DEFAULTS)
