"""Whole conversions of decoders of other forms: each method keeps what the floats compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("gguf")

import checkpoints  # noqa: E402  (after the checks that all of these are there)

from awq_edge import _native, conversion, torch_decoder  # noqa: E402
from awq_edge.float_model import open_float_model  # noqa: E402
from awq_edge.model_file import PackedFile  # noqa: E402

SIZES: dict[str, Any] = dict(
    vocab_size=101,  # as the tokenizer has
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=96,
    max_position_embeddings=64,
    pad_token_id=None,
    bos_token_id=1,
    eos_token_id=2,
)
OPT = {"ffn_dim": 96}
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "learned, plain relu": ("opt", OPT),
    "stream": ("opt", {**OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 32}),
    "plain gelu": ("gpt_bigcode", {"n_inner": 96}),
    "parallel": ("falcon", {"ffn_hidden_size": 96}),
    "both": ("gemma2", {"num_key_value_heads": 2, "head_dim": 16, "sliding_window": 8}),
    "after": ("olmo2", {"num_key_value_heads": 2}),
    "alibi, embedding norm": ("bloom", {"n_layer": 2, "n_head": 4}),
    "head bias": ("phi", {}),
}
TOKENS = torch.arange(24).reshape(1, 24) * 11 % 98 + 1


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each form, with weights that make every term matter."""
    made = {}
    for form, (model_type, keys) in FORMS.items():
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(model_type, **{**SIZES, **keys})
        model = transformers.AutoModelForCausalLM.from_config(config).float()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name.lower() or ".ln_" in name:
                    base = 0.0 if model_type == "gemma2" or name.endswith("bias") else 1.0
                    parameter.copy_(base + 0.3 * torch.randn_like(parameter))
                else:
                    parameter.copy_(torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
        made[form] = tmp_path_factory.mktemp("form") / "model"
        model.save_pretrained(made[form])
        checkpoints.save_tokenizer(made[form])
    return made


def converted(directory: Path, output: Path, **options: Any) -> None:
    settings = {"samples": 4, "sequence_length": 32, "group_size": 32, **options}
    conversion.convert(str(directory), output, conversion.Options(**settings))


def runtime_logits(path: Path) -> np.ndarray:
    model = _native.NativeModel(path)
    session = _native.NativeSession(model, context_length=0, threads=1, prefill_threads=1)
    logits = np.empty((TOKENS.shape[1], model.info().vocabulary_size), dtype=np.float32)
    session.evaluate(TOKENS[0].tolist(), logits)
    session.close()
    model.close()
    return logits


@pytest.mark.parametrize("method", ["rtn", "awq", "awq+gptq", "auto"])
@pytest.mark.parametrize("form", FORMS)
def test_every_method_keeps_the_function(
    form: str, method: str, directories: dict[str, Path], tmp_path: Path
) -> None:
    source = open_float_model(str(directories[form]))
    exact = torch_decoder.logits(source, source.architecture, TOKENS)[0].numpy()
    errors = {}
    for bits in (8, 3):
        path = tmp_path / f"{bits}.awq.gguf"
        converted(directories[form], path, method=method, bits=bits)
        found = runtime_logits(path)
        errors[bits] = float(np.linalg.norm(found - exact) / np.linalg.norm(exact))
    assert errors[8] < 0.03  # rounded activations and fp16 keys and values alone make up half of it
    assert errors[8] < errors[3] < 0.9


@pytest.mark.parametrize("form", ["learned, plain relu", "both", "alibi, embedding norm"])
def test_widths_are_mixed(form: str, directories: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "m.awq.gguf"
    converted(directories[form], path, method="auto", bits=3.5)
    file = PackedFile(path)
    widths = {
        file.layout(name).bits
        for name in file.names()
        if name.startswith("blk.") and file.is_packed(name)
    }
    assert len(widths) > 1
    assert np.isfinite(runtime_logits(path)).all()
