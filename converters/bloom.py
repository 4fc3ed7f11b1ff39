"""BLOOM: ALiBi, a norm behind the embedding, queries, keys and values fused by head."""

from __future__ import annotations

from awq_edge.alibi import alibi_slopes
from awq_edge.architecture import Architecture
from awq_edge.errors import UnsupportedError

from .base import SHARED_DEFAULTS, Config, Converter, Stored, fused_by_kv_head

_LAYER = "transformer.h.N"
_NAMES = {
    "token_embd": "transformer.word_embeddings",
    "token_embd_norm": "transformer.word_embeddings_layernorm",
    "output": "lm_head",
    "output_norm": "transformer.ln_f",
    "blk.N.attn_norm": f"{_LAYER}.input_layernorm",
    "blk.N.attn_q": f"{_LAYER}.self_attention.query_key_value",
    "blk.N.attn_k": f"{_LAYER}.self_attention.query_key_value",
    "blk.N.attn_v": f"{_LAYER}.self_attention.query_key_value",
    "blk.N.attn_output": f"{_LAYER}.self_attention.dense",
    "blk.N.ffn_norm": f"{_LAYER}.post_attention_layernorm",
    "blk.N.ffn_up": f"{_LAYER}.mlp.dense_h_to_4h",
    "blk.N.ffn_act": f"{_LAYER}.mlp.gelu_impl",
    "blk.N.ffn_down": f"{_LAYER}.mlp.dense_4h_to_h",
}

# The sizes of the class are those of a toy: a file that leaves one out is refused.
_DEFAULTS = {
    **SHARED_DEFAULTS,
    "vocab_size": 250880,
    "hidden_size": None,
    "num_hidden_layers": None,
    "num_attention_heads": None,
    "max_position_embeddings": 2048,  # what the models were trained with; the class has no limit
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
}
_KEYS = {
    "hidden_size": ("n_embed",),
    "num_hidden_layers": ("n_layer",),
    "num_attention_heads": ("n_head",),
    "max_position_embeddings": ("seq_length",),
}


def _architecture(config: Config) -> Architecture:
    if config.flag("apply_residual_connection_post_layernorm"):
        raise UnsupportedError(
            "BLOOM with apply_residual_connection_post_layernorm is not supported: its norms make "
            "what the branches are added to, and no published model does that."
        )
    return config.decoder(
        norm="layer",
        norm_bias=True,
        norm_epsilon=config.number("layer_norm_epsilon"),
        embedding_norm=True,
        position="alibi",
        kv_heads=config.heads(),
        head_size=config.integer("hidden_size") // config.heads(),
        feed_forward="plain",
        feed_forward_size=4 * config.integer("hidden_size"),
        activation="gelu_tanh",
        qkv_bias=True,
        output_bias=True,
        feed_forward_bias=True,
    )


def _stored(config: Config, a: Architecture, stem: str) -> Stored:
    if stem == "alibi":
        return Stored(values=alibi_slopes(a.heads))
    return fused_by_kv_head(a, stem) or Stored()


CONVERTER = Converter("bloom", _NAMES, _architecture, _DEFAULTS, _stored, keys=_KEYS)
