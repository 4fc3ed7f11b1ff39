"""Helium: Llama that turns neighbouring dimensions of each head."""

from __future__ import annotations

from awq_edge.architecture import Architecture

from .base import LLAMA_NAMES, SHARED_DEFAULTS, Config, Converter, Stored, separate_qk

_DEFAULTS = {
    **SHARED_DEFAULTS,
    "vocab_size": 48000,
    "hidden_size": 2560,
    "intermediate_size": 7040,
    "num_hidden_layers": 24,
    "num_attention_heads": 20,
    "num_key_value_heads": 20,
    "head_dim": 128,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-8,
    "rope_theta": 100000.0,
}


def _architecture(config: Config) -> Architecture:
    return config.decoder(
        qkv_bias=config.flag("attention_bias"), feed_forward_bias=config.flag("mlp_bias")
    )


def _stored(config: Config, a: Architecture, stem: str) -> Stored:
    """Neighbouring dimensions brought into our pairs."""
    return separate_qk(a, stem, interleaved=True) or Stored()


CONVERTER = Converter("helium", LLAMA_NAMES, _architecture, _DEFAULTS, _stored)
