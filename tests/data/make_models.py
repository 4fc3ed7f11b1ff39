"""Writes ``tests/data/tiny.awq.gguf``: random weights in every shape that is hard to get right.

Nothing divides anything: rows that are no multiple of 4, short last groups, padded columns, odd
lanes in a head. Grouped queries, norms of queries and keys, biases, a sliding window shorter than
the golden prompt in one layer, and 2, 3, 4 and 8 bits side by side. The same bytes each time:

    python tests/data/make_models.py [FILE]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from awq_edge import layouts
from awq_edge.architecture import Architecture
from awq_edge.model_file import TensorSource, write_model

ARCHITECTURE = Architecture(
    layers=3,
    hidden_size=72,
    vocabulary_size=203,
    context_length=320,
    heads=6,
    kv_heads=3,
    head_size=14,
    feed_forward_size=150,
    norm_epsilon=1e-5,
    rope_theta=10000.0,
    sliding_windows=(0, 37, 0),
    qk_norm=True,
    tied_head=False,
)

# (bits, group size) of each packed matrix. Matrices that share an input share a group size.
LAYERS = (
    {
        "attn_q": (4, 32),
        "attn_k": (8, 32),
        "attn_v": (3, 32),
        "attn_output": (2, 64),
        "ffn_gate": (4, 64),
        "ffn_up": (3, 64),
        "ffn_down": (4, 128),
    },
    {
        "attn_q": (3, 128),
        "attn_k": (4, 128),
        "attn_v": (8, 128),
        "attn_output": (4, 32),
        "ffn_gate": (2, 32),
        "ffn_up": (4, 32),
        "ffn_down": (3, 64),
    },
    {
        "attn_q": (8, 64),
        "attn_k": (2, 64),
        "attn_v": (4, 64),
        "attn_output": (3, 128),
        "ffn_gate": (8, 128),
        "ffn_up": (4, 128),
        "ffn_down": (2, 32),
    },
)


def random_matrix(random: np.random.Generator, n: int, k: int, bits: int, group_size: int) -> bytes:
    """A packed [n, k] whose weights have a standard deviation near 1 / sqrt(k)."""
    groups = -(-k // group_size)
    codes = random.integers(0, 1 << bits, (n, k), dtype=np.uint8)
    zeros = random.integers(0, 1 << bits, (n, groups), dtype=np.uint8)
    steps = random.uniform(1.0, 3.0, (n, groups)) / (1 << bits) / np.sqrt(k)
    return layouts.pack(codes, steps.astype(np.float16), zeros, bits, group_size)


def random_vector(random: np.random.Generator, n: int, mean: float) -> TensorSource:
    """Float32 [n] around a mean."""
    return (mean + 0.2 * random.standard_normal(n)).astype(np.float32)


def tiny_tensors(random: np.random.Generator) -> list[tuple[str, TensorSource]]:
    """Every tensor of the model, in file order."""
    a = ARCHITECTURE
    queries, keys = a.heads * a.head_size, a.kv_heads * a.head_size
    shapes = {
        "attn_q": (queries, a.hidden_size),
        "attn_k": (keys, a.hidden_size),
        "attn_v": (keys, a.hidden_size),
        "attn_output": (a.hidden_size, queries),
        "ffn_gate": (a.feed_forward_size, a.hidden_size),
        "ffn_up": (a.feed_forward_size, a.hidden_size),
        "ffn_down": (a.hidden_size, a.feed_forward_size),
    }
    tensors: list[tuple[str, TensorSource]] = [
        ("token_embd.weight", random_matrix(random, a.vocabulary_size, a.hidden_size, 8, 64)),
        ("output.weight", random_matrix(random, a.vocabulary_size, a.hidden_size, 4, 64)),
        ("output_norm.weight", random_vector(random, a.hidden_size, 1.0)),
        ("rope.inverse_frequencies", a.inverse_frequencies()),
    ]
    for index, formats in enumerate(LAYERS):
        layer = f"blk.{index}"
        for norm, size in (
            ("attn_norm", a.hidden_size),
            ("ffn_norm", a.hidden_size),
            ("attn_q_norm", a.head_size),
            ("attn_k_norm", a.head_size),
        ):
            tensors.append((f"{layer}.{norm}.weight", random_vector(random, size, 1.0)))
        for name, (bits, group_size) in formats.items():
            n, k = shapes[name]
            tensors.append(
                (f"{layer}.{name}.weight", random_matrix(random, n, k, bits, group_size))
            )
            if name in ("attn_q", "attn_k", "attn_v") or index == 1:
                tensors.append((f"{layer}.{name}.bias", random_vector(random, n, 0.0)))
    return tensors


def write_tiny(path: Path) -> None:
    """Writes the whole model."""
    metadata = {
        "general.name": "tiny random model for tests",
        **ARCHITECTURE.to_metadata(),
        "awq_edge.quantization.method": "rtn",
        "awq_edge.quantization.bits": 4,
        "awq_edge.quantization.group_size": 64,
        "awq_edge.quantization.head_bits": 4,
        "awq_edge.quantization.embedding_bits": 8,
        "awq_edge.quantization.tool_version": "0",
        "tokenizer.ggml.bos_token_id": 1,
        "awq_edge.tokenizer.eos_token_ids": [2, 3],
    }
    write_model(path, metadata, tiny_tensors(np.random.default_rng(20261122)))


if __name__ == "__main__":
    default = Path(__file__).with_name("tiny.awq.gguf")
    write_tiny(Path(sys.argv[1]) if len(sys.argv) > 1 else default)
