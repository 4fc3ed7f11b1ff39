"""Gemma 1: norms around one, an embedding times the root of its width, a gate by GELU."""

from __future__ import annotations

import math

from awq_edge.architecture import Architecture
from awq_edge.errors import UnsupportedError

from .base import LLAMA_NAMES, SHARED_DEFAULTS, Config, Converter, Stored

_DEFAULTS = {
    **SHARED_DEFAULTS,
    "vocab_size": 256000,
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "hidden_act": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
}


def _architecture(config: Config) -> Architecture:
    # The first files say "gelu" for what the original computes by tanh.
    activation = config.get("hidden_activation") or config.get("hidden_act")
    if activation not in ("gelu", "gelu_pytorch_tanh"):
        raise UnsupportedError(f"The activation {activation!r} is not Gemma's: GELU is.")
    attention_bias = config.flag("attention_bias")
    return config.decoder(
        activation="gelu_tanh", qkv_bias=attention_bias, output_bias=attention_bias
    )


def _stored(config: Config, a: Architecture, stem: str) -> Stored:
    root = math.sqrt(a.hidden_size)
    if stem == "token_embd":
        return Stored(factor=root)
    if stem == "output_norm":
        # A tied head reads the multiplied embedding.
        share = 1.0 / root if a.tied_head else 1.0
        return Stored(factor=share, offset=share)
    return Stored(offset=1.0) if stem in ("attn_norm", "ffn_norm") else Stored()


CONVERTER = Converter("gemma", LLAMA_NAMES, _architecture, _DEFAULTS, _stored)
