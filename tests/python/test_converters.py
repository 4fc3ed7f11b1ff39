"""Model families: what their configurations say, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import checkpoints
from awq_edge.converters import find, known_model_types

from awq_edge.architecture import RopeScaling
from awq_edge.errors import CheckpointError, InvalidArgumentError, UnsupportedError
from awq_edge.float_model import open_float_model

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
    a = read(model_type="qwen3", head_dim=None)
    assert a.qk_norm and a.head_size == 128


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        (dict(model_type="mamba"), UnsupportedError, "mamba.*known ones are .*llama, mistral"),
        (dict(model_type=None), UnsupportedError, "None.*known ones"),
        (dict(hidden_act="gelu"), UnsupportedError, "gelu"),
        (dict(rope_scaling={"rope_type": "yarn", "factor": 4.0}), UnsupportedError, "yarn"),
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
