"""The decoder within a model of more than text, read as if it stood alone.

Owns which types are such, where the configuration of their text part stands, and what is in front
of its tensors' names. Refuses everything else in them: ``vision_part.py`` knows towers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from awq_edge.errors import CheckpointError, UnsupportedError

from .cross_part import block_tensor
from .values import Values, shown

# Types of such models, and what their text part may be; the first if it does not say.
_TEXT_TYPES: Mapping[str, tuple[str, ...]] = {
    "gemma3": ("gemma3_text",),
    "idefics": ("llama",),
    "idefics3": ("llama",),
    "llava": ("llama", "mistral", "qwen2", "phi"),
    "llava_llama": ("llama", "qwen2"),
    "llava_next": ("llama", "mistral", "qwen2"),
    "llava_onevision": ("qwen2",),
    "mistral3": ("mistral", "ministral", "ministral3"),
    "nanovlm": ("nanovlm_text",),
    "qwen2_5_vl": ("qwen2_5_vl_text",),
    "qwen2_vl": ("qwen2_vl_text",),
    "qwen3_vl": ("qwen3_vl_text",),
    "smolvlm": ("llama",),
}
# What their classes take for a head that config.json does not mention.
_TIED = {"gemma3": True, "mistral3": True}
WRAPPERS = tuple(_TEXT_TYPES)

# Types whose parts lie in folders of their own, each with a config.json: which folder becomes which
# table of the whole; the first holds the text and its tokenizer, the second the tower.
FOLDERS: Mapping[str, Mapping[str, str]] = {
    "llava_llama": {
        "llm": "text_config",
        "vision_tower": "vision_config",
        "mm_projector": "projector_config",
    },
}

# Types whose older files have the keys of the text beside those of the whole.
_FLAT = ("qwen2_5_vl", "qwen2_vl")
_OF_THREE_NUMBERS = (*_FLAT, "qwen3_vl")  # their positions

# Keys by which a config.json without a model_type shows one.
_SHOWN_BY: Mapping[str, frozenset[str]] = {
    "nanovlm": frozenset(("vit_model_type", "lm_model_type")),
}

# In front of the names, as files have them and as newer classes do; the head may stand outside.
_PREFIXES = (
    "language_model.model.",
    "model.language_model.model.",
    "model.language_model.",
    "model.text_model.",
    "llm.model.",
    "decoder.",
)
# As a decoder alone is called, in older files; and where the parts of a model stand side by side.
_ALONE = ("model.layers.", "model.embed_tokens.", "model.norm.")
_OTHER_PARTS = ("vision_config", "perceiver_config")
# Tables of rows that were learned later, behind those of the first.
MORE_ROWS: Mapping[str, str] = {
    "model.embed_tokens.weight": "model.embed_tokens.additional_embedding.weight",
    "lm_head.weight": "lm_head.additional_fc.weight",
}
_HEADS = ("lm_head.", "language_model.lm_head.", "model.language_model.lm_head.", "llm.lm_head.")

# What is said of the whole and counts for the text.
_OF_THE_WHOLE = (
    "architectures",
    "bos_token_id",
    "compression_config",
    "eos_token_id",
    "is_encoder_decoder",
    "quantization_config",
    "tokenizer_class",
)


def with_type(config: dict[str, Any]) -> dict[str, Any]:
    """A config.json with its model_type, where only other keys show it."""
    if "model_type" in config:
        return config
    found = (kind for kind, keys in _SHOWN_BY.items() if keys <= set(config))
    kind = next(found, None)
    return config if kind is None else {**config, "model_type": kind}


def tokenizer_elsewhere(config: Mapping[str, Any]) -> str | None:
    """The hub id of the model whose tokenizer is the whole's; None: it has one of its own.

    Raises:
        CheckpointError: config.json should name it.
    """
    if config.get("model_type") != "nanovlm":
        return None
    named = config.get("lm_tokenizer")
    if not isinstance(named, str) or not named:
        raise CheckpointError(
            f"config.json has {shown(named)} for lm_tokenizer, which should name the model whose "
            "tokenizer a nanoVLM reads with."
        )
    return named


def is_wrapper(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of a model that has more parts than a decoder of text."""
    model_type = config.get("model_type")
    return isinstance(model_type, str) and model_type in _TEXT_TYPES


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of the text part of such a model.

    Raises:
        CheckpointError: There is none.
        UnsupportedError: It is of another type than known.
    """
    types = _TEXT_TYPES[config["model_type"]]
    if config["model_type"] == "idefics":
        return _beside_its_text(config, types[0])
    if config["model_type"] == "nanovlm":
        own = {key: value for key, value in config.items() if key.startswith("lm_")}
        return {**own, "model_type": types[0]}
    text = dict(Values(config, {}).table("text_config").values)
    if not text and config["model_type"] in _FLAT:
        text = {key: value for key, value in config.items() if key != "model_type"}
    if not text:
        raise CheckpointError(
            f"config.json of a {config['model_type']} should have a table text_config."
        )
    text.setdefault("model_type", types[0])
    if text["model_type"] not in types:
        raise UnsupportedError(
            f"The text part of this {config['model_type']} has the type "
            f"{shown(text['model_type'])}; known are {', '.join(types)}."
        )
    if config["model_type"] in FOLDERS:
        return text  # a decoder that was saved alone says everything itself
    text.update({key: config[key] for key in _OF_THE_WHOLE if key in config})
    if config["model_type"] in _OF_THREE_NUMBERS:
        for key in ("rope_scaling", "rope_parameters"):
            text[key] = _of_one_position(text.get(key))
    # The head belongs to the whole. Where its class does not tie it, files may say so of the text
    # alone; a head that is stored with numbers of its own counts in any case.
    of_text = text.get("tie_word_embeddings", False)
    default = _TIED.get(config["model_type"], of_text)
    text["tie_word_embeddings"] = config.get("tie_word_embeddings", default)
    if config["model_type"] == "llava_onevision" and of_text:
        text["tie_word_embeddings"] = True  # its class lets either of the two say so
    return text


def _of_one_position(table: Any) -> Any:
    """Rotary parameters by the name that they have where positions have one number."""
    if not isinstance(table, Mapping):
        return table
    kinds = ("type", "rope_type")
    return {
        key: "default" if key in kinds and value == "mrope" else value
        for key, value in table.items()
    }


def _beside_its_text(config: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    """The text part of Idefics 1, which says of the whole what others say of their text."""
    text = {key: value for key, value in config.items() if key not in _OTHER_PARTS}
    values = Values(config, {"vocab_size": 32000, "additional_vocab_size": 0})
    vocabulary = values.integer("vocab_size") + values.integer("additional_vocab_size")
    return {**text, "model_type": model_type, "vocab_size": vocabulary}


def text_tensor(name: str) -> str | None:
    """What a tensor is called where the text part stands alone; None if it is of another part."""
    for prefix in _HEADS:
        if name.startswith(prefix):
            return f"lm_head.{name[len(prefix) :]}"
    if name.startswith(_ALONE):
        return name
    block = block_tensor(name)
    if block is not None:
        return block
    for prefix in _PREFIXES:
        if name.startswith(prefix):
            return f"model.{name[len(prefix) :]}"
    return None
