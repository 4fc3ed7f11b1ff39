"""Families whose layers have norms, caps and rotary embeddings of their own, against transformers.

Every row is a small random model in float32, read from the files that transformers wrote.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import family_rows  # noqa: E402
from checkpoints import assets, edit_config, save  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from awq_edge import torch_decoder  # noqa: E402
from awq_edge.float_model import open_float_model  # noqa: E402

FULL, SLIDING = "full_attention", "sliding_attention"
GEMMA: dict[str, Any] = dict(num_key_value_heads=2, head_dim=32, sliding_window=8)
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma": ("gemma", dict(num_key_value_heads=1, head_dim=32)),
    "gemma2": (
        "gemma2",
        dict(
            **GEMMA,
            query_pre_attn_scalar=24,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0,
        ),
    ),
    "gemma2-no-caps": (
        "gemma2",
        dict(**GEMMA, attn_logit_softcapping=None, final_logit_softcapping=None),
    ),
    "gemma3": ("gemma3_text", dict(**GEMMA, num_hidden_layers=7, query_pre_attn_scalar=24)),
    "gemma3-linear": (
        "gemma3_text",
        dict(
            **GEMMA,
            num_hidden_layers=4,
            final_logit_softcapping=3.0,
            layer_types=[SLIDING, FULL, SLIDING, FULL],
            rope_parameters={
                FULL: dict(rope_type="linear", factor=8.0, rope_theta=1e6),
                SLIDING: dict(rope_type="default", rope_theta=1e4),
            },
        ),
    ),
    "smollm3": ("smollm3", dict(num_hidden_layers=5, num_key_value_heads=2)),
    "smollm3-windows": (
        "smollm3",
        dict(
            num_key_value_heads=2,
            no_rope_layers=[0, 1, 0],
            use_sliding_window=True,
            sliding_window=8,
        ),
    ),
    "olmo2": ("olmo2", dict(num_key_value_heads=2)),
    "olmo3": (
        "olmo3",
        dict(
            num_hidden_layers=5,
            num_key_value_heads=2,
            sliding_window=8,
            rope_parameters={
                FULL: dict(
                    rope_type="yarn",
                    factor=8.0,
                    rope_theta=5e5,
                    original_max_position_embeddings=8,
                    attention_factor=1.2079,
                ),
                SLIDING: dict(rope_type="default", rope_theta=5e5),
            },
        ),
    ),
    "glm4": ("glm4", dict(num_key_value_heads=2, head_dim=16)),
    "helium": (
        "helium",
        dict(num_key_value_heads=2, head_dim=16, attention_bias=True, mlp_bias=True),
    ),
    "ministral": (
        "ministral",
        dict(
            num_key_value_heads=2,
            head_dim=16,
            sliding_window=8,
            layer_types=[FULL, SLIDING, SLIDING],
        ),
    ),
    "ministral3": (
        "ministral3",
        dict(
            num_key_value_heads=2,
            head_dim=32,
            rope_parameters=dict(
                rope_type="yarn",
                rope_theta=1e6,
                factor=4.0,
                original_max_position_embeddings=16,
                beta_fast=32.0,
                beta_slow=1.0,
                mscale=1.0,
                mscale_all_dim=1.0,
                llama_4_scaling_beta=0.1,
            ),
        ),
    ),
    "granite4": (
        "granitemoehybrid",
        dict(
            num_key_value_heads=2,
            shared_intermediate_size=96,
            num_local_experts=0,
            layer_types=["full_attention"] * 3,
            position_embedding_type="rope",
            mamba_n_heads=16,
            mamba_d_head=8,
            embedding_multiplier=12.0,
            logits_scaling=8.0,
            residual_multiplier=0.22,
            attention_multiplier=0.0156,
            tie_word_embeddings=True,
        ),
    ),
    "granite4-no-positions": (
        "granitemoehybrid",
        dict(
            num_key_value_heads=2,
            shared_intermediate_size=96,
            num_local_experts=0,
            layer_types=["full_attention"] * 3,
            mamba_n_heads=16,
            mamba_d_head=8,
        ),
    ),
}
# Ministral 3 scales its queries by position from its original context on, where ours ends.
TOKENS = {"ministral3": 16}


@pytest.mark.parametrize("row", ROWS)
def test_rows_equal_transformers(row: str, tmp_path: Path) -> None:
    model = family_rows.row_model(*ROWS[row])
    assert family_rows.difference(model, save(model, tmp_path), TOKENS.get(row, 28)) < 1e-4


@pytest.mark.parametrize("row", ["gemma2", "gemma3", "olmo3"])
def test_long_texts_pass_windows_many_times(row: str, tmp_path: Path) -> None:
    model_type, keys = ROWS[row]
    model = family_rows.row_model(model_type, {**keys, "max_position_embeddings": 256})
    assert family_rows.difference(model, save(model, tmp_path), 200) < 1e-4


def test_ministral3_ends_where_its_queries_would_be_scaled(tmp_path: Path) -> None:
    model = family_rows.row_model(*ROWS["ministral3"])
    directory = save(model, tmp_path)
    assert open_float_model(str(directory)).architecture.context_length == 16
    assert family_rows.difference(model, directory, 17) > 1e-4


# ---- the same weights in other words -------------------------------------------------------------


def logits(directory: Path, tokens: int = 28) -> torch.Tensor:
    torch.manual_seed(2)
    text = torch.randint(0, 64, (1, tokens))
    model = open_float_model(str(directory))
    return torch_decoder.logits(model, model.architecture, text)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_gemma3_that_sees_images_is_its_text_part(prefix: str, tmp_path: Path) -> None:
    keys = dict(ROWS["gemma3"][1], query_pre_attn_scalar=256)
    source = save(family_rows.row_model("gemma3_text", keys), tmp_path / "text")
    target = tmp_path / "wrapper"
    target.mkdir()
    inner = {**family_rows.SIZES, **keys, "model_type": "gemma3_text"}
    for default in ("pad_token_id", "query_pre_attn_scalar"):
        del inner[default]  # the class says the same
    outer = {
        "model_type": "gemma3",
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": inner,
        "vision_config": {"hidden_size": 8},
    }
    (target / "config.json").write_text(json.dumps(outer))
    tensors = {
        f"{prefix}{name.removeprefix('model.')}": tensor
        for name, tensor in load_file(source / "model.safetensors").items()
    }
    tensors["vision_tower.vision_model.embeddings.patch_embedding.weight"] = torch.ones(8, 3)
    tensors["multi_modal_projector.mm_input_projection_weight"] = torch.ones(8, 64)
    save_file(tensors, target / "model.safetensors")
    assert torch.equal(logits(target), logits(source))


@pytest.mark.parametrize("text_type", ["mistral", "ministral3"])
def test_mistral3_is_its_text_part(text_type: str, tmp_path: Path) -> None:
    keys = ROWS["ministral3"][1] if text_type == "ministral3" else dict(num_key_value_heads=2)
    source = save(family_rows.row_model(text_type, keys), tmp_path / "text")
    target = tmp_path / "wrapper"
    target.mkdir()
    inner = json.loads((source / "config.json").read_text())
    outer = {
        "model_type": "mistral3",
        "architectures": ["Mistral3ForConditionalGeneration"],
        "text_config": inner,
    }
    (target / "config.json").write_text(json.dumps(outer))
    tensors = {
        f"language_model.{name}": tensor
        for name, tensor in load_file(source / "model.safetensors").items()
    }
    save_file(tensors, target / "model.safetensors")
    assert torch.equal(logits(target, 16), logits(source, 16))


OLD_WORDS: dict[str, dict[str, Any]] = {
    "gemma3": dict(
        rope_parameters=None,
        layer_types=None,
        rope_theta=1e6,
        rope_local_base_freq=1e4,
        rope_scaling=None,
        sliding_window_pattern=6,
    ),
    "gemma3-linear": dict(
        rope_parameters=None,
        layer_types=None,
        rope_theta=1e6,
        rope_local_base_freq=1e4,
        rope_scaling=dict(rope_type="linear", factor=8.0),
        sliding_window_pattern=2,
    ),
    "olmo3": dict(
        rope_parameters=None,
        layer_types=None,
        rope_theta=5e5,
        rope_scaling=dict(
            rope_type="yarn",
            factor=8.0,
            original_max_position_embeddings=8,
            attention_factor=1.2079,
        ),
    ),
}


@pytest.mark.parametrize("row", OLD_WORDS)
def test_older_configurations_say_the_same(row: str, tmp_path: Path) -> None:
    source = save(family_rows.row_model(*ROWS[row]), tmp_path)
    expected = logits(source)
    edit_config(source, **OLD_WORDS[row])
    assert "rope_parameters" not in json.loads((source / "config.json").read_text())
    assert torch.equal(logits(source), expected)


@pytest.mark.parametrize("name", ["novels-gemma3", "novels-phi3"])
def test_trained_models_equal_transformers(name: str) -> None:
    import transformers

    directory = assets("models", name)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )
    assert family_rows.difference(model.eval(), directory, 200) < 1e-4


@pytest.mark.parametrize(
    ("row", "words"),
    [("gemma3", "activation"), ("smollm3", "rope_tables"), ("olmo2", "norm_places, qk_norm_kind")],
)
def test_formats_that_cannot_hold_a_form_refuse_it(row: str, words: str, tmp_path: Path) -> None:
    from awq_edge.errors import UnsupportedError
    from awq_edge.interchange.export_gguf import check_exportable
    from awq_edge.interchange.hf_config import describe

    source = save(family_rows.row_model(*ROWS[row]), tmp_path)
    architecture = open_float_model(str(source)).architecture
    with pytest.raises(UnsupportedError, match=words):
        check_exportable(architecture, {})
    with pytest.raises(UnsupportedError, match="cannot be exported"):
        describe(architecture, {})
