"""AutoAWQ and compressed-tensors checkpoints of mixtures of experts: the same function.

Written from the formats' descriptions: every matrix of attention and of the experts is integers,
and the router stays in floats, as those tools leave it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import checkpoints  # noqa: E402  (after the checks for torch and transformers)
import expert_models  # noqa: E402
import quantised_checkpoints as made  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from awq_edge import Model, torch_decoder  # noqa: E402
from awq_edge.interchange.importer import import_checkpoint  # noqa: E402
from awq_edge.interchange.quantised_checkpoint import open_quantised  # noqa: E402
from awq_edge.model_file import read_dequantised  # noqa: E402

GROUP_SIZE = 32
FORMS = (
    "mixtral",
    "mixtral-window",
    "qwen2_moe-dense-layers",
    "qwen3_moe-renormalised",
    "olmoe",
    "phimoe",
)
TOKENS = torch.arange(28).reshape(1, 28) * 5 % 64


def is_quantised(name: str, tensor: Any) -> bool:
    """Whether those tools quantise it: all matrices of layers but routers and shared gates."""
    kept = (".gate.weight", ".shared_expert_gate.weight")
    return ".layers." in name and tensor.ndim == 2 and not name.endswith(kept)


def write(directory: Path, form: str) -> Any:
    """A checkpoint as AutoAWQ makes it; gives transformers' model of it, in floats."""
    floats, packed = directory / "floats", directory / "packed"
    checkpoints.save(expert_models.random_model(form), floats)
    config = json.loads((floats / "config.json").read_text())
    tensors = {
        name: tensor.half().float()
        for name, tensor in load_file(floats / "model.safetensors").items()
    }
    integers = {}
    for seed, name in enumerate(name for name in tensors if is_quantised(name, tensors[name])):
        n, k = tensors[name].shape
        matrix = made.random_matrix(n, k, GROUP_SIZE, seed)
        tensors[name] = torch.from_numpy(matrix.weights())
        integers[name] = made.gemm_tensors(name.removesuffix(".weight"), matrix)
    save_file(tensors, floats / "model.safetensors", {"format": "pt"})
    packed.mkdir()
    stored = {name: tensor.half() for name, tensor in tensors.items() if name not in integers}
    for parts in integers.values():
        stored |= {
            name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in parts.items()
        }
    save_file(stored, packed / "model.safetensors", {"format": "pt"})
    config["quantization_config"] = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": GROUP_SIZE,
        "version": "gemm",
        "zero_point": True,
        "modules_to_not_convert": ["gate"],
    }
    (packed / "config.json").write_text(json.dumps(config))
    return transformers.AutoModelForCausalLM.from_pretrained(floats, dtype=torch.float32).eval()


@pytest.mark.parametrize("form", FORMS)
def test_the_file_computes_what_the_checkpoint_does(form: str, tmp_path: Path) -> None:
    model = write(tmp_path, form)
    output = tmp_path / "model.awq.gguf"
    report = import_checkpoint(open_quantised(str(tmp_path / "packed")), output)
    packed = read_dequantised(output)
    a = packed.architecture
    assert any(".expert." in name for name in report.exact)
    assert not any("router" in name for name in report.exact)
    assert set(report.quantised) == {"token_embd.weight", "output.weight"}
    tensors = {name: torch.from_numpy(values) for name, values in packed.tensors.items()}
    # Embedding and head are floats in the checkpoint, and rounded in the file.
    model.get_input_embeddings().weight.data = tensors["token_embd.weight"]
    model.get_output_embeddings().weight.data = tensors["output.weight"]
    with torch.no_grad():
        theirs = model(TOKENS).logits
    ours = torch_decoder.logits(lambda name: tensors[name], a, TOKENS)
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-4
    with Model.open(output) as runtime, runtime.session() as session:
        computed = session.logits(TOKENS[0].tolist())
    # The runtime rounds activations to 8 bits, and may so choose another expert at a position.
    differences = np.abs(computed - ours[0].numpy()).max(axis=1) / float(ours.abs().max())
    assert np.median(differences) < 0.1
