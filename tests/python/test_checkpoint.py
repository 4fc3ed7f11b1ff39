"""Checkpoints: lazy reading in every float type, and one clear sentence for every bad input."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

from awq_edge.checkpoints import open_checkpoint  # noqa: E402  (after the check for torch)
from awq_edge.errors import CheckpointError, FileUnreadableError  # noqa: E402

FILES = ("config.json", "model.safetensors", "pytorch_model.bin", "model.safetensors.index.json")


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
    (tmp_path / "model.npz").write_bytes(b"x")
    fails(tmp_path / "model.npz", "is a file", "config.json")


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
    fails(tmp_path, "has no tensor a")


def test_an_index_may_promise_what_nobody_needs(tmp_path: Path, tensors: dict[str, Any]) -> None:
    write(tmp_path, tensors, shards=3)
    index = tmp_path / "model.safetensors.index.json"
    table = json.loads(index.read_text())["weight_map"]
    table["mtp.0.weight"] = table["a"]
    index.write_text(json.dumps({"weight_map": table}))
    assert "a" in open_checkpoint(str(tmp_path))


@pytest.mark.parametrize("shards_there", [True, False])
def test_a_whole_file_counts_before_a_left_over_index(
    tmp_path: Path, tensors: dict[str, Any], shards_there: bool
) -> None:
    write(tmp_path, {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}, shards=3)
    if not shards_there:
        (tmp_path / "model-2-of-3.safetensors").unlink()
    write(tmp_path, tensors)
    assert torch.equal(open_checkpoint(str(tmp_path)).tensor("a", (6, 5)), tensors["a"])


def test_names_with_and_without_the_base_prefix(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(write(tmp_path, {"layers.0.w": torch.ones(2)})))
    assert "model.layers.0.w" in checkpoint
    assert checkpoint.tensor("model.layers.0.w", (2,)).tolist() == [1, 1]
    assert "lm_head.layers.0.w" not in checkpoint


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
        (b'{"a": {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 4]}}', ["whole numbers"]),
        (b'{"a": {"dtype": "F32", "shape": [true], "data_offsets": [0, 4]}}', ["whole numbers"]),
        (b'{"a": {"dtype": "F32", "shape": ["1"], "data_offsets": [0, 4]}}', ["whole numbers"]),
        (b'{"a": {"dtype": 5, "shape": [1], "data_offsets": [0, 4]}}', ["no type"]),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}', ["cannot hold"]),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [196, 200]}, "b": 5}', ["of b"]),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [200, 204]}}', ["truncated"]),
        (b'{"a": {"dtype": "F32", "shape": [' + b"9" * 500 + b"]}}", ["500 digits"]),
        (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", ["nested too deeply"]),
        (b'{"a": ' + b"[" * 100000 + b"]" * 100000 + b"}", ["nested too deeply"]),
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


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("BOOL", torch.bool),
        ("U8", torch.uint8),
        ("U16", torch.uint16),
        ("C64", torch.complex64),
        ("F8_E4M3", torch.float8_e4m3fn),
        ("F8_E5M2", torch.float8_e5m2),
    ],
)
def test_types_that_are_not_read(
    tmp_path: Path, tensors: dict[str, Any], kind: str, dtype: torch.dtype
) -> None:
    """They spoil nothing beside the weights, and are told by name where weights should be."""
    odd = torch.ones(6, 5).to(dtype)
    write(tmp_path, {**tensors, "z": odd})
    assert torch.equal(open_checkpoint(str(tmp_path)).tensor("a", (6, 5)), tensors["a"])
    fails(write(tmp_path, {"a": odd}), "tensor a", f"type {kind};")


def test_weights_in_float64(tmp_path: Path, tensors: dict[str, Any]) -> None:
    wide = tensors["a"].double() * torch.pi
    read = open_checkpoint(str(write(tmp_path, {"a": wide}))).tensor("a", (6, 5))
    assert torch.equal(read, wide.float())
    wide[2, 1] = 1e300
    fails(write(tmp_path, {"a": wide}), "tensor a", "beyond the range of float32")
    wide[2, 1] = torch.nan
    fails(write(tmp_path, {"a": wide}), "tensor a", "NaN or infinite")


# ---- what lies there instead ---------------------------------------------------------------------


def test_no_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    fails(tmp_path, "holds no model.safetensors", "pytorch_model.bin")
    (tmp_path / "weights.gguf").touch()
    fails(tmp_path, "holds weights.gguf", "give that file itself")
    (tmp_path / "model-00001-of-00002.safetensors").touch()
    fails(tmp_path, "model-00001-of-00002.safetensors", "no model.safetensors.index.json")
    (tmp_path / "consolidated.safetensors").touch()
    fails(tmp_path, "consolidated.safetensors", "maker's own names")


@pytest.mark.parametrize("config", [True, False])
def test_adapter_without_its_base(tmp_path: Path, config: bool) -> None:
    if config:
        (tmp_path / "config.json").write_text("{}")
    safetensors_torch.save_file({"lora": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    fails(tmp_path, "an adapter (adapter_model.safetensors) without its base")
    settings = json.dumps({"base_model_name_or_path": "owner/base"})
    (tmp_path / "adapter_config.json").write_text(settings)
    fails(tmp_path, "an adapter of owner/base", "merge")


@pytest.mark.parametrize(
    "name",
    ["config.json", "model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"],
)
def test_pointer_of_git_lfs(tmp_path: Path, tensors: dict[str, Any], name: str) -> None:
    write(tmp_path, tensors)
    if name != "config.json":
        (tmp_path / "model.safetensors").unlink()
    (tmp_path / name).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 5000000\n"
    )
    fails(tmp_path, name, "pointer of Git LFS", "git lfs pull")


@pytest.mark.parametrize("kind", ["a pipe", "a directory", "a device"])
@pytest.mark.parametrize(
    "name",
    ["config.json", "model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"],
)
def test_what_is_no_file_is_refused_at_once(
    tmp_path: Path, tensors: dict[str, Any], name: str, kind: str
) -> None:
    write(tmp_path, tensors)
    (tmp_path / "model.safetensors").unlink()
    path = tmp_path / name
    path.unlink(missing_ok=True)
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a directory":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    fails(tmp_path, name, f"is {kind}")


def test_links_are_followed(tmp_path: Path, tensors: dict[str, Any]) -> None:
    """The hub's cache consists of them; one to itself ends in a sentence."""
    real = write(tmp_path / "real", tensors)
    linked = tmp_path / "linked"
    linked.mkdir()
    for file in real.iterdir():
        (linked / file.name).symlink_to(file)
    assert "a" in open_checkpoint(str(linked))
    (linked / "model.safetensors").unlink()
    (linked / "model.safetensors").symlink_to("model.safetensors")
    with pytest.raises(FileUnreadableError, match="Cannot read"):
        open_checkpoint(str(linked))


