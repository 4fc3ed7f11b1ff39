"""Qwen2 and Qwen2.5: biases on query, key and value; some layers may have a sliding window."""

from __future__ import annotations

from awq_edge.architecture import Architecture

from .base import LLAMA_NAMES, Config, Converter


def _architecture(config: Config) -> Architecture:
    return config.decoder(qkv_bias=True, sliding_windows=config.qwen_windows())


CONVERTER = Converter("qwen2", LLAMA_NAMES, _architecture)
