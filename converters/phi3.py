"""Phi-3, 3.5, 4 and 4-mini: Llama with fused rows; 4-mini rotates a part of each head."""

from __future__ import annotations

from awq_edge.architecture import Architecture

from .base import (
    LLAMA_NAMES,
    SHARED_DEFAULTS,
    Config,
    Converter,
    Stored,
    fused_gate_up,
    fused_qkv,
)

_NAMES = {
    **LLAMA_NAMES,
    "blk.N.attn_q": "model.layers.N.self_attn.qkv_proj",
    "blk.N.attn_k": "model.layers.N.self_attn.qkv_proj",
    "blk.N.attn_v": "model.layers.N.self_attn.qkv_proj",
    "blk.N.ffn_gate": "model.layers.N.mlp.gate_up_proj",
    "blk.N.ffn_up": "model.layers.N.mlp.gate_up_proj",
}

_DEFAULTS = {
    **SHARED_DEFAULTS,
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_key_value_heads": None,
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "sliding_window": None,
}


def _architecture(config: Config) -> Architecture:
    window = 0 if config.get("sliding_window") is None else config.integer("sliding_window")
    return config.decoder(partial_rotary=True, sliding_windows=(window,) * config.layers())


def _stored(config: Config, a: Architecture, stem: str) -> Stored:
    return fused_qkv(a, stem) or fused_gate_up(a, stem) or Stored()


CONVERTER = Converter("phi3", _NAMES, _architecture, _DEFAULTS, _stored)
