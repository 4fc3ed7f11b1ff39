"""VILA 1.5 and NVILA: a SigLIP or CLIP tower and a Llama or Qwen2, each in a folder of its own.

Owns how config.json of the whole and of its folders fill the record of a tower, and what VILA's
program does to a text that no file of its tokenizer tells: the token that stands for a picture,
and how a conversation is written. Refuses mathematics and weights.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from awq_edge.errors import UnsupportedError
from awq_edge.vision.architecture import VisionArchitecture

from .dialogue import Dialogue
from .values import Values, shown
from .vision_part import VisionPart, layers_read, siglip_or_clip, tower_fields

_ASPECTS = {None: "", "resize": "squash", "pad": "pad"}
_NORM_EPSILON = 1e-5  # of torch's LayerNorm
_DOWNSAMPLED = {"mm.norm": "layers.1", "mm.0": "layers.2", "mm.2": "layers.4"}
# What each kind of connector is made of, and how its tensors are called.
_CONNECTORS: Mapping[str, tuple[dict[str, Any], Mapping[str, str]]] = {
    "linear": ({"connector": "linear"}, {"mm.0": "layers"}),
    "mlp2x_gelu": ({"connector": "mlp"}, {"mm.0": "layers.0", "mm.2": "layers.2"}),
    # Squares of patches leave column by column: they are put together line by line, and the program
    # that trained VILA 1.5 does not turn the grid back. That of NVILA does.
    "mlp_downsample": (
        {"connector": "mlp", "regroup": 2, "by_columns": True, "connector_norm": "layer"},
        _DOWNSAMPLED,
    ),
    "mlp_downsample_2x2_fix": (
        {"connector": "mlp", "regroup": 2, "connector_norm": "layer"},
        _DOWNSAMPLED,
    ),
}

_SYSTEM = "{% if messages and messages[0].role == 'system' %}{{ messages[0].content }}{% else %}"
# Behind its BOS a Llama's tokenizer puts the blank that begins a text only where one is written.
_VICUNA = (
    f"{{{{ bos_token }}}} {_SYSTEM}A chat between a curious user and an artificial intelligence "
    "assistant. The assistant gives helpful, detailed, and polite answers to the user's questions."
    "{% endif %} "
    "{% for m in messages %}{% if m.role == 'user' %}USER: {{ m.content }} "
    "{% elif m.role == 'assistant' %}ASSISTANT: {{ m.content }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
_LLAMA_3 = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
    f"{_SYSTEM}You are a helpful language and vision assistant. You are able to understand the "
    "visual content that the user provides, and assist the user with a variety of tasks using "
    "natural language.{% endif %}<|eot_id|>"
    "{% for m in messages %}{% if m.role != 'system' %}<|start_header_id|>{{ m.role }}"
    "<|end_header_id|>\n\n{{ m.content }}{% if loop.last and not add_generation_prompt %}"
    "<|end_of_text|>{% else %}<|eot_id|>{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_PICTURE = "<image>"
_VILA = Dialogue(
    placeholder=_PICTURE,
    settings={"legacy": False},
    templates=(("<|start_header_id|>", _LLAMA_3), ("", _VICUNA)),
    ends=("<|eot_id|>",),
)
# NVILA speaks as its tokenizer's template says.
_NVILA = Dialogue(placeholder=_PICTURE, ends=("<|im_end|>",))
_ENCODER = {"_target_": "llava.model.encoders.BasicImageEncoder"}
_FEWEST_TILES, _MOST_TILES = 1, 12  # of NVILA's program


def dialogue(config: Mapping[str, Any]) -> Dialogue:
    """What the program knows, for config.json of the whole."""
    return _NVILA if _is_nvila(Values(config, {})) else _VILA


def _is_nvila(config: Values) -> bool:
    """Whether a model is of the second generation, which took Qwen2 for Llama."""
    return bool(config.table("text_config").get("model_type") == "qwen2")


def vila(config: Values, decoder_size: int) -> VisionPart:
    """The tower and the connector of VILA 1.5 or NVILA.

    Args:
        config: config.json of the whole, those of its folders in it as ``text_config``,
            ``vision_config`` and ``projector_config``.
        decoder_size: Width of the decoder.
    """
    for key in ("s2", "dynamic_s2"):
        if config.flag(key):
            raise UnsupportedError(
                f"This VILA reads a picture in several sizes at once ({key}), which is not "
                "computed here; one without it is supported."
            )
    if config.flag("mm_use_im_start_end"):
        raise UnsupportedError(
            "This VILA puts words of its own around a picture (mm_use_im_start_end), which is not "
            "done here."
        )
    values, clip = siglip_or_clip(config.table("vision_config"))
    taken = "patch" if clip else "cls_patch"
    feature = config.get("mm_vision_select_feature", "patch")
    if feature != taken:
        raise UnsupportedError(
            f"The model takes patches by mm_vision_select_feature {shown(feature)}; of its tower "
            f"{taken} is supported."
        )
    projector = config.table("projector_config").get("mm_projector_type")
    if not isinstance(projector, str) or projector not in _CONNECTORS:
        raise UnsupportedError(
            f"The connector of this model is {shown(projector)}; {', '.join(_CONNECTORS)} are "
            "supported."
        )
    second = _is_nvila(config)
    aspect = _grid_aspect(config) if second else _square_aspect(config)
    form, names = _CONNECTORS[projector]
    if second:
        form = {**form, "by_columns": False}
    architecture = VisionArchitecture(
        **tower_fields(values, layers_read(config, values, -2, "mm_vision_select_layer")),
        decoder_size=decoder_size,
        class_token=clip,
        patch_bias=not clip,
        pre_norm=clip,
        **form,
    )
    if architecture.connector == "mlp":
        architecture = dataclasses.replace(architecture, connector_size=decoder_size)
    if architecture.connector_norm == "layer":
        architecture = dataclasses.replace(architecture, connector_norm_epsilon=_NORM_EPSILON)
    return VisionPart(
        "vila",
        architecture,
        names,
        0,
        "lines" if second else "plain",
        spelt=_PICTURE,
        apart=not second,
        aspect=aspect,
        tiles=(
            config.integer("min_tiles", _FEWEST_TILES),
            config.integer("max_tiles", _MOST_TILES),
        ),
        end="\n" if second else "",
    )


def _square_aspect(config: Values) -> str:
    aspect = config.get("image_aspect_ratio")
    if not (aspect is None or isinstance(aspect, str)) or aspect not in _ASPECTS:
        raise UnsupportedError(
            f"The image_aspect_ratio of this model is {shown(aspect)}; resize and pad are "
            "supported."
        )
    return _ASPECTS[aspect]


def _grid_aspect(config: Values) -> str:
    aspect = config.get("image_aspect_ratio")
    if aspect != "dynamic":
        raise UnsupportedError(
            f"The image_aspect_ratio of this NVILA is {shown(aspect)}; dynamic is supported."
        )
    template, encoder = config.get("chat_template"), config.get("image_encoder")
    if template is not None:
        raise UnsupportedError(
            f"This NVILA speaks by a template of its program's, {shown(template)}; one that speaks "
            "by its tokenizer's is supported."
        )
    if encoder not in (None, _ENCODER, json.dumps(_ENCODER)):
        raise UnsupportedError(
            f"The image_encoder of this NVILA is {shown(encoder)}, which may put other words "
            f"around a picture; {json.dumps(_ENCODER)} is supported."
        )
    return "grid"
