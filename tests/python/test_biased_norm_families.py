"""Falcon, StarCoder2, StableLM, GPT-NeoX, MPT, BLOOM and Phi: their forms against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from awq_edge.converters import find  # noqa: E402
from checkpoints import assets, save_tokenizer  # noqa: E402
from family_rows import SIZES, difference, row_model  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from awq_edge import model_file, torch_decoder  # noqa: E402
from awq_edge.alibi import alibi_slopes  # noqa: E402
from awq_edge.conversion import Options, convert  # noqa: E402
from awq_edge.errors import CheckpointError, UnsupportedError  # noqa: E402
from awq_edge.float_model import open_float_model  # noqa: E402
from awq_edge.model import Model  # noqa: E402

MPT = dict(d_model=64, n_heads=4, n_layers=3, max_seq_len=32)
PARTIAL = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.4}
RW = dict(multi_query=False, parallel_attn=False, alibi=True, bias=True)
GROUPED = dict(num_attention_heads=8, num_kv_heads=2, new_decoder_architecture=True)

# Name: type of the model, and keys that differ from SIZES.
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "falcon-7b": ("falcon", dict(hidden_size=112, num_attention_heads=7)),
    "falcon-40b": ("falcon", GROUPED),
    "falcon-11b": (
        "falcon",
        dict(**GROUPED, num_ln_in_parallel_attn=1, ffn_hidden_size=96, tie_word_embeddings=False),
    ),
    "falcon-rw": ("falcon", dict(num_attention_heads=8, **RW)),
    "starcoder2": ("starcoder2", dict(num_key_value_heads=2, sliding_window=8)),
    "starcoder2-no-biases": (
        "starcoder2",
        dict(num_key_value_heads=1, use_bias=False, tie_word_embeddings=False),
    ),
    "stablelm": ("stablelm", dict(num_key_value_heads=4, use_qkv_bias=True)),
    "stablelm-12b": (
        "stablelm",
        dict(
            hidden_size=80,
            num_key_value_heads=2,
            use_parallel_residual=True,
            qk_layernorm=True,
            rope_parameters=PARTIAL,
        ),
    ),
    "gpt_neox": ("gpt_neox", {}),
    "gpt_neox-sequential": (
        "gpt_neox",
        dict(
            use_parallel_residual=False,
            hidden_act="gelu_fast",
            rope_parameters={**PARTIAL, "partial_rotary_factor": 1.0},
        ),
    ),
    "gpt_neox-tied": ("gpt_neox", dict(attention_bias=False, tie_word_embeddings=True)),
    "mpt": ("mpt", MPT),
    "mpt-clamped": (
        "mpt",
        {**MPT, "d_model": 96, "n_heads": 12, "attn_config": dict(clip_qkv=0.5, softmax_scale=0.1)},
    ),
    "mpt-scaled": ("mpt", {**MPT, "attn_config": dict(softmax_scale=0.1)}),
    "bloom": ("bloom", dict(n_layer=3, n_head=4)),
    "bloom-12-heads": ("bloom", dict(hidden_size=96, n_layer=3, n_head=12)),
    "phi": ("phi", {}),
    "phi-normed": (
        "phi",
        dict(hidden_size=80, num_key_value_heads=2, qk_layernorm=True, rope_parameters=PARTIAL),
    ),
    # Sizes that are no powers of two, as published models have them.
    "falcon-7b-width": (
        "falcon",
        dict(hidden_size=4544, num_attention_heads=71, num_hidden_layers=1, ffn_hidden_size=96),
    ),
    "heads-by-56": ("bloom", dict(hidden_size=56 * 8, n_layer=1, n_head=56)),
    "heads-of-80": (
        "stablelm",
        dict(hidden_size=160, num_attention_heads=2, num_key_value_heads=1),
    ),
    "heads-of-96": ("phi", dict(hidden_size=192, num_attention_heads=2)),
    "heads-of-160": (
        "stablelm",
        dict(
            hidden_size=320,
            num_attention_heads=2,
            num_key_value_heads=1,
            use_parallel_residual=True,
            qk_layernorm=True,
        ),
    ),
    "heads-of-256": ("gpt_neox", dict(hidden_size=512, num_attention_heads=2)),
    "odd-vocabulary": ("starcoder2", dict(num_key_value_heads=2, vocab_size=50257)),
}
LARGE = ("falcon-7b-width", "odd-vocabulary")
TOKENS = torch.arange(28).reshape(1, 28) * 11 % 61


def random_model(name: str, **changes: Any) -> Any:
    kind, keys = ROWS[name]
    model = row_model(kind, {**keys, **changes})
    if keys.get("alibi"):
        # Transformers' eager attention of Falcon adds the biases twice: once with the mask.
        model.config._attn_implementation = "sdpa"
    return model


def save(model: Any, directory: Path) -> Path:
    model.save_pretrained(directory, safe_serialization=True)
    return directory


def logits(directory: Path) -> torch.Tensor:
    model = open_float_model(str(directory))
    return torch_decoder.logits(model, model.architecture, TOKENS)


@pytest.mark.parametrize("name", ROWS)
def test_random_models_equal_transformers(name: str, tmp_path: Path) -> None:
    model = random_model(name)
    assert difference(model, save(model, tmp_path), 28) < 1e-4


@pytest.mark.parametrize("name", ["novels-falcon", "novels-stablelm"])
def test_trained_models_equal_transformers(name: str) -> None:
    directory = assets("models", name)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    assert difference(model.eval(), directory, 96) < 1e-5


def calmed(model: Any) -> Any:
    """The same with scores of ordinary size in wide models too: rounding errors do not explode."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_((64 / max(64, parameter.shape[-1])) ** 0.5)
    return model


