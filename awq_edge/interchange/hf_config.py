"""A config.json and tokenizer files for a packed file, for tools that read Hugging Face models.

Owns the way back from the Architecture record to a family's configuration, and checks it: what is
written reads as the same record. The way there is ``awq_edge.converters``.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from awq_edge import chat
from awq_edge.architecture import Architecture
from awq_edge.checkpoints.post_processor import put_around
from awq_edge.converters import find
from awq_edge.errors import AwqEdgeError, UnsupportedError
from awq_edge.rope_scaling import RopeScaling
from awq_edge.tokenizer import Tokenizer

_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}

# Everything beside the weights that a tokenizer or a generation loop may want.
_COPIED = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tiktoken.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copies the tokenizer of a checkpoint, whatever files it consists of."""
    for name in _COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def write_tokenizer(metadata: Mapping[str, Any], target: Path) -> None:
    """Writes the tokenizer of a packed file, if it has one."""
    text = metadata.get("tokenizer.huggingface.json")
    if not isinstance(text, str):
        return
    runtime = Tokenizer.from_metadata(metadata)
    tokenizer = json.loads(text)
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings.update({k: v for k, v in chat.special_tokens(metadata, runtime).items() if v})
    if runtime.split_special_tokens:
        settings["split_special_tokens"] = True
    if not runtime.put_by_json:
        # A file of an older release: its flag says what its tokenizer.json does not.
        put_around(tokenizer, runtime.before, runtime.behind, target / "tokenizer.json")
    templates = chat.templates(metadata)
    if list(templates) == ["default"]:
        settings["chat_template"] = templates["default"]
    elif templates:
        settings["chat_template"] = [
            {"name": name, "template": template} for name, template in templates.items()
        ]
    written = json.dumps(tokenizer, ensure_ascii=False)
    (target / "tokenizer.json").write_text(written, encoding="utf-8")
    _write_json(target / "tokenizer_config.json", settings)


def describe(architecture: Architecture, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a packed file.

    Raises:
        UnsupportedError: No family of transformers that we know computes this.
    """
    a = architecture
    model_type = _model_type(a)
    config: dict[str, Any] = {
        "architectures": [_CLASSES[model_type]],
        "model_type": model_type,
        "hidden_act": "silu",
        "hidden_size": a.hidden_size,
        "intermediate_size": a.feed_forward_size,
        "num_hidden_layers": a.layers,
        "num_attention_heads": a.heads,
        "num_key_value_heads": a.kv_heads,
        "head_dim": a.head_size,
        "vocab_size": a.vocabulary_size,
        "max_position_embeddings": a.context_length,
        "rms_norm_eps": a.norm_epsilon,
        "rope_theta": a.rope_theta,
        "tie_word_embeddings": a.tied_head,
    }
    if a.rope_scaling is not None:
        config["rope_scaling"] = _rope_scaling(a.rope_scaling)
    if model_type in ("llama", "qwen3"):
        config["attention_bias"] = a.qkv_bias
    if model_type == "llama":
        config["mlp_bias"] = a.feed_forward_bias
    if model_type == "mistral":
        config["sliding_window"] = a.sliding_windows[0] or None
    elif any(a.sliding_windows):
        config["use_sliding_window"] = True
        config["sliding_window"] = max(a.sliding_windows)
        config["layer_types"] = [
            "sliding_attention" if window else "full_attention" for window in a.sliding_windows
        ]
    for kind in ("bos", "eos"):
        if metadata.get(f"tokenizer.ggml.{kind}_token_id") is not None:
            config[f"{kind}_token_id"] = int(metadata[f"tokenizer.ggml.{kind}_token_id"])
    _require_same(config, architecture)
    return config


def _rope_scaling(scaling: RopeScaling) -> dict[str, Any]:
    """In the words of transformers; what multiplies cosines and sines lies in the queries."""
    table: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind in ("llama3", "yarn", "longrope"):
        table["original_max_position_embeddings"] = scaling.original_context_length
    if scaling.kind == "llama3":
        table.update(
            low_freq_factor=scaling.low_frequency_factor,
            high_freq_factor=scaling.high_frequency_factor,
        )
    elif scaling.kind == "yarn":
        table.update(
            attention_factor=1.0,
            beta_fast=scaling.beta_fast,
            beta_slow=scaling.beta_slow,
            truncate=scaling.truncate,
        )
    elif scaling.kind == "longrope":
        factors = list(scaling.factors)  # the context ends before the long ones begin
        table.update(attention_factor=1.0, short_factor=factors, long_factor=factors)
    return table


def _model_type(a: Architecture) -> str:
    if a.qk_norm:
        return "qwen3"
    if a.qkv_bias and not a.output_bias:
        return "qwen2"
    return "mistral" if any(a.sliding_windows) else "llama"


def _require_same(config: Mapping[str, Any], architecture: Architecture) -> None:
    try:
        written = find(config).architecture(config)
    except AwqEdgeError:
        written = None
    if written == architecture:
        return
    differing = [
        field.name.replace("_", " ")
        for field in dataclasses.fields(architecture)
        if written is not None and getattr(written, field.name) != getattr(architecture, field.name)
    ]
    where = f" (it differs in {', '.join(differing)})" if differing else ""
    raise UnsupportedError(
        "No model family of transformers that awq-edge writes describes this decoder, so it "
        f"cannot be exported{where}."
    )


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
