"""Families with experts: the float decoder equals transformers, whatever the checkpoint's form."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import checkpoints  # noqa: E402  (after the checks that torch and transformers are there)
import expert_models  # noqa: E402
import safetensors.torch  # noqa: E402

from awq_edge import torch_decoder  # noqa: E402
from awq_edge.errors import CheckpointError, InvalidArgumentError, UnsupportedError  # noqa: E402
from awq_edge.float_model import FloatModel, open_float_model  # noqa: E402

TOKENS = 28


def ours(source: FloatModel, tokens: torch.Tensor) -> torch.Tensor:
    return torch_decoder.logits(source, source.architecture, tokens)


def difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", expert_models.MODELS)
def test_random_models_equal_transformers(name: str, tmp_path: Path) -> None:
    model = expert_models.random_model(name)
    source = open_float_model(str(checkpoints.save(model, tmp_path)))
    tokens = torch.randint(0, 64, (2, TOKENS), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = model(tokens).logits
    assert difference(ours(source, tokens), theirs) < 1e-4


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe-dense-layers", "qwen3_moe-renormalised"])
def test_stacked_experts_are_the_same(name: str, tmp_path: Path) -> None:
    model = expert_models.random_model(name)
    apart = open_float_model(str(checkpoints.save(model, tmp_path / "apart")))
    stacked = open_float_model(str(expert_models.save_stacked(model, tmp_path / "stacked")))
    for tensor in apart.tensor_names():
        assert torch.equal(apart(tensor), stacked(tensor)), tensor


@pytest.mark.parametrize("name", ["mixtral", "phimoe", "olmoe"])
def test_names_of_a_state_dict(name: str, tmp_path: Path) -> None:
    """As the class has them in memory, which is not what it writes."""
    model = expert_models.random_model(name)
    model.config.save_pretrained(tmp_path)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    tokens = torch.randint(0, 64, (2, TOKENS), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = model(tokens).logits
    assert difference(ours(open_float_model(str(tmp_path)), tokens), theirs) < 1e-4


def test_a_trained_model_equals_transformers() -> None:
    directory = checkpoints.assets("models", "novels-qwen3_moe")
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokens = torch.randint(3, 4000, (1, 96), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        theirs = model.eval()(tokens).logits
    assert difference(ours(open_float_model(str(directory)), tokens), theirs) < 1e-4


def test_what_a_router_cannot_choose_by_is_refused(tmp_path: Path) -> None:
    model = expert_models.random_model("qwen3_moe-renormalised")
    directory = checkpoints.save(model, tmp_path)
    for changes, error, words in (
        (dict(num_experts_per_tok=9), InvalidArgumentError, "chooses 9 of 8 experts"),
        (dict(num_local_experts=5000), UnsupportedError, "5000 experts; at most 1024"),
        (dict(decoder_sparse_step=0), CheckpointError, "decoder_sparse_step"),
        (dict(mlp_only_layers=[0, 1, 2]), InvalidArgumentError, "at least one"),
        (dict(moe_intermediate_size=16), CheckpointError, r"\[32, 64\], but .*asks for \[16, 64\]"),
    ):
        kept = (directory / "config.json").read_text()
        checkpoints.edit_config(directory, **changes)
        with pytest.raises(error, match=words):
            open_float_model(str(directory))
        (directory / "config.json").write_text(kept)
    model = expert_models.random_model("phimoe", num_experts_per_tok=2)
    directory = checkpoints.save(model, tmp_path / "phimoe")
    checkpoints.edit_config(directory, num_experts_per_tok=3)
    with pytest.raises(UnsupportedError, match="other than two by sparsemixer"):
        open_float_model(str(directory))
