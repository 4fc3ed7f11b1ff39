"""InternLM2 and 2.5: Llama with queries, keys and values fused by key-value head."""

from __future__ import annotations

from awq_edge.architecture import Architecture

from .base import SHARED_DEFAULTS, Config, Converter, Stored, fused_by_kv_head

_NAMES = {
    "token_embd": "model.tok_embeddings",
    "output": "output",
    "output_norm": "model.norm",
    "blk.N.attn_norm": "model.layers.N.attention_norm",
    "blk.N.attn_q": "model.layers.N.attention.wqkv",
    "blk.N.attn_k": "model.layers.N.attention.wqkv",
    "blk.N.attn_v": "model.layers.N.attention.wqkv",
    "blk.N.attn_output": "model.layers.N.attention.wo",
    "blk.N.ffn_norm": "model.layers.N.ffn_norm",
    "blk.N.ffn_gate": "model.layers.N.feed_forward.w1",
    "blk.N.ffn_up": "model.layers.N.feed_forward.w3",
    "blk.N.ffn_down": "model.layers.N.feed_forward.w2",
}

_DEFAULTS = {
    **SHARED_DEFAULTS,
    "vocab_size": 103168,
    "intermediate_size": 11008,
    "num_key_value_heads": None,
    "max_position_embeddings": 2048,
}


def _architecture(config: Config) -> Architecture:
    bias = config.flag("bias")
    return config.decoder(qkv_bias=bias, output_bias=bias)


def _stored(config: Config, a: Architecture, stem: str) -> Stored:
    return fused_by_kv_head(a, stem) or Stored()


CONVERTER = Converter("internlm2", _NAMES, _architecture, _DEFAULTS, _stored)
