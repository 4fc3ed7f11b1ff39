"""Qwen3: a norm on each query and key head instead of Qwen2's biases."""

from __future__ import annotations

from awq_edge.architecture import Architecture

from .base import LLAMA_NAMES, SHARED_DEFAULTS, Config, Converter

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


CONVERTER = Converter("qwen3", _NAMES, _architecture, _DEFAULTS)
