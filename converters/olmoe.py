"""OLMoE: experts in every layer; queries and keys normed over their width, perhaps clamped."""

from __future__ import annotations

from awq_edge.architecture import Architecture

from .base import LLAMA_NAMES, SHARED_DEFAULTS, Config, Converter
from .experts import EXPERT_NAMES, in_one_tensor, router_rows, routing, without_feed_forward

_NAMES = {
    **without_feed_forward(LLAMA_NAMES),
    **EXPERT_NAMES,
    "blk.N.attn_q_norm": "model.layers.N.self_attn.q_norm",
    "blk.N.attn_k_norm": "model.layers.N.self_attn.k_norm",
}

_DEFAULTS = {
    **SHARED_DEFAULTS,
    "vocab_size": 50304,
    "hidden_size": 2048,
    "intermediate_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": None,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "clip_qkv": None,
    "num_experts_per_tok": 8,
    "num_experts": 64,
}


def _architecture(config: Config) -> Architecture:
    attention_bias = config.flag("attention_bias")
    return config.decoder(
        qk_norm=True,
        qk_norm_kind="width",
        qkv_clamp=config.cap("clip_qkv"),
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        experts=config.integer("num_experts"),
        experts_per_token=config.integer("num_experts_per_tok"),
        expert_size=config.integer("intermediate_size"),
        routing=routing(config),
    )


CONVERTER = Converter("olmoe", _NAMES, _architecture, _DEFAULTS, router_rows, stacked=in_one_tensor)
