"""Files with experts: the runtime gives the float decoder's logits, however a text is cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("gguf")

import checkpoints  # noqa: E402  (after the checks that the packages are there)
import expert_models  # noqa: E402

from awq_edge import _native, torch_decoder  # noqa: E402
from awq_edge.conversion import Options, convert  # noqa: E402
from awq_edge.model_file import PackedFile  # noqa: E402
from awq_edge.stages import matrices  # noqa: E402

TOKENS = [(17 * i * i + 5 * i + 3) % 64 for i in range(28)]


def evaluated(path: Path, chunk: int, tokens: list[int] = TOKENS) -> np.ndarray:
    model = _native.NativeModel(path)
    session = _native.NativeSession(model, context_length=0, threads=2, prefill_threads=2)
    logits = np.empty((len(tokens), 64), dtype=np.float32)
    for begin in range(0, len(tokens), chunk):
        part = tokens[begin : begin + chunk]
        out = np.empty((len(part), 64), dtype=np.float32)
        session.evaluate(part, out)
        logits[begin : begin + len(part)] = out
    return logits


@pytest.mark.parametrize("name", expert_models.MODELS)
def test_the_runtime_gives_the_logits_of_the_float_decoder(name: str, tmp_path: Path) -> None:
    directory = checkpoints.save(expert_models.random_model(name), tmp_path / "checkpoint")
    path = tmp_path / "model.awq.gguf"
    convert(str(directory), path, Options(method="rtn", bits=8, group_size=32))
    whole = evaluated(path, len(TOKENS))
    assert np.array_equal(whole, evaluated(path, 1))
    assert np.array_equal(whole, evaluated(path, 5))
    file = PackedFile(path)
    a = file.architecture
    groups = {f"blk.{i}.{m}.weight": 32 for i in range(a.layers) for m in matrices(a, i)}
    groups["output.weight"] = 32

    def error(actual: np.ndarray, tokens: torch.Tensor) -> np.ndarray:
        expected = torch_decoder.logits(
            lambda tensor: torch.from_numpy(file.floats(tensor)), a, tokens, groups, kv_fp16=True
        )
        theirs = expected.flatten(0, 1).numpy()
        return np.linalg.norm(actual - theirs, axis=1) / np.linalg.norm(theirs, axis=1)

    # Both round activations to 8 bits; where they disagree about a tie, one code differs, and so
    # does all that attends to it. Texts of one token keep that apart.
    alone = np.concatenate([evaluated(path, 1, [token]) for token in TOKENS])
    assert np.quantile(error(alone, torch.tensor(TOKENS)[:, None]), 0.7) < 1e-5
    assert np.median(error(whole, torch.tensor([TOKENS]))) < 5e-2


@pytest.mark.parametrize("method", ["awq", "gptq", "awq+gptq", "auto"])
def test_every_method_converts_experts(method: str, tmp_path: Path) -> None:
    model = expert_models.random_model("qwen2_moe-dense-layers", vocab_size=101)
    directory = checkpoints.save(model, tmp_path / "checkpoint")
    checkpoints.save_tokenizer(directory)
    text = tmp_path / "text.txt"
    text.write_text("It was a dark and stormy night; the rain fell in torrents. " * 200)
    path = tmp_path / "model.awq.gguf"
    options = Options(
        method=method, bits=4, group_size=32, samples=8, sequence_length=32, calibration=text
    )
    report = convert(str(directory), path, options)
    for layer in report.layers:
        assert layer.error is not None and layer.error_rtn is not None
        assert layer.error < 1.2 * layer.error_rtn
        has_experts = report.architecture.has_experts(layer.layer)
        assert (layer.experts is not None) == has_experts
        if layer.experts is not None:
            assert 0 <= layer.experts.least_share <= 1 / 6
            # Methods that walk with the float model's states know what it would have chosen.
            assert (layer.experts.turned is not None) == (method in ("auto", "awq+gptq"))
    file = PackedFile(path)
    assert file.architecture.expert_layers == (0, 1, 0, 0)
    router = file.floats("blk.1.ffn_router.weight")
    assert router.shape == (6 * 64,) and bool(np.isfinite(router).all())
