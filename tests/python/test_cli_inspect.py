"""``awq-edge inspect``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import BAD_FILES, STORIES, Command

from awq_edge import Model, errors
from awq_edge.layouts import Layout
from awq_edge.verification import verify


def test_says_what_the_file_holds(command: Command) -> None:
    result = command("inspect", STORIES)
    assert result.status == 0
    for word in ("bits per weight", "memory", "512 tokens", "awq_edge.decoder.layers", "r4k32"):
        assert word in result.out
    assert "blk.0.attn_q.weight" not in result.out
    assert max(map(len, result.out.splitlines())) < 140


def test_lists_tensors(command: Command) -> None:
    result = command("inspect", STORIES, "--tensors")
    assert "blk.4.ffn_down.weight" in result.out


def test_json_holds_everything(command: Command) -> None:
    result = command("inspect", STORIES, "--json", "--tensors", "--verify")
    document = json.loads(result.out)
    with Model.open(STORIES) as model:
        assert document["metadata"] == model.metadata
        assert document["info"] == vars(model.info)
        assert [t["name"] for t in document["tensors"]] == [t.name for t in model.tensors]
        assert document["memory"]["cache_bytes"] == model.memory().cache_bytes
        assert document["sha256"] == model.metadata["awq_edge.sha256"]


def test_memory_follows_the_context(command: Command) -> None:
    def cache(context: int) -> int:
        result = command("inspect", STORIES, "--json", "--context", context)
        return int(json.loads(result.out)["memory"]["cache_bytes"])

    assert cache(16) < cache(512)


def test_bits_per_weight_count_every_byte(command: Command) -> None:
    document = json.loads(command("inspect", STORIES, "--json", "--tensors").out)
    packed = [t for t in document["tensors"] if t["name"].startswith("blk.") and t["group_size"]]
    weights = sum(t["rows"] * t["columns"] for t in packed)
    expected = 8 * sum(t["bytes"] for t in packed) / weights
    assert document["bits_per_weight"]["layers"] == pytest.approx(expected)


def test_verify_accepts_the_file(command: Command) -> None:
    result = command("inspect", STORIES, "--verify")
    assert result.status == 0
    assert "checksum agrees" in result.out


def changed_copy(tmp_path: Path, name: str, byte: int, value: bytes) -> Path:
    """A copy whose tensor ``name`` has other bytes at ``byte``."""
    with Model.open(STORIES) as model:
        offset = next(t.offset for t in model.tensors if t.name == name) + byte
    content = bytearray(STORIES.read_bytes())
    assert content[offset : offset + len(value)] != value
    content[offset : offset + len(value)] = value
    path = tmp_path / "changed.awq.gguf"
    path.write_bytes(content)
    return path


def test_verify_notices_one_changed_code(command: Command, tmp_path: Path) -> None:
    with Model.open(STORIES) as model:
        tensor = next(t for t in model.tensors if t.name == "blk.2.ffn_up.weight")
    last = tensor.bytes - 1
    old = STORIES.read_bytes()[tensor.offset + last]
    path = changed_copy(tmp_path, tensor.name, last, bytes([old ^ 1]))
    assert command("inspect", path).status == 0
    command("inspect", path, "--verify").assert_one_sentence("SHA-256", str(path))


def test_verify_names_a_scale_that_is_not_finite(command: Command, tmp_path: Path) -> None:
    name = "blk.3.attn_v.weight"
    infinity = np.float16(np.inf).tobytes()
    path = changed_copy(tmp_path, name, 64, infinity)
    command("inspect", path, "--verify").assert_one_sentence("1 scales", name, "not finite")


def test_verify_looks_at_scales_alone(tmp_path: Path) -> None:
    """Codes that look like infinite scales are codes."""
    with Model.open(STORIES) as model:
        tensor = next(t for t in model.tensors if t.name == "blk.3.attn_v.weight")
    path = changed_copy(tmp_path, tensor.name, 64 + 64, np.float16(np.inf).tobytes())
    layout = Layout(tensor.rows, tensor.columns, tensor.bits, tensor.group_size)
    assert layout.zero_points_offset <= 64
    with Model.open(path) as model, pytest.raises(errors.FileInvalidError, match="SHA-256"):
        verify(model)


@pytest.mark.parametrize("options", [[], ["--verify"], ["--json"]])
@pytest.mark.parametrize(("fault", "words"), BAD_FILES.items())
def test_bad_file(
    command: Command,
    broken_file: Callable[[str], Path],
    fault: str,
    words: str,
    options: list[str],
) -> None:
    path = broken_file(fault)
    result = command("inspect", path, *options)
    result.assert_one_sentence(str(path), words)
    assert result.out == ""
