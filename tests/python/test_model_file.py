"""The writer: the gguf package opens its files, and a failed write leaves nothing behind."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from awq_edge import layouts, model_file
from awq_edge.architecture import Architecture
from awq_edge.errors import FileInvalidError, FileUnreadableError, InternalError
from awq_edge.outputs.place import write_error
from awq_edge.outputs.workplace import Workplace
from awq_edge.rope_scaling import RopeScaling

gguf = pytest.importorskip("gguf")

ARCHITECTURE = Architecture(
    layers=1,
    hidden_size=8,
    vocabulary_size=6,
    context_length=32,
    heads=2,
    kv_heads=1,
    head_size=4,
    feed_forward_size=12,
    norm_epsilon=1e-5,
    rope_theta=10000.0,
    rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 8192),
    sliding_windows=(16,),
    tied_head=True,
)


def packed(n: int, k: int) -> bytes:
    generator = np.random.default_rng(n * k)
    codes = generator.integers(0, 16, (n, k), dtype=np.uint8)
    return layouts.pack(
        codes, np.full((n, 1), 0.5, np.float16), np.full((n, 1), 8, np.uint8), 4, 32
    )


def write(path: Path) -> tuple[str, list[bytes]]:
    work = path.parent / "matrix.bin"
    work.write_bytes(packed(6, 8))
    norm = np.arange(8, dtype=np.float32)
    metadata = {
        **ARCHITECTURE.to_metadata(),
        "tokenizer.huggingface.json": '{"é": "日本"}',
        "awq_edge.tokenizer.eos_token_ids": [2, 5],
    }
    odd = np.arange(3, dtype=np.float32)
    tensors: list[tuple[str, Any]] = [
        ("token_embd.weight", work),
        ("output_norm.weight", norm),
        ("blk.0.attn_q.bias", odd),
        ("blk.0.attn_q.weight", packed(5, 31)),
    ]
    digest = model_file.write_model(path, metadata, tensors)
    work.unlink()
    return digest, [packed(6, 8), norm.tobytes(), odd.tobytes(), packed(5, 31)]


def test_gguf_reader_opens_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "m.awq.gguf"
    digest, parts = write(path)
    reader = gguf.GGUFReader(path)
    assert reader.alignment == 64
    fields = {key: field.contents() for key, field in reader.fields.items()}
    assert fields["general.architecture"] == "awq-edge"
    assert fields["awq_edge.format_version"] == 1
    assert fields["awq_edge.layout"] == "r4k32"
    assert fields["awq_edge.decoder.sliding_windows"] == [16]
    assert fields["awq_edge.tokenizer.eos_token_ids"] == [2, 5]
    assert fields["tokenizer.huggingface.json"] == '{"é": "日本"}'
    types = {
        key: [gguf.GGUFValueType(part).name for part in field.types]
        for key, field in reader.fields.items()
    }
    assert types["awq_edge.decoder.sliding_windows"] == ["ARRAY", "UINT32"]
    assert types["awq_edge.decoder.layers"] == ["UINT32"]
    assert types["awq_edge.decoder.norm_epsilon"] == ["FLOAT32"]
    assert types["awq_edge.decoder.tied_head"] == ["BOOL"]
    assert fields["awq_edge.sha256"] == digest == hashlib.sha256(b"".join(parts)).hexdigest()
    for tensor, part in zip(reader.tensors, parts):
        assert tensor.data_offset % 64 == 0
        assert len(tensor.shape) == 1
        assert tensor.data.tobytes() == part
    last = reader.tensors[-1]
    end = int(last.data_offset) + int(last.n_bytes)
    tail = path.read_bytes()[end:]
    assert 64 <= len(tail) < 128 and not any(tail)


def test_architecture_survives_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m.awq.gguf"
    write(path)
    model = model_file.read_dequantised(path)
    assert model.architecture.rope_scaling == ARCHITECTURE.rope_scaling
    assert model.architecture.qkv_bias
    assert model.architecture.sliding_windows == (16,)
    assert model.tensors["token_embd.weight"].shape == (6, 8)
    assert model.group_sizes["blk.0.attn_q.weight"] == 32


@pytest.mark.parametrize("fails_at", ["source", "disk"])
def test_failed_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: str
) -> None:
    path = tmp_path / "m.awq.gguf"
    path.write_bytes(b"the older file")
    if fails_at == "source":
        tensors: list[tuple[str, Any]] = [("a", np.zeros((2, 2), np.float32))]
        with pytest.raises(InternalError, match="float32 vector"):
            model_file.write_model(path, {}, tensors)
    else:

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(FileUnreadableError, match="is full"):
            model_file.write_model(path, {}, [("a", np.zeros(2, np.float32))])
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.awq.gguf"]
    assert path.read_bytes() == b"the older file"


def test_full_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real ENOSPC: the unfinished file is a link to the device that is always full."""
    if not Path("/dev/full").exists():
        pytest.skip("/dev/full exists on Linux only")

    def linked(self: Workplace) -> Workplace:
        self.take({})
        (self.path / "model").symlink_to("/dev/full")
        return self

    monkeypatch.setattr(Workplace, "__enter__", linked)
    with pytest.raises(FileUnreadableError, match="is full"):
        model_file.write_model(tmp_path / "m", {}, [("a", np.zeros(2, np.float32))])
    assert not list(tmp_path.iterdir())


def test_a_short_write_of_numpy_is_a_full_disk(tmp_path: Path) -> None:
    error = OSError("65536 requested and 59232 written")
    assert "is full" in str(write_error(tmp_path / "m", error))


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileUnreadableError, match="no file"):
        model_file.read_dequantised(tmp_path / "missing")
    (tmp_path / "text").write_bytes(b"GGXX" + bytes(100))
    with pytest.raises(FileInvalidError, match="not a GGUF"):
        model_file.read_dequantised(tmp_path / "text")


def test_metadata_without_a_gguf_type_is_a_bug(tmp_path: Path) -> None:
    with pytest.raises(InternalError, match="NoneType"):
        model_file.write_model(tmp_path / "m", {"key": None}, [])  # type: ignore[dict-item]
