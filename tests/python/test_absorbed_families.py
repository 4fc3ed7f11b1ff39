"""Families that transformers has no class for: each equals another one, under other names."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import checkpoints  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from awq_edge import torch_decoder  # noqa: E402
from awq_edge.float_model import open_float_model  # noqa: E402

TOKENS = torch.arange(40).reshape(1, 40) * 7 % 101


def logits(directory: Path) -> Any:
    model = open_float_model(str(directory))
    return torch_decoder.logits(model, model.architecture, TOKENS)


def rewritten(source: Path, target: Path, config: dict[str, Any], tensors: dict[str, Any]) -> Path:
    target.mkdir()
    kept = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**kept, **config}))
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        target / "model.safetensors",
    )
    return target


@pytest.mark.parametrize("family", ["llama", "llama-no-sharing"])
def test_internlm2_is_llama_with_rows_by_key_value_head(family: str, tmp_path: Path) -> None:
    source = checkpoints.save(checkpoints.random_model(family), tmp_path / "llama")
    old = load_file(source / "model.safetensors")
    n = 6 // json.loads((source / "config.json").read_text())["num_key_value_heads"]
    names = {
        "model.embed_tokens": "model.tok_embeddings",
        "lm_head": "output",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.o_proj": "attention.wo",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.up_proj": "feed_forward.w3",
        "mlp.down_proj": "feed_forward.w2",
    }
    new = {}
    for name, tensor in old.items():
        if ".self_attn." in name and "o_proj" not in name:
            continue
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        new[name] = tensor
    for layer in range(3):
        q, k, v = (
            old[f"model.layers.{layer}.self_attn.{part}_proj.weight"].reshape(-1, 8, 48)
            for part in "qkv"
        )
        groups = [
            torch.cat((q[g * n : (g + 1) * n], k[g : g + 1], v[g : g + 1])) for g in range(len(k))
        ]
        new[f"model.layers.{layer}.attention.wqkv.weight"] = torch.cat(groups).reshape(-1, 48)
    target = rewritten(source, tmp_path / "internlm2", {"model_type": "internlm2"}, new)
    assert torch.equal(logits(target), logits(source))


def test_internlm3_is_llama(tmp_path: Path) -> None:
    source = checkpoints.save(checkpoints.random_model("llama-biases"), tmp_path / "llama")
    config = {"model_type": "internlm3", "qkv_bias": True, "bias": True}
    tensors = load_file(source / "model.safetensors")
    target = rewritten(source, tmp_path / "internlm3", config, tensors)
    assert torch.equal(logits(target), logits(source))


def test_minicpm_is_granite_with_other_words(tmp_path: Path) -> None:
    granite = checkpoints.random_model(
        "granite-tied",
        embedding_multiplier=12.0,
        residual_multiplier=1.4 / math.sqrt(3),
        logits_scaling=48 / 16,
        attention_multiplier=8**-0.5,
    )
    source = checkpoints.save(granite, tmp_path / "granite")
    config = {
        "model_type": "minicpm",
        "scale_emb": 12.0,
        "scale_depth": 1.4,
        "dim_model_base": 16,
    }
    tensors = load_file(source / "model.safetensors")
    target = rewritten(source, tmp_path / "minicpm", config, tensors)
    with torch.no_grad():
        expected = granite(TOKENS).logits
    difference = (logits(target) - expected).abs().max() / expected.abs().max()
    assert difference < 1e-5
