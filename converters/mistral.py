"""Mistral: Llama with a sliding window on every layer (version 0.1) or on none."""

from __future__ import annotations

from awq_edge.architecture import Architecture

from .base import LLAMA_NAMES, SHARED_DEFAULTS, Config, Converter

MISTRAL_DEFAULTS = {
    **SHARED_DEFAULTS,
    "vocab_size": 32000,
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
}


def _architecture(config: Config) -> Architecture:
    window = 0 if config.get("sliding_window") is None else config.integer("sliding_window")
    return config.decoder(sliding_windows=(window,) * config.layers())


CONVERTER = Converter("mistral", LLAMA_NAMES, _architecture, MISTRAL_DEFAULTS)
