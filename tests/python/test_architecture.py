"""The record of a decoder: what a model file says of it, and what no decoder is."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from awq_edge.architecture import Architecture
from awq_edge.errors import UnsupportedError
from awq_edge.rope_scaling import RopeScaling
from awq_edge.stages import tensor_names, tensor_shape

PLAIN = Architecture(
    layers=2,
    hidden_size=8,
    vocabulary_size=6,
    context_length=32,
    heads=4,
    kv_heads=2,
    head_size=4,
    feed_forward_size=12,
    norm_epsilon=1e-5,
    rope_theta=10000.0,
)
FORMS: dict[str, dict[str, Any]] = {
    "layer norm": {"norm": "layer"},
    "layer norm with bias": {"norm": "layer", "norm_bias": True},
    "norms behind branches": {"norm_places": "after"},
    "norms around branches": {"norm_places": "both"},
    "norms of the stream": {"norm_places": "stream", "norm": "layer", "norm_bias": True},
    "no final norm": {"final_norm": False},
    "norm of the embedding": {"embedding_norm": True, "norm": "layer", "norm_bias": True},
    "parallel": {"parallel": True},
    "learned": {"position": "learned"},
    "alibi": {"position": "alibi"},
    "two tables": {"rope_tables": (1, 0), "local_rope_theta": 500.0},
    "no rotation in some layers": {"rope_tables": (0, 1)},
    "scaled second table": {
        "rope_tables": (1, 0),
        "local_rope_theta": 500.0,
        "local_rope_scaling": RopeScaling("linear", 4.0),
    },
    "norms of heads": {"qk_norm": True, "qk_norm_kind": "heads"},
    "norms over the width": {"qk_norm": True, "qk_norm_kind": "width"},
    "biased norms of heads": {"qk_norm": True, "qk_norm_bias": True, "norm": "layer"},
    "clamp": {"qkv_clamp": 6.5},
    "score cap": {"score_cap": 50.0},
    "logit cap": {"logit_cap": 30.0},
    "plain": {"feed_forward": "plain", "activation": "relu", "feed_forward_bias": True},
    "activation scales": {"feed_forward": "plain", "activation_scales": True},
    "biased head": {"head_bias": True},
    "biased tied head": {"head_bias": True, "tied_head": True},
}


def test_a_plain_decoder_says_nothing_new() -> None:
    assert [key.rpartition(".")[2] for key in PLAIN.to_metadata()] == [
        "layers",
        "hidden_size",
        "vocabulary_size",
        "context_length",
        "heads",
        "kv_heads",
        "head_size",
        "feed_forward_size",
        "norm_epsilon",
        "activation",
        "sliding_windows",
        "qk_norm",
        "tied_head",
        "rope_theta",
        "rope_scaling",
    ]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_survives_a_file(form: str) -> None:
    a = dataclasses.replace(PLAIN, **FORMS[form])
    assert a != PLAIN
    names = tensor_names(a)
    assert len(names) == len(set(names))
    assert Architecture.from_metadata(a.to_metadata(), names) == a
    said = a.to_metadata() != PLAIN.to_metadata()
    assert said or names != tensor_names(PLAIN)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"norm": "batch"}, "norm is 'batch'"),
        ({"norm_places": "between"}, "norm_places"),
        ({"position": "sinusoidal"}, "position"),
        ({"feed_forward": "maxout"}, "feed_forward"),
        ({"parallel": True, "norm_places": "both"}, "parallel branches"),
        ({"position": "alibi", "rotary_size": 2}, "alibi positions"),
        ({"position": "learned", "rope_tables": (0, 1)}, "learned positions"),
        ({"position": "alibi", "score_cap": 5.0}, "caps its scores"),
        ({"norm_bias": True}, "biases of norms"),
        ({"qk_norm_kind": "width"}, "norms none"),
        ({"activation_scales": True}, "has a gate"),
        ({"local_rope_theta": 10.0}, "no layer turns by"),
        ({"rope_tables": (0, 2)}, "rotary table 2"),
        ({"score_cap": -1.0}, "cap of its scores is -1"),
        ({"logit_cap": float("nan")}, "cap of its logits is nan"),
        ({"qkv_clamp": 1e39}, "clamp of queries"),
        ({"qkv_clamp": 1e-60}, "clamp of queries"),
    ],
)
def test_what_is_no_decoder_is_refused(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(UnsupportedError, match=text):
        dataclasses.replace(PLAIN, **fields)


def test_tables_follow_each_other() -> None:
    a = dataclasses.replace(PLAIN, rope_tables=(1, 0), local_rope_theta=100.0)
    first = dataclasses.replace(PLAIN, rope_theta=100.0).inverse_frequencies()
    both = a.inverse_frequencies()
    assert both.dtype == np.float32 and both.shape == tensor_shape(a, "rope.inverse_frequencies")
    assert np.array_equal(both, np.concatenate((PLAIN.inverse_frequencies(), first)))
    still = dataclasses.replace(PLAIN, rope_tables=(1, 0)).inverse_frequencies()
    assert np.array_equal(still[2:], [0, 0])


def test_floats_beside_packed_matrices_are_vectors() -> None:
    a = dataclasses.replace(PLAIN, position="learned", qk_norm=True, qk_norm_kind="heads")
    assert tensor_shape(a, "position_embd.weight") == (32 * 8,)
    assert tensor_shape(a, "blk.0.attn_q_norm.weight") == (16,)
    assert tensor_shape(a, "blk.0.attn_k_norm.weight") == (8,)
    assert "rope.inverse_frequencies" not in tensor_names(a)
