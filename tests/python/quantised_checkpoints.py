"""Small quantised checkpoints for tests, in other tools' formats.

The packing here is written from the formats' descriptions and shares nothing with awq_edge: it is
what the importer is tested against.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkpoints import random_model
from safetensors.torch import load_file, save_file

# Which output of a word of eight its nibbles hold, lowest bits first.
GEMM_NIBBLES = (0, 2, 4, 6, 1, 3, 5, 7)

SIZES = dict(
    hidden_size=128,
    intermediate_size=192,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
)


@dataclasses.dataclass(frozen=True)
class Matrix:
    """w = scale * (code - zero), the truth of a test."""

    codes: np.ndarray  # [n, k]
    scales: np.ndarray  # float16 [n, groups]
    zeros: np.ndarray  # [n, groups]
    group_size: int

    def weights(self) -> np.ndarray:
        group = np.arange(self.codes.shape[1]) // self.group_size
        differences = (self.codes - self.zeros[:, group]).astype(np.float32)
        return self.scales[:, group].astype(np.float32) * differences


def random_matrix(
    n: int, k: int, group_size: int, seed: int, bits: int = 4, symmetric: bool = False
) -> Matrix:
    random = np.random.default_rng(seed)
    groups = -(-k // group_size)
    zeros = random.integers(0, 2**bits, (n, groups))
    if symmetric:
        zeros[:] = 2 ** (bits - 1)
    return Matrix(
        random.integers(0, 2**bits, (n, k)),
        random.uniform(0.001, 0.02, (n, groups)).astype(np.float16),
        zeros,
        group_size,
    )


def as_int32(word: int) -> int:
    return word - 2**32 if word >= 2**31 else word


def gemm_words(values: np.ndarray) -> np.ndarray:
    """[n, anything] -> int32 [anything, n / 8]."""
    words = np.zeros((values.shape[1], values.shape[0] // 8), np.int64)
    for nibble, output in enumerate(GEMM_NIBBLES):
        words += values[output::8].T.astype(np.int64) * 16**nibble
    return np.where(words >= 2**31, words - 2**32, words).astype(np.int32)


def bit_string_words(row: list[int], bits: int, words: int) -> list[int]:
    """Codes one after the other, from the lowest bit up, cut into int32."""
    whole = 0
    for position, code in enumerate(row):
        whole += int(code) << (position * bits)
    return [as_int32(whole >> (32 * word) & 0xFFFFFFFF) for word in range(words)]


def gemm_tensors(name: str, matrix: Matrix) -> dict[str, np.ndarray]:
    return {
        f"{name}.qweight": gemm_words(matrix.codes),
        f"{name}.qzeros": gemm_words(matrix.zeros),
        f"{name}.scales": np.ascontiguousarray(matrix.scales.T),
    }


def gemv_tensors(name: str, matrix: Matrix) -> dict[str, np.ndarray]:
    n, k = matrix.codes.shape
    groups = matrix.zeros.shape[1]
    words = (groups + 7) // 8
    # For groups below 128 the kernels read zero-points two or four words at a time.
    words = {128: words, 64: (words + 1) // 2 * 2, 32: (words + 3) // 4 * 4}[matrix.group_size]
    scales = np.zeros((n, 8 * words), np.float16)
    scales[:, :groups] = matrix.scales
    codes = [bit_string_words(list(row), 4, k // 8) for row in matrix.codes]
    zeros = [bit_string_words(list(row), 4, words) for row in matrix.zeros]
    return {
        f"{name}.qweight": np.array(codes, np.int32),
        f"{name}.qzeros": np.array(zeros, np.int32),
        f"{name}.scales": scales,
    }


def packed_tensors(name: str, matrix: Matrix, bits: int, symmetric: bool) -> dict[str, np.ndarray]:
    """compressed-tensors, pack-quantized."""
    n, k = matrix.codes.shape
    columns = list(matrix.zeros.T)
    tensors = {
        f"{name}.weight_packed": np.array(
            [bit_string_words(list(row), bits, -(-k * bits // 32)) for row in matrix.codes],
            np.int32,
        ),
        f"{name}.weight_scale": matrix.scales,
        f"{name}.weight_shape": np.array([n, k], np.int64),
    }
    if not symmetric:
        words = [bit_string_words(list(column), bits, -(-n * bits // 32)) for column in columns]
        tensors[f"{name}.weight_zero_point"] = np.ascontiguousarray(np.array(words, np.int32).T)
    return tensors


def write(
    directory: Path,
    settings: dict[str, Any],
    pack: Any,
    *,
    family: str = "llama",
    group_size: int = 64,
    bits: int = 4,
    symmetric: bool = False,
    keep_float: tuple[str, ...] = (),
    shards: int = 1,
    vocabulary: int = 101,
) -> dict[str, Matrix]:
    """A random model whose decoder matrices are replaced by random integers.

    Args:
        directory: Where to write.
        settings: quantization_config.
        pack: Name and Matrix to tensors.
        family: Of ``checkpoints.FAMILIES``.
        group_size: Of the integers; 0 is one group per row.
        bits: Width of the codes.
        symmetric: Whether every zero-point is the middle code.
        keep_float: Ends of names of matrices that stay floats.
        shards: Files to divide the tensors among.
        vocabulary: Rows of embedding and head.

    Returns:
        The integers, by the checkpoint's name of the matrix.
    """
    model = random_model(family, **SIZES, vocab_size=vocabulary).half()
    model.save_pretrained(directory, safe_serialization=True)
    tensors = dict(load_file(directory / "model.safetensors"))
    truth: dict[str, Matrix] = {}
    for seed, key in enumerate(sorted(tensors)):
        name = key.removesuffix(".weight")
        if ".layers." not in name or not name.endswith("_proj") or name.endswith(keep_float):
            continue
        if not key.endswith(".weight"):
            continue
        n, k = tensors.pop(key).shape
        truth[name] = random_matrix(n, k, group_size or k, seed, bits, symmetric)
        for part, values in pack(name, truth[name]).items():
            tensors[part] = torch.from_numpy(np.ascontiguousarray(values))
    (directory / "model.safetensors").unlink()
    save_shards(tensors, directory, shards)
    path = directory / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "quantization_config": settings}))
    return truth


def save_shards(tensors: dict[str, torch.Tensor], directory: Path, shards: int) -> None:
    if shards == 1:
        save_file(tensors, directory / "model.safetensors")
        return
    index: dict[str, str] = {}
    names = sorted(tensors)
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[shard::shards]}
        save_file(part, directory / file)
        index.update(dict.fromkeys(part, file))
    table = {"metadata": {}, "weight_map": index}
    (directory / "model.safetensors.index.json").write_text(json.dumps(table))


def write_gemm(directory: Path, group_size: int = 64, **options: Any) -> dict[str, Matrix]:
    settings = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": group_size,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": None,
    }
    settings.update(options.pop("settings", {}))
    return write(directory, settings, gemm_tensors, group_size=group_size, **options)


def compressed_settings(
    bits: int, group_size: int, symmetric: bool, **weights: Any
) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "input_activations": None,
                "output_activations": None,
                "weights": {
                    "num_bits": bits,
                    "type": "int",
                    "strategy": "group" if group_size else "channel",
                    "group_size": group_size or None,
                    "symmetric": symmetric,
                    **weights,
                },
            }
        },
    }
