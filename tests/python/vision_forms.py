"""Every form of a vision part that a file may have: its keys, and random files of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from decoder_forms import PLAIN, random_matrix, write_packed

from awq_edge.architecture import Architecture
from awq_edge.model_file import TensorSource

# Without "awq_edge.vision."; sizes end inside a block, a group, a strip of rows and a chunk.
TOWER: dict[str, Any] = {
    "layers": 2,
    "hidden_size": 72,
    "heads": 3,
    "head_size": 24,
    "feed_forward_size": 100,
    "image_size": 59,
    "patch_size": 6,  # 9 on a side, 5 pixels left over
    "norm_epsilon": 2.0**-20,
    "activation": "gelu_tanh",
    "connector": "linear",
}
FORMS: dict[str, dict[str, Any]] = {
    "as LLaVA": {
        "image_size": 48,
        "activation": "quick_gelu",
        "class_token": True,
        "pre_norm": True,
        "connector": "mlp",
        "connector_size": 88,
    },
    "as OneVision": {"connector": "mlp", "connector_size": 88},
    "as VILA 1.5": {
        "regroup": 2,
        "by_columns": True,
        "connector": "mlp",
        "connector_size": 88,
        "connector_norm": "layer",
        "connector_norm_epsilon": 2.0**-17,
    },
    "as SmolVLM": {"post_norm": True, "regroup": 3, "no biases": ("mm.0",)},
    "as Gemma 3": {
        "image_size": 48,
        "post_norm": True,
        "pool": 2,
        "connector_norm": "rms",
        "connector_norm_epsilon": 2.0**-20,
        "bidirectional": True,
        "no biases": ("mm.0",),
    },
    "average of nine, regrouped": {
        "pool": 3,
        "regroup": 2,
        "activation": "relu",
        "heads": 1,
        "head_size": 9,
        "no biases": ("v.patch_embd", "v.blk.0.attn_k", "v.blk.1.ffn_up"),
    },
    "between two matrices": {
        "activation": "silu",
        "connector": "mlp",
        "connector_size": 40,
        "connector_activation": "gelu_tanh",
    },
    "exact gelu": {"activation": "gelu"},
    "as Qwen2-VL": {
        "image_size": 96,
        "position": "rotary",
        "activation": "quick_gelu",
        "post_norm": True,
        "regroup": 2,
        "connector": "mlp",
        "connector_size": 88,
        "no biases": ("v.patch_embd",),
    },
    "as Qwen3-VL": {
        "image_size": 96,
        "position": "rotary",
        "position_grid": 7,
        "post_norm": True,
        "regroup": 2,
        "connector": "mlp",
        "connector_size": 88,
        "taps": [0, 1],
    },
    "as Qwen2.5-VL": {
        "image_size": 96,
        "position": "rotary",
        "norm": "rms",
        "feed_forward": "gated",
        "activation": "silu",
        "window": 4,
        "full_layers": [1],
        "post_norm": True,
        "regroup": 2,
        "connector": "mlp",
        "connector_size": 88,
        "no biases": ("v.patch_embd",),
    },
}


def vision_keys(form: str) -> dict[str, Any]:
    """What a file of this form says of its vision part, without the prefix."""
    keys = {**TOWER, **FORMS[form]}
    keys.pop("no biases", None)
    return keys


def matrix_shapes(keys: dict[str, Any], embedding: int) -> dict[str, tuple[int, int]]:
    """Rows and columns of every packed matrix, by its name without ".weight"."""
    hidden, width = keys["hidden_size"], keys["feed_forward_size"]
    queries = keys["heads"] * keys["head_size"]
    read = keys.get("regroup", 1) ** 2 * hidden
    shapes = {"v.patch_embd": (hidden, 3 * keys["patch_size"] ** 2)}
    for i in range(keys["layers"]):
        for name in ("attn_q", "attn_k", "attn_v"):
            shapes[f"v.blk.{i}.{name}"] = (queries, hidden)
        shapes[f"v.blk.{i}.attn_out"] = (hidden, queries)
        if keys.get("feed_forward") == "gated":
            shapes[f"v.blk.{i}.ffn_gate"] = (width, hidden)
        shapes[f"v.blk.{i}.ffn_up"] = (width, hidden)
        shapes[f"v.blk.{i}.ffn_down"] = (hidden, width)
    if keys["connector"] == "mlp":
        shapes["mm.0"] = (keys["connector_size"], read)
        shapes["mm.2"] = (embedding, keys["connector_size"])
        for tap in range(len(keys.get("taps", ()))):
            shapes[f"mm.tap.{tap}.0"] = shapes["mm.0"]
            shapes[f"mm.tap.{tap}.2"] = shapes["mm.2"]
    else:
        shapes["mm.0"] = (embedding, read)
    return shapes


def norm_sizes(keys: dict[str, Any]) -> dict[str, int]:
    """Numbers of every norm, by its name without ".weight"."""
    hidden = keys["hidden_size"]
    names = [f"v.blk.{i}.ln{n}" for i in range(keys["layers"]) for n in (1, 2)]
    names += [
        name
        for name, key in (("v.pre_ln", "pre_norm"), ("v.post_ln", "post_norm"))
        if keys.get(key)
    ]
    sizes = dict.fromkeys(names, hidden)
    if "connector_norm" in keys:
        sizes["mm.norm"] = keys.get("regroup", 1) ** 2 * hidden
    for tap in range(len(keys.get("taps", ()))):
        sizes[f"mm.tap.{tap}.norm"] = keys.get("regroup", 1) ** 2 * hidden
    return sizes


def vision_tensors(form: str, embedding: int, seed: int = 0) -> list[tuple[str, TensorSource]]:
    """Random tensors of a form; none is near to having no effect."""
    keys, generator = vision_keys(form), np.random.default_rng(seed + 7)
    without = FORMS[form].get("no biases", ())

    def floats(size: int, middle: float = 0.0) -> np.ndarray[Any, Any]:
        return (middle + 0.3 * generator.standard_normal(size)).astype(np.float32)

    bytes_ = np.arange(256, dtype=np.float64)
    table = [(bytes_ / 255 - mean) / 0.27 for mean in (0.48, 0.45, 0.41)]
    grid = keys["image_size"] // keys["patch_size"]
    rows = grid * grid + int(keys.get("class_token", False))
    tensors: list[tuple[str, TensorSource]] = [
        ("v.pixel_values", np.concatenate(table).astype(np.float32)),
    ]
    if keys.get("position") == "rotary":
        frequencies = 0.1 ** np.arange(keys["head_size"] // 4)
        tensors.append(("v.rope.inverse_frequencies", frequencies.astype(np.float32)))
        rows = keys.get("position_grid", 0) ** 2
    if rows:
        tensors.append(("v.position_embd.weight", floats(rows * keys["hidden_size"])))
    if keys.get("class_token"):
        tensors.append(("v.class_embd", floats(keys["hidden_size"])))
    for name, size in norm_sizes(keys).items():
        tensors.append((f"{name}.weight", floats(size, 1.0)))
        kind = keys["connector_norm"] if name == "mm.norm" else keys.get("norm", "layer")
        if kind == "layer":
            tensors.append((f"{name}.bias", floats(size)))
    kinds = ((8, 32), (4, 64), (3, 128), (8, 128), (6, 64))
    for i, (name, (n, k)) in enumerate(matrix_shapes(keys, embedding).items()):
        bits, group = kinds[i % len(kinds)]
        if name.endswith(("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up")):
            group = 64  # they read one input
        packed = random_matrix(n, k, 0.35 * k**-0.5, generator, bits, group)
        tensors.append((f"{name}.weight", packed))
        if name not in without:
            tensors.append((f"{name}.bias", floats(n)))
    return tensors


def write_vision(form: str, path: Path, decoder: Architecture = PLAIN) -> None:
    """A packed file with a vision part of a form and a small decoder."""
    keys = {f"awq_edge.vision.{name}": value for name, value in vision_keys(form).items()}
    tensors = vision_tensors(form, decoder.hidden_size)
    write_packed(decoder, path, more_metadata=keys, more_tensors=tensors)


def random_picture(form: str, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Pixels, uint8 [height, width, 3], with a part of one colour.

    A square, or of any shape: one whose edges end within a window.
    """
    keys = vision_keys(form)
    shape = (keys["image_size"],) * 2 if keys.get("position") != "rotary" else (60, 36)
    pixels = np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)
    pixels[:7, :13] = 128
    return pixels
