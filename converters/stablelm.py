"""StableLM and StableCode: Llama with LayerNorm that turns a part of each head.

The 12B computes both branches of a layer from one norm, and norms each query and key head by a
weight of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from awq_edge.architecture import Architecture
from awq_edge.errors import UnsupportedError

from .base import (
    LLAMA_NAMES,
    SHARED_DEFAULTS,
    Config,
    Converter,
    Stored,
    separate_qk,
)

_NAMES = {
    **LLAMA_NAMES,
    "blk.N.attn_q_norm": "model.layers.N.self_attn.q_layernorm.norms.A",
    "blk.N.attn_k_norm": "model.layers.N.self_attn.k_layernorm.norms.A",
}

_DEFAULTS = {
    **SHARED_DEFAULTS,
    "vocab_size": 50304,
    "hidden_size": 2560,
    "intermediate_size": 6912,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "layer_norm_eps": 1e-5,
    "partial_rotary_factor": 0.25,
    "use_qkv_bias": False,
    "qk_layernorm": False,
    "use_parallel_residual": False,
}


def _architecture(config: Config) -> Architecture:
    if config.number("rotary_scaling_factor", 1.0) != 1.0:
        raise UnsupportedError(
            "config.json has a rotary_scaling_factor, which no published model has."
        )
    normed = config.flag("qk_layernorm")
    return config.decoder(
        norm="layer",
        norm_bias=True,
        norm_epsilon=config.number("layer_norm_eps"),
        head_size=config.integer("hidden_size") // config.heads(),
        activation=config.activation(),
        partial_rotary=True,
        parallel=config.flag("use_parallel_residual"),
        qkv_bias=config.flag("use_qkv_bias"),
        qk_norm=normed,
        qk_norm_kind="heads" if normed else "head",
    )


def _names_of(config: Config) -> Mapping[str, str]:
    if config.flag("use_parallel_residual"):
        return {"blk.N.ffn_norm": _NAMES["blk.N.attn_norm"]}
    return {}


def _stored(config: Config, a: Architecture, stem: str) -> Stored:
    if stem in ("attn_q_norm", "attn_k_norm"):
        # A vector for each head, in the order of the head's rows.
        heads = a.heads if stem == "attn_q_norm" else a.kv_heads
        rows = separate_qk(a, stem.removesuffix("_norm"))
        return Stored() if rows is None else dataclasses.replace(rows, parts=heads)
    return separate_qk(a, stem) or Stored()


_KEYS = {"partial_rotary_factor": ("rope_pct",)}
CONVERTER = Converter(
    "stablelm", _NAMES, _architecture, _DEFAULTS, _stored, keys=_KEYS, names_of=_names_of
)
# As the first files have it, which ran code of their own.
_EPOCH = dataclasses.replace(
    CONVERTER, model_type="stablelm_epoch", keys={**_KEYS, "layer_norm_eps": ("norm_eps",)}
)
CONVERTERS = (CONVERTER, _EPOCH)
