"""GPT-BigCode (StarCoder, SantaCoder): learned positions, fused rows, one key-value head or all."""

from __future__ import annotations

import dataclasses
import math

from awq_edge.architecture import Architecture
from awq_edge.errors import UnsupportedError

from .base import SHARED_DEFAULTS, Config, Converter, Stored, fused_by_kv_head, fused_qkv

_LAYER = "transformer.h.N"
_NAMES = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output": "lm_head",
    "output_norm": "transformer.ln_f",
    "blk.N.attn_norm": f"{_LAYER}.ln_1",
    "blk.N.attn_q": f"{_LAYER}.attn.c_attn",
    "blk.N.attn_k": f"{_LAYER}.attn.c_attn",
    "blk.N.attn_v": f"{_LAYER}.attn.c_attn",
    "blk.N.attn_output": f"{_LAYER}.attn.c_proj",
    "blk.N.ffn_norm": f"{_LAYER}.ln_2",
    "blk.N.ffn_up": f"{_LAYER}.mlp.c_fc",
    "blk.N.ffn_act": f"{_LAYER}.mlp.act",
    "blk.N.ffn_down": f"{_LAYER}.mlp.c_proj",
}
_DEFAULTS = {
    **SHARED_DEFAULTS,
    "vocab_size": 50257,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 1024,
    "activation_function": "gelu_pytorch_tanh",
    "layer_norm_epsilon": 1e-5,
    "multi_query": True,
    "scale_attn_weights": True,
    "tie_word_embeddings": True,
}
_KEYS = {
    "hidden_size": ("n_embd",),
    "num_hidden_layers": ("n_layer",),
    "num_attention_heads": ("n_head",),
    "max_position_embeddings": ("n_positions",),
}


def _architecture(config: Config) -> Architecture:
    if config.flag("add_cross_attention"):
        raise UnsupportedError(
            "config.json has add_cross_attention: the layers read an encoder, and the decoder here "
            "has none."
        )
    hidden = config.integer("hidden_size")
    width = 4 * hidden if config.get("n_inner") is None else config.integer("n_inner")
    return config.decoder(
        norm="layer",
        norm_bias=True,
        norm_epsilon=config.number("layer_norm_epsilon"),
        position="learned",
        kv_heads=1 if config.flag("multi_query", True) else config.heads(),
        head_size=hidden // config.heads(),
        feed_forward="plain",
        feed_forward_size=width,
        activation=config.activation("activation_function"),
        qkv_bias=True,
        output_bias=True,
        feed_forward_bias=True,
    )


def _stored(config: Config, a: Architecture, stem: str) -> Stored:
    if stem == "position_embd":
        return Stored(columns=a.hidden_size)
    # With a head of keys for each of queries, the rows of a head stand together.
    rows_of = fused_qkv if config.flag("multi_query", True) else fused_by_kv_head
    stored = rows_of(a, stem) or Stored()
    if stem == "attn_q" and not config.flag("scale_attn_weights", True):
        return dataclasses.replace(stored, factor=math.sqrt(a.head_size))
    return stored


CONVERTER = Converter("gpt_bigcode", _NAMES, _architecture, _DEFAULTS, _stored, keys=_KEYS)
