"""OPT: learned positions, LayerNorm with biases, a plain feed-forward; 350m norms the stream."""

from __future__ import annotations

import numpy as np

from awq_edge.architecture import Architecture

from .base import SHARED_DEFAULTS, Config, Converter, Product, Stored

_DECODER = "model.decoder"
_LAYER = f"{_DECODER}.layers.N"
_EMBEDDING = f"{_DECODER}.embed_tokens"
_NAMES = {
    "token_embd": _EMBEDDING,
    "position_embd": f"{_DECODER}.embed_positions",
    "output": "lm_head",
    "output_norm": f"{_DECODER}.final_layer_norm",
    # The first norm of a layer by either place, and the second one.
    "blk.N.attn_norm": f"{_LAYER}.self_attn_layer_norm",
    "blk.N.attn_post_norm": f"{_LAYER}.self_attn_layer_norm",
    "blk.N.ffn_norm": f"{_LAYER}.final_layer_norm",
    "blk.N.ffn_post_norm": f"{_LAYER}.final_layer_norm",
    "blk.N.attn_q": f"{_LAYER}.self_attn.q_proj",
    "blk.N.attn_k": f"{_LAYER}.self_attn.k_proj",
    "blk.N.attn_v": f"{_LAYER}.self_attn.v_proj",
    "blk.N.attn_output": f"{_LAYER}.self_attn.out_proj",
    "blk.N.ffn_up": f"{_LAYER}.fc1",
    "blk.N.ffn_down": f"{_LAYER}.fc2",
}
_NORMS = ("attn_norm", "attn_post_norm", "ffn_norm", "ffn_post_norm", "output_norm")
_DEFAULTS = {
    **SHARED_DEFAULTS,
    "vocab_size": 50272,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "ffn_dim": 3072,
    "max_position_embeddings": 2048,
    "do_layer_norm_before": True,
    "_remove_final_layer_norm": False,
    "layer_norm_elementwise_affine": True,
    "enable_bias": True,
    "activation_function": "relu",
    "tie_word_embeddings": True,
}
# The class has no key for it.
_NORM_EPSILON = 1e-5
# Rows of the table of positions that no token reads.
_SKIPPED_POSITIONS = 2


def _embedding_width(config: Config) -> int:
    """Of the embedding; where it is not the stream's, a matrix leads there and another one back."""
    if config.get("word_embed_proj_dim") is None:
        return config.integer("hidden_size")
    return config.integer("word_embed_proj_dim")


def _is_projected(config: Config) -> bool:
    return _embedding_width(config) != config.integer("hidden_size")


def _architecture(config: Config) -> Architecture:
    biases = config.flag("enable_bias", True)
    before = config.flag("do_layer_norm_before", True)
    return config.decoder(
        norm="layer",
        norm_bias=config.flag("layer_norm_elementwise_affine", True),
        norm_epsilon=_NORM_EPSILON,
        norm_places="before" if before else "stream",
        final_norm=before and not config.flag("_remove_final_layer_norm"),
        position="learned",
        kv_heads=config.heads(),
        head_size=config.integer("hidden_size") // config.heads(),
        feed_forward="plain",
        feed_forward_size=config.integer("ffn_dim"),
        activation=config.activation("activation_function"),
        # Two different matrices once their projections are taken in.
        tied_head=config.flag("tie_word_embeddings", True) and not _is_projected(config),
        qkv_bias=biases,
        output_bias=biases,
        feed_forward_bias=biases,
    )


def _shares_table(config: Config) -> bool:
    return config.flag("tie_word_embeddings", True) and _is_projected(config)


def _stored(config: Config, a: Architecture, stem: str) -> Stored:
    if stem == "position_embd":
        rows = np.arange(_SKIPPED_POSITIONS, _SKIPPED_POSITIONS + a.context_length)
        return Stored(rows=rows, all_rows=int(rows[-1]) + 1, columns=a.hidden_size)
    if stem in _NORMS and not config.flag("layer_norm_elementwise_affine", True):
        return Stored(values=np.ones(a.hidden_size, dtype=np.float32))
    if stem in ("token_embd", "output") and _is_projected(config):
        width = _embedding_width(config)
        if stem == "token_embd":
            inwards = f"{_DECODER}.project_in.weight"
            return Stored(product=Product(inwards, (a.hidden_size, width), transposed=True))
        outwards = f"{_DECODER}.project_out.weight"
        return Stored(product=Product(outwards, (width, a.hidden_size)))
    return Stored()


CONVERTER = Converter("opt", _NAMES, _architecture, _DEFAULTS, _stored, shares_table=_shares_table)
