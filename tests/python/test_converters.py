"""Model families: what their configurations say, and what is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import checkpoints
from awq_edge.converters import find, known_model_types

from awq_edge.errors import (
    AwqEdgeError,
    CheckpointError,
    InvalidArgumentError,
    UnsupportedError,
)
from awq_edge.float_model import open_float_model
from awq_edge.interchange.hf_config import describe
from awq_edge.rope_scaling import RopeScaling

# As Meta's Llama-3.2-1B ships it, in the words of transformers 4.
LLAMA_32_1B: dict[str, Any] = {
    "model_type": "llama",
    "attention_bias": False,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "vocab_size": 128256,
}


def read(**changes: Any) -> Any:
    config = {**LLAMA_32_1B, **changes}
    return find(config).architecture(config)


def test_known_families() -> None:
    assert set(known_model_types()) >= {"llama", "mistral", "qwen2", "qwen3"}


def test_llama_configuration() -> None:
    a = read()
    assert (a.layers, a.hidden_size, a.heads, a.kv_heads, a.head_size) == (16, 2048, 32, 8, 64)
    assert a.tied_head and not a.qkv_bias and a.context_length == 131072
    assert a.rope_theta == 500000.0
    assert a.rope_scaling == RopeScaling("llama3", 32.0, 1.0, 4.0, 8192)
    assert a.sliding_windows == (0,) * 16


def test_rope_parameters_of_transformers_5_say_the_same() -> None:
    parameters = {**LLAMA_32_1B["rope_scaling"], "rope_theta": 500000.0}
    assert read(rope_scaling=None, rope_theta=None, rope_parameters=parameters) == read()


def test_old_configurations() -> None:
    """Llama 1: no key-value heads, no head size, no theta; Vicuna: scaling under its old name."""
    old = read(
        num_key_value_heads=None,
        head_dim=None,
        rope_theta=None,
        rope_scaling={"type": "linear", "factor": 2.0},
    )
    assert (old.kv_heads, old.head_size, old.rope_theta) == (32, 64, 10000.0)
    assert old.rope_scaling == RopeScaling("linear", 2.0)


def test_mistral_windows() -> None:
    assert read(model_type="mistral", sliding_window=4096).sliding_windows == (4096,) * 16
    assert read(model_type="mistral", sliding_window=None).sliding_windows == (0,) * 16


def test_qwen_windows() -> None:
    def windows(**changes: Any) -> tuple[int, ...]:
        a = read(model_type="qwen2", num_hidden_layers=4, sliding_window=32, **changes)
        assert a.qkv_bias and not a.output_bias
        return a.sliding_windows

    assert windows(use_sliding_window=False, max_window_layers=2) == (0, 0, 0, 0)
    assert windows(use_sliding_window=True, max_window_layers=2) == (0, 0, 32, 32)
    kinds = ["full_attention", "sliding_attention"] * 2
    assert windows(use_sliding_window=True, layer_types=kinds) == (0, 32, 0, 32)


def test_qwen3_head_size_does_not_follow_from_the_hidden_size() -> None:
    config = {**LLAMA_32_1B, "model_type": "qwen3"}
    del config["head_dim"]
    a = find(config).architecture(config)
    assert a.qk_norm and a.head_size == 128


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        (dict(model_type="no_such"), UnsupportedError, "no_such.*known ones are .*llama.*mistral"),
        (dict(model_type="qwen3_next"), UnsupportedError, "recurrent state"),
        (dict(model_type="t5"), UnsupportedError, "encoder"),
        (dict(model_type=None), UnsupportedError, "null.*known ones"),
        (dict(model_type=["llama"]), UnsupportedError, "known ones"),
        (dict(hidden_act="gelu"), UnsupportedError, "gelu"),
        (dict(rope_scaling={"rope_type": "mrope"}), UnsupportedError, "mrope.*longrope"),
        (dict(rope_scaling={"rope_type": "yarn"}), CheckpointError, "factor"),
        (dict(rope_scaling={"rope_type": "longrope", "factor": 2.0}), CheckpointError, "short"),
        (
            dict(rope_scaling={"rope_type": "longrope", "short_factor": [1.0]}),
            InvalidArgumentError,
            "1 factors for 32 pairs",
        ),
        (
            dict(rope_parameters={"full_attention": {"rope_type": "default"}}, rope_scaling=None),
            UnsupportedError,
            "each type of layer",
        ),
        (dict(rope_scaling={"rope_type": "linear", "factor": 0.0}), InvalidArgumentError, "linear"),
        (dict(rope_scaling={"type": "linear", "factor": 1e-300}), UnsupportedError, "radians"),
        (dict(rope_theta=0.0), UnsupportedError, "base of its rotary"),
        (dict(rope_theta=-1.0), UnsupportedError, "base of its rotary"),
        (dict(rope_theta=1e39), UnsupportedError, "base of its rotary"),
        (dict(rope_theta=float("nan")), CheckpointError, "rope_theta; it has NaN"),
        (dict(rms_norm_eps=0.0), UnsupportedError, "epsilon"),
        (dict(rms_norm_eps=1e-50), UnsupportedError, "epsilon"),
        (dict(rms_norm_eps=float("inf")), CheckpointError, "rms_norm_eps; it has Infinity"),
        (dict(max_position_embeddings=1 << 25), UnsupportedError, "context has 33554432"),
        (dict(max_position_embeddings=10**30), CheckpointError, "too large"),
        (dict(vocab_size=(1 << 24) + 1), UnsupportedError, "vocabulary"),
        (dict(num_hidden_layers=1 << 64), CheckpointError, "num_hidden_layers, which is too"),
        (dict(num_hidden_layers=1 << 30), UnsupportedError, "at most 1024"),
        (dict(num_hidden_layers=True), CheckpointError, "num_hidden_layers; it has true"),
        (dict(num_attention_heads=0), InvalidArgumentError, "heads"),
        (dict(num_attention_heads=0, head_dim=None), InvalidArgumentError, "heads"),
        (dict(num_key_value_heads=0), InvalidArgumentError, "kv_heads"),
        (dict(model_type="mistral", sliding_window=-1), InvalidArgumentError, "window"),
        (
            dict(model_type="qwen2", layer_types=["sliding_attention"] * 16),
            CheckpointError,
            "but no window",
        ),
        (dict(model_type="qwen2", layer_types=["linear"] * 16), UnsupportedError, "linear"),
        (dict(model_type="qwen2", layer_types=[["x"]] * 16), UnsupportedError, "layer type"),
        (dict(model_type="qwen2", layer_types=[]), CheckpointError, "16 words"),
        (dict(partial_rotary_factor=0.5), UnsupportedError, "part of each head"),
        (dict(hidden_size=None), CheckpointError, "hidden_size"),
        (dict(hidden_size="2048"), CheckpointError, "hidden_size"),
        (dict(rms_norm_eps="small"), CheckpointError, "rms_norm_eps"),
        (dict(tie_word_embeddings="yes"), CheckpointError, "tie_word_embeddings"),
        (dict(rope_scaling=[1]), CheckpointError, "rotary"),
        (dict(num_key_value_heads=5), InvalidArgumentError, "multiple"),
        (dict(num_hidden_layers=0), InvalidArgumentError, "layers"),
        (dict(head_dim=512), UnsupportedError, "head size"),
    ],
)
def test_refusals(changes: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        read(**changes)


# ---- against the classes of transformers ---------------------------------------------------------

# Every key that a file of today spells out, with values that no class has as its default.
SPELT_OUT: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 512,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 64,
    "num_key_value_heads": 16,
    "head_dim": 16,
    "hidden_act": "silu",
    "max_position_embeddings": 640,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "attention_bias": True,
    "mlp_bias": True,
    "rope_theta": 500.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    },
    "original_max_position_embeddings": 64,
    "use_sliding_window": True,
    "sliding_window": 7,
    "max_window_layers": 1,
    "layer_types": ["full_attention", "sliding_attention", "full_attention"],
}
NULLABLE = ("num_key_value_heads", "head_dim", "rope_scaling", "sliding_window", "layer_types")
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def of_the_class(values: dict[str, Any]) -> dict[str, Any] | None:
    """What transformers makes of a config.json; None where it refuses."""
    import torch
    import transformers
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    values = json.loads(json.dumps(values))
    try:
        c = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
        family = c.model_type
        head_size = getattr(c, "head_dim", c.hidden_size // c.num_attention_heads)
        assert head_size, "its attention divides by it"
        kind = c.rope_parameters["rope_type"]
        if kind == "default":
            pairs = torch.arange(0, head_size, 2, dtype=torch.float) / head_size
            frequencies, factor = 1.0 / c.rope_parameters["rope_theta"] ** pairs, 1.0
        else:
            frequencies, factor = ROPE_INIT_FUNCTIONS[kind](c)
    except Exception:  # whatever it raises, it does not load such a model
        return None
    if family in ("qwen2", "qwen3"):
        kinds, window = c.layer_types, c.sliding_window
        if window is None and "sliding_attention" in kinds:
            return None  # its mask needs a window
        windows = tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
    else:
        window = c.sliding_window if family == "mistral" else None
        windows = (window or 0,) * c.num_hidden_layers
    return {
        "layers": c.num_hidden_layers,
        "hidden_size": c.hidden_size,
        "vocabulary_size": c.vocab_size,
        "heads": c.num_attention_heads,
        "kv_heads": c.num_key_value_heads,
        "head_size": head_size,
        "feed_forward_size": c.intermediate_size,
        "norm_epsilon": c.rms_norm_eps,
        "tied_head": c.tie_word_embeddings,
        "sliding_windows": windows,
        "qkv_bias": family == "qwen2" or (family != "mistral" and c.attention_bias),
        "output_bias": family in ("llama", "qwen3") and c.attention_bias,
        "feed_forward_bias": family == "llama" and c.mlp_bias,
        "context_length": c.max_position_embeddings,
        "frequencies": frequencies,
        "query_factor": factor**2,
    }


def ours(values: dict[str, Any]) -> dict[str, Any]:
    a = find(values).architecture(values)
    fields = dataclasses.asdict(a)
    fields["frequencies"] = a.inverse_frequencies()
    fields["query_factor"] = find(values).query_factor(values)
    return fields


def compare_with_the_class(values: dict[str, Any], *, apart: tuple[str, ...] = ()) -> None:
    """Equal in every field but those ``apart``; what transformers refuses says nothing."""
    expected = of_the_class(values)
    if expected is None:
        with contextlib.suppress(AwqEdgeError):
            ours(values)
        return
    found = ours(values)
    for key, value in expected.items():
        if key in apart:
            continue
        if key in ("frequencies", "query_factor"):
            np.testing.assert_allclose(found[key], value, rtol=1e-5)
        else:
            assert found[key] == value, key


@pytest.mark.parametrize("family", FAMILIES)
def test_absent_keys_and_nulls(family: str) -> None:
    """One key after the other is left out, or null where it may be."""
    pytest.importorskip("transformers")
    whole = {**SPELT_OUT, "model_type": family}
    assert of_the_class(whole) is not None
    compare_with_the_class(whole)
    for key in SPELT_OUT:
        compare_with_the_class({name: whole[name] for name in whole if name != key})
        if key in NULLABLE:
            compare_with_the_class({**whole, key: None})
    compare_with_the_class({"model_type": family})
    plain = {key: whole[key] for key in whole if not key.startswith(("rope", "orig", "layer_t"))}
    assert of_the_class(plain) is not None
    for key in plain.keys() - {"model_type"}:
        compare_with_the_class({name: plain[name] for name in plain if name != key})


SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 2.0},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 160},
    "yarn, its factor null": {"factor": None, "original_max_position_embeddings": 160},
    "yarn, mscale": {"factor": 4.0, "mscale": 1.2, "mscale_all_dim": 0.8},
    "yarn, one mscale": {"factor": 4.0, "mscale": 1.2},
    "yarn, betas": {"factor": 4.0, "beta_fast": 16, "beta_slow": 2, "truncate": False},
    "yarn, attention factor": {"factor": 4.0, "attention_factor": 1.3},
    "yarn, factor below one": {"factor": 0.5},
    "yarn, nothing to blend": {"factor": 4.0, "original_max_position_embeddings": 2},
    "longrope": {"short_factor": [1 + 0.1 * i for i in range(8)], "long_factor": [2.0] * 8},
    "longrope, factor": {"short_factor": [1.1] * 8, "long_factor": [2.0] * 8, "factor": 4.0},
    "longrope, attention factor": {
        "short_factor": [1.1] * 8,
        "long_factor": [2.0] * 8,
        "attention_factor": 1.19,
        "original_max_position_embeddings": 160,
    },
}


@pytest.mark.parametrize("kind", SCALINGS)
def test_rotary_scalings_in_every_spelling(kind: str) -> None:
    pytest.importorskip("transformers")
    plain = {
        key: value
        for key, value in SPELT_OUT.items()
        if not key.startswith("rope") and "window" not in key and key != "layer_types"
    }
    plain["model_type"] = "llama"
    word, table = kind.split(",")[0], SCALINGS[kind]
    named = {"rope_type": word, **table}
    without = {key: value for key, value in plain.items() if not key.startswith("original")}
    inside = table.get("original_max_position_embeddings", 320)
    longer = ("context_length",)  # ours is what yarn reaches, or what the short factors allow
    for values in (
        {**without, "rope_scaling": named, "rope_theta": 500.0},
        {**without, "rope_scaling": {"type": word, **table}, "rope_theta": 500.0},
        {**without, "rope_scaling": {**named, "type": "linear"}, "rope_theta": 500.0},
        {**without, "rope_scaling": named},
        {**without, "rope_parameters": {**named, "rope_theta": 500.0}},
        {**without, "rope_parameters": {**named, "rope_theta": 500.0}, "rope_theta": 7.0},
        {**without, "rope_parameters": named, "rope_theta": 500.0},
        {**without, "rope_parameters": named, "rope_scaling": {"rope_type": "default"}},
        {**without, "rope_parameters": {"rope_type": "default"}, "rope_scaling": named},
        {**without, "rope_parameters": named, "rope_scaling": {}},
        {**without, "rope_parameters": named, "rope_scaling": None},
        {**plain, "rope_scaling": named},
        {**plain, "rope_scaling": {**named, "original_max_position_embeddings": inside}},
    ):
        compare_with_the_class(values, apart=longer)


def test_context_of_a_scaling() -> None:
    """Yarn reaches what it was stretched to; longrope's short factors end at the original."""
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert read(rope_scaling=yarn, max_position_embeddings=32768).context_length == 131072
    assert read(rope_scaling=yarn, max_position_embeddings=262144).context_length == 262144
    assert read(rope_scaling={**yarn, "factor": 1e30}).context_length == 1 << 24
    unsaid = {"rope_type": "yarn", "factor": 4.0}
    assert read(rope_scaling=unsaid).context_length == 4 * 131072
    longrope = {"rope_type": "longrope", "short_factor": [1.0] * 32, "factor": 32.0}
    assert read(rope_scaling=longrope, original_max_position_embeddings=4096).context_length == 4096
    assert read(rope_scaling={"rope_type": "dynamic", "factor": 2.0}).context_length == 131072


