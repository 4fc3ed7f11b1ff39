"""Qwen2-MoE (Qwen1.5-MoE): Qwen2 with experts, and a shared one that a router of its own weighs."""

from __future__ import annotations

from awq_edge.architecture import Architecture

from .base import LLAMA_NAMES, SHARED_DEFAULTS, Config, Converter
from .experts import EXPERT_NAMES, expert_layers, in_one_tensor, router_rows, routing

_NAMES = {
    **LLAMA_NAMES,
    **EXPERT_NAMES,
    "blk.N.shared.ffn_gate": "model.layers.N.mlp.shared_expert.gate_proj",
    "blk.N.shared.ffn_up": "model.layers.N.mlp.shared_expert.up_proj",
    "blk.N.shared.ffn_down": "model.layers.N.mlp.shared_expert.down_proj",
    "blk.N.shared_router": "model.layers.N.mlp.shared_expert_gate",
}

_DEFAULTS = {
    **SHARED_DEFAULTS,
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "decoder_sparse_step": 1,
    "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632,
    "num_experts_per_tok": 4,
    "num_experts": 60,
    "qkv_bias": True,
}


def _architecture(config: Config) -> Architecture:
    used = config.flag("use_sliding_window") and config.get("sliding_window") is not None
    first = config.integer("max_window_layers") if config.get("layer_types") is None else 0
    # Unlike Qwen2: every second layer below the bound, beginning with the first.
    kinds = config.layer_types(lambda layer: used and layer % 2 == 0 and layer < first)
    return config.decoder(
        qkv_bias=config.flag("qkv_bias", True),
        sliding_windows=config.windows(kinds, used),
        experts=config.integer("num_experts"),
        experts_per_token=config.integer("num_experts_per_tok"),
        expert_size=config.integer("moe_intermediate_size"),
        routing=routing(config),
        expert_layers=expert_layers(config, config.layers()),
        shared_expert_size=config.integer("shared_expert_intermediate_size"),
        shared_router=True,
    )


CONVERTER = Converter(
    "qwen2_moe", _NAMES, _architecture, _DEFAULTS, router_rows, stacked=in_one_tensor
)