@pytest.mark.parametrize("name", [name for name in ROWS if name not in LARGE])
def test_converted_models_run(name: str, tmp_path: Path) -> None:
    """The file computes what the checkpoint does, and the runtime what the file says."""
    pytest.importorskip("gguf")
    source = save(calmed(random_model(name, vocab_size=101)), tmp_path / "checkpoint")
    save_tokenizer(source)
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog, again and again. " * 20)
    output = tmp_path / "m.awq.gguf"
    sizes = dict(samples=4, sequence_length=24, group_size=32)
    convert(str(source), output, Options(method="awq", bits=8, calibration=text, **sizes))
    floats, packed = open_float_model(str(source)), model_file.read_dequantised(output)
    assert set(packed.tensors) == set(floats.tensor_names())
    tensors = {name: torch.from_numpy(values) for name, values in packed.tensors.items()}

    def of_the_file(tokens: torch.Tensor, rounded: bool) -> torch.Tensor:
        groups = packed.group_sizes if rounded else None
        return torch_decoder.logits(
            tensors.__getitem__, packed.architecture, tokens, groups, kv_fp16=rounded
        )

    tokens = torch.arange(3, 31).reshape(1, -1)
    exact = torch_decoder.logits(floats, floats.architecture, tokens)
    # 8 bits cost each matrix 0.5 %; a misplaced tensor or a wrong fold would cost everything.
    assert float((of_the_file(tokens, False) - exact).norm()) < 0.08 * float(exact.norm())
    with Model.open(output, threads=2) as model:
        starts = np.random.default_rng(7).integers(3, 101, (32, 2)).tolist()
        expected = of_the_file(torch.tensor(starts), True).numpy()
        found = np.stack([model.logits(start) for start in starts])
        apart = np.abs(found - expected).max(axis=(1, 2)) / np.abs(expected).max()
        # Where a code falls to the other side of a border, all behind it differs by that code.
        assert (apart < 1e-5).mean() > 0.2
        assert apart.max() < 0.1
        whole = model.logits(tokens[0].tolist())
        with model.session() as session:
            single = np.concatenate([session.logits([token]) for token in tokens[0].tolist()])
    assert np.array_equal(whole.view(np.uint32), single.view(np.uint32))


def test_a_window_of_a_long_text(tmp_path: Path) -> None:
    model = random_model("starcoder2", max_position_embeddings=256)
    assert difference(model, save(model, tmp_path), 200) < 1e-4