@pytest.mark.parametrize("name", ["", "a\0b"])
def test_names_that_name_nothing(name: str) -> None:
    fails(name, "names no directory")


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("my-model", "my-model"),
        ("models--owner--tiny-story/snapshots/0123456789abcdef", "tiny-story"),
        ("models--gpt2/snapshots/0123456789abcdef", "gpt2"),
        ("snapshots/2026", "2026"),
    ],
)
def test_name(tmp_path: Path, tensors: dict[str, Any], place: str, name: str) -> None:
    directory = tmp_path / place
    directory.mkdir(parents=True)
    assert open_checkpoint(str(write(directory, tensors))).name == name


# ---- pickled weights -----------------------------------------------------------------------------


def write_pickled(directory: Path, content: Any, **options: Any) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"model_type": "llama"}))
    torch.save(content, directory / "pytorch_model.bin", **options)
    return directory


def test_pickled_weights(tmp_path: Path, tensors: dict[str, Any]) -> None:
    """Also views: a slice of a larger tensor, a transposed one, and one that is stored twice."""
    large = torch.randn(10, 8)
    views = {"d": large[2:5, 1:4], "e": large.T, "f": large[3], "g": tensors["a"]}
    directory = write_pickled(tmp_path, {**tensors, **views, "version": 3, "none": None})
    checkpoint = open_checkpoint(str(directory))
    for name, tensor in {**tensors, **views}.items():
        assert torch.equal(checkpoint.tensor(name, tuple(tensor.shape)), tensor.float())
    blocks = [block for _, block in checkpoint.row_blocks("e", (8, 10), 3)]
    assert torch.equal(torch.cat(blocks), large.T)
    assert "version" not in checkpoint
    safetensors_torch.save_file({"a": torch.zeros(6, 5)}, directory / "model.safetensors")
    assert not open_checkpoint(str(directory)).tensor("a", (6, 5)).any()


