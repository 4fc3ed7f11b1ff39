"""Named model shapes with random weights, written for awq-edge and for llama.cpp.

Owns the shapes and the two writers. The weights are noise of the usual magnitude: speed does not
depend on them, and nothing has to be downloaded.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from awq_edge import __version__, stages
from awq_edge.architecture import Architecture
from awq_edge.layouts import HEADER_BYTES, LAYOUT_R4K32, MAGIC, Layout
from awq_edge.model_file import write_model

CONTEXT = 4096


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder, named as in :class:`awq_edge.architecture.Architecture`."""

    hidden: int
    feed_forward: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    tied: bool
    qkv_bias: bool = False
    qk_norm_over_width: bool = False
    experts: int = 0  # each of them ``feed_forward`` wide
    experts_per_token: int = 0


SHAPES = {
    "tinyllama-1.1b": Shape(2048, 5632, 22, 32, 4, 64, 32000, tied=False),
    "llama-3.2-1b": Shape(2048, 8192, 16, 32, 8, 64, 128256, tied=True),
    "qwen2.5-0.5b": Shape(896, 4864, 24, 14, 2, 64, 151936, tied=True, qkv_bias=True),
    "llama-2-7b": Shape(4096, 11008, 32, 32, 32, 128, 32000, tied=False),
    "olmoe-1b-7b": Shape(
        2048,
        1024,
        16,
        16,
        16,
        128,
        50304,
        tied=False,
        qk_norm_over_width=True,
        experts=64,
        experts_per_token=8,
    ),
}


def random_matrix(n: int, k: int, bits: int, group_size: int, rng: np.random.Generator) -> bytes:
    """A packed matrix of random codes: far quicker than packing a billion of them.

    Args:
        n: Rows.
        k: Columns; a multiple of the group size, so that no padding code could weigh anything.
        bits: 2, 3, 4 or 8.
        group_size: 32, 64 or 128.
        rng: Source of the codes.
    """
    layout = Layout(n, k, bits, group_size)
    blocks = rng.integers(0, 256, (layout.blocks, layout.block_bytes), dtype=np.uint8)
    scales = np.full(layout.groups * 4, 2.0 / np.sqrt(k) / 2**bits, np.float16)
    blocks[:, : layout.zero_points_offset] = scales.view(np.uint8)
    blocks[:, layout.zero_points_offset : layout.codes_offset] &= (1 << bits) - 1
    header = MAGIC + struct.pack("<IQQII32x", LAYOUT_R4K32, n, k, bits, group_size)
    assert len(header) == HEADER_BYTES
    return header + blocks.tobytes()


def write_awq_edge(shape: Shape, path: Path, bits: int = 4, group_size: int = 128) -> None:
    """Write an awq-edge file: decoder at ``bits``, embedding and head at the default 8 bits.

    Args:
        shape: Sizes.
        path: File to write.
        bits: Width of the decoder's matrices.
        group_size: Inputs per scale.
    """
    rng = np.random.default_rng(1)
    architecture = Architecture(
        layers=shape.layers,
        hidden_size=shape.hidden,
        vocabulary_size=shape.vocabulary,
        context_length=CONTEXT,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_size=shape.head_size,
        feed_forward_size=shape.feed_forward,
        norm_epsilon=1e-5,
        rope_theta=10000.0,
        tied_head=shape.tied,
        qkv_bias=shape.qkv_bias,
        experts=shape.experts,
        experts_per_token=shape.experts_per_token,
        expert_size=shape.feed_forward if shape.experts else 0,
        qk_norm=shape.qk_norm_over_width,
        qk_norm_kind="width" if shape.qk_norm_over_width else "head",
    )
    metadata = architecture.to_metadata() | {
        "general.name": "random weights",
        "awq_edge.quantization.method": "rtn",
        "awq_edge.quantization.bits": bits,
        "awq_edge.quantization.group_size": group_size,
        "awq_edge.quantization.head_bits": 8,
        "awq_edge.quantization.embedding_bits": 8,
        "awq_edge.quantization.tool_version": __version__,
    }
    tensors: list[tuple[str, np.ndarray | bytes]] = []
    for name in stages.tensor_names(architecture):
        sizes = stages.tensor_shape(architecture, name)
        if name == "rope.inverse_frequencies":
            tensors.append((name, architecture.inverse_frequencies()))
        elif len(sizes) == 2:
            width = bits if name.startswith("blk.") else 8
            tensors.append((name, random_matrix(*sizes, width, group_size, rng)))
        elif "router" in name:  # every expert is as likely as the others
            tensors.append((name, rng.standard_normal(sizes[0], np.float32) / shape.hidden**0.5))
        else:
            tensors.append((name, np.full(sizes, float("bias" not in name), np.float32)))
    write_model(path, metadata, tensors)


