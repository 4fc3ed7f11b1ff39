"""Shapes of models people run, with random weights: files of awq-edge, made in seconds.

A shape is a model of ``docs/families.toml`` under a short name; its family's converter says what
that means. The weights are noise of the usual magnitude: speed does not depend on them, and nothing
has to be downloaded. ``peer_shapes.py`` writes the same shapes for llama.cpp.
"""

from __future__ import annotations

import dataclasses
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import tokenizers.decoders
import tokenizers.models
from awq_edge.converters import find

from awq_edge import __version__, stages
from awq_edge.alibi import alibi_slopes
from awq_edge.architecture import Architecture, MetadataValue
from awq_edge.layouts import BITS, HEADER_BYTES, LAYOUT_R4K32, MAGIC, Layout
from awq_edge.model_file import TensorSource, write_model

if sys.version_info >= (3, 11):
    import tomllib
else:  # the standard library has no TOML reader before 3.11
    import tomli as tomllib

CONTEXT = 4096
FAMILIES = Path(__file__).resolve().parent.parent / "docs" / "families.toml"
SHAPES = {
    "tinyllama-1.1b": "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    "llama-3.2-1b": "meta-llama/Llama-3.2-1B",
    "llama-2-7b": "meta-llama/Llama-2-7b-hf",
    "qwen2.5-0.5b": "Qwen/Qwen2.5-0.5B",
    "opt-1.3b": "facebook/opt-1.3b",
    "gemma-3-1b": "google/gemma-3-1b-it",
    "phi-3.5-mini": "microsoft/Phi-3.5-mini-instruct",
    "falcon-7b": "tiiuae/falcon-7b",
    "bloom-1b7": "bigscience/bloom-1b7",
    "starcoderbase-1b": "bigcode/starcoderbase-1b",
    "olmoe-1b-7b": "allenai/OLMoE-1B-7B-0924",
}


def config(shape: str) -> dict[str, Any]:
    """What ``config.json`` of a shape says beyond its class, ``model_type`` included."""
    for family in tomllib.loads(FAMILIES.read_text(encoding="utf-8"))["family"]:
        for model in family["models"]:
            if model["id"] == SHAPES[shape]:
                return {**model["config"], "model_type": model.get("type", family["types"][0])}
    raise KeyError(f"{FAMILIES} has no {SHAPES[shape]}")


def architecture(shape: str) -> Architecture:
    """The decoder of a shape, with a context of ``CONTEXT``."""
    described = config(shape)
    found = find(described).architecture(described)
    return dataclasses.replace(found, context_length=CONTEXT)


def random_matrix(
    n: int, k: int, bits: int, group_size: int, rng: np.random.Generator, size: float = 1.0
) -> bytes:
    """A packed matrix of random codes: far quicker than packing a billion of them.

    Args:
        n: Rows.
        k: Columns; codes behind the last one meet inputs that are 0.
        bits: Width of the codes.
        group_size: 32, 64 or 128.
        rng: Source of the codes.
        size: Of the weights, times the usual one.
    """
    layout = Layout(n, k, bits, group_size)
    blocks = rng.integers(0, 256, (layout.blocks, layout.block_bytes), dtype=np.uint8)
    scales = np.full(layout.groups * 4, 2.0 * size / np.sqrt(k) / 2**bits, np.float16)
    blocks[:, : layout.zero_points_offset] = scales.view(np.uint8)
    blocks[:, layout.zero_points_offset : layout.codes_offset] &= (1 << bits) - 1
    header = MAGIC + struct.pack("<IQQII32x", LAYOUT_R4K32, n, k, bits, group_size)
    assert len(header) == HEADER_BYTES
    return header + blocks.tobytes()


def words(count: int) -> list[str]:
    """A vocabulary for servers, which speak in texts: a word for every token."""
    return ["<unk>", *(f" w{number}" for number in range(1, count))]


def word_tokenizer(count: int) -> str:
    """A ``tokenizer.json`` of :func:`words`."""
    vocabulary = {word: number for number, word in enumerate(words(count))}
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel(vocab=vocabulary, unk_token="<unk>")
    )
    tokenizer.decoder = tokenizers.decoders.Fuse()
    return str(tokenizer.to_str())


def widths(a: Architecture, bits: float) -> dict[str, int]:
    """Of every matrix of the decoder, by name: the two next to a mean, in turn as it asks for."""
    lower = max(width for width in BITS if width <= bits)
    upper = min(width for width in BITS if width >= bits)
    chosen = {}
    behind = 0.0  # codes' bits, of those so far, that the mean asks for and they have not
    for name in stages.tensor_names(a):
        sizes = stages.tensor_shape(a, name)
        if name.startswith("blk.") and len(sizes) == 2:
            count = sizes[0] * sizes[1]
            wanted = behind + count * (bits - lower)
            chosen[name] = upper if 2 * wanted > count * (upper - lower) else lower
            behind = wanted - count * (chosen[name] - lower)
    return chosen


def decoder_metadata(
    a: Architecture, bits: float, group_size: int, head_bits: int
) -> dict[str, MetadataValue]:
    """What a file of random weights says of its decoder; arguments as of :func:`write_awq_edge`."""
    return a.to_metadata() | {
        "general.name": "random weights",
        "awq_edge.quantization.method": "rtn",
        "awq_edge.quantization.bits": round(bits),
        "awq_edge.quantization.group_size": group_size,
        "awq_edge.quantization.head_bits": head_bits,
        "awq_edge.quantization.embedding_bits": head_bits,
        "awq_edge.quantization.tool_version": __version__,
        "tokenizer.huggingface.json": word_tokenizer(a.vocabulary_size),
        "tokenizer.ggml.add_bos_token": False,
    }


def decoder_tensors(
    a: Architecture,
    bits: float = 4,
    group_size: int = 128,
    size: float = 1.0,
    head_bits: int = 8,
) -> list[tuple[str, TensorSource]]:
    """Random tensors of a decoder, in file order; arguments as of :func:`write_awq_edge`."""
    rng = np.random.default_rng(1)
    chosen = widths(a, bits)
    tensors: list[tuple[str, TensorSource]] = []
    for name in stages.tensor_names(a):
        sizes = stages.tensor_shape(a, name)
        if name == "rope.inverse_frequencies":
            tensors.append((name, a.inverse_frequencies()))
        elif name.startswith("alibi"):
            tensors.append((name, alibi_slopes(a.heads)))
        elif len(sizes) == 2:
            width = chosen.get(name, head_bits)
            times = size if name in chosen else 1.0
            tensors.append((name, random_matrix(*sizes, width, group_size, rng, times)))
        elif "router" in name or "position" in name:
            # Every expert is as likely as the others; a position is as large as an embedding.
            values = rng.standard_normal(sizes[0], np.float32) / a.hidden_size**0.5
            tensors.append((name, values))
        else:
            tensors.append((name, np.full(sizes, float("bias" not in name), np.float32)))
    return tensors


def write_awq_edge(
    a: Architecture,
    path: Path,
    bits: float = 4,
    group_size: int = 128,
    size: float = 1.0,
    head_bits: int = 8,
) -> None:
    """Write an awq-edge file of random weights.

    Args:
        a: The decoder.
        path: File to write.
        bits: Width of the decoder's matrices, or the mean of two.
        group_size: Inputs per scale.
        size: Of the layers' weights, times the usual one. Where they are small, a token decides on
            the next one alone, and texts go in circles.
        head_bits: Width of embedding and head.
    """
    metadata = decoder_metadata(a, bits, group_size, head_bits)
    write_model(path, metadata, decoder_tensors(a, bits, group_size, size, head_bits))
