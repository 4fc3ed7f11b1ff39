"""Small GGUF files for tests: this folder's random checkpoints as llama.cpp would hold them.

Names come from the package ``gguf``, orders of rows are written out here: nothing is shared with
the reader that is tested.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# general.architecture by the family of ``checkpoints.FAMILIES``, and whether llama.cpp's converter
# puts the two rows that turn together beside each other.
ARCHITECTURES = {
    "Llama": ("LLAMA", True),
    "Mistral": ("LLAMA", True),
    "Qwen2": ("QWEN2", False),
    "Qwen3": ("QWEN3", False),
    "Phi3": ("PHI3", False),
    "Granite": ("GRANITE", True),
    "Ernie4_5": ("ERNIE4_5", False),
    "Glm": ("CHATGLM", False),
    "Gemma": ("GEMMA", False),
}
# What the name map of the package gguf does not know.
_FURTHER_NAMES = {
    "mlp.gate_up_proj": "ffn_up",
}


def interleaved(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows i and i + d / 2 of each head beside each other."""
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def tensors_of(directory: Path, class_name: str) -> dict[str, np.ndarray]:
    """A checkpoint's tensors under llama.cpp's names and in its order, float32."""
    from gguf import MODEL_ARCH, get_tensor_name_map
    from safetensors.torch import load_file

    config = json.loads((directory / "config.json").read_text())
    architecture, permuted = ARCHITECTURES[class_name]
    names = get_tensor_name_map(MODEL_ARCH[architecture], config["num_hidden_layers"])
    found = {}
    for name, tensor in load_file(directory / "model.safetensors").items():
        values = tensor.float().numpy()
        stem, _, kind = name.rpartition(".")
        heads = {
            "q_proj": config["num_attention_heads"],
            "k_proj": config.get("num_key_value_heads"),
        }.get(stem.rpartition(".")[2])
        if permuted and heads:
            values = interleaved(values, heads)
        if class_name == "Gemma" and stem.endswith("norm"):
            values = values + 1
        target = names.get_name(stem)
        for theirs, ours in _FURTHER_NAMES.items():
            layer = re.fullmatch(rf"model\.layers\.(\d+)\.{theirs}", stem)
            if layer is not None:
                target = f"blk.{layer[1]}.{ours}"
        assert target is not None, name
        found[f"{target}.{kind}"] = values
    return found


def writer_for(path: Path, directory: Path, class_name: str) -> Any:
    """A writer with every entry of a checkpoint's configuration."""
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFWriter, RopeScalingType

    c = json.loads((directory / "config.json").read_text())
    rope = c.get("rope_parameters") or {}
    writer = GGUFWriter(path, MODEL_ARCH_NAMES[MODEL_ARCH[ARCHITECTURES[class_name][0]]])
    writer.add_context_length(c["max_position_embeddings"])
    writer.add_embedding_length(c["hidden_size"])
    writer.add_block_count(c["num_hidden_layers"])
    writer.add_feed_forward_length(c["intermediate_size"])
    writer.add_head_count(c["num_attention_heads"])
    writer.add_head_count_kv(c["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(c["rms_norm_eps"])
    writer.add_rope_freq_base(rope.get("rope_theta", 10000.0))
    head = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
    if head * c["num_attention_heads"] != c["hidden_size"] or class_name in ("Gemma", "Ernie4_5"):
        writer.add_key_length(head)
        writer.add_value_length(head)
    if class_name == "Glm":
        writer.add_key_length(head)
        writer.add_value_length(head)
    share = rope.get("partial_rotary_factor", 1.0)
    writer.add_rope_dimension_count(int(head * share))
    kind = rope.get("rope_type", "default")
    if kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if class_name == "Phi3":
        original = rope.get("original_max_position_embeddings", c["max_position_embeddings"])
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_sliding_window(c.get("sliding_window") or 0)
        if kind == "longrope":
            stretched = c["max_position_embeddings"] / original
            factor = math.sqrt(1 + math.log(stretched) / math.log(original))
            writer.add_rope_scaling_attn_factors(factor)
    if class_name == "Granite":
        writer.add_attention_scale(c["attention_multiplier"])
        writer.add_embedding_scale(c["embedding_multiplier"])
        writer.add_residual_scale(c["residual_multiplier"])
        writer.add_logit_scale(c["logits_scaling"])
    return writer


def rope_tensors(directory: Path) -> dict[str, np.ndarray]:
    """The tables of rotary factors that llama.cpp's converter writes, float32."""
    c = json.loads((directory / "config.json").read_text())
    rope = c.get("rope_parameters") or {}
    if rope.get("rope_type") == "longrope":
        return {
            f"rope_factors_{which}.weight": np.array(rope[f"{which}_factor"], np.float32)
            for which in ("short", "long")
        }
    if rope.get("rope_type") != "llama3":
        return {}
    d = c["hidden_size"] // c["num_attention_heads"]
    original = rope["original_max_position_embeddings"]
    factors = []
    for i in range(0, d, 2):
        wave = 2 * math.pi * float(np.float32(rope["rope_theta"]) ** np.float32(i / d))
        if wave < original / rope["high_freq_factor"]:
            factors.append(1.0)
        elif wave > original / rope["low_freq_factor"]:
            factors.append(rope["factor"])
        else:
            smooth = (original / wave - rope["low_freq_factor"]) / (
                rope["high_freq_factor"] - rope["low_freq_factor"]
            )
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return {"rope_freqs.weight": np.array(factors, np.float32)}


def finish(writer: Any) -> None:
    """Writes everything that a writer holds."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write(
    path: Path,
    directory: Path,
    class_name: str,
    *,
    kind: str = "F32",
    change: Callable[[Any, dict[str, np.ndarray]], None] = lambda writer, tensors: None,
) -> Path:
    """A file of a checkpoint, its matrices of a type that the package ``gguf`` can write."""
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    writer = writer_for(path, directory, class_name)
    tensors = {**tensors_of(directory, class_name), **rope_tensors(directory)}
    change(writer, tensors)
    for name, values in tensors.items():
        if values.ndim == 2 and kind != "F32":
            quantised = GGMLQuantizationType[kind]
            writer.add_tensor(name, quantize(values, quantised), raw_dtype=quantised)
        else:
            writer.add_tensor(name, np.ascontiguousarray(values))
    finish(writer)
    return path
