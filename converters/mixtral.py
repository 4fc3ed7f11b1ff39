"""Mixtral: Mistral with a mixture of experts in every layer."""

from __future__ import annotations

from awq_edge.architecture import Architecture

from .base import LLAMA_NAMES, SHARED_DEFAULTS, Config, Converter
from .experts import (
    MIXTRAL_NAMES,
    MIXTRAL_OTHER_NAMES,
    in_one_tensor,
    router_rows,
    without_feed_forward,
)

_DEFAULTS = {
    **SHARED_DEFAULTS,
    "vocab_size": 32000,
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "sliding_window": None,
    "num_experts_per_tok": 2,
    "num_local_experts": 8,
}


def _architecture(config: Config) -> Architecture:
    window = 0 if config.get("sliding_window") is None else config.integer("sliding_window")
    return config.decoder(
        sliding_windows=(window,) * config.layers(),
        experts=config.integer("num_local_experts"),
        experts_per_token=config.integer("num_experts_per_tok"),
        expert_size=config.integer("intermediate_size"),
        routing="softmax_renormalised",
    )


CONVERTER = Converter(
    "mixtral",
    {**without_feed_forward(LLAMA_NAMES), **MIXTRAL_NAMES},
    _architecture,
    _DEFAULTS,
    router_rows,
    stacked=in_one_tensor,
    other_names=MIXTRAL_OTHER_NAMES,
)
