"""Phi-3.5-MoE: layer norms, biases, two experts by sparsemixer, a magnitude beside longrope."""

from __future__ import annotations

import dataclasses

from awq_edge.architecture import Architecture

from .base import LLAMA_NAMES, SHARED_DEFAULTS, Config, Converter
from .experts import (
    MIXTRAL_NAMES,
    MIXTRAL_OTHER_NAMES,
    in_one_tensor,
    router_rows,
    without_feed_forward,
)
from .rotary import LayerRopes, rope_table
from .values import Values

_DEFAULTS = {
    **SHARED_DEFAULTS,
    "vocab_size": 32064,
    "intermediate_size": 6400,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "sliding_window": None,
    "num_experts_per_tok": 2,
    "num_local_experts": 16,
    "router_jitter_noise": 0.01,
}


def _architecture(config: Config) -> Architecture:
    window = 0 if config.get("sliding_window") is None else config.integer("sliding_window")
    attention_bias = config.flag("attention_bias")
    return config.decoder(
        norm="layer",
        norm_bias=True,
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        head_bias=config.flag("lm_head_bias"),
        sliding_windows=(window,) * config.layers(),
        experts=config.integer("num_local_experts"),
        experts_per_token=config.integer("num_experts_per_tok"),
        expert_size=config.integer("intermediate_size"),
        routing="sparsemixer",
        router_epsilon=config.number("router_jitter_noise"),
    )


def _ropes(config: Config) -> LayerRopes:
    """Beside a scaling, cosines and sines are multiplied by a number of its own."""
    rope = config.rope()
    if rope.scaling is not None:
        magnitude = Values(rope_table(config), {}).number("short_mscale")
        rope = dataclasses.replace(rope, attention_factor=magnitude)
    return LayerRopes.of(rope, rope, (False,) * config.layers())


CONVERTER = Converter(
    "phimoe",
    {**without_feed_forward(LLAMA_NAMES), **MIXTRAL_NAMES},
    _architecture,
    _DEFAULTS,
    router_rows,
    ropes=_ropes,
    stacked=in_one_tensor,
    other_names={".block_sparse_moe.gate.": ".mlp.router.", **MIXTRAL_OTHER_NAMES},
)
