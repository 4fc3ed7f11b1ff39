"""The shapes of ``shapes.py`` as llama.cpp reads them, as ``llama-quantize … Q4_0`` lays them out.

That is: the head in Q6_K, or in Q8_0 where rows are no multiple of 256; the rest in Q4_0.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from shapes import CONTEXT, config, words

from awq_edge import stages
from awq_edge.architecture import Architecture

# Families that llama.cpp computes, by our model_type.
PEERS = {
    "llama": "llama",
    "qwen2": "qwen2",
    "gemma3_text": "gemma3",
    "phi3": "phi3",
    "falcon": "falcon",
    "bloom": "bloom",
    "gpt_bigcode": "starcoder",
    "olmoe": "olmoe",
}
_QKV = ("attn_q", "attn_k", "attn_v")
# Matrices that lie in one tensor there, under the last name.
_FUSED = {
    "phi3": [(*_QKV, "attn_qkv"), ("ffn_gate", "ffn_up", "ffn_up")],
    "falcon": [(*_QKV, "attn_qkv")],
    "bloom": [(*_QKV, "attn_qkv")],
    "starcoder": [(*_QKV, "attn_qkv")],
}
_RENAMED = {
    "attn_post_norm": "post_attention_norm",
    "ffn_post_norm": "post_ffw_norm",
    "ffn_router": "ffn_gate_inp",
}
Q4, Q6, Q8 = (gguf.GGMLQuantizationType[name] for name in ("Q4_0", "Q6_K", "Q8_0"))


def peer_family(shape: str) -> str | None:
    """What llama.cpp calls the family of a shape; None where it has none."""
    return PEERS.get(config(shape)["model_type"])


def write_llama_cpp(a: Architecture, family: str, path: Path) -> None:
    """Write a llama.cpp file.

    Args:
        a: The decoder.
        family: Of llama.cpp's.
        path: File to write.
    """
    writer = gguf.GGUFWriter(path, family)
    _describe(writer, a)
    rng = np.random.default_rng(1)
    done: set[str] = set()
    for ours in stages.tensor_names(a):
        layer, name = _split(ours)
        if name in ("rope.inverse_frequencies", "alibi.slopes") or ours in done:
            continue
        if family == "falcon" and name.startswith("ffn_norm"):
            continue  # both branches read one norm
        stem, _, kind = name.rpartition(".")
        if kind == "bias" and stem in ("token_embd", "output"):
            raise ValueError(f"{family} has no {name}")
        parts = next((p for p in _FUSED.get(family, []) if stem in p[:-1]), (stem, stem))
        if stem.startswith("expert."):
            parts = (stem, stem)
            stem = stem.rpartition(".")[2]
            names = [f"blk.{layer}.expert.{e}.{stem}.weight" for e in range(a.experts)]
            target = f"blk.{layer}.{stem}_exps.weight"
        else:
            names = [_joined(layer, f"{part}.{kind}") for part in parts[:-1]]
            there = _RENAMED.get(parts[-1], parts[-1])
            target = _joined(layer, f"{there}.{kind}")
        done.update(names)
        shapes = [stages.tensor_shape(a, n) for n in names]
        if len(shapes[0]) == 2:
            rows = sum(s[0] for s in shapes)
            width = _width(a, name, shapes[0][1])
            blocks = _quantised(rows, shapes[0][1], width, rng)
            if "_exps" in target:
                blocks = blocks.reshape(a.experts, shapes[0][0], -1)
            writer.add_tensor(target, blocks, raw_dtype=width)
        else:
            writer.add_tensor(target, _vector(a, name, shapes, rng))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe(writer: gguf.GGUFWriter, a: Architecture) -> None:
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(a.hidden_size)
    writer.add_block_count(a.layers)
    writer.add_feed_forward_length(a.feed_forward_size or a.expert_size)
    writer.add_head_count(a.heads)
    writer.add_head_count_kv(a.kv_heads)
    writer.add_key_length(a.head_size)
    writer.add_value_length(a.head_size)
    writer.add_rope_dimension_count(a.head_size)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_layer_norm_eps(1e-5)
    writer.add_vocab_size(a.vocabulary_size)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(words(a.vocabulary_size))
    writer.add_token_scores([0.0] * a.vocabulary_size)
    kinds = [gguf.TokenType.UNKNOWN] + [gguf.TokenType.NORMAL] * (a.vocabulary_size - 1)
    writer.add_token_types(kinds)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)
    window = max(a.sliding_windows, default=0)
    if window:
        writer.add_sliding_window(window)
    if a.experts:
        writer.add_expert_count(a.experts)
        writer.add_expert_used_count(a.experts_per_token)


def _split(name: str) -> tuple[int | None, str]:
    """The layer of a tensor and its name there."""
    if not name.startswith("blk."):
        return None, name
    _, layer, rest = name.split(".", 2)
    return int(layer), rest


def _joined(layer: int | None, name: str) -> str:
    return name if layer is None else f"blk.{layer}.{name}"


def _width(a: Architecture, name: str, columns: int) -> gguf.GGMLQuantizationType:
    head = "token_embd" if a.tied_head else "output"
    if not name.startswith(head + "."):
        return Q4
    return Q6 if columns % gguf.GGML_QUANT_SIZES[Q6][0] == 0 else Q8


def _quantised(
    rows: int, columns: int, kind: gguf.GGMLQuantizationType, rng: np.random.Generator
) -> np.ndarray:
    weights, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (rows, columns // weights, size), dtype=np.uint8)
    scale = np.float16(0.25 / np.sqrt(columns)).reshape(1).view(np.uint8)
    at = size - 2 if kind == Q6 else 0
    blocks[:, :, at : at + 2] = scale
    return blocks.reshape(rows, -1)


def _vector(
    a: Architecture, name: str, shapes: list[tuple[int, ...]], rng: np.random.Generator
) -> np.ndarray:
    size = sum(s[0] for s in shapes)
    if "router" in name or "position" in name:
        values = rng.standard_normal((size // a.hidden_size, a.hidden_size), np.float32)
        return values / a.hidden_size**0.5
    return np.full(size, float("bias" not in name), np.float32)
