"""The torch decoder equals transformers in float32, and rounds activations as the kernels do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import checkpoints  # noqa: E402  (after the checks that torch and transformers are there)

from awq_edge import stages, torch_decoder  # noqa: E402
from awq_edge.float_model import open_float_model  # noqa: E402


def largest_relative_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def compare(directory: Path, model: object, tokens: torch.Tensor) -> None:
    weights = open_float_model(str(directory))
    with torch.no_grad():
        theirs = model(tokens).logits  # type: ignore[operator]
    ours = torch_decoder.logits(weights, weights.architecture, tokens)
    assert ours.dtype == torch.float32
    assert largest_relative_difference(ours, theirs) < 1e-5


@pytest.mark.parametrize("family", checkpoints.FAMILIES)
def test_random_models_equal_transformers(family: str, tmp_path: Path) -> None:
    model = checkpoints.random_model(family)
    directory = checkpoints.save(model, tmp_path)
    torch.manual_seed(1)
    compare(directory, model, torch.randint(0, 101, (2, 40)))


@pytest.mark.parametrize("name", ["novels-7m", "novels-45m", "stories260k"])
def test_trained_models_equal_transformers(name: str) -> None:
    directory = checkpoints.assets("models", name)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    torch.manual_seed(2)
    compare(directory, model.eval(), torch.randint(3, model.config.vocab_size, (1, 96)))


@pytest.mark.parametrize("kind", ["default", "linear", "llama3"])
@pytest.mark.parametrize("head_size", [64, 96, 128])
def test_rotary_frequencies_equal_transformers(kind: str, head_size: int) -> None:
    from awq_edge.architecture import Architecture
    from awq_edge.rope_scaling import RopeScaling

    scaling = {
        "default": None,
        "linear": RopeScaling("linear", 4.0),
        "llama3": RopeScaling("llama3", 8.0, 1.0, 4.0, 8192),
    }[kind]
    parameters = {"rope_type": kind, "rope_theta": 500000.0}
    if scaling:
        parameters["factor"] = scaling.factor
    if kind == "llama3":
        parameters |= dict(
            low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
        )
    config = transformers.LlamaConfig(
        hidden_size=2 * head_size,
        num_attention_heads=2,
        max_position_embeddings=131072,
        rope_parameters=parameters,
    )
    rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
    ours = Architecture(
        layers=1,
        hidden_size=2 * head_size,
        vocabulary_size=10,
        context_length=131072,
        heads=2,
        kv_heads=2,
        head_size=head_size,
        feed_forward_size=8,
        norm_epsilon=1e-5,
        rope_theta=500000.0,
        rope_scaling=scaling,
    ).inverse_frequencies()
    assert ours.dtype == np.float32
    # Theirs is rounded to float32 after every step.
    np.testing.assert_allclose(ours, rotary.inv_freq.numpy(), rtol=1e-6)


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("k", [1, 32, 172, 257])
def test_activation_rounding_follows_the_kernels(group_size: int, k: int) -> None:
    """One number at a time, in the words of the contract."""
    generator = np.random.default_rng(k)
    x = (generator.standard_normal((3, k)) * 10.0 ** generator.integers(-5, 5, (3, 1))).astype(
        np.float32
    )
    x[1] = 0.0
    x[2, 0] = 127.0
    if k > 1:
        x[2, 1:] = np.float32(0.5)  # halfway between two codes: to the even one, 0
    ours = torch_decoder.rounded(torch.from_numpy(x), group_size).numpy()
    for row in range(3):
        for begin in range(0, k, group_size):
            group = x[row, begin : begin + group_size]
            largest = np.float32(np.abs(group).max())
            if largest == 0:
                expected = np.zeros_like(group)
            else:
                codes = np.round(group * (np.float32(127.0) / largest))
                expected = codes * (largest / np.float32(127.0))
            assert np.array_equal(ours[row, begin : begin + group_size], expected)


def test_activation_rounding_reaches_every_matrix(tmp_path: Path) -> None:
    model = checkpoints.random_model("llama-biases")
    weights = open_float_model(str(checkpoints.save(model, tmp_path)))
    architecture = weights.architecture
    tokens = torch.arange(20).reshape(1, 20)
    exact = torch_decoder.logits(weights, architecture, tokens)
    groups = {f"blk.{i}.{n}.weight": 32 for i in range(3) for n in stages.matrices(architecture, i)}
    groups["output.weight"] = 32
    by_name = torch_decoder.logits(weights, architecture, tokens, groups)
    assert torch.equal(by_name, torch_decoder.logits(weights, architecture, tokens, 32))
    difference = largest_relative_difference(by_name, exact)
    assert 1e-4 < difference < 0.2
    halves = torch_decoder.logits(weights, architecture, tokens, kv_fp16=True)
    assert 1e-7 < largest_relative_difference(halves, exact) < 1e-2
