"""Shapes of models that see pictures, with random weights: files of awq-edge, made in seconds.

What ``shapes.py`` is for decoders: a shape is a config.json as its model has it, whose converter
says what that means. Decoders have 4 bits with a head of 8, towers and connectors 8.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from awq_edge.converters import find, text_part, vision_part
from shapes import CONTEXT, decoder_metadata, decoder_tensors, random_matrix

from awq_edge.architecture import Architecture
from awq_edge.model_file import TensorSource, write_model
from awq_edge.vision.architecture import VisionArchitecture
from awq_edge.vision.normalisation import pixel_values
from awq_edge.vision.preprocessing import METADATA_KEY, Preprocessing
from awq_edge.vision.prompt import METADATA_KEY as PROMPT_KEY

_TOWER_BITS, _GROUP = 8, 128
_SMOLLM2 = {
    "model_type": "llama",
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": 49280,
    "max_position_embeddings": 8192,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
}
_QWEN3 = {
    "model_type": "qwen3_vl_text",
    "hidden_size": 2048,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 6144,
    "vocab_size": 151936,
    "rope_theta": 5000000.0,
    "tie_word_embeddings": True,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "smolvlm-256m": {
        "model_type": "smolvlm",
        "text_config": _SMOLLM2,
        "vision_config": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "image_size": 512,
            "patch_size": 16,
        },
        "scale_factor": 4,
        "tie_word_embeddings": True,
    },
    "qwen3-vl-2b": {
        "model_type": "qwen3_vl",
        "text_config": _QWEN3,
        "vision_config": {
            "depth": 24,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_heads": 16,
            "out_hidden_size": 2048,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [5, 11, 17],
        },
        "tie_word_embeddings": True,
    },
}
# How pictures are prepared, and the side of the one that is timed: of smolvlm a tile.
_PREPARED = {
    "smolvlm-256m": Preprocessing("rows_and_columns", 512, "lanczos", longest_edge=2048),
    "qwen3-vl-2b": Preprocessing(
        "multiples", 32, "bicubic", least_pixels=256**2, most_pixels=4096**2
    ),
}
SIDE = 512


@dataclasses.dataclass(frozen=True)
class Cut:
    """What is left of a shape that is counted by its parts.

    Attributes:
        layers: Of the tower.
        taps: Whether a connector stands behind the first of them, if the shape has such.
    """

    layers: int
    taps: bool = False


def architectures(shape: str, cut: Cut | None = None) -> tuple[Architecture, VisionArchitecture]:
    """Decoder and tower of a shape; of a cut one the decoder has one layer."""
    config = CONFIGS[shape]
    text = text_part.text_config(config)
    if cut is not None:
        text["num_hidden_layers"] = 1
    decoder = find(text).architecture(text)
    part = vision_part.vision_part(config, decoder.hidden_size)
    assert part is not None
    tower = part.architecture
    if cut is not None:
        tower = dataclasses.replace(tower, layers=cut.layers, taps=(0,) if cut.taps else ())
    return dataclasses.replace(decoder, context_length=CONTEXT), tower


def patches(a: VisionArchitecture) -> int:
    """Of a picture of ``SIDE`` pixels on a side."""
    return (SIDE // a.patch_size) ** 2


def linear_products(a: VisionArchitecture) -> int:
    """Multiply-adds of all matrices for a picture: what works on rows of ``regroup`` fewer."""
    rows, total = patches(a), 0
    for name in a.tensor_names():
        shape = a.tensor_shape(name)
        if len(shape) == 2:
            each = rows if name.startswith("v.") else rows // a.regroup**2
            total += each * shape[0] * shape[1]
    return total


def attention_products(a: VisionArchitecture) -> int:
    """Multiply-adds of queries with keys, and of weights with values."""
    return a.layers * 2 * patches(a) ** 2 * a.heads * a.head_size


def tower_tensors(a: VisionArchitecture) -> list[tuple[str, TensorSource]]:
    """Random tensors of a tower and its connector, in file order."""
    rng = np.random.default_rng(2)
    tensors: list[tuple[str, TensorSource]] = []
    for name in a.tensor_names():
        shape = a.tensor_shape(name)
        if name == "v.pixel_values":
            values = pixel_values((0.5,) * 3, (0.5,) * 3, 1 / 255).reshape(-1)
        elif name == "v.rope.inverse_frequencies":
            quarter = a.head_size // 4
            values = (10000.0 ** (-np.arange(quarter) / quarter)).astype(np.float32)
        elif len(shape) == 2:
            tensors.append((name, random_matrix(*shape, _TOWER_BITS, _GROUP, rng)))
            continue
        elif "position" in name:
            values = rng.standard_normal(shape[0], np.float32) / a.hidden_size**0.5
        else:
            values = np.full(shape, float("bias" not in name), np.float32)
        tensors.append((name, values))
    return tensors


def write_seeing(shape: str, path: Path, cut: Cut | None = None) -> None:
    """Write a file with a decoder and a tower.

    Args:
        shape: One of ``CONFIGS``.
        path: File to write.
        cut: What is left of it; None: all.
    """
    decoder, tower = architectures(shape, cut)
    metadata = decoder_metadata(decoder, bits=4, group_size=_GROUP, head_bits=8)
    metadata |= tower.to_metadata()
    metadata[METADATA_KEY] = _PREPARED[shape].to_json()
    rules: dict[str, Any] = {"token": 1, "placeholder": " w1", "layout": "plain"}
    if tower.rotary:
        rules |= {"layout": "squares", "square": tower.step}
    metadata[PROMPT_KEY] = json.dumps(rules)
    write_model(path, metadata, [*decoder_tensors(decoder), *tower_tensors(tower)])
