"""AutoAWQ checkpoints of families with fused rows and scales behind GELU: the same function.

The fixtures are written from the format's description: folded norms and the scales of activations
lie in the file as ready-made numbers, so random ones serve as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import quantised_checkpoints as made  # noqa: E402  (after the checks for torch and transformers)
from safetensors.torch import load_file, save_file  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from awq_edge import torch_decoder  # noqa: E402
from awq_edge.cli.main import application  # noqa: E402
from awq_edge.errors import AwqEdgeError, CheckpointError, UnsupportedError  # noqa: E402
from awq_edge.interchange.importer import import_checkpoint  # noqa: E402
from awq_edge.interchange.quantised_checkpoint import open_quantised  # noqa: E402
from awq_edge.model_file import read_dequantised  # noqa: E402

SIZES: dict[str, Any] = dict(
    vocab_size=101,
    hidden_size=128,
    intermediate_size=192,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=64,
    pad_token_id=None,
)
MPT = dict(d_model=128, n_heads=4, n_layers=2, max_seq_len=64)
GROUPED = dict(num_attention_heads=8, num_kv_heads=2, new_decoder_architecture=True)

# Type, keys, where the layers are, and the activation that AutoAWQ scales, if it does.
FORMS: dict[str, tuple[str, dict[str, Any], str, str | None]] = {
    "llama": ("llama", dict(num_key_value_heads=2), "model.layers", None),
    "falcon-7b": ("falcon", {}, "transformer.h", None),
    "falcon-40b": ("falcon", GROUPED, "transformer.h", None),
    "starcoder2": ("starcoder2", dict(num_key_value_heads=2), "model.layers", "mlp.act"),
    "stablelm": (
        "stablelm",
        dict(num_key_value_heads=2, use_qkv_bias=True),
        "model.layers",
        None,
    ),
    "gpt_neox": ("gpt_neox", {}, "gpt_neox.layers", "mlp.act"),
    "mpt": ("mpt", MPT, "transformer.blocks", "ffn.act"),
    "mpt-scaled": (
        "mpt",
        {**MPT, "attn_config": dict(softmax_scale=0.25, clip_qkv=3.0)},
        "transformer.blocks",
        "ffn.act",
    ),
    "opt": ("opt", dict(ffn_dim=192), "model.decoder.layers", None),
    "phi3": ("phi3", dict(num_key_value_heads=2), "model.layers", None),
    "gemma": ("gemma", dict(num_key_value_heads=2, head_dim=32), "model.layers", None),
    "gpt_bigcode": (
        "gpt_bigcode",
        dict(n_embd=128, n_layer=2, n_head=4, n_positions=64),
        "transformer.h",
        "mlp.act",
    ),
    "bloom": ("bloom", dict(n_layer=2, n_head=4), "transformer.h", "mlp.gelu_impl"),
}
TOKENS = torch.arange(40).reshape(1, 40) * 7 % 101


class Scaled(torch.nn.Module):
    """What AutoAWQ puts in the place of an activation."""

    def __init__(self, activation: Any, scales: torch.Tensor) -> None:
        super().__init__()
        self.activation, self.scales = activation, scales

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(x) / self.scales


def matrices_of(model: Any, layers: str) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if name.startswith(f"{layers}.") and isinstance(module, torch.nn.Linear):
            yield name, module


def write(directory: Path, form: str, *, scales: bool = True) -> Any:
    """A checkpoint as AutoAWQ makes it; gives the model that it describes, in floats."""
    kind, keys, layers, activation = FORMS[form]
    config = transformers.AutoConfig.for_model(kind, **{**SIZES, **keys})
    config._attn_implementation = "eager"
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config).eval().float()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("bias"):
                parameter.normal_(0, 0.25)
            elif parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5)
            parameter.copy_(parameter.half().float())
    model.save_pretrained(directory, safe_serialization=True)
    tensors = {k: v.half() for k, v in load_file(directory / "model.safetensors").items()}
    for seed, (name, module) in enumerate(matrices_of(model, layers)):
        n, k = module.weight.shape
        matrix = made.random_matrix(n, k, 64, seed)
        module.weight.data = torch.from_numpy(matrix.weights())
        del tensors[f"{name}.weight"]
        for part, values in made.gemm_tensors(name, matrix).items():
            tensors[part] = torch.from_numpy(np.ascontiguousarray(values))
    if activation is not None and scales:
        for layer in range(2):
            name = f"{layers}.{layer}.{activation}"
            parent, _, attribute = name.rpartition(".")
            width = SIZES["intermediate_size"] if kind in ("starcoder2", "gpt_neox") else 4 * 128
            vector = torch.rand(width).half() + 0.5
            tensors[f"{name}.scales"] = vector
            module = model.get_submodule(parent)
            setattr(module, attribute, Scaled(getattr(module, attribute), vector.float()))
    save_file(tensors, directory / "model.safetensors")
    path = directory / "config.json"
    settings = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True}
    settings["version"] = "gemm"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": settings}))
    return model


@pytest.mark.parametrize("form", FORMS)
def test_the_file_computes_what_the_checkpoint_does(form: str, tmp_path: Path) -> None:
    model = write(tmp_path, form)
    output = tmp_path / "model.awq.gguf"
    report = import_checkpoint(open_quantised(str(tmp_path)), output)
    packed = read_dequantised(output)
    a = packed.architecture
    assert a.activation_scales == (FORMS[form][3] is not None)
    assert len(report.exact) == sum(name.count(".weight") for name in report.exact) > 0
    tensors = {name: torch.from_numpy(values) for name, values in packed.tensors.items()}
    # Embedding and head are floats in the checkpoint, and rounded in the file.
    multiplied = SIZES["hidden_size"] ** 0.5 if form == "gemma" else 1.0
    embedding = tensors["token_embd.weight"] / multiplied
    model.get_input_embeddings().weight.data = embedding
    model.get_output_embeddings().weight.data = (
        embedding if a.tied_head else tensors["output.weight"]
    )
    with torch.no_grad():
        theirs = model(TOKENS).logits
    ours = torch_decoder.logits(lambda name: tensors[name], a, TOKENS)
    # The query's own scale of MPT is taken into scales of fp16.
    bound = 5e-3 if form == "mpt-scaled" else 1e-4
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < bound
    assert bool(report.rounded_scales) == (form == "mpt-scaled")


def test_an_import_says_that_it_leaves_a_tower_behind(tmp_path: Path) -> None:
    inner = tmp_path / "text"
    write(inner, "llama")
    config = json.loads((inner / "config.json").read_text())
    settings = config.pop("quantization_config")
    whole = {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "text_config": config,
        "vision_config": {"model_type": "clip_vision_model"},
        "quantization_config": settings,
    }
    (tmp_path / "config.json").write_text(json.dumps(whole))
    tensors = load_file(inner / "model.safetensors")
    stored = {f"language_model.{name}": tensor for name, tensor in tensors.items()}
    stored["vision_tower.vision_model.pre_layrnorm.weight"] = torch.ones(8)
    save_file(stored, tmp_path / "model.safetensors")
    ran = CliRunner().invoke(
        application(["convert"]),
        ["convert", str(tmp_path), "--from-awq", "-o", str(tmp_path / "model.awq.gguf")],
    )
    assert ran.exit_code == 0, ran.output
    assert "reads text alone" in ran.stderr


def test_scales_that_some_layers_lack_are_missing(tmp_path: Path) -> None:
    write(tmp_path, "starcoder2")
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.act.scales"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"no tensor model\.layers\.1\.mlp\.act\.scales"):
        import_checkpoint(open_quantised(str(tmp_path)), tmp_path / "m.awq.gguf")


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_scales_that_divide_by_nothing_are_refused(value: float, tmp_path: Path) -> None:
    write(tmp_path, "starcoder2")
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.1.mlp.act.scales"][7] = value
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(AwqEdgeError, match=r"layers\.1\.mlp\.act\.scales.*positive"):
        import_checkpoint(open_quantised(str(tmp_path)), tmp_path / "m.awq.gguf")


def test_scales_of_an_activation_that_has_none_are_not_dropped(tmp_path: Path) -> None:
    """A reader that leaves them out loads without a word and talks nonsense."""
    write(tmp_path, "stablelm")
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.0.mlp.act_fn.scales"] = torch.ones(192).half()
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedError, match=r"mlp\.act_fn\.scales"):
        open_quantised(str(tmp_path))
