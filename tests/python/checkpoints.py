"""Small random checkpoints for tests: every supported family, written by transformers itself."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

SIZES = dict(
    hidden_size=48,
    intermediate_size=72,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    vocab_size=101,
    max_position_embeddings=64,
    rms_norm_eps=1e-5,
    pad_token_id=None,
    bos_token_id=1,
    eos_token_id=2,
)
LLAMA3_ROPE = dict(
    rope_type="llama3",
    rope_theta=500.0,
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-tied": ("Llama", dict(tie_word_embeddings=True)),
    "llama-biases": ("Llama", dict(attention_bias=True, mlp_bias=True)),
    "llama-llama3-rope": ("Llama", dict(rope_parameters=LLAMA3_ROPE)),
    "llama-linear-rope": (
        "Llama",
        dict(rope_parameters=dict(rope_type="linear", rope_theta=1000.0, factor=2.0)),
    ),
    "llama-wide-heads": ("Llama", dict(head_dim=20)),
    "llama-one-kv-head": ("Llama", dict(num_key_value_heads=1)),
    "llama-no-sharing": ("Llama", dict(num_key_value_heads=6)),
    "mistral-window": ("Mistral", dict(sliding_window=7)),
    "mistral-no-window": ("Mistral", dict(sliding_window=None)),
    "qwen2": ("Qwen2", dict(tie_word_embeddings=True)),
    "qwen2-window": (
        "Qwen2",
        dict(use_sliding_window=True, sliding_window=5, max_window_layers=1),
    ),
    "qwen3": ("Qwen3", dict(head_dim=16)),
    "phi3": ("Phi3", dict(num_key_value_heads=2, sliding_window=8)),
    "phi3-partial-longrope": (
        "Phi3",
        dict(
            head_dim=16,
            hidden_size=96,
            tie_word_embeddings=True,
            original_max_position_embeddings=64,
            max_position_embeddings=128,
            rope_parameters=dict(
                rope_type="longrope",
                rope_theta=10000.0,
                short_factor=[1 + 0.1 * i for i in range(6)],
                long_factor=[2 + 0.5 * i for i in range(6)],
                partial_rotary_factor=0.75,
                original_max_position_embeddings=64,
            ),
        ),
    ),
    "granite-tied": (
        "Granite",
        dict(
            embedding_multiplier=12.0,
            logits_scaling=8.0,
            residual_multiplier=0.22,
            attention_multiplier=0.0156,
            tie_word_embeddings=True,
        ),
    ),
    "granite-biases": ("Granite", dict(attention_bias=True, mlp_bias=True)),
    "ernie4_5": ("Ernie4_5", dict(head_dim=32, use_bias=True)),
    "glm": ("Glm", dict(head_dim=32)),
    "gemma": ("Gemma", dict(num_key_value_heads=1, head_dim=32)),
    "qwen3-biases": ("Qwen3", dict(head_dim=16, attention_bias=True)),
}


def random_model(family: str, seed: int = 0, **sizes: Any) -> Any:
    """A transformers model in float32 with weights that make every term matter."""
    import torch
    import transformers

    name, options = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **options, **sizes})
    torch.manual_seed(seed)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" in key:
                parameter.copy_(1 + 0.3 * torch.randn_like(parameter))
            elif key.endswith("bias"):
                parameter.copy_(0.3 * torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
    return model


def save(model: Any, directory: Path, **options: Any) -> Path:
    """Writes a checkpoint without a tokenizer."""
    model.save_pretrained(directory, safe_serialization=True, **options)
    return directory


def save_tokenizer(directory: Path) -> None:
    """Writes a tokenizer of single characters that fits every vocabulary here."""
    import tokenizers

    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocabulary |= {chr(code): code - 29 for code in range(32, 127)}
    model = tokenizers.models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>")
    tokenizers.Tokenizer(model).save(str(directory / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def edit_config(directory: Path, **changes: Any) -> None:
    """Changes entries of config.json; None removes one."""
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config.update(changes)
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def assets(*parts: str) -> Path:
    """A path below AWQ_EDGE_ASSETS; skips the test where that is not set."""
    root = os.environ.get("AWQ_EDGE_ASSETS")
    if not root:
        pytest.skip("AWQ_EDGE_ASSETS does not name the folder with models, texts and tokenizers")
    path = Path(root).joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return path
