"""Layers of their own kinds, converted: the runtime against the torch decoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("gguf")

import checkpoints  # noqa: E402
import family_rows  # noqa: E402
from test_layer_kinds import ROWS, TOKENS  # noqa: E402

from awq_edge import model_file, torch_decoder  # noqa: E402
from awq_edge.conversion import Options, convert  # noqa: E402
from awq_edge.model import Model  # noqa: E402

QUICK = dict(group_size=32, samples=6, sequence_length=16)


def converted(row: str, directory: Path, method: str, bits: int) -> Path:
    source = checkpoints.save(family_rows.row_model(*ROWS[row]), directory / "checkpoint")
    output = directory / "m.awq.gguf"
    convert(str(source), output, Options(method=method, bits=bits, **QUICK))
    return output


@pytest.mark.parametrize("row", ROWS)
def test_runtime_equals_the_torch_decoder(row: str, tmp_path: Path) -> None:
    """On short prompts nearly all logits are equal; a code of an input may fall to either side.

    ``test_golden.py`` says why; nothing lies between such a code and rounding.
    """
    output = converted(row, tmp_path, "rtn", 8)
    packed = model_file.read_dequantised(output)
    tensors = {name: torch.from_numpy(values) for name, values in packed.tensors.items()}
    prompts = np.random.default_rng(3).integers(3, 64, (32, 3)).tolist()
    expected = torch_decoder.logits(
        tensors.__getitem__,
        packed.architecture,
        torch.tensor(prompts),
        activation_group_size=packed.group_sizes,
        kv_fp16=True,
    ).numpy()
    text = np.random.default_rng(4).integers(3, 64, TOKENS.get(row, 60)).tolist()
    with Model.open(output) as model:
        found = np.stack([model.logits(prompt) for prompt in prompts])
        whole = model.logits(text)
        for chunk in (1, 7):
            with model.session() as session:
                parts = [
                    session.logits(text[first : first + chunk])
                    for first in range(0, len(text), chunk)
                ]
            assert np.array_equal(np.concatenate(parts), whole)  # a token at a time, or all
    differences = np.abs(found - expected).max(axis=(1, 2)) / np.abs(expected).max()
    assert (differences < 2e-5).mean() >= 0.5, differences
    assert differences.max() < 0.1


@pytest.mark.parametrize("row", ["gemma2", "gemma3", "olmo3", "smollm3", "glm4", "ministral3"])
@pytest.mark.parametrize("method", ["awq", "auto"])
def test_calibrated_methods_do_not_lose_to_rounding(row: str, method: str, tmp_path: Path) -> None:
    model_type, keys = ROWS[row]
    model = family_rows.row_model(model_type, {**keys, "vocab_size": 101})
    source = checkpoints.save(model, tmp_path / "checkpoint")
    checkpoints.save_tokenizer(source)
    text = tmp_path / "text"
    text.write_text("The quick brown fox jumps over the lazy dog, again and again. " * 20)
    report = convert(
        str(source), tmp_path / "m", Options(method=method, bits=4, calibration=text, **QUICK)
    )
    for layer in report.layers:
        assert layer.error is not None and layer.error_rtn is not None
        assert layer.error < 1.1 * layer.error_rtn