def test_falcons_rounded_biases_are_not_reproduced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformers rounds slope times position to bfloat16, we the slope alone.

    For head counts up to eight, powers of two, and few positions the two are one (falcon-rw).
    """
    from transformers.models.falcon import modeling_falcon

    ROWS["falcon-rw-12-heads"] = ("falcon", dict(hidden_size=96, num_attention_heads=12, **RW))
    model = random_model("falcon-rw-12-heads")
    del ROWS["falcon-rw-12-heads"]
    save(model, tmp_path)
    assert 1e-4 < difference(model, tmp_path, 28) < 2e-2

    def unrounded(mask: torch.Tensor, heads: int, dtype: torch.dtype) -> torch.Tensor:
        slopes = torch.from_numpy(alibi_slopes(heads)).bfloat16().float()
        positions = (mask.cumsum(dim=-1) - 1)[:, None, :]
        return (slopes[:, None] * positions).reshape(-1, 1, mask.shape[1]).to(dtype)

    monkeypatch.setattr(modeling_falcon, "build_alibi_tensor", unrounded)
    assert difference(model, tmp_path, 28) < 1e-4


@pytest.mark.parametrize("heads", [*range(1, 33), 40, 56, 64, 71, 96, 112])
def test_slopes_equal_transformers(heads: int) -> None:
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor as of_bloom
    from transformers.models.falcon.modeling_falcon import build_alibi_tensor as of_falcon
    from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor as of_mpt

    mask = torch.ones(1, 2)
    ours = alibi_slopes(heads)
    theirs = of_bloom(mask, heads, torch.float32)[:, 0, 1].numpy()
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    np.testing.assert_allclose(ours, -of_mpt(heads, 2)[:, 0, 0].numpy(), rtol=1e-6)
    wide = alibi_slopes(heads, 16.0)
    np.testing.assert_allclose(wide, -of_mpt(heads, 2, 16)[:, 0, 0].numpy(), rtol=1e-6)
    config = {**SIZES, "model_type": "falcon", "hidden_size": 8 * heads, **RW}
    config["num_attention_heads"] = heads
    converter = find(config)
    stored = converter.changes(config, converter.architecture(config), "alibi.slopes").values
    assert stored is not None
    theirs = of_falcon(mask, heads, torch.float32)[:, 0, 1].numpy()
    np.testing.assert_array_equal(stored, theirs / np.float32(np.sqrt(8)))


def test_mpts_slopes_reach_as_far_as_the_file_says() -> None:
    """Transformers takes 8 whatever it says; the storywriter's weights were trained with 16."""
    config = {"model_type": "mpt", **SIZES, **MPT, "attn_config": {"alibi_bias_max": 16}}
    converter = find(config)
    stored = converter.changes(config, converter.architecture(config), "alibi.slopes").values
    np.testing.assert_array_equal(stored, [2.0**-4, 2.0**-8, 2.0**-12, 2.0**-16])


# ---- the same under other names ------------------------------------------------------------------


def rewritten(
    source: Path, target: Path, config: dict[str, Any], names: dict[str, str] | None = None
) -> Path:
    """A copy whose config.json has other keys (None: none) and whose tensors have other names."""
    target.mkdir()
    kept = {**json.loads((source / "config.json").read_text()), **config}
    kept = {key: value for key, value in kept.items() if value is not None}
    (target / "config.json").write_text(json.dumps(kept))
    tensors = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        for theirs, ours in (names or {}).items():
            name = name.replace(theirs, ours)
        tensors[name] = tensor
    save_file(tensors, target / "model.safetensors")
    return target


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("falcon-7b", "transformer."),
        ("bloom", "transformer."),
        ("mpt", "transformer."),
        ("gpt_neox", "gpt_neox."),
        ("phi", "model."),
    ],
)
def test_files_without_the_base_prefix(name: str, base: str, tmp_path: Path) -> None:
    source = save(random_model(name), tmp_path / "with")
    target = rewritten(source, tmp_path / "without", {}, {base: ""})
    assert torch.equal(logits(target), logits(source))