def test_scalings_survive_a_model_file() -> None:
    for kind, table in SCALINGS.items():
        named = {**table, "rope_type": kind.split(",")[0]}
        scaling = read(head_dim=16, rope_scaling=named).rope_scaling
        assert scaling is not None
        assert RopeScaling.parse(scaling.describe()) == scaling
    assert RopeScaling("llama3", 8.0, 1.0, 4.0, 8192).describe() == "llama3:8:1:4:8192"
    assert RopeScaling("linear", 1 / 3).describe() == "linear:0.3333333333333333"
    for text in ("x", "linear", "linear:x", "yarn:4", "longrope:4096:", "linear:0", "none:1"):
        with pytest.raises(AwqEdgeError):
            RopeScaling.parse(text)


@pytest.mark.parametrize("kind", SCALINGS)
def test_scalings_go_back_to_a_configuration(kind: str) -> None:
    """What multiplied cosines and sines lies in the queries, and is not said once more."""
    pytest.importorskip("transformers")
    named = {**SCALINGS[kind], "rope_type": kind.split(",")[0]}
    a = read(head_dim=16, num_key_value_heads=32, tie_word_embeddings=False, rope_scaling=named)
    written = of_the_class(describe(a, {}))
    assert written is not None
    np.testing.assert_allclose(a.inverse_frequencies(), written["frequencies"], rtol=1e-5)
    assert written["query_factor"] == 1
    assert written["context_length"] == a.context_length


