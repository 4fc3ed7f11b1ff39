"""What each method does, seen in whole conversions of a model with uneven activations."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tokenizers")
pytest.importorskip("gguf")

import checkpoints  # noqa: E402  (after the checks for the packages of the extra convert)

from awq_edge import model_file, torch_decoder  # noqa: E402
from awq_edge.conversion import Options, Report, convert  # noqa: E402
from awq_edge.errors import InvalidArgumentError  # noqa: E402
from awq_edge.float_model import open_float_model  # noqa: E402
from awq_edge.quantize import gptq, methods  # noqa: E402

CALIBRATED = [method for method in methods.METHODS if method != "rtn"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model") / "checkpoint"
    checkpoints.save(checkpoints.random_model("llama"), directory)
    checkpoints.save_tokenizer(directory)
    return directory


def converted(checkpoint: Path, output: Path, method: str, bits: float, **options: Any) -> Report:
    settings = {"samples": 24, "sequence_length": 48, "group_size": 32, **options}
    return convert(str(checkpoint), output, Options(method=method, bits=bits, **settings))


def logit_error(checkpoint: Path, output: Path) -> float:
    """Of the packed model, relative to the float model's logits."""
    floats = open_float_model(str(checkpoint))
    packed = model_file.read_dequantised(output)
    tensors = {name: torch.from_numpy(values) for name, values in packed.tensors.items()}
    tokens = torch.arange(3, 90).reshape(1, -1)
    exact = torch_decoder.logits(floats, floats.architecture, tokens)
    ours = torch_decoder.logits(tensors.__getitem__, packed.architecture, tokens)
    return float((ours - exact).norm() / exact.norm())


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("method", CALIBRATED)
def test_every_method_works_at_every_width(
    tmp_path: Path, checkpoint: Path, method: str, bits: int
) -> None:
    report = converted(checkpoint, tmp_path / "m", method, bits, samples=4)
    for layer in report.layers:
        assert layer.error is not None and layer.error_rtn is not None
        assert layer.error < 1.1 * layer.error_rtn


@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_every_group_size_works(tmp_path: Path, checkpoint: Path, group_size: int) -> None:
    report = converted(checkpoint, tmp_path / "m", "auto", 4, samples=4, group_size=group_size)
    assert all(layer.error < layer.error_rtn for layer in report.layers)  # type: ignore[operator]


@pytest.mark.parametrize("bits", [2, 3])
def test_auto_is_the_most_accurate(
    tmp_path: Path, checkpoint: Path, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what the layers give on calibration text, which is what every method minimises.

    Errors of the layers before are not made up for here: that makes a layer give something else.
    Nor does auto here trust the text less than the others do.
    """
    auto = dataclasses.replace(methods.METHODS["auto"], damping=gptq.DAMPING)
    monkeypatch.setitem(methods.METHODS, "auto", auto)
    errors = {}
    for method in CALIBRATED:
        without = ("propagation",) if methods.METHODS[method].plan(bits).propagated else ()
        without += ("widths",) if methods.METHODS[method].plan(bits).widened else ()
        report = converted(checkpoint, tmp_path / method, method, bits, without=without)
        errors[method] = sum(layer.error or 0.0 for layer in report.layers)
    assert min(errors, key=errors.__getitem__) == "auto", errors
    assert errors["gptq"] < errors["awq"]


def test_a_compensated_head_gives_better_logits(tmp_path: Path, checkpoint: Path) -> None:
    errors = {}
    for method in ("awq", "auto"):
        converted(checkpoint, tmp_path / method, method, 8, head_bits=2)
        errors[method] = logit_error(checkpoint, tmp_path / method)
    assert errors["auto"] < 0.95 * errors["awq"], errors


def bits_of(path: Path) -> dict[str, int]:
    """Of every packed matrix, by its name."""
    file = model_file.PackedFile(path)
    return {name: file.layout(name).bits for name in file.names() if file.is_packed(name)}


@pytest.mark.parametrize("bits", [2, 4])
def test_auto_widens_what_needs_it_most_for_few_more_bytes(
    tmp_path: Path, checkpoint: Path, bits: int
) -> None:
    plain, wider = tmp_path / "plain", tmp_path / "wider"
    one_width = converted(checkpoint, plain, "auto", bits, without=("widths",))
    report = converted(checkpoint, wider, "auto", bits)
    assert {width for name, width in bits_of(plain).items() if name.startswith("blk.")} == {bits}
    assert one_width.predicted is None and report.predicted is not None
    assert min(bits_of(wider).values()) >= bits
    assert len({width for name, width in bits_of(wider).items() if name.startswith("blk.")}) > 1
    assert report.file_bytes <= 1.08 * one_width.file_bytes
    assert logit_error(checkpoint, wider) < logit_error(checkpoint, plain)
    assert model_file.PackedFile(wider).metadata["awq_edge.quantization.bits"] == bits


def test_tables_of_given_bits_stay_as_they_are(tmp_path: Path, checkpoint: Path) -> None:
    converted(checkpoint, tmp_path / "m", "auto", 4, samples=4, head_bits=3, embedding_bits=5)
    found = bits_of(tmp_path / "m")
    assert (found["token_embd.weight"], found["output.weight"]) == (5, 3)


def test_widths_are_no_part_of_what_mixes_them_anyway() -> None:
    with pytest.raises(InvalidArgumentError, match="auto has no part 'widths'"):
        Options(bits=3.5, without=("widths",))


@pytest.mark.parametrize("part", methods.PARTS)
def test_a_part_can_be_left_out(part: str) -> None:
    method = "awq" if part in ("clip", "joint", "asymmetry", "duo", "values") else "auto"
    described = methods.METHODS[method]
    assert described.plan(4, (part,)) != described.plan(4)


def test_what_rests_on_a_part_goes_with_it() -> None:
    without_clip = methods.METHODS["awq"].plan(4, ("clip",))
    assert not (without_clip.clipped or without_clip.joint or without_clip.apart)
    without_scales = methods.METHODS["awq"].plan(4, ("scales",))
    assert not (without_scales.joint or without_scales.duo or without_scales.values)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="none of auto, awq"):
        Options(method="best")
    with pytest.raises(InvalidArgumentError, match="no part of a method"):
        Options(without=("everything",))


def test_the_format_lists_the_methods_that_are_written() -> None:
    document = Path(__file__).resolve().parents[2] / "native/format/FORMAT.md"
    key = "`awq_edge.quantization.method`"
    (row,) = [line for line in document.read_text().splitlines() if key in line]
    assert [method for method in methods.METHODS if f"`{method}`" not in row] == []
