"""Falcon: 7B, 40B, 180B and 11B beside each other, the rw models one branch after the other.

The forms differ in who shares keys and values, in the norms of a layer and in its positions; fused
rows have one order in all of them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from awq_edge.alibi import alibi_slopes
from awq_edge.architecture import Architecture
from awq_edge.errors import CheckpointError, UnsupportedError

from .base import SHARED_DEFAULTS, Config, Converter, Stored, fused_by_kv_head

_LAYER = "transformer.h.N"
_NAMES = {
    "token_embd": "transformer.word_embeddings",
    "output": "lm_head",
    "output_norm": "transformer.ln_f",
    "blk.N.attn_q": f"{_LAYER}.self_attention.query_key_value",
    "blk.N.attn_k": f"{_LAYER}.self_attention.query_key_value",
    "blk.N.attn_v": f"{_LAYER}.self_attention.query_key_value",
    "blk.N.attn_output": f"{_LAYER}.self_attention.dense",
    "blk.N.ffn_up": f"{_LAYER}.mlp.dense_h_to_4h",
    "blk.N.ffn_down": f"{_LAYER}.mlp.dense_4h_to_h",
}

_DEFAULTS = {
    **SHARED_DEFAULTS,
    "vocab_size": 65024,
    "hidden_size": 4544,
    "num_attention_heads": 71,
    "num_kv_heads": None,
    "ffn_hidden_size": None,
    "activation": "gelu",
    "max_position_embeddings": 2048,
    "layer_norm_epsilon": 1e-5,
    "new_decoder_architecture": False,
    "num_ln_in_parallel_attn": None,
    "multi_query": True,
    "parallel_attn": True,
    "alibi": False,
    "bias": False,
    "tie_word_embeddings": True,
}
_KEYS = {"hidden_size": ("n_embed",)}
_UNSAID = object()


def _architecture(config: Config) -> Architecture:
    _norms(config)  # refuses what is none of the forms
    for key in ("multi_query", "parallel_attn"):
        if config.get(key, _UNSAID) is _UNSAID:
            # The classes of its time had different defaults.
            raise CheckpointError(f"config.json of this older form should say {key}.")
    heads, hidden = config.heads(), config.integer("hidden_size")
    bias = config.flag("bias")
    alone = config.get("ffn_hidden_size") is None
    return config.decoder(
        norm="layer",
        norm_bias=True,
        norm_epsilon=config.number("layer_norm_epsilon"),
        position="alibi" if config.flag("alibi") else "rotary",
        parallel=config.flag("new_decoder_architecture") or config.flag("parallel_attn"),
        kv_heads=_kv_heads(config),
        head_size=hidden // heads,
        feed_forward="plain",
        feed_forward_size=4 * hidden if alone else config.integer("ffn_hidden_size"),
        activation=config.activation("activation"),
        qkv_bias=bias,
        output_bias=bias,
        feed_forward_bias=bias,
    )


def _kv_heads(config: Config) -> int:
    heads = config.heads()
    kv_heads = heads if config.get("num_kv_heads") is None else config.integer("num_kv_heads")
    if config.flag("new_decoder_architecture"):
        return kv_heads
    if config.flag("multi_query"):
        return 1
    if kv_heads != heads:
        raise UnsupportedError(
            f"Falcon with {kv_heads} key-value heads for {heads} heads needs "
            "new_decoder_architecture, which config.json does not say."
        )
    return heads


def _norms(config: Config) -> Mapping[str, str]:
    """The norms in front of both branches, which may be one."""
    count = config.get("num_ln_in_parallel_attn")
    parallel = config.flag("parallel_attn")
    if config.flag("new_decoder_architecture"):
        if not parallel:
            raise UnsupportedError(
                "Falcon's new_decoder_architecture is parallel, and config.json says that "
                "parallel_attn is false; no such model works."
            )
        if count not in (None, 1, 2):
            raise UnsupportedError(
                f"Falcon with {count} norms before its branches (num_ln_in_parallel_attn) is not "
                "supported; 1 and 2 are."
            )
        names = ("input_layernorm",) * 2 if count == 1 else ("ln_attn", "ln_mlp")
    elif count == 2 and parallel:
        raise UnsupportedError(
            "Falcon with two norms before its branches (num_ln_in_parallel_attn) needs "
            "new_decoder_architecture, which config.json does not say."
        )
    else:
        names = ("input_layernorm", "input_layernorm" if parallel else "post_attention_layernorm")
    return {
        "blk.N.attn_norm": f"{_LAYER}.{names[0]}",
        "blk.N.ffn_norm": f"{_LAYER}.{names[1]}",
    }


def _stored(config: Config, a: Architecture, stem: str) -> Stored:
    if stem == "alibi":
        # Falcon adds biases before it divides scores, and makes them of slopes in bfloat16. That
        # it rounds each bias too, slope times position, is not reproduced: it is no function of
        # the distance.
        return Stored(values=_as_bfloat16(alibi_slopes(a.heads)) / math.sqrt(a.head_size))
    return fused_by_kv_head(a, stem) or Stored()


def _as_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Rounds half to even to numbers that bfloat16 has."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


CONVERTER = Converter(
    "falcon", _NAMES, _architecture, _DEFAULTS, _stored, keys=_KEYS, names_of=_norms
)
# As the first files have them, which ran code of their own: 7B and rw, which say what they are; and
# 40B, which has one form.
_OLD_KEYS = {
    **_KEYS,
    "num_hidden_layers": ("n_layer",),
    "num_attention_heads": ("n_head",),
    "num_kv_heads": ("n_head_kv",),
}
_OLD = dataclasses.replace(
    CONVERTER,
    model_type="RefinedWebModel",
    keys=_OLD_KEYS,
    defaults={k: v for k, v in _DEFAULTS.items() if k not in ("multi_query", "parallel_attn")},
)
_OLD_LARGE = dataclasses.replace(
    _OLD,
    model_type="RefinedWeb",
    defaults={**_DEFAULTS, "new_decoder_architecture": True},
)
CONVERTERS = (CONVERTER, _OLD, _OLD_LARGE)
