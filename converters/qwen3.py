"""Qwen3: a norm on each query and key head instead of Qwen2's biases."""

from __future__ import annotations

from awq_edge.architecture import Architecture

from .base import LLAMA_NAMES, Config, Converter

_NAMES = {
    **LLAMA_NAMES,
    "blk.N.attn_q_norm": "model.layers.N.self_attn.q_norm",
    "blk.N.attn_k_norm": "model.layers.N.self_attn.k_norm",
}


def _architecture(config: Config) -> Architecture:
    attention_bias = config.flag("attention_bias")
    return config.decoder(
        head_size=config.head_size(default=128),  # the default of transformers
        qk_norm=True,
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        sliding_windows=config.qwen_windows(),
    )


CONVERTER = Converter("qwen3", _NAMES, _architecture)
