"""Phi 1, 1.5 and 2: both branches behind one norm, a part of each head rotated, a biased head."""

from __future__ import annotations

from awq_edge.architecture import Architecture

from .base import (
    LLAMA_NAMES,
    SHARED_DEFAULTS,
    Config,
    Converter,
    Stored,
    head_rows,
    separate_qk,
)

_NAMES = {
    **{ours: theirs for ours, theirs in LLAMA_NAMES.items() if ours != "blk.N.ffn_gate"},
    "output_norm": "model.final_layernorm",
    "blk.N.attn_q_norm": "model.layers.N.self_attn.q_layernorm",
    "blk.N.attn_k_norm": "model.layers.N.self_attn.k_layernorm",
    "blk.N.attn_output": "model.layers.N.self_attn.dense",
    "blk.N.ffn_norm": LLAMA_NAMES["blk.N.attn_norm"],
    "blk.N.ffn_up": "model.layers.N.mlp.fc1",
    "blk.N.ffn_down": "model.layers.N.mlp.fc2",
}

_DEFAULTS = {
    **SHARED_DEFAULTS,
    "vocab_size": 51200,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_key_value_heads": None,
    "hidden_act": "gelu_new",
    "max_position_embeddings": 2048,
    "layer_norm_eps": 1e-5,
    "partial_rotary_factor": 0.5,
    "qk_layernorm": False,
}


def _architecture(config: Config) -> Architecture:
    normed = config.flag("qk_layernorm")
    return config.decoder(
        norm="layer",
        norm_bias=True,
        norm_epsilon=config.number("layer_norm_eps"),
        feed_forward="plain",
        activation=config.activation(),
        partial_rotary=True,
        parallel=True,
        qk_norm=normed,
        qk_norm_bias=normed,
        qkv_bias=True,
        output_bias=True,
        feed_forward_bias=True,
        head_bias=True,
    )


def _stored(config: Config, a: Architecture, stem: str) -> Stored:
    if stem in ("attn_q_norm", "attn_k_norm"):
        return Stored(rows=head_rows(a, range(1), lambda _: 0, True), all_rows=a.head_size)
    return separate_qk(a, stem) or Stored()


CONVERTER = Converter("phi", _NAMES, _architecture, _DEFAULTS, _stored)
