"""Llama 1, 2 and 3 and their kin: TinyLlama, SmolLM, Vicuna, Yi."""

from __future__ import annotations

from awq_edge.architecture import Architecture

from .base import LLAMA_NAMES, Config, Converter


def _architecture(config: Config) -> Architecture:
    attention_bias = config.flag("attention_bias")
    return config.decoder(
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        feed_forward_bias=config.flag("mlp_bias"),
    )


CONVERTER = Converter("llama", LLAMA_NAMES, _architecture)
