"""OLMo 2: norms behind the branches alone, and over the whole width of queries and keys."""

from __future__ import annotations

from typing import Any

from awq_edge.architecture import Architecture

from .base import LLAMA_NAMES, SHARED_DEFAULTS, Config, Converter

_BEHIND = {
    "blk.N.attn_post_norm": "model.layers.N.post_attention_layernorm",
    "blk.N.ffn_post_norm": "model.layers.N.post_feedforward_layernorm",
    "blk.N.attn_q_norm": "model.layers.N.self_attn.q_norm",
    "blk.N.attn_k_norm": "model.layers.N.self_attn.k_norm",
}
_BEFORE = ("blk.N.attn_norm", "blk.N.ffn_norm")
OLMO2_NAMES = {
    **{ours: LLAMA_NAMES[ours] for ours in LLAMA_NAMES if ours not in _BEFORE},
    **_BEHIND,
}

OLMO2_DEFAULTS: dict[str, Any] = {
    **SHARED_DEFAULTS,
    "vocab_size": 50304,
    "intermediate_size": 11008,
    "num_key_value_heads": None,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
}


def olmo2_fields(config: Config) -> dict[str, Any]:
    """What the record says of OLMo 2 and 3 alike."""
    attention_bias = config.flag("attention_bias")
    return {
        "norm_places": "after",
        "qk_norm": True,
        "qk_norm_kind": "width",
        "qkv_bias": attention_bias,
        "output_bias": attention_bias,
    }


def _architecture(config: Config) -> Architecture:
    return config.decoder(**olmo2_fields(config))


CONVERTER = Converter("olmo2", OLMO2_NAMES, _architecture, OLMO2_DEFAULTS)
