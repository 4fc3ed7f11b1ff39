"""GPT-NeoX, Pythia and Dolly: fused rows by head, a part of each head rotated, two norms.

Most compute both branches of a layer from its input, each behind its own norm.
"""

from __future__ import annotations

from awq_edge.architecture import Architecture

from .base import SHARED_DEFAULTS, Config, Converter, Stored, fused_by_kv_head

_LAYER = "gpt_neox.layers.N"
_NAMES = {
    "token_embd": "gpt_neox.embed_in",
    "output": "embed_out",
    "output_norm": "gpt_neox.final_layer_norm",
    "blk.N.attn_norm": f"{_LAYER}.input_layernorm",
    "blk.N.attn_q": f"{_LAYER}.attention.query_key_value",
    "blk.N.attn_k": f"{_LAYER}.attention.query_key_value",
    "blk.N.attn_v": f"{_LAYER}.attention.query_key_value",
    "blk.N.attn_output": f"{_LAYER}.attention.dense",
    "blk.N.ffn_norm": f"{_LAYER}.post_attention_layernorm",
    "blk.N.ffn_up": f"{_LAYER}.mlp.dense_h_to_4h",
    "blk.N.ffn_act": f"{_LAYER}.mlp.act",
    "blk.N.ffn_down": f"{_LAYER}.mlp.dense_4h_to_h",
}

_DEFAULTS = {
    **SHARED_DEFAULTS,
    "vocab_size": 50432,
    "hidden_size": 6144,
    "intermediate_size": 24576,
    "num_hidden_layers": 44,
    "num_attention_heads": 64,
    "hidden_act": "gelu",
    "max_position_embeddings": 2048,
    "layer_norm_eps": 1e-5,
    "partial_rotary_factor": 0.25,
    "attention_bias": True,
    "use_parallel_residual": True,
}
_KEYS = {"partial_rotary_factor": ("rotary_pct",), "rope_theta": ("rotary_emb_base",)}


def _architecture(config: Config) -> Architecture:
    attention_bias = config.flag("attention_bias")
    return config.decoder(
        norm="layer",
        norm_bias=True,
        norm_epsilon=config.number("layer_norm_eps"),
        kv_heads=config.heads(),
        head_size=config.integer("hidden_size") // config.heads(),
        feed_forward="plain",
        activation=config.activation(),
        partial_rotary=True,
        parallel=config.flag("use_parallel_residual"),
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        feed_forward_bias=True,
    )


def _stored(config: Config, a: Architecture, stem: str) -> Stored:
    return fused_by_kv_head(a, stem) or Stored()


CONVERTER = Converter(
    "gpt_neox",
    _NAMES,
    _architecture,
    _DEFAULTS,
    _stored,
    keys=_KEYS,
    other_names={"embed_out.": "lm_head."},
    # Files of transformers 4 hold them too; of the two spellings the family's own counts alone.
    unread=frozenset(("partial_rotary_factor", "rope_theta")),
)
