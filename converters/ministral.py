"""Ministral: Mistral whose layers may differ in having a window."""

from __future__ import annotations

from awq_edge.architecture import Architecture

from .base import LLAMA_NAMES, Config, Converter
from .mistral import MISTRAL_DEFAULTS


def _architecture(config: Config) -> Architecture:
    slide = config.get("sliding_window") is not None
    kinds = config.layer_types(lambda layer: slide)
    return config.decoder(sliding_windows=config.windows(kinds))


CONVERTER = Converter("ministral", LLAMA_NAMES, _architecture, MISTRAL_DEFAULTS)