def write_llama_cpp(shape: Shape, path: Path) -> None:
    """Write a llama.cpp file as ``llama-quantize … Q4_0`` lays it out.

    That is: the head in Q6_K, or in Q8_0 where rows are no multiple of 256; the rest in Q4_0.

    Args:
        shape: Sizes.
        path: File to write.
    """
    rng = np.random.default_rng(1)
    family = "olmoe" if shape.experts else "qwen2" if shape.qkv_bias else "llama"
    writer = gguf.GGUFWriter(path, family)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.head_size)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_tokenizer_model("no_vocab")
    if shape.experts:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(shape.experts_per_token)

    def quantised(rows: int, columns: int, kind: gguf.GGMLQuantizationType) -> np.ndarray:
        weights, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = rng.integers(0, 256, (rows, columns // weights, size), dtype=np.uint8)
        scale = np.float16(0.25 / np.sqrt(columns)).reshape(1).view(np.uint8)
        at = size - 2 if kind == gguf.GGMLQuantizationType.Q6_K else 0
        blocks[:, :, at : at + 2] = scale
        return blocks.reshape(rows, -1)

    def add(name: str, rows: int, columns: int, kind: gguf.GGMLQuantizationType) -> None:
        writer.add_tensor(name, quantised(rows, columns, kind), raw_dtype=kind)

    q4 = gguf.GGMLQuantizationType.Q4_0
    q6 = gguf.GGMLQuantizationType.Q6_K
    head = (
        q6 if shape.hidden % gguf.GGML_QUANT_SIZES[q6][0] == 0 else gguf.GGMLQuantizationType.Q8_0
    )
    queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    add("token_embd.weight", shape.vocabulary, shape.hidden, head if shape.tied else q4)
    if not shape.tied:
        add("output.weight", shape.vocabulary, shape.hidden, head)
    ones = np.ones(shape.hidden, np.float32)
    writer.add_tensor("output_norm.weight", ones)
    for layer in range(shape.layers):
        blk = f"blk.{layer}."
        writer.add_tensor(blk + "attn_norm.weight", ones)
        writer.add_tensor(blk + "ffn_norm.weight", ones)
        add(blk + "attn_q.weight", queries, shape.hidden, q4)
        add(blk + "attn_k.weight", keys, shape.hidden, q4)
        add(blk + "attn_v.weight", keys, shape.hidden, q4)
        if shape.qkv_bias:
            for name, size in (("attn_q", queries), ("attn_k", keys), ("attn_v", keys)):
                writer.add_tensor(f"{blk}{name}.bias", np.zeros(size, np.float32))
        add(blk + "attn_output.weight", shape.hidden, queries, q4)
        if shape.qk_norm_over_width:
            writer.add_tensor(blk + "attn_q_norm.weight", np.ones(queries, np.float32))
            writer.add_tensor(blk + "attn_k_norm.weight", np.ones(keys, np.float32))
        sizes = {
            "ffn_gate": (shape.feed_forward, shape.hidden),
            "ffn_up": (shape.feed_forward, shape.hidden),
            "ffn_down": (shape.hidden, shape.feed_forward),
        }
        for name, (rows, columns) in sizes.items():
            if not shape.experts:
                add(f"{blk}{name}.weight", rows, columns, q4)
                continue
            together = quantised(shape.experts * rows, columns, q4)
            together = together.reshape(shape.experts, rows, -1)
            writer.add_tensor(f"{blk}{name}_exps.weight", together, raw_dtype=q4)
        if shape.experts:
            router = rng.standard_normal((shape.experts, shape.hidden), np.float32)
            writer.add_tensor(blk + "ffn_gate_inp.weight", router / shape.hidden**0.5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
