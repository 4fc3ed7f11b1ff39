"""Outliers and overflows convert, or are refused in a sentence that names the layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("gguf")

import checkpoints  # noqa: E402  (after the checks for the packages of the extra convert)

from awq_edge import Model  # noqa: E402
from awq_edge.conversion import Options, convert  # noqa: E402
from awq_edge.conversion.extremes import check_finite, solvable  # noqa: E402
from awq_edge.conversion.trial import check_runs  # noqa: E402
from awq_edge.errors import InternalError, UnsupportedError  # noqa: E402

NORM = "model.layers.1.input_layernorm.weight"
PLACES: dict[str, tuple[str, Any, float]] = {
    "a norm": (NORM, 5, 1e5),
    "a huge norm": (NORM, 5, 3e38),
    "a norm of the feed-forward": ("model.layers.2.post_attention_layernorm.weight", 1, 1e30),
    "a whole norm": (NORM, slice(None), 1e5),
    "the last norm": ("model.norm.weight", 3, 3e38),
    "a value": ("model.layers.1.self_attn.v_proj.weight", (3, 5), 1e5),
    "a query": ("model.layers.1.self_attn.q_proj.weight", (3, 5), 1e5),
    "a down matrix": ("model.layers.1.mlp.down_proj.weight", (3, 5), 1e5),
    "the embedding": ("model.embed_tokens.weight", (30, 5), 1e5),
}


def changed(directory: Path, place: str) -> Path:
    name, at, value = PLACES[place]
    model = checkpoints.random_model("llama")
    with torch.no_grad():
        model.state_dict()[name][at] = value
    checkpoints.save(model, directory)
    checkpoints.save_tokenizer(directory)
    return directory


@pytest.mark.parametrize(
    ("method", "place"),
    [("rtn", place) for place in PLACES]
    + [(method, place) for method in ("awq", "auto") for place in ("a whole norm", "a value")],
)
def test_outliers_convert_or_are_refused(tmp_path: Path, place: str, method: str) -> None:
    source, output = changed(tmp_path / "model", place), tmp_path / "out.awq.gguf"
    options = Options(method=method, group_size=32, samples=2, sequence_length=16)
    try:
        convert(str(source), output, options)
    except UnsupportedError as error:
        assert "\n" not in str(error)
        assert not output.exists()
        return
    with Model.open(output, threads=1, check_memory=False, context_length=16) as model:
        assert np.isfinite(model.logits([1, 5, 9])).all()


def test_the_layer_is_named(tmp_path: Path) -> None:
    source, output = changed(tmp_path / "model", "a huge norm"), tmp_path / "out.awq.gguf"
    with pytest.raises(UnsupportedError, match="not finite in layer 1"):
        convert(str(source), output, Options(method="rtn", group_size=32))
    with pytest.raises(UnsupportedError, match="Layer 1 gives values that are not finite"):
        convert(
            str(source),
            output,
            Options(method="awq", group_size=32, samples=2, sequence_length=16),
        )
    source = changed(tmp_path / "head", "the last norm")
    with pytest.raises(UnsupportedError, match="not finite in the head"):
        convert(str(source), output, Options(method="rtn", group_size=32))


def test_a_file_that_the_runtime_refuses_gets_no_name(tmp_path: Path, stories_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.write_bytes(stories_path.read_bytes()[:-5000])
    with pytest.raises(UnsupportedError, match="runtime would refuse the converted model"):
        check_runs(damaged)
    check_runs(stories_path)


def test_equations_without_a_solution_are_no_bug() -> None:
    with (
        pytest.raises(UnsupportedError, match="inputs of layer 3 are too extreme"),
        solvable("layer 3"),
    ):
        torch.linalg.cholesky(-torch.eye(2))
    with pytest.raises(InternalError), solvable("layer 3"):
        raise InternalError("Something else.")
    assert check_finite(torch.ones(2), 3).tolist() == [1, 1]
    with pytest.raises(UnsupportedError, match="Layer 3"):
        check_finite(torch.tensor([1.0, torch.inf]), 3)