@pytest.mark.parametrize(
    ("name", "kind"), [("falcon-7b", "RefinedWebModel"), ("falcon-40b", "RefinedWeb")]
)
def test_old_falcons(name: str, kind: str, tmp_path: Path) -> None:
    source = save(random_model(name), tmp_path / "new")
    keys = ROWS[name][1]
    gone = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_kv_heads")
    old = {
        **dict.fromkeys((*gone, "new_decoder_architecture", "rope_parameters")),
        "model_type": kind,
        "n_embed": keys.get("hidden_size", 64),
        "n_layer": 3,
        "n_head": keys["num_attention_heads"],
        "n_head_kv": keys.get("num_kv_heads"),
        "parallel_attn": True,
    }
    target = rewritten(source, tmp_path / "old", old)
    assert torch.equal(logits(target), logits(source))
    unsaid = rewritten(source, tmp_path / "unsaid", {**old, "parallel_attn": None})
    if kind == "RefinedWebModel":
        with pytest.raises(CheckpointError, match="should say parallel_attn"):
            open_float_model(str(unsaid))


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("stablelm", {"partial_rotary_factor": 0.25, "rope_theta": 10000}),
        ("stablelm", {"rope_pct": 0.25, "rope_theta": 10000}),
        ("stablelm", {}),
        (
            "stablelm_epoch",
            {"rope_pct": 0.25, "norm_eps": 1e-5, "layer_norm_eps": None, "rope_theta": 10000},
        ),
    ],
)
def test_old_stablelms(kind: str, keys: dict[str, Any], tmp_path: Path) -> None:
    source = save(random_model("stablelm"), tmp_path / "new")
    changes = {"model_type": kind, "rope_parameters": None, **keys}
    target = rewritten(source, tmp_path / "old", changes)
    assert torch.equal(logits(target), logits(source))


def test_gpt_neox_by_the_names_of_its_state_dict(tmp_path: Path) -> None:
    """The class calls the head otherwise than it writes it."""
    model = random_model("gpt_neox")
    model.config.save_pretrained(tmp_path)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    assert "lm_head.weight" in tensors
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    assert difference(model, tmp_path, 28) < 1e-4


def test_old_gpt_neox(tmp_path: Path) -> None:
    source = save(random_model("gpt_neox"), tmp_path / "new")
    keys = {"rope_parameters": None, "rotary_pct": 0.25, "rotary_emb_base": 10000}
    target = rewritten(source, tmp_path / "old", keys)
    assert torch.equal(logits(target), logits(source))


def test_old_bloom(tmp_path: Path) -> None:
    source = save(random_model("bloom"), tmp_path / "new")
    target = rewritten(source, tmp_path / "old", {"hidden_size": None, "n_embed": 64})
    assert torch.equal(logits(target), logits(source))


# ---- keys that are absent ------------------------------------------------------------------------

