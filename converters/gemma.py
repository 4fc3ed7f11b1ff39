"""Gemma 1: norms around one, an embedding times the root of its width, a gate by GELU."""

from __future__ import annotations

import math
from typing import Any

from awq_edge.architecture import Architecture
from awq_edge.errors import UnsupportedError

from .base import LLAMA_NAMES, SHARED_DEFAULTS, Config, Converter, Stored
from .refused import both_directions

# Of every Gemma's class.
GEMMA_DEFAULTS: dict[str, Any] = {
    **SHARED_DEFAULTS,
    "vocab_size": 256000,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}

_DEFAULTS = {
    **GEMMA_DEFAULTS,
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "hidden_act": "gelu_pytorch_tanh",
}


def _architecture(config: Config) -> Architecture:
    # The first files say "gelu" for what the original computes by tanh.
    activation = config.get("hidden_activation") or config.get("hidden_act")
    if activation not in ("gelu", "gelu_pytorch_tanh"):
        raise UnsupportedError(f"The activation {activation!r} is not Gemma's: GELU is.")
    refuse_both_directions(config)
    attention_bias = config.flag("attention_bias")
    return config.decoder(
        activation="gelu_tanh", qkv_bias=attention_bias, output_bias=attention_bias
    )


def refuse_both_directions(config: Config) -> None:
    """Refuses a Gemma that is no decoder of text, as embedding models of the family are."""
    if config.flag("use_bidirectional_attention"):
        raise UnsupportedError(both_directions("use_bidirectional_attention"))


def gemma_stored(config: Config, a: Architecture, stem: str) -> Stored:
    """Norms around one, and the embedding's factor: the root of the hidden size.

    transformers rounds the root to the type of the weights, so a bfloat16 run has 25.25 for the
    25.298 of 640. Here it is exact, as in float32 runs.
    """
    root = math.sqrt(a.hidden_size)
    if stem == "token_embd":
        return Stored(factor=root)
    if stem == "output_norm":
        # A tied head reads the multiplied embedding.
        share = 1.0 / root if a.tied_head else 1.0
        return Stored(factor=share, offset=share)
    return Stored(offset=1.0) if stem.endswith("_norm") else Stored()


CONVERTER = Converter("gemma", LLAMA_NAMES, _architecture, _DEFAULTS, gemma_stored)
