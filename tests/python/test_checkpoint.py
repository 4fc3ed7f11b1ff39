"""Checkpoints: lazy reading in every float type, and one clear sentence for every bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

from awq_edge.checkpoint import open_checkpoint  # noqa: E402  (after the check for torch)
from awq_edge.errors import CheckpointError  # noqa: E402


def write(directory: Path, tensors: dict[str, Any], shards: int = 1, **config: Any) -> Path:
    """A checkpoint of ``shards`` files with the tensors dealt out among them."""
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    if shards == 1:
        safetensors_torch.save_file(tensors, directory / "model.safetensors")
        return directory
    table = {}
    for shard in range(shards):
        file = f"model-{shard + 1}-of-{shards}.safetensors"
        part = {name: tensors[name] for name in sorted(tensors)[shard::shards]}
        safetensors_torch.save_file(part, directory / file)
        table.update(dict.fromkeys(part, file))
    index = json.dumps({"weight_map": table})
    (directory / "model.safetensors.index.json").write_text(index)
    return directory


@pytest.fixture
def tensors() -> dict[str, Any]:
    torch.manual_seed(0)
    return {"a": torch.randn(6, 5), "b": torch.randn(7).half(), "c": torch.randn(3, 4).bfloat16()}


@pytest.mark.parametrize("shards", [1, 3])
def test_every_float_type_is_read(tmp_path: Path, tensors: dict[str, Any], shards: int) -> None:
    checkpoint = open_checkpoint(str(write(tmp_path, tensors, shards)))
    for name, tensor in tensors.items():
        read = checkpoint.tensor(name, tuple(tensor.shape))
        assert read.dtype == torch.float32
        assert torch.equal(read, tensor.float())
    assert "a" in checkpoint and "z" not in checkpoint


@pytest.mark.parametrize("rows", [1, 4, 6, 100])
def test_rows_in_blocks(tmp_path: Path, tensors: dict[str, Any], rows: int) -> None:
    checkpoint = open_checkpoint(str(write(tmp_path, tensors)))
    blocks = list(checkpoint.row_blocks("a", (6, 5), rows))
    assert torch.equal(torch.cat([block for _, block in blocks]), tensors["a"])
    assert [first for first, _ in blocks] == list(range(0, 6, rows))


def test_identity_changes_with_the_files(tmp_path: Path, tensors: dict[str, Any]) -> None:
    directory = str(write(tmp_path, tensors))
    before = open_checkpoint(directory).identity()
    assert before == open_checkpoint(directory).identity()
    write(tmp_path, {**tensors, "d": torch.zeros(1)})
    assert before != open_checkpoint(directory).identity()


def fails(directory: Path | str, *words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        checkpoint = open_checkpoint(str(directory))
        checkpoint.tensor("a", (6, 5))
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text


def test_missing_directory(tmp_path: Path) -> None:
    fails(tmp_path / "nowhere", "There is no directory", "nowhere", "hub id")


def test_file_instead_of_directory(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"x")
    fails(tmp_path / "model.gguf", "is a file", "config.json")


def test_missing_config(tmp_path: Path, tensors: dict[str, Any]) -> None:
    write(tmp_path, tensors)
    (tmp_path / "config.json").unlink()
    fails(tmp_path, "holds no config.json")


@pytest.mark.parametrize("text", ["{", "[1, 2]", '{"a": 1,}', "\udcff"])
def test_broken_config(tmp_path: Path, tensors: dict[str, Any], text: str) -> None:
    write(tmp_path, tensors)
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    fails(tmp_path, "config.json is not")


def test_broken_index(tmp_path: Path, tensors: dict[str, Any]) -> None:
    write(tmp_path, tensors, shards=3)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(index.read_text()[:-5])
    fails(tmp_path, "index.json is not valid JSON")
    index.write_text('{"weight_map": [1]}')
    fails(tmp_path, "no table weight_map")
    index.write_text('{"weight_map": {"a": "../secret.safetensors"}}')
    fails(tmp_path, "not a file beside it")


def test_missing_shard(tmp_path: Path, tensors: dict[str, Any]) -> None:
    write(tmp_path, tensors, shards=3)
    (tmp_path / "model-2-of-3.safetensors").unlink()
    fails(tmp_path, "model-2-of-3.safetensors is missing")


def test_shard_without_its_tensor(tmp_path: Path, tensors: dict[str, Any]) -> None:
    write(tmp_path, tensors, shards=3)
    path = tmp_path / "model-1-of-3.safetensors"
    safetensors_torch.save_file({"other": torch.zeros(2)}, path)
    fails(tmp_path, "model-1-of-3.safetensors", "lacks the tensor a")


@pytest.mark.parametrize("kept", [0, 4, 8, 40, -1, -200])
def test_truncated_shard(tmp_path: Path, tensors: dict[str, Any], kept: int) -> None:
    tensors["a"] = torch.randn(60, 50)
    write(tmp_path, tensors)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    fails(tmp_path, "model.safetensors", "truncated")


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"{not json", ["header", "not valid"]),
        (b'{"a": {"dtype": "F32"}}', ["header", "not valid"]),
        (b'{"a": {"dtype": "F32", "shape": [6, 5], "data_offsets": [0, 4]}}', ["cannot hold"]),
        (b'{"a": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}', ["F8_E4M3"]),
        (b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}', ["cannot hold"]),
        (b"[]", ["header", "not valid"]),
    ],
)
def test_broken_header(tmp_path: Path, header: bytes, words: list[str]) -> None:
    write(tmp_path, {"a": torch.zeros(1)})
    content = len(header).to_bytes(8, "little") + header + bytes(200)
    (tmp_path / "model.safetensors").write_bytes(content)
    fails(tmp_path, *words)


def test_no_safetensors_file(tmp_path: Path, tensors: dict[str, Any]) -> None:
    write(tmp_path, tensors)
    (tmp_path / "model.safetensors").write_bytes(b"<html>not found</html>" * 10)
    fails(tmp_path, "is not a safetensors file")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_that_are_no_numbers(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    weight = torch.zeros(6, 5, dtype=dtype)
    weight[3, 2] = value
    write(tmp_path, {"a": weight})
    fails(tmp_path, "tensor a", "NaN or infinite")


def test_missing_tensor_and_wrong_shape(tmp_path: Path) -> None:
    fails(write(tmp_path, {"b": torch.zeros(1)}), "has no tensor a")
    fails(write(tmp_path, {"a": torch.zeros(5, 6)}), "tensor a", "[5, 6]", "[6, 5]")


def test_pickled_weights_only(tmp_path: Path, tensors: dict[str, Any]) -> None:
    write(tmp_path, tensors)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    fails(tmp_path, "only pickled weights", "safetensors")
    (tmp_path / "pytorch_model.bin").unlink()
    fails(tmp_path, "holds no model.safetensors")


def test_quantised_checkpoint(tmp_path: Path, tensors: dict[str, Any]) -> None:
    write(tmp_path, tensors, quantization_config={"quant_method": "gptq"})
    fails(tmp_path, "already quantised (gptq)", "original")
