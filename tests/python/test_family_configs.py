"""Families with layers of their own kinds: what their configurations say, key by key."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from awq_edge.converters import find, known_model_types
from awq_edge.converters.text_part import WRAPPERS

from awq_edge.errors import AwqEdgeError, CheckpointError, UnsupportedError

# Values that no class has as its default.
COMMON: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 512,
    "intermediate_size": 72,
    "num_hidden_layers": 5,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 16,
    "max_position_embeddings": 640,
    "rms_norm_eps": 1e-4,
    "attention_bias": True,
    "rope_theta": 500.0,
}
FULL, SLIDING = "full_attention", "sliding_attention"
KINDS = [FULL, SLIDING, SLIDING, FULL, SLIDING]
LINEAR = {"rope_type": "linear", "factor": 8.0}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 80}
GEMMA: dict[str, Any] = {
    **COMMON,
    "hidden_activation": "gelu_new",
    "query_pre_attn_scalar": 24,
    "final_logit_softcapping": 3.0,
    "attn_logit_softcapping": 2.0,
    "sliding_window": 7,
    "tie_word_embeddings": False,
    "use_bidirectional_attention": False,
}
# Heads that can be shared whichever of the two numbers has its default, 20 and 20.
HELIUM = {"num_attention_heads": 40, "num_key_value_heads": 4}
# Its class gives a base beside the tables to the full layers alone; see below.
OLMO3 = {key: value for key, value in COMMON.items() if key != "rope_theta"}
# Per family, whole configurations; from each one key after the other is taken.
WHOLE: dict[str, list[dict[str, Any]]] = {
    "gemma2": [
        {**GEMMA, "layer_types": KINDS},
        {**GEMMA, "rope_scaling": LINEAR},
        {**GEMMA, "rope_parameters": {**LINEAR, "rope_theta": 7.0}},
    ],
    "gemma3_text": [
        {**GEMMA, "rope_local_base_freq": 50.0, "sliding_window_pattern": 3},
        {**GEMMA, "rope_local_base_freq": 50.0, "layer_types": KINDS, "rope_scaling": LINEAR},
        {**GEMMA, "sliding_window_pattern": 1, "rope_scaling": LINEAR},
        {
            **GEMMA,
            "rope_local_base_freq": 50.0,
            "rope_parameters": {FULL: {**LINEAR, "rope_theta": 70.0}, SLIDING: {"rope_theta": 7.0}},
        },
        {**GEMMA, "rope_parameters": {FULL: {"rope_theta": 70.0}}, "rope_scaling": LINEAR},
        {**GEMMA, "rope_parameters": {FULL: None, SLIDING: YARN}},
        {**GEMMA, "rope_parameters": {SLIDING: {"type": "linear", "factor": 2.0}}},
        {**GEMMA, "layer_types": [SLIDING] * 5, "rope_local_base_freq": 50.0},
    ],
    "smollm3": [
        {
            **COMMON,
            "hidden_act": "silu",
            "mlp_bias": True,
            "no_rope_layers": [0, 1, 1, 0, 1, 1],
            "use_sliding_window": True,
            "sliding_window": 7,
            "tie_word_embeddings": False,
            "rope_scaling": LINEAR,
        },
        {
            **COMMON,
            "no_rope_layer_interval": 2,
            "use_sliding_window": True,
            "sliding_window": 7,
            "layer_types": KINDS,
        },
        {**COMMON, "no_rope_layer_interval": 1},
    ],
    "olmo2": [
        {**COMMON, "hidden_act": "silu", "tie_word_embeddings": True, "rope_scaling": YARN},
    ],
    "olmo3": [
        {**OLMO3, "sliding_window": 7, "layer_types": KINDS, "tie_word_embeddings": True},
        {**OLMO3, "sliding_window": 7, "rope_scaling": YARN},
        {**OLMO3, "rope_parameters": {FULL: {**YARN, "attention_factor": 1.2}, SLIDING: {}}},
        {**OLMO3, "rope_parameters": {FULL: YARN, SLIDING: YARN}},
    ],
    "glm4": [
        {**COMMON, "attention_bias": False, "tie_word_embeddings": True, "hidden_act": "silu"},
        {**COMMON, "partial_rotary_factor": 0.25, "rope_scaling": LINEAR},
        {**COMMON, "rope_parameters": {"partial_rotary_factor": 0.75, "rope_theta": 7.0}},
    ],
    "helium": [
        {**COMMON, **HELIUM, "mlp_bias": True, "rope_scaling": LINEAR},
        {**COMMON, **HELIUM, "tie_word_embeddings": True, "rope_scaling": YARN},
    ],
    "ministral": [
        {**COMMON, "sliding_window": 7, "layer_types": KINDS, "tie_word_embeddings": True},
        {**COMMON, "sliding_window": 7, "rope_scaling": YARN},
    ],
    "ministral3": [
        {**COMMON, "sliding_window": 7, "tie_word_embeddings": True},
        {**COMMON, "rope_parameters": {**YARN, "llama_4_scaling_beta": 0.1, "rope_theta": 7.0}},
        {**COMMON, "rope_scaling": {**YARN, "llama_4_scaling_beta": 0.1, "mscale": 1.0}},
    ],
    "granitemoehybrid": [
        {
            **COMMON,
            "hidden_act": "silu",
            "shared_intermediate_size": 40,
            "num_local_experts": 0,
            "layer_types": ["attention"] * 5,
            "position_embedding_type": "rope",
            "embedding_multiplier": 12.0,
            "logits_scaling": 8.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.0156,
            "tie_word_embeddings": True,
        },
    ],
}
NULLABLE = {
    "num_key_value_heads",
    "head_dim",
    "sliding_window",
    "layer_types",
    "no_rope_layers",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "rope_scaling",
    "rope_parameters",
    "use_bidirectional_attention",
    "position_embedding_type",
}


def of_the_class(values: dict[str, Any]) -> dict[str, Any] | None:
    """What transformers makes of a config.json; None where it refuses or could not run."""
    import torch
    import transformers
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    values = json.loads(json.dumps(values))
    try:
        c = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
        family, head_size = c.model_type, getattr(c, "head_dim", None)
        head_size = head_size or c.hidden_size // c.num_attention_heads
        by_kind = family in ("gemma3_text", "olmo3")
        kinds = getattr(c, "layer_types", None) or [FULL] * c.num_hidden_layers

        def frequencies(layer: int) -> Any:
            table = c.rope_parameters[kinds[layer]] if by_kind else c.rope_parameters
            if table["rope_type"] == "default":
                rotated = head_size
                if family == "glm4":
                    rotated = int(head_size * table.get("partial_rotary_factor", 1.0))
                pairs = torch.arange(0, rotated, 2, dtype=torch.float) / rotated
                return 1.0 / table["rope_theta"] ** pairs, 1.0
            kind = {"layer_type": kinds[layer]} if by_kind else {}
            return ROPE_INIT_FUNCTIONS[table["rope_type"]](c, **kind)

        turns = [frequencies(layer) for layer in range(c.num_hidden_layers)]
        if family == "ministral3":
            assert isinstance(c.rope_parameters["llama_4_scaling_beta"], float)
    except Exception:  # whatever it raises, it does not load such a model
        return None
    window = getattr(c, "sliding_window", None)
    if family in ("gemma2", "gemma3_text", "olmo3", "ministral") and window is None:
        return None  # its mask needs a window, whether a layer has one or not
    if family == "smollm3" and SLIDING in kinds and not (c.use_sliding_window and window):
        return None  # its kinds of attention differ in what they make of that
    if family == "ministral3":
        kinds = [SLIDING if window else FULL] * c.num_hidden_layers
    rotates = [1] * c.num_hidden_layers
    if family == "smollm3":
        rotates = c.no_rope_layers
    elif family == "granitemoehybrid":
        rotates = [c.position_embedding_type == "rope"] * c.num_hidden_layers
        if set(kinds) != {FULL} or c.num_local_experts:
            return None
    padded = np.zeros((c.num_hidden_layers, head_size // 2), np.float32)
    for layer, (turn, _) in enumerate(turns):
        padded[layer, : len(turn)] = turn if rotates[layer] else 0
    scale = head_size**-0.5
    if family.startswith("gemma"):
        scale = c.query_pre_attn_scalar**-0.5
    elif family == "granitemoehybrid":
        scale = c.attention_multiplier
    attention_bias = "ministral" not in family and c.attention_bias
    reach = c.max_position_embeddings
    if family == "ministral3":
        table = c.rope_parameters
        reach = max(reach, int(table["factor"] * table["original_max_position_embeddings"]))
        reach = min(reach, table["original_max_position_embeddings"])  # queries are scaled beyond
    return {
        "layers": c.num_hidden_layers,
        "hidden_size": c.hidden_size,
        "vocabulary_size": c.vocab_size,
        "heads": c.num_attention_heads,
        "kv_heads": c.num_key_value_heads or c.num_attention_heads,
        "head_size": head_size,
        "feed_forward_size": c.shared_intermediate_size
        if family == "granitemoehybrid"
        else c.intermediate_size,
        "norm_epsilon": c.rms_norm_eps,
        "tied_head": c.tie_word_embeddings,
        "sliding_windows": tuple(window if kind == SLIDING else 0 for kind in kinds),
        "qkv_bias": attention_bias,
        "output_bias": attention_bias and family not in ("glm4", "helium"),
        "feed_forward_bias": getattr(c, "mlp_bias", False),
        "score_cap": (family == "gemma2" and c.attn_logit_softcapping) or 0.0,
        "logit_cap": getattr(c, "final_logit_softcapping", None) or 0.0,
        "activation": "gelu_tanh" if family.startswith("gemma") else "silu",
        "context_length": reach,
        "frequencies": padded,
        "query_scales": [
            scale * (factor**2 if rotates[layer] else 1.0)
            for layer, (_, factor) in enumerate(turns)
        ],
    }


def ours(values: dict[str, Any]) -> dict[str, Any]:
    converter = find(values)
    a = converter.architecture(values)
    fields = {name: getattr(a, name) for name in a.__dataclass_fields__}
    tables = a.inverse_frequencies().reshape(-1, a.head_size // 2)
    fields["frequencies"] = tables[list(a.rope_tables)]
    scaled = "attn_q_norm" if a.qk_norm else "attn_q"
    changes = [
        converter.changes(values, a, f"blk.{layer}.{scaled}.weight") for layer in range(a.layers)
    ]
    # Of the first row, which is rotated.
    fields["query_scales"] = [
        a.head_size**-0.5
        * change.factor
        * (1.0 if change.row_factors is None else change.row_factors[0])
        for change in changes
    ]
    return fields


def compare_with_the_class(values: dict[str, Any]) -> bool:
    """Equal in every field; what transformers refuses says nothing and is False."""
    expected = of_the_class(values)
    if expected is None:
        with contextlib.suppress(AwqEdgeError):
            ours(values)
        return False
    found = ours(values)
    scaling = found["rope_scaling"]
    stretched = scaling is not None and scaling.kind == "yarn"
    for key, value in expected.items():
        if key == "context_length" and stretched and values["model_type"] != "ministral3":
            assert found[key] >= value  # what yarn reaches
        elif key in ("frequencies", "query_scales"):
            np.testing.assert_allclose(found[key], value, rtol=1e-5)
        else:
            assert found[key] == value, key
    return True


@pytest.mark.parametrize("family", WHOLE)
def test_absent_keys_and_nulls(family: str) -> None:
    """One key after the other is left out, or null where it may be."""
    pytest.importorskip("transformers")
    for number, keys in enumerate(WHOLE[family]):
        whole = {**keys, "model_type": family}
        assert compare_with_the_class(whole), number
        for key in keys:
            compare_with_the_class({name: whole[name] for name in whole if name != key})
            if key in NULLABLE:
                compare_with_the_class({**whole, key: None})
    compare_with_the_class({"model_type": family})


def test_olmo3_has_one_base_in_older_files() -> None:
    """As the class of that time read it: its tables began with one base for all layers."""
    values = {**COMMON, "model_type": "olmo3", "rope_scaling": YARN}
    a = find(values).architecture(values)
    assert (a.rope_theta, a.local_rope_theta, a.rope_tables) == (500.0, 500.0, (1, 1, 1, 0, 1))
    assert a.local_rope_scaling is None and a.rope_scaling is not None
    plain = find(values).architecture({**values, "rope_scaling": None})
    assert plain.rope_tables == (0,) * 5  # one table serves both


# The class of BLOOM has a toy's sizes; and what sees images is read by its text part's converter.
NO_DEFAULTS = {"bloom", *WRAPPERS}


def all_that_is_read(values: dict[str, Any]) -> Any:
    converter = find(values)
    try:
        a = converter.architecture(values)
    except UnsupportedError as error:  # a form of a family that is not read
        return str(error)
    factors = [
        converter.changes(values, a, f"blk.0.{stem}.weight").factor
        for stem in ("attn_q", "attn_output")
    ]
    return a, converter.names, factors


@pytest.mark.parametrize("family", [f for f in known_model_types() if f not in NO_DEFAULTS])
def test_one_key_less_is_the_class_s_value(family: str) -> None:
    """Of a whole config.json of every family that transformers has a class for."""
    transformers = pytest.importorskip("transformers")

    def of_the_whole(values: dict[str, Any]) -> dict[str, Any]:
        keys = {key: value for key, value in values.items() if key != "model_type"}
        return {**transformers.AutoConfig.for_model(family, **keys).to_dict(), "model_type": family}

    try:
        whole = of_the_whole({})
    except ValueError:
        pytest.skip("a family that ran code of its own")
    assert all_that_is_read({"model_type": family}) == all_that_is_read(whole)
    for key in whole:
        if key == "model_type":
            continue
        less = {name: value for name, value in whole.items() if name != key}
        assert all_that_is_read(less) == all_that_is_read(of_the_whole(less)), key


@pytest.mark.parametrize("key", ["rotary_emb_base", "rotary_pct"])
def test_gpt_neox_reads_its_own_spelling_alone(key: str) -> None:
    """Files of transformers 4 have both."""
    transformers = pytest.importorskip("transformers")
    values: dict[str, Any] = {
        "model_type": "gpt_neox",
        "rotary_emb_base": 500,
        "rope_theta": 500.0,
        "rotary_pct": 0.5,
        "partial_rotary_factor": 0.5,
    }
    for less in (values, {name: value for name, value in values.items() if name != key}):
        keys = {name: value for name, value in less.items() if name != "model_type"}
        table = transformers.AutoConfig.for_model("gpt_neox", **keys).rope_parameters
        a = find(less).architecture(less)
        rotated = (a.rotary_size or a.head_size) / a.head_size
        assert (a.rope_theta, rotated) == (table["rope_theta"], table["partial_rotary_factor"])


# ---- refusals ------------------------------------------------------------------------------------

SMALL = {**COMMON, "num_hidden_layers": 2}


@pytest.mark.parametrize(
    ("family", "key"),
    [
        ("granite", "embedding_multiplier"),
        ("granite", "logits_scaling"),
        ("minicpm", "scale_emb"),
    ],
)
def test_nothing_is_divided_by_zero(family: str, key: str) -> None:
    values = {**SMALL, "model_type": family, "tie_word_embeddings": True, key: 0.0}
    converter = find(values)
    a = converter.architecture(values)
    with pytest.raises(CheckpointError, match=f"has 0 for {key}"):
        converter.changes(values, a, "output_norm.weight")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(model_type="no_such_family"), "known ones are .*gemma3, gemma3_text"),
        (
            dict(model_type="gemma3_text", use_bidirectional_attention=True),
            "both directions",
        ),
        (dict(model_type="gemma", use_bidirectional_attention=True), "both directions"),
        (dict(model_type="gemma2", hidden_activation="gelu"), "gelu.*not Gemma's"),
        (dict(model_type="gemma2", attn_logit_softcapping=-1.0), "must be positive"),
        (dict(model_type="gemma2", query_pre_attn_scalar=0), "query_pre_attn_scalar"),
        (dict(model_type="gemma2", sliding_window=None), "but no window"),
        (dict(model_type="gemma3_text", sliding_window_pattern=0), "sliding_window_pattern"),
        (
            dict(model_type="gemma3_text", rope_parameters={"rope_type": "default"}),
            "one for each type of layer",
        ),
        (dict(model_type="gemma3_text", rope_scaling={FULL: LINEAR}), "into rope_parameters"),
        (
            dict(model_type="gemma3_text", rope_parameters={FULL: {"partial_rotary_factor": 0.5}}),
            "part of each head",
        ),
        (dict(model_type="gemma3_text", rope_parameters={FULL: 3}), "table full_attention, not 3"),
        (dict(model_type="olmo3", layer_types=["sliding"] * 2), "layer type"),
        (dict(model_type="smollm3", no_rope_layers=[1]), "list no_rope_layers of 2"),
        (dict(model_type="smollm3", no_rope_layers=[1, 2]), "each 0 or 1"),
        (dict(model_type="smollm3", no_rope_layers=[1, "0"]), "each 0 or 1"),
        (dict(model_type="smollm3", no_rope_layer_interval=0), "no_rope_layer_interval"),
        (dict(model_type="granitemoehybrid"), "mixes state-space layers"),
        (
            dict(model_type="granitemoehybrid", layer_types=["attention", "mamba"]),
            "mixes state-space layers",
        ),
        (
            dict(model_type="granitemoehybrid", layer_types=["attention"] * 2),
            "has 8 experts",
        ),
        (dict(model_type="olmo2", rope_parameters={FULL: {}}), "one table for all layers"),
    ],
)
def test_refusals(changes: dict[str, Any], words: str) -> None:
    with pytest.raises((UnsupportedError, CheckpointError), match=words) as raised:
        find({**SMALL, **changes}).architecture({**SMALL, **changes})
    assert "\n" not in str(raised.value)