# Every key that decides something, with values that no class has as its default.
SPELT_OUT: dict[str, dict[str, Any]] = {
    "falcon": {
        "vocab_size": 101,
        "hidden_size": 2272,
        "num_hidden_layers": 3,
        "num_attention_heads": 142,
        "num_kv_heads": 71,
        "new_decoder_architecture": True,
        "num_ln_in_parallel_attn": 1,
        "multi_query": False,
        "bias": True,
        "ffn_hidden_size": 72,
        "activation": "relu",
        "layer_norm_epsilon": 1e-6,
        "max_position_embeddings": 640,
        "tie_word_embeddings": False,
        "rope_theta": 500.0,
    },
    "starcoder2": {
        "vocab_size": 101,
        "hidden_size": 96,
        "intermediate_size": 72,
        "num_hidden_layers": 3,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "hidden_act": "relu",
        "norm_epsilon": 1e-6,
        "max_position_embeddings": 640,
        "use_bias": False,
        "sliding_window": 7,
        "tie_word_embeddings": False,
        "rope_theta": 500.0,
    },
    "stablelm": {
        "vocab_size": 101,
        "hidden_size": 512,
        "intermediate_size": 72,
        "num_hidden_layers": 3,
        "num_attention_heads": 64,
        "num_key_value_heads": 16,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "max_position_embeddings": 640,
        "use_qkv_bias": True,
        "qk_layernorm": True,
        "use_parallel_residual": True,
        "tie_word_embeddings": True,
        "rope_theta": 500.0,
        "partial_rotary_factor": 0.5,
    },
    "gpt_neox": {
        "vocab_size": 101,
        "hidden_size": 512,
        "intermediate_size": 72,
        "num_hidden_layers": 3,
        "num_attention_heads": 32,
        "hidden_act": "gelu_fast",
        "layer_norm_eps": 1e-6,
        "max_position_embeddings": 640,
        "attention_bias": False,
        "use_parallel_residual": False,
        "tie_word_embeddings": True,
        "rotary_emb_base": 500,
        "rotary_pct": 0.5,
    },
    "mpt": {
        "vocab_size": 101,
        "d_model": 96,
        "n_heads": 12,
        "n_layers": 3,
        "max_seq_len": 640,
        "layer_norm_epsilon": 1e-6,
        "tie_word_embeddings": False,
        "attn_config": {"clip_qkv": 6.0, "softmax_scale": 0.1, "alibi_bias_max": 16},
    },
    "bloom": {
        "vocab_size": 101,
        "hidden_size": 96,
        "n_layer": 3,
        "n_head": 12,
        "layer_norm_epsilon": 1e-6,
        "tie_word_embeddings": False,
    },
    "phi": {
        "vocab_size": 101,
        "hidden_size": 512,
        "intermediate_size": 72,
        "num_hidden_layers": 3,
        "num_attention_heads": 64,
        "num_key_value_heads": 16,
        "hidden_act": "relu",
        "layer_norm_eps": 1e-6,
        "max_position_embeddings": 640,
        "qk_layernorm": True,
        "tie_word_embeddings": True,
        "rope_theta": 500.0,
        "partial_rotary_factor": 0.25,
    },
}
NULLABLE = (
    "num_kv_heads",
    "num_ln_in_parallel_attn",
    "ffn_hidden_size",
    "sliding_window",
    "attn_config",
)
# Without them the class of BLOOM takes a toy's.
TOY = ("hidden_size", "n_layer", "n_head")


def all_that_is_read(values: dict[str, Any]) -> tuple[Any, ...]:
    converter = find(values)
    try:
        a = converter.architecture(values)
    except UnsupportedError as error:  # a form that no model has
        return (str(error),)
    slopes = converter.changes(values, a, "alibi.slopes").values if a.position == "alibi" else None
    return a, converter.names, None if slopes is None else slopes.tolist()


def same_as_the_class(values: dict[str, Any]) -> None:
    """What a short file says, and what the class makes of it and spells out, is one decoder."""
    keys = {key: value for key, value in values.items() if key != "model_type"}
    whole = transformers.AutoConfig.for_model(values["model_type"], **keys).to_dict()
    assert all_that_is_read(values) == all_that_is_read(whole)


@pytest.mark.parametrize("family", SPELT_OUT)
def test_absent_keys_and_nulls(family: str) -> None:
    """One key after the other is left out, or null where it may be."""
    whole = {**SPELT_OUT[family], "model_type": family}
    same_as_the_class(whole)
    for key in SPELT_OUT[family]:
        without = {name: value for name, value in whole.items() if name != key}
        if family == "bloom" and key in TOY:
            with pytest.raises(CheckpointError, match=f"whole number {key}|n_embed"):
                find(without).architecture(without)
            continue
        same_as_the_class(without)
        if key in NULLABLE:
            same_as_the_class({**whole, key: None})
    if family != "bloom":
        same_as_the_class({"model_type": family})
    if family == "falcon":
        for keys in ({}, RW, {**RW, "parallel_attn": True}, {"multi_query": False}):
            same_as_the_class({"model_type": family, **keys})


