"""Damaged and odd GGUF files: one sentence each, and nothing made in a number that is announced."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import checkpoints
import gguf_files

from awq_edge.errors import AwqEdgeError
from awq_edge.float_model import open_float_model


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = checkpoints.random_model("llama", num_hidden_layers=1)
    return checkpoints.save(model, tmp_path_factory.mktemp("hf"))


def refused(path: Path, *parts: str) -> None:
    with pytest.raises(AwqEdgeError) as caught:
        open_float_model(str(path))
    text = str(caught.value)
    assert text.endswith(".") and "\n" not in text, text
    for part in parts:
        assert part in text, text


def made(directory: Path, path: Path, change: Callable[[Any, dict[str, Any]], None]) -> Path:
    return gguf_files.write(path, directory, "Llama", change=change)


def whole(directory: Path, path: Path) -> bytearray:
    return bytearray(made(directory, path, lambda writer, tensors: None).read_bytes())


def test_truncated_everywhere(directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    content = whole(directory, path)
    for length in [4, 8, 23, 30, 100, 400, 900, 1500, len(content) // 2, len(content) - 200]:
        path.write_bytes(content[:length])
        refused(path, "m.gguf is truncated", "download it again")
    path.write_bytes(b"")
    refused(path, "not a GGUF file")


def test_another_magic(tmp_path: Path) -> None:
    for magic, says in ((b"tjgg", "before GGUF"), (b"\x80\x02cc", "not a GGUF file")):
        (tmp_path / "m.gguf").write_bytes(magic + bytes(100))
        refused(tmp_path / "m.gguf", says)
    (tmp_path / "m.gguf").write_bytes(b"version https://git-lfs.github.com/spec/v1\n" + bytes(99))
    refused(tmp_path / "m.gguf", "Git LFS")


def test_version_one_and_unknown_ones(directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    content = whole(directory, path)
    for version in (0, 1, 4, 77):
        content[4:8] = struct.pack("<I", version)
        path.write_bytes(content)
        refused(path, f"of version {version}", "2 and 3 are read")
    content[4:8] = struct.pack("<I", 2)  # the same bytes as version 3
    path.write_bytes(content)
    open_float_model(str(path))


def test_big_endian(tmp_path: Path) -> None:
    from gguf import GGUFEndian, GGUFWriter

    writer = GGUFWriter(tmp_path / "m.gguf", "llama", endianess=GGUFEndian.BIG)
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    gguf_files.finish(writer)
    refused(tmp_path / "m.gguf", "big-endian", "gguf-convert-endian")


@pytest.mark.parametrize(("at", "what"), [(8, "tensors"), (16, "entries")])
@pytest.mark.parametrize("count", [1 << 20, 1 << 40, (1 << 64) - 1])
def test_huge_counts(at: int, what: str, count: int, directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    content = whole(directory, path)
    content[at : at + 8] = struct.pack("<Q", count)
    path.write_bytes(content)
    refused(path, f"announces {count} {what}")


def test_huge_lists_and_texts(tmp_path: Path) -> None:
    def entry(kind: int, rest: bytes) -> bytes:
        return struct.pack("<Q", 1) + b"k" + struct.pack("<I", kind) + rest

    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)
    for body, says in (
        (entry(9, struct.pack("<IQ", 0, 1 << 50)), "numbers"),
        (entry(9, struct.pack("<IQ", 8, 1 << 50)), "texts"),
        (entry(9, struct.pack("<IQ", 9, 1)), "unknown type 9"),
        (entry(8, struct.pack("<Q", 1 << 50)), "text of"),
        (entry(99, b""), "unknown type 99"),
        (struct.pack("<Q", 1 << 30) + bytes(20), "key of"),
    ):
        (tmp_path / "m.gguf").write_bytes(head + body + bytes(64))
        refused(tmp_path / "m.gguf", "damaged", says)


def record_of(content: bytearray, name: bytes) -> int:
    """Where the dimensions of a tensor's record begin."""
    return content.index(struct.pack("<Q", len(name)) + name) + 8 + len(name)


