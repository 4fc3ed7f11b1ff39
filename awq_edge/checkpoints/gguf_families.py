"""What llama.cpp calls the families that converters know, and what its own converter did to them.

Owns the table from ``general.architecture`` to a config.json that a converter reads: a new family
is an entry in it. Refuses mathematics and our tensor names: converters know those.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from awq_edge.checkpoints.gguf_entries import Entries, decimal
from awq_edge.errors import UnsupportedError

Holds = Callable[[str], bool]  # whether a file holds a tensor
Configured = dict[str, Any]


def _nothing_more(entries: Entries, holds: Holds) -> Configured:
    return {}


@dataclasses.dataclass(frozen=True)
class GgufFamily:
    """One ``general.architecture``.

    Attributes:
        model_type: Of the config.json that its converter reads.
        further: What that config.json says beyond what all have; may name another model type.
        neighbours: Rows of queries and keys were put in the order of rotary pairs.
        norm_addend: What was added to the weights of norms.
        names: Stems of tensors by what a converter calls them here, where that differs.
    """

    model_type: str
    further: Callable[[Entries, Holds], Configured] = _nothing_more
    neighbours: bool = False
    norm_addend: float = 0.0
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)


def _llama(entries: Entries, holds: Holds) -> Configured:
    """Llama and what is Llama under another name: which biases there are tells them apart."""
    if entries.integer("expert_count", 0):
        raise UnsupportedError(
            f"{entries.path} holds a mixture of experts; such models are not supported."
        )
    inner, outer = holds("blk.0.attn_q.bias"), holds("blk.0.attn_output.bias")
    forward = holds("blk.0.ffn_down.bias")
    if inner and not outer:
        return {"model_type": "internlm3", "qkv_bias": True, "bias": forward}
    return {"attention_bias": inner, "mlp_bias": forward}


def _biases(entries: Entries, holds: Holds) -> Configured:
    return {"attention_bias": holds("blk.0.attn_q.bias"), "mlp_bias": holds("blk.0.ffn_down.bias")}


def _ernie(entries: Entries, holds: Holds) -> Configured:
    return {"use_bias": holds("blk.0.attn_q.bias")}


def _phi3(entries: Entries, holds: Holds) -> Configured:
    return {"sliding_window": entries.integer("attention.sliding_window", 0) or None}


def _gemma(entries: Entries, holds: Holds) -> Configured:
    return {"hidden_activation": "gelu_pytorch_tanh"}


def _granite(entries: Entries, holds: Holds) -> Configured:
    return {
        **_biases(entries, holds),
        "embedding_multiplier": entries.positive("embedding_scale", 1.0),
        "residual_multiplier": entries.number("residual_scale", 1.0),
        "attention_multiplier": entries.number("attention.scale"),
        "logits_scaling": entries.positive("logit_scale", 1.0),
    }


def _minicpm(entries: Entries, holds: Holds) -> Configured:
    root = math.sqrt(max(entries.integer("block_count"), 1))
    width = entries.integer("embedding_length")
    return {
        "attention_bias": holds("blk.0.attn_q.bias"),
        "scale_emb": entries.positive("embedding_scale"),
        "scale_depth": _before(
            entries.positive("residual_scale"), lambda depth: depth / root, root
        ),
        "dim_model_base": _before(
            entries.positive("logit_scale"), lambda base: width / base, width, inverse=True
        ),
    }


def _before(
    stored: float, stores: Callable[[float], float], factor: float, *, inverse: bool = False
) -> float:
    """The number of a config.json that a float32 was computed from, if a short one fits."""
    exact = factor / stored if inverse else factor * stored
    short = float(f"{exact:.6g}")
    return short if np.float32(stores(short)) == np.float32(stored) else exact


FAMILIES: Mapping[str, GgufFamily] = {
    "llama": GgufFamily("llama", _llama, neighbours=True),
    "internlm2": GgufFamily("llama", _llama, neighbours=True),
    "qwen2": GgufFamily("qwen2"),
    "qwen3": GgufFamily("qwen3", _biases),
    "phi3": GgufFamily("phi3", _phi3),
    "gemma": GgufFamily("gemma", _gemma, norm_addend=1.0),
    "granite": GgufFamily("granite", _granite, neighbours=True),
    "minicpm": GgufFamily("minicpm", _minicpm, neighbours=True),
    "chatglm": GgufFamily("glm", lambda entries, holds: {"attention_bias": _has_qkv_bias(holds)}),
    "ernie4_5": GgufFamily("ernie4_5", _ernie),
}


def _has_qkv_bias(holds: Holds) -> bool:
    return holds("blk.0.attn_qkv.bias") or holds("blk.0.attn_q.bias")


def family_of(entries: Entries) -> GgufFamily:
    """The family of a file.

    Raises:
        UnsupportedError: No converter knows it.
    """
    family = FAMILIES.get(entries.architecture)
    if family is None:
        raise UnsupportedError(
            f"The architecture {entries.architecture!r} of {entries.path} is not supported as a "
            f"source; the known ones are {', '.join(sorted(FAMILIES))}."
        )
    return family


def shared_config(entries: Entries, vocabulary_size: int) -> Configured:
    """What the config.json of every family says, apart from the rotary embedding."""
    heads = entries.integer("attention.head_count")
    width = entries.integer("embedding_length")
    if heads < 1:
        raise UnsupportedError(f"{entries.path} has {heads} heads; there must be one at least.")
    head_size = entries.integer("attention.key_length", width // heads)
    if head_size < 1:
        raise UnsupportedError(
            f"{entries.path} has heads of {head_size} dimensions; there must be one at least."
        )
    if entries.integer("attention.value_length", head_size) != head_size:
        raise UnsupportedError(
            f"The keys and values of {entries.path} differ in width; such models are not supported."
        )
    epsilon = decimal(
        entries.number(
            "attention.layer_norm_rms_epsilon",
            entries.number("attention.layer_norm_epsilon", 1e-5),
        )
    )
    return {
        "hidden_size": width,
        "num_hidden_layers": entries.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": entries.integer("attention.head_count_kv", heads),
        "head_dim": head_size,
        "intermediate_size": entries.integer("feed_forward_length"),
        "rms_norm_eps": epsilon,
        "layer_norm_eps": epsilon,
        "vocab_size": vocabulary_size,
        # A head that is stored as well is compared with the embedding.
        "tie_word_embeddings": True,
    }
