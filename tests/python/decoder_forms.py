"""Every form of a decoder that the record can say: its fields, and random models of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from awq_edge import layouts, model_file, stages
from awq_edge.architecture import Architecture
from awq_edge.rope_scaling import RopeScaling

PLAIN = Architecture(
    layers=2,
    hidden_size=72,  # no multiple of any group size
    vocabulary_size=101,
    context_length=64,
    heads=6,
    kv_heads=2,
    head_size=12,
    feed_forward_size=100,
    norm_epsilon=2.0**-17,
    rope_theta=1000.0,
)
LAYER_NORM: dict[str, Any] = {"norm": "layer", "norm_bias": True}
FORMS: dict[str, dict[str, Any]] = {
    "layer norm": {"norm": "layer"},
    "layer norm with bias": LAYER_NORM,
    "norms behind branches": {"norm_places": "after"},
    "norms around branches": {"norm_places": "both"},
    "norms of the stream": {**LAYER_NORM, "norm_places": "stream", "final_norm": False},
    "no final norm": {"final_norm": False},
    "norm of the embedding": {**LAYER_NORM, "embedding_norm": True},
    "parallel": {"parallel": True},
    "learned": {"position": "learned"},
    "alibi": {"position": "alibi"},
    "alibi in a window": {"position": "alibi", "sliding_windows": (5, 0)},
    "two tables": {"rope_tables": (1, 0), "local_rope_theta": 50.0},
    "no rotation in some layers": {"rope_tables": (0, 1)},
    "scaled second table": {
        "rope_tables": (1, 0),
        "local_rope_theta": 50.0,
        "local_rope_scaling": RopeScaling("linear", 4.0),
    },
    "norms of heads": {"qk_norm": True, "qk_norm_kind": "heads"},
    "layer norms of heads": {"norm": "layer", "qk_norm": True, "qk_norm_kind": "heads"},
    "norms over the width": {"qk_norm": True, "qk_norm_kind": "width"},
    "biased norms of heads": {**LAYER_NORM, "qk_norm": True, "qk_norm_bias": True},
    "clamp": {"qkv_clamp": 0.75},
    "score cap": {"score_cap": 2.0},
    "score cap in a window": {"score_cap": 2.0, "sliding_windows": (0, 7)},
    "logit cap": {"logit_cap": 3.0},
    "plain, relu": {"feed_forward": "plain", "activation": "relu"},
    "plain, gelu": {"feed_forward": "plain", "activation": "gelu", "feed_forward_bias": True},
    "plain, gelu_tanh": {"feed_forward": "plain", "activation": "gelu_tanh"},
    "activation scales": {
        "feed_forward": "plain",
        "activation": "gelu_tanh",
        "activation_scales": True,
    },
    "biased head": {"head_bias": True},
    "biased tied head": {"head_bias": True, "tied_head": True},
    # What families put together.
    "as OPT": {
        **LAYER_NORM,
        "position": "learned",
        "feed_forward": "plain",
        "activation": "relu",
        "qkv_bias": True,
        "output_bias": True,
        "feed_forward_bias": True,
        "kv_heads": 6,
        "tied_head": True,
    },
    "as Falcon": {
        **LAYER_NORM,
        "parallel": True,
        "feed_forward": "plain",
        "activation": "gelu",
        "kv_heads": 1,
    },
    "as MPT": {
        "norm": "layer",
        "position": "alibi",
        "qkv_clamp": 0.75,
        "feed_forward": "plain",
        "activation": "gelu",
    },
    "as Gemma 2": {
        "norm_places": "both",
        "score_cap": 2.0,
        "logit_cap": 3.0,
        "sliding_windows": (7, 0),
        "activation": "gelu_tanh",
    },
    "as OLMo 3": {
        "norm_places": "after",
        "qk_norm": True,
        "qk_norm_kind": "width",
        "rope_tables": (1, 0),
        "local_rope_theta": 50.0,
    },
}


def architecture(form: str) -> Architecture:
    """The record of a form."""
    return dataclasses.replace(PLAIN, **FORMS[form])


def random_vectors(a: Architecture, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """Every tensor of floats, by its name; none is near to having no effect."""
    generator = np.random.default_rng(seed)
    vectors = {}
    for name in stages.tensor_names(a):
        shape = stages.tensor_shape(a, name)
        if len(shape) == 2:
            continue
        values = 0.3 * generator.standard_normal(shape)
        if name.endswith(("norm.weight", ".scales")):
            values = 1 + values
        if name == "alibi.slopes":
            values = 0.5 ** np.arange(1, a.heads + 1)
        vectors[name] = values.astype(np.float32)
    if a.position == "rotary":
        vectors["rope.inverse_frequencies"] = a.inverse_frequencies()
    return vectors


def random_matrix(
    n: int, k: int, size: float, generator: np.random.Generator, bits: int = 4, group_size: int = 32
) -> bytes:
    """A packed matrix of random codes; its weights are about ``size``."""
    groups = -(-k // group_size)
    codes = generator.integers(0, 1 << bits, (n, k), dtype=np.uint8)
    scales = (size * generator.uniform(0.5, 1.5, (n, groups)) * 2.0 ** (4 - bits)).astype(
        np.float16
    )
    middle = 1 << (bits - 1)
    zeros = generator.integers(middle - 2, middle + 2, (n, groups), dtype=np.uint8)
    return layouts.pack(codes, scales, zeros, bits, group_size)


def write_packed(
    a: Architecture,
    path: Path,
    seed: int = 0,
    more_metadata: Mapping[str, model_file.MetadataValue] = MappingProxyType({}),
    more_tensors: Sequence[tuple[str, model_file.TensorSource]] = (),
) -> None:
    """A packed file of random codes, 4 bits in groups of 32, and what else stands in it."""
    generator = np.random.default_rng(seed + 1)
    vectors = random_vectors(a, seed)
    tensors: list[tuple[str, model_file.TensorSource]] = []
    for name in stages.tensor_names(a):
        if name in vectors:
            tensors.append((name, vectors[name]))
            continue
        n, k = stages.tensor_shape(a, name)
        size = 0.35 if name == "token_embd.weight" else 0.35 * k**-0.5
        tensors.append((name, random_matrix(n, k, size, generator)))
    metadata = {
        **a.to_metadata(),
        "awq_edge.quantization.bits": 4,
        "awq_edge.quantization.group_size": 32,
        "awq_edge.quantization.head_bits": 4,
        "awq_edge.quantization.embedding_bits": 4,
        "awq_edge.quantization.method": "rtn",
        "awq_edge.quantization.tool_version": "0",
        **more_metadata,
    }
    model_file.write_model(path, metadata, [*tensors, *more_tensors])
