"""Llama 1, 2 and 3 and their kin: TinyLlama, SmolLM, Vicuna, Yi."""

from __future__ import annotations

from awq_edge.architecture import Architecture

from .base import LLAMA_NAMES, SHARED_DEFAULTS, Config, Converter

_DEFAULTS = {
    **SHARED_DEFAULTS,
    "vocab_size": 32000,
    "intermediate_size": 11008,
    "num_key_value_heads": None,
    "max_position_embeddings": 2048,
}


def _architecture(config: Config) -> Architecture:
    attention_bias = config.flag("attention_bias")
    return config.decoder(
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        feed_forward_bias=config.flag("mlp_bias"),
    )


CONVERTER = Converter("llama", LLAMA_NAMES, _architecture, _DEFAULTS)