def test_records_of_tensors(directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    content = whole(directory, path)
    at = record_of(content, b"blk.0.ffn_up.weight")  # two dimensions, a type, an offset

    def changed(offset: int, form: str, value: int, *says: str) -> None:
        copy = bytearray(content)
        struct.pack_into(f"<{form}", copy, at + offset, value)
        path.write_bytes(copy)
        refused(path, *says)

    changed(20, "I", 999, "blk.0.ffn_up.weight", "type 999", "does not know")
    changed(20, "I", 12, "no whole blocks of Q4_K")  # rows of 48
    changed(0, "I", 1 << 31, "dimensions")
    changed(0, "I", 0, "has 0 dimensions")
    changed(4, "Q", 1 << 60, "truncated in the tensor")
    changed(12, "Q", 71, "blk.0.ffn_up.weight", "[71, 48]", "its header asks for [72, 48]")
    changed(24, "Q", 1 << 50, "truncated in the tensor blk.0.ffn_up.weight")


def test_names_of_tensors_that_none_has(directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    content = whole(directory, path)
    name = b"blk.0.ffn_up.weight"
    at = record_of(content, name) - len(name)
    for trick in (b"../../etc/passwd\x00\n\n", b"c__builtin__\neval\n(R", b"\x1b[2Jblk.0.ffn_up.w"):
        copy = bytearray(content)
        copy[at : at + len(name)] = trick[: len(name)].ljust(len(name), b"\n")
        path.write_bytes(copy)
        refused(path, "has a tensor of the name", "which none has")
    twice = bytearray(content)
    twice[at : at + len(name)] = b"blk.0.attn_q.weight"
    path.write_bytes(twice)
    refused(path, "has the tensor blk.0.attn_q.weight twice")
    twice[at : at + len(name)] = b"blk.0.ffn_up.weigh2"
    path.write_bytes(twice)
    refused(path, "has no tensor blk.0.ffn_up.weight")


def test_a_missing_tensor_is_called_as_in_the_file(directory: Path, tmp_path: Path) -> None:
    for name in ("blk.0.attn_k.weight", "output_norm.weight", "token_embd.weight"):
        path = tmp_path / "m.gguf"

        def without(writer: Any, tensors: dict[str, Any], name: str = name) -> None:
            del tensors[name]

        made(directory, path, without)
        refused(path, f"has no tensor {name}.")


def test_a_bias_that_only_one_layer_has(tmp_path: Path) -> None:
    directory = checkpoints.save(checkpoints.random_model("llama"), tmp_path / "hf")

    def change(writer: Any, tensors: dict[str, Any]) -> None:
        tensors["blk.1.ffn_up.bias"] = np.ones(72, np.float32)

    refused(made(directory, tmp_path / "m.gguf", change), "blk.1.ffn_up.bias", "its header says")


@pytest.mark.parametrize("architecture", ["mamba", "rwkv6", "gpt-oss", "t5", "sd3"])
def test_unknown_architectures(architecture: str, tmp_path: Path) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(tmp_path / "m.gguf", architecture)
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    gguf_files.finish(writer)
    refused(tmp_path / "m.gguf", f"'{architecture}'", "the known ones are", "llama")


@pytest.mark.parametrize(
    ("kind", "architecture", "says"),
    [
        ("adapter", "llama", "without its base model"),
        ("mmproj", "clip", "vision projector"),
        ("model", "clip", "vision projector"),  # older files
        ("imatrix", "llama", "importance matrix"),
        ("vocab", "llama", "vocabulary without weights"),
        ("controlvector", "llama", "control vector"),
        ("model", "awq-edge", "packed file already"),
    ],
)
def test_files_that_hold_no_model(kind: str, architecture: str, says: str, tmp_path: Path) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(tmp_path / "m.gguf", architecture)
    writer.add_type(kind)
    writer.add_tensor("blk.0.attn_q.weight.lora_a", np.zeros((4, 32), np.float32))
    gguf_files.finish(writer)
    refused(tmp_path / "m.gguf", says)


def test_no_architecture_and_missing_entries(directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    content = whole(directory, path)
    path.write_bytes(content.replace(b"general.architecture", b"general.architectur3"))
    refused(path, "has no architecture")
    path.write_bytes(content.replace(b"llama.block_count", b"llama.block_coun7"))
    refused(path, "llama.block_count", "incomplete")
    path.write_bytes(content.replace(b"llama.embedding_length", b"llama.embedding_lengt7"))
    refused(path, "llama.embedding_length")


def test_layers_that_differ(directory: Path, tmp_path: Path) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_embedding_length(32)
    writer.add_head_count([4, 2])
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    gguf_files.finish(writer)
    refused(tmp_path / "m.gguf", "differ in attention.head_count")


def test_parts_that_are_missing_or_misnamed(directory: Path, tmp_path: Path) -> None:
    def part(name: str, number: int) -> Path:
        def change(writer: Any, tensors: dict[str, Any]) -> None:
            writer.add_uint16("split.no", number)
            writer.add_uint16("split.count", 2)

        return made(directory, tmp_path / name, change)

    refused(part("m-00001-of-00002.gguf", 0), "m-00002-of-00002.gguf is missing")
    part("m-00002-of-00002.gguf", 0)
    refused(tmp_path / "m-00001-of-00002.gguf", "another part than its name says")
    part("m-00002-of-00002.gguf", 1)
    refused(tmp_path / "m-00001-of-00002.gguf", "twice")
    refused(part("renamed.gguf", 0), "one of 2 parts", "-00001-of-00002.gguf")


def test_broken_weights_and_factors(directory: Path, tmp_path: Path) -> None:
    def change(writer: Any, tensors: dict[str, Any]) -> None:
        tensors["rope_freqs.weight"] = np.array([1, 2, np.nan, 4], np.float32)

    refused(made(directory, tmp_path / "m.gguf", change), "rotary factors", "not positive")


def test_a_directory_is_told_to_give_the_file(tmp_path: Path) -> None:
    (tmp_path / "m-Q4_K_M.gguf").write_bytes(b"GGUF")
    refused(tmp_path, "holds m-Q4_K_M.gguf", "give that file itself")


def test_awq_integers_are_not_in_such_files(directory: Path, tmp_path: Path) -> None:
    from awq_edge.checkpoints import open_checkpoint

    path = made(directory, tmp_path / "m.gguf", lambda writer, tensors: None)
    with pytest.raises(AwqEdgeError, match="without --from-awq"):
        open_checkpoint(str(path), quantised=True)


def header(path: Path, architecture: str, entries: dict[str, Any], **tensors: np.ndarray) -> Path:
    """A file of a few entries that are whole numbers, numbers or texts, and an embedding."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, architecture)
    for key, value in entries.items():
        add = {int: writer.add_uint64, float: writer.add_float32, str: writer.add_string}
        add[type(value)](f"{architecture}.{key}", value)
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    gguf_files.finish(writer)
    return path


SIZES: dict[str, Any] = {
    "embedding_length": 32,
    "block_count": 1,
    "context_length": 64,
    "feed_forward_length": 48,
    "attention.head_count": 4,
}


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("embedding_length", 0, "heads of 0 dimensions"),
        ("embedding_length", 3, "heads of 0 dimensions"),
        ("attention.head_count", 1 << 63, "heads of 0 dimensions"),
        ("attention.key_length", 0, "heads of 0 dimensions"),
        ("attention.layer_norm_rms_epsilon", float("nan"), "layer_norm_rms_epsilon"),
        ("rope.freq_base", float("inf"), "rope.freq_base"),
        ("rope.freq_base", 0.0, "positive number"),
        ("rope.freq_base", -1.0, "positive number"),
        ("rope.scaling.factor", float("nan"), "finite number"),
    ],
)
def test_sizes_and_numbers_that_no_decoder_has(
    key: str, value: Any, says: str, tmp_path: Path
) -> None:
    entries = {**SIZES, "rope.dimension_count": 8, key: value}
    refused(header(tmp_path / "m.gguf", "llama", entries), says, "m.gguf")


@pytest.mark.parametrize(
    ("architecture", "key"),
    [
        ("minicpm", "embedding_scale"),
        ("minicpm", "residual_scale"),
        ("minicpm", "logit_scale"),
        ("granite", "embedding_scale"),
        ("granite", "logit_scale"),
    ],
)
@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_multipliers_that_no_model_has(
    architecture: str, key: str, value: float, tmp_path: Path
) -> None:
    scales = {"embedding_scale": 12.0, "residual_scale": 0.2, "logit_scale": 0.1, key: value}
    path = header(tmp_path / "m.gguf", architecture, {**SIZES, "attention.scale": 0.1, **scales})
    refused(path, f"{architecture}.{key}", "number")


def test_tensors_without_numbers_announce_nothing(directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    content = whole(directory, path)
    for name in (b"blk.0.attn_q.weight", b"blk.0.ffn_up.weight", b"token_embd.weight"):
        for sizes in ((0, 1 << 62), (1 << 62, 0)):
            copy = bytearray(content)
            struct.pack_into("<QQ", copy, record_of(content, name) + 4, *sizes)
            path.write_bytes(copy)
            refused(path, f"tensor {name.decode()} has no numbers")


@pytest.mark.parametrize("value", [[], [1, 2], [3.0]])
def test_what_it_holds_is_a_list(value: list[Any], tmp_path: Path) -> None:
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)
    key = b"general.architecture"
    form = "f" if any(isinstance(one, float) for one in value) else "I"
    numbers = struct.pack(f"<{len(value)}{form}", *value)
    kind = struct.pack("<IIQ", 9, 6 if form == "f" else 4, len(value))
    content = head + struct.pack("<Q", len(key)) + key + kind + numbers + bytes(64)
    (tmp_path / "m.gguf").write_bytes(content)
    refused(tmp_path / "m.gguf", "has no architecture")


# Entries that llama.cpp computes by in some family or in all, in a family that does not read them.
@pytest.mark.parametrize(
    ("key", "value", "neutral"),
    [
        ("rope.scaling.attn_factor", 1.2, 1.0),
        ("rope.scaling.yarn_attn_factor", 0.5, 1.0),
        ("rope.scaling.yarn_ext_factor", 0.0, 1.0),
        ("final_logit_softcapping", 30.0, 0.0),
        ("attn_logit_softcapping", 50.0, 0.0),
        ("attention.clamp_kqv", 8.0, 0.0),
        ("attention.max_alibi_bias", 8.0, 0.0),
        ("attention.scale", 0.25, 0.0),
        ("logit_scale", 8.0, 1.0),
        ("residual_scale", 0.22, 1.0),
        ("embedding_scale", 12.0, 1.0),
    ],
)
def test_entries_that_would_change_the_arithmetic(
    key: str, value: float, neutral: float, directory: Path, tmp_path: Path
) -> None:
    def with_value(number: float) -> Path:
        return made(
            directory,
            tmp_path / "m.gguf",
            lambda writer, _: writer.add_float32(f"llama.{key}", number),
        )

    open_float_model(str(with_value(neutral)))
    refused(with_value(value), f"llama.{key}", "not supported in this family")


@pytest.mark.parametrize(
    "name", ["blk.0.attn_q_norm.weight", "blk.0.attn_sinks.weight", "position_embd.weight"]
)
def test_tensors_that_the_decoder_has_not(name: str, directory: Path, tmp_path: Path) -> None:
    def change(writer: Any, tensors: dict[str, Any]) -> None:
        tensors[name] = np.ones(8, np.float32)

    refused(made(directory, tmp_path / "m.gguf", change), f"the tensor {name}", "not supported")


@pytest.mark.parametrize("values", [[], [0, 2], [-1, -1]])
def test_lists_in_the_place_of_numbers(values: list[int], directory: Path, tmp_path: Path) -> None:
    """Also under keys that most files have not."""
    path = tmp_path / "m.gguf"
    content = whole(directory, path)
    (count,) = struct.unpack_from("<Q", content, 16)
    for key in ("expert_count", "rope.scaling.factor", "attention.key_length"):
        name = f"llama.{key}".encode()
        entry = struct.pack("<Q", len(name)) + name + struct.pack("<IIQ", 9, 5, len(values))
        entry += struct.pack(f"<{len(values)}i", *values)
        head = content[:16] + struct.pack("<Q", count + 1) + entry
        path.write_bytes(head + content[24:])
        refused(path, "m.gguf")


def test_tensors_of_angles_are_left_out(directory: Path, tmp_path: Path) -> None:
    def change(writer: Any, tensors: dict[str, Any]) -> None:
        tensors["blk.0.attn_rot_embd.weight"] = np.ones(4, np.float32)

    open_float_model(str(made(directory, tmp_path / "m.gguf", change)))