def test_multipliers_reach_queries_alone(tmp_path: Path) -> None:
    """m of cosines and sines is m * m of a score: in the query matrix, or in the query norm."""
    torch = pytest.importorskip("torch")
    for family, scaled in (("llama-biases", ["attn_q"]), ("qwen3-biases", ["attn_q_norm"])):
        directory = tmp_path / family
        checkpoints.save(checkpoints.random_model(family), directory)
        plain = open_float_model(str(directory))
        yarn = {"rope_type": "yarn", "factor": 1.0, "attention_factor": 1.5}
        checkpoints.edit_config(directory, rope_scaling=yarn)
        stretched = open_float_model(str(directory))
        for name in plain.tensor_names():
            factor = 2.25 if name.split(".")[-2] in scaled else 1.0
            assert torch.equal(stretched(name), plain(name) * factor), name
        blocks = [block for _, block in stretched.row_blocks("blk.0.attn_q.weight", 7)]
        assert torch.equal(torch.cat(blocks), stretched("blk.0.attn_q.weight"))


# ---- the head ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "stored", "tied"),
    [
        (True, "embedding", True),
        (True, "both, equal", True),
        (True, "both", False),
        (True, "head", True),
        (False, "both", False),
        (False, "both, equal", False),
        (None, "embedding", None),  # the class's default is false: the head is missing
        (False, "embedding", None),
        (False, "head", None),
    ],
)
def test_what_the_files_hold_decides_about_the_head(
    tmp_path: Path, flag: bool | None, stored: str, tied: bool | None
) -> None:
    torch = pytest.importorskip("torch")
    safetensors_torch = pytest.importorskip("safetensors.torch")
    model = checkpoints.random_model("llama")
    checkpoints.save(model, tmp_path)
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if stored in ("both, equal", "head"):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    if stored == "embedding":
        del tensors["lm_head.weight"]
    if stored == "head":
        del tensors["model.embed_tokens.weight"]
    safetensors_torch.save_file(tensors, tmp_path / "model.safetensors")
    checkpoints.edit_config(tmp_path, tie_word_embeddings=flag)
    if tied is None:
        with pytest.raises(CheckpointError, match="no tensor"):
            open_float_model(str(tmp_path))
        return
    source = open_float_model(str(tmp_path))
    assert source.architecture.tied_head == tied
    embedding = tensors.get("model.embed_tokens.weight", tensors.get("lm_head.weight"))
    assert torch.equal(source("token_embd.weight"), embedding)
    if not tied:
        assert torch.equal(source("output.weight"), tensors["lm_head.weight"])


# ---- whole checkpoints ---------------------------------------------------------------------------


def test_missing_tensor_is_found_before_any_work(tmp_path: Path) -> None:
    model = checkpoints.random_model("llama")
    checkpoints.save(model, tmp_path)
    checkpoints.edit_config(tmp_path, attention_bias=True)
    with pytest.raises(
        CheckpointError, match=r"no tensor model\.layers\.0\.self_attn\.q_proj\.bias"
    ):
        open_float_model(str(tmp_path))
    checkpoints.edit_config(tmp_path, attention_bias=False, intermediate_size=80)
    with pytest.raises(CheckpointError, match="gate_proj"):
        open_float_model(str(tmp_path))
