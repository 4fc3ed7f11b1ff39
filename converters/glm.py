"""GLM-4 9B and GLM-Edge: Llama that turns neighbouring dimensions of half of each head."""

from __future__ import annotations

from awq_edge.architecture import Architecture

from .base import (
    LLAMA_NAMES,
    SHARED_DEFAULTS,
    Config,
    Converter,
    Stored,
    fused_gate_up,
    separate_qk,
)

GLM_NAMES = {
    **LLAMA_NAMES,
    "blk.N.ffn_gate": "model.layers.N.mlp.gate_up_proj",
    "blk.N.ffn_up": "model.layers.N.mlp.gate_up_proj",
}

GLM_DEFAULTS = {
    **SHARED_DEFAULTS,
    "vocab_size": 151552,
    "intermediate_size": 13696,
    "num_hidden_layers": 40,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 0.00000015625,
    "partial_rotary_factor": 0.5,
    "attention_bias": True,
}


def _architecture(config: Config) -> Architecture:
    return config.decoder(partial_rotary=True, qkv_bias=config.flag("attention_bias"))


def glm_stored(config: Config, a: Architecture, stem: str) -> Stored:
    """Neighbouring dimensions brought into our pairs, and gates and ups out of one matrix."""
    return separate_qk(a, stem, interleaved=True) or fused_gate_up(a, stem) or Stored()


CONVERTER = Converter("glm", GLM_NAMES, _architecture, GLM_DEFAULTS, glm_stored)
