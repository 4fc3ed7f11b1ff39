"""Mistral: Llama with a sliding window on every layer (version 0.1) or on none."""

from __future__ import annotations

from awq_edge.architecture import Architecture

from .base import LLAMA_NAMES, Config, Converter


def _architecture(config: Config) -> Architecture:
    window = config.integer("sliding_window", 0)
    return config.decoder(sliding_windows=(window,) * config.integer("num_hidden_layers"))


CONVERTER = Converter("mistral", LLAMA_NAMES, _architecture)
