"""ERNIE 4.5, dense: Llama that turns neighbouring dimensions of a head."""

from __future__ import annotations

from awq_edge.architecture import Architecture

from .base import LLAMA_NAMES, SHARED_DEFAULTS, Config, Converter, Stored, separate_qk

_DEFAULTS = {
    **SHARED_DEFAULTS,
    "vocab_size": 103424,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 18,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
}


def _architecture(config: Config) -> Architecture:
    bias = config.flag("use_bias")
    return config.decoder(qkv_bias=bias, output_bias=bias, feed_forward_bias=bias)


def _stored(config: Config, a: Architecture, stem: str) -> Stored:
    return separate_qk(a, stem, interleaved=True) or Stored()


CONVERTER = Converter("ernie4_5", LLAMA_NAMES, _architecture, _DEFAULTS, _stored)