def test_absent_keys_are_what_the_rows_need(tmp_path: Path) -> None:
    """A whole model with as few keys as published files of its time have."""
    model = random_model("falcon-7b", max_position_embeddings=2048)
    source = save(model, tmp_path / "whole")
    few = {"model_type", "hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size"}
    config = json.loads((source / "config.json").read_text())
    target = rewritten(source, tmp_path / "few", dict.fromkeys(config.keys() - few))
    assert torch.equal(logits(target), logits(source))


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "keys", "words"),
    [
        (
            "falcon",
            dict(GROUPED, parallel_attn=False),
            "new_decoder_architecture is parallel.*no such model",
        ),
        ("falcon", dict(GROUPED, num_ln_in_parallel_attn=3), "Falcon with 3 norms"),
        ("falcon", dict(num_ln_in_parallel_attn=2), "needs new_decoder_architecture"),
        ("falcon", dict(multi_query=False, num_kv_heads=2), "2 key-value heads for 4 heads"),
        ("falcon", dict(activation="quick_gelu"), "activation .quick_gelu. is not supported"),
        ("mpt", dict(attn_config={"alibi": False}), "MPT with learned positions"),
        ("mpt", dict(attn_config={"qk_ln": True}), "MPT with norms over queries and keys"),
        ("mpt", dict(attn_config={"prefix_lm": True}), "MPT with a prefix"),
        ("mpt", dict(attn_config={"rope": True}), "MPT with rotary positions"),
        (
            "mpt",
            dict(attn_config={"attn_type": "multiquery_attention"}),
            "MPT with another attention",
        ),
        ("mpt", dict(attn_config={"softmax_scale": 0.0}), "softmax_scale that is not positive"),
        ("mpt", dict(attn_config={"clip_qkv": -1.0}), "clamp of queries"),
        ("mpt", dict(logit_scale="inv_sqrt_d_model"), "MPT with a multiplier of the logits"),
        ("mpt", dict(norm_type="rmsnorm"), "MPT with another norm"),
        ("bloom", dict(apply_residual_connection_post_layernorm=True), "no published model"),
        ("stablelm_epoch", dict(rotary_scaling_factor=2.0), "rotary_scaling_factor"),
        ("gpt_neox", dict(rotary_pct=0.33), "rotates 5 of 16"),
        ("phi", dict(hidden_act=["gelu"]), "activation"),
    ],
)
def test_refusals(kind: str, keys: dict[str, Any], words: str) -> None:
    config = {**SIZES, "n_layer": 3, "n_head": 4, "model_type": kind, **keys}
    with pytest.raises(UnsupportedError, match=words) as caught:
        converter = find(config)
        converter.changes(config, converter.architecture(config), "alibi.slopes")
    assert str(caught.value).count(". ") == 0


def test_a_table_that_is_none() -> None:
    config = {**SIZES, **MPT, "model_type": "mpt", "attn_config": [1]}
    with pytest.raises(CheckpointError, match="table attn_config"):
        find(config).architecture(config)


@pytest.mark.parametrize(
    ("name", "keys", "words"),
    [
        ("falcon-rw", {"bias": False}, "no such bias"),
        ("starcoder2", {"use_bias": False}, "no such bias"),
        ("stablelm", {"use_qkv_bias": False}, "no such bias"),
        ("gpt_neox", {"attention_bias": False}, "no such bias"),
        ("falcon-7b", {"bias": True}, "has no tensor .*bias"),
        ("starcoder2-no-biases", {"use_bias": True}, "has no tensor .*bias"),
        ("gpt_neox-tied", {"attention_bias": True}, "has no tensor .*bias"),
        ("phi", {"qk_layernorm": True}, "has no tensor .*q_layernorm"),
        ("stablelm", {"qk_layernorm": True}, r"has no tensor .*q_layernorm\.norms\.0"),
        ("falcon-11b", {"num_ln_in_parallel_attn": 2}, "has no tensor .*ln_attn"),
    ],
)
def test_files_that_contradict_their_configuration(
    name: str, keys: dict[str, Any], words: str, tmp_path: Path
) -> None:
    source = save(random_model(name), tmp_path / "right")
    target = rewritten(source, tmp_path / "wrong", keys)
    with pytest.raises(CheckpointError, match=words):
        open_float_model(str(target))
