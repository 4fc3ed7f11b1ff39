"""MPT: ALiBi, fused rows, norms without biases; some clamp queries, keys and values.

Its first models, MPT-1B, have a type, names and keys of their own, and norm queries and keys.
"""

from __future__ import annotations

import math

from awq_edge.alibi import alibi_slopes
from awq_edge.architecture import Architecture
from awq_edge.errors import UnsupportedError

from .base import SHARED_DEFAULTS, Config, Converter, Stored, fused_qkv
from .values import Values

_LAYER = "transformer.blocks.N"
_NAMES = {
    "token_embd": "transformer.wte",
    "output": "lm_head",
    "output_norm": "transformer.norm_f",
    "blk.N.attn_norm": f"{_LAYER}.norm_1",
    "blk.N.attn_q": f"{_LAYER}.attn.Wqkv",
    "blk.N.attn_k": f"{_LAYER}.attn.Wqkv",
    "blk.N.attn_v": f"{_LAYER}.attn.Wqkv",
    "blk.N.attn_output": f"{_LAYER}.attn.out_proj",
    "blk.N.ffn_norm": f"{_LAYER}.norm_2",
    "blk.N.ffn_up": f"{_LAYER}.ffn.up_proj",
    "blk.N.ffn_act": f"{_LAYER}.ffn.act",
    "blk.N.ffn_down": f"{_LAYER}.ffn.down_proj",
}

_FIRST_NAMES = {
    **_NAMES,
    "output_norm": "transformer.ln_f",
    "blk.N.attn_norm": f"{_LAYER}.ln_1",
    "blk.N.attn_q_norm": f"{_LAYER}.attn.q_ln",
    "blk.N.attn_k_norm": f"{_LAYER}.attn.k_ln",
    "blk.N.ffn_norm": f"{_LAYER}.ln_2",
    "blk.N.ffn_up": f"{_LAYER}.mlp.mlp_up",
    "blk.N.ffn_down": f"{_LAYER}.mlp.mlp_down",
}
del _FIRST_NAMES["blk.N.ffn_act"]
# What later files say in a table attn_config, by the keys of the first ones.
_FIRST_ATTENTION = {
    "alibi": "alibi",
    "alibi_bias_max": "alibi_bias_max",
    "clip_qkv": "attn_clip_qkv",
    "prefix_lm": "prefix_lm",
    "qk_ln": "attn_qk_ln",
    "softmax_scale": "softmax_scale",
}

_DEFAULTS = {
    **SHARED_DEFAULTS,
    "vocab_size": 50368,
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "max_position_embeddings": 2048,
    "expansion_ratio": 4,
    "layer_norm_epsilon": 1e-5,
    "norm_type": "low_precision_layernorm",
    "tie_word_embeddings": True,
}
_KEYS = {
    "hidden_size": ("d_model",),
    "num_hidden_layers": ("n_layers",),
    "num_attention_heads": ("n_heads",),
    "max_position_embeddings": ("max_seq_len",),
}
_FIRST_DEFAULTS = {**_DEFAULTS, "vocab_size": 50257}
_FIRST_KEYS = {**_KEYS, "expansion_ratio": ("mlp_ratio",)}


def _is_first(config: Config) -> bool:
    return bool(config.get("model_type") == "mosaic_gpt")


def _attention(config: Config) -> Values:
    """What a config.json says of attention, by the keys of today's."""
    if not _is_first(config):
        return config.table("attn_config")
    there = {ours: config.get(theirs) for ours, theirs in _FIRST_ATTENTION.items()}
    return Values(
        {"alibi": False, **{key: value for key, value in there.items() if value is not None}}, {}
    )


def _architecture(config: Config) -> Architecture:
    attention = _attention(config)
    _refuse_other_forms(config, attention)
    normed = attention.flag("qk_ln")
    clamp = 0.0 if attention.get("clip_qkv") is None else attention.number("clip_qkv")
    hidden = config.integer("hidden_size")
    head_size = hidden // config.heads()
    # Stored queries, keys and values may be multiplied, and so are the ends of the clamp then.
    clamp *= math.sqrt(_query_factor(attention, head_size))
    return config.decoder(
        norm="layer",
        norm_epsilon=config.number("layer_norm_epsilon"),
        position="alibi",
        kv_heads=config.heads(),
        head_size=head_size,
        feed_forward="plain",
        feed_forward_size=config.integer("expansion_ratio") * hidden,
        activation="gelu",
        qkv_clamp=clamp,
        qk_norm=normed,
        qk_norm_kind="width" if normed else "head",
    )


def _refuse_other_forms(config: Config, attention: Values) -> None:
    """Refuses what the models can be told to be and no published one is, or only an old one."""
    refused = None
    if not attention.flag("alibi", True):
        refused = "learned positions instead of ALiBi (alibi)"
    elif attention.flag("qk_ln") and not _is_first(config):
        refused = "norms over queries and keys (qk_ln)"
    elif attention.flag("qk_ln") and attention.get("clip_qkv") is not None:
        refused = "a clamp in front of norms over queries and keys (attn_clip_qkv)"
    elif attention.flag("prefix_lm"):
        refused = "a prefix that attends in both directions (prefix_lm)"
    elif attention.flag("rope"):
        refused = "rotary positions (rope)"
    elif attention.get("attn_type", "multihead_attention") != "multihead_attention":
        refused = f"another attention (attn_type {attention.get('attn_type')!r})"
    elif config.get("logit_scale") is not None:
        refused = "a multiplier of the logits (logit_scale)"
    elif config.get("norm_type") not in ("low_precision_layernorm", "layernorm"):
        refused = f"another norm (norm_type {config.get('norm_type')!r})"
    if refused is not None:
        raise UnsupportedError(f"MPT with {refused} is not supported.")


def _query_factor(attention: Values, head_size: int) -> float:
    """By what a score differs from the decoder's, which divides by the root of the head's size."""
    if attention.get("softmax_scale") is None:
        return 1.0
    factor = attention.number("softmax_scale") * math.sqrt(head_size)
    if not factor > 0:
        raise UnsupportedError("MPT with a softmax_scale that is not positive is not supported.")
    return factor


def _stored(config: Config, a: Architecture, stem: str) -> Stored:
    attention = _attention(config)
    if stem == "alibi":
        largest = attention.number("alibi_bias_max", 8.0)
        return Stored(values=alibi_slopes(a.heads, largest))
    factor = _query_factor(attention, a.head_size)
    if a.qkv_clamp and factor != 1.0:
        # Before a clamp a factor of one of them alone would change what is cut off; a common one
        # does not, and values give it back behind attention.
        root = math.sqrt(factor)
        if stem in ("attn_q", "attn_k", "attn_v"):
            return _times(fused_qkv(a, stem), root)
        return Stored(factor=1.0 / root) if stem == "attn_output" else Stored()
    if stem == "attn_q_norm":
        return Stored(factor=factor)
    return _times(fused_qkv(a, stem), factor if stem == "attn_q" and not a.qk_norm else 1.0)


def _times(stored: Stored | None, factor: float) -> Stored:
    if stored is None:
        return Stored()
    return Stored(rows=stored.rows, all_rows=stored.all_rows, factor=factor)


CONVERTERS = (
    Converter("mpt", _NAMES, _architecture, _DEFAULTS, _stored, keys=_KEYS),
    Converter(
        "mosaic_gpt", _FIRST_NAMES, _architecture, _FIRST_DEFAULTS, _stored, keys=_FIRST_KEYS
    ),
)
