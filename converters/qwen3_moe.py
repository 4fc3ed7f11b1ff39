"""Qwen3-MoE: Qwen3 with experts; a head's size is not fixed as there, but the width's share."""

from __future__ import annotations

from awq_edge.architecture import Architecture

from .base import LLAMA_NAMES, SHARED_DEFAULTS, Config, Converter
from .experts import EXPERT_NAMES, expert_layers, in_one_tensor, router_rows, routing

_NAMES = {
    **LLAMA_NAMES,
    **EXPERT_NAMES,
    "blk.N.attn_q_norm": "model.layers.N.self_attn.q_norm",
    "blk.N.attn_k_norm": "model.layers.N.self_attn.k_norm",
}

_DEFAULTS = {
    **SHARED_DEFAULTS,
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 24,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "decoder_sparse_step": 1,
    "moe_intermediate_size": 768,
    "num_experts_per_tok": 8,
    "num_experts": 128,
}


def _architecture(config: Config) -> Architecture:
    attention_bias = config.flag("attention_bias")
    used = config.flag("use_sliding_window") and config.get("sliding_window") is not None
    window = config.integer("sliding_window") if used else 0
    return config.decoder(
        qk_norm=True,
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        sliding_windows=(window,) * config.layers(),
        experts=config.integer("num_experts"),
        experts_per_token=config.integer("num_experts_per_tok"),
        expert_size=config.integer("moe_intermediate_size"),
        routing=routing(config),
        expert_layers=expert_layers(config, config.layers()),
    )


CONVERTER = Converter(
    "qwen3_moe",
    _NAMES,
    _architecture,
    _DEFAULTS,
    router_rows,
    keys={"num_experts": ("num_experts", "num_local_experts")},  # as transformers 5 writes it
    stacked=in_one_tensor,
)