def test_pickled_shards(tmp_path: Path, tensors: dict[str, Any]) -> None:
    write(tmp_path, tensors)
    (tmp_path / "model.safetensors").unlink()
    table = {}
    for number, name in enumerate(tensors):
        file = f"pytorch_model-0000{number + 1}-of-00003.bin"
        torch.save({name: tensors[name]}, tmp_path / file)
        table[name] = file
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": table}))
    checkpoint = open_checkpoint(str(tmp_path))
    for name, tensor in tensors.items():
        assert torch.equal(checkpoint.tensor(name, tuple(tensor.shape)), tensor.float())
    (tmp_path / table["b"]).unlink()
    fails(tmp_path, table["b"], "is missing")


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_payload_does_not_run(tmp_path: Path, tensors: dict[str, Any], zipped: bool) -> None:
    content = {**tensors, "x": Payload(tmp_path / "ran")}
    write_pickled(tmp_path / "m", content, _use_new_zipfile_serialization=zipped)
    words = ["refuses it", "open"] if zipped else ["before release 1.6"]
    fails(tmp_path / "m", "pytorch_model.bin", *words)
    assert not (tmp_path / "ran").exists()


def test_pickled_files_that_are_none(tmp_path: Path, tensors: dict[str, Any]) -> None:
    path = write_pickled(tmp_path, tensors) / "pytorch_model.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    fails(tmp_path, "pytorch_model.bin is truncated")
    path.write_bytes(b"<html>not found</html>")
    fails(tmp_path, "is not a file of PyTorch weights")
    path.write_bytes(b"")
    fails(tmp_path, "is not a file of PyTorch weights")
    fails(write_pickled(tmp_path, [torch.ones(1)]), "no table of tensors")
    fails(write_pickled(tmp_path, {"state_dict": tensors}), "no tensors by their names")
    fails(write_pickled(tmp_path, {"a": torch.ones(6, 5).bool()}), "type bool")
    fails(write_pickled(tmp_path, {"a": torch.ones(6, 5).to_sparse()}), "sparse")


# ---- quantised already ---------------------------------------------------------------------------


def test_quantised_matrices_without_their_settings(tmp_path: Path) -> None:
    directory = write(tmp_path, {"l.qweight": torch.ones(2, dtype=torch.int32)})
    with pytest.raises(CheckpointError, match=r"l quantised already \(l\.qweight\)"):
        open_checkpoint(str(directory)).check("l.weight", (2, 2))


def test_quantised_checkpoint(tmp_path: Path, tensors: dict[str, Any]) -> None:
    write(tmp_path, tensors, quantization_config={"quant_method": "gptq"})
    fails(tmp_path, "already quantised (gptq)", "original")


def test_nothing_else_unpickles() -> None:
    """One call of torch.load in the package, and a restricted one."""
    package = Path(open_checkpoint.__code__.co_filename).parents[1]
    calls = {
        path.name: line.strip()
        for path in package.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"torch\.load\((?!FILE)|import pickle\b|allow_pickle=True|joblib", line)
    }
    assert set(calls) == {"pickled_file.py"}
    assert "weights_only=True" in calls["pickled_file.py"]
