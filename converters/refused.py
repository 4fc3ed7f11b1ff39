"""Families that no converter can make a decoder of ours, and why.

Owns the reasons, each half a sentence. A type that is in neither this list nor the registry is
unknown; one that only some of whose models fit is refused by its converter, by what its
configuration says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from awq_edge.errors import UnsupportedError

from .values import shown

_STATES = (
    "it is a state-space model, whose layers carry a recurrent state instead of attending to "
    "positions"
)
_MIXED = (
    "it mixes layers with a recurrent state (state-space layers) with attention, and the decoder "
    "here has attention alone"
)
_DELTA = "most of its layers are linear attention (a gated delta rule) with a recurrent state"
_RECURRENT = "it is recurrent: a state takes the place of attention in its layers"
_CONVOLUTIONS = "most of its layers are short gated convolutions instead of attention"
_BOTH = "it has an encoder beside its decoder, and the decoder here has none to attend to"
_ENCODER = "it is an encoder, which generates no text"
_LATENT = "its keys and values are compressed together (latent attention)"
_TURNED = (
    "its tower turns patches by their rows and columns, and its decoder counts positions in three "
    "numbers, which is not computed yet"
)
_CROSSED = (
    "its decoder attends to pictures through layers of its own: those of Idefics 1 and of "
    "OpenFlamingo are computed, these are not yet"
)
_LATER = "no converter for it has been written yet"


def _own_code(instead: str) -> str:
    return f"it is an older form that runs code of its own; use {instead} instead"


# Types by pattern; the first that matches the whole of a model_type counts.
_REASONS: tuple[tuple[str, str], ...] = (
    ("mamba2?|falcon_mamba", _STATES),
    ("jamba|bamba|falcon_h1|nemotron_h|zamba2?", _MIXED),
    ("lfm2.*", _CONVOLUTIONS),
    ("qwen3_next|qwen3_5.*|kimi_linear", _DELTA),
    (r"rwkv.*|recurrent_gemma|xlstm", _RECURRENT),
    (
        "gpt_oss",
        "its attention has sink weights, its gate is clamped, and its experts are stored in 4-bit "
        "floats",
    ),
    (
        "gemma3n.*",
        "its layers read embeddings of their own, keep several streams that predict each other, "
        "and share keys and values",
    ),
    (
        "gemma4.*",
        "its layers differ in the size of their heads and in their frequencies, and share keys and "
        "values",
    ),
    ("m?t5|umt5|t5gemma.*|bart|mbart|pegasus.*|whisper|marian|blenderbot.*|led", _BOTH),
    (
        "bert|roberta|xlm-roberta|camembert|distilbert|albert|electra|deberta.*|mpnet|modernbert|"
        "nomic_bert|eurobert",
        _ENCODER,
    ),
    ("qwen2_5_omni.*", _TURNED),
    (
        "qwen3_vl_moe.*",
        "no converter for its experts, which lie in one tensor, has been written yet; Qwen3-VL "
        "without experts (type qwen3_vl) is supported",
    ),
    ("mllama|otter", _CROSSED),
    (
        "flamingo|open_flamingo",
        "OpenFlamingo is read as it was released, from a directory that holds checkpoint.pt, "
        "language_model/ and vision_tower/, and no config.json",
    ),
    (
        "idefics2",
        "a resampler with queries of its own stands between its tower and its decoder, which is "
        "not computed here",
    ),
    (
        "llava_next_video|vipllava|bakllava",
        "what stands between its tower and its decoder is not written yet; LLaVA 1.5, 1.6 and "
        "OneVision (types llava, llava_next and llava_onevision) are supported",
    ),
    (
        "llava_qwen2?|vila.*|nvila.*",
        "it is not in the form of VILA's three folders (type llava_llama), in which VILA 1.5 over "
        "a Llama and NVILA over a Qwen2 are supported",
    ),
    (
        "moondream.*",
        "its tower reads crops that overlap, and a picture is seen in both directions by its "
        "decoder",
    ),
    (
        "minicpmv.*|minicpm_?v.*|minicpmo",
        "its tower reads slices of any size, and a resampler stands behind it",
    ),
    (
        "internvl.*",
        "its tower scales each branch by a vector, and no converter is written yet",
    ),
    ("paligemma", "its decoder sees a picture and the text before its answer in both directions"),
    ("deepseek_v[23].*|minicpm3|kimi_k2.*|longcat.*", _LATENT),
    ("phi3small", _own_code("Phi-3-mini (type phi3), whose attention is not sparse by blocks,")),
    (
        "chatglm",
        _own_code("a repository of the type glm or glm4, such as zai-org/glm-4-9b-chat-hf"),
    ),
    ("qwen", _own_code("a later Qwen, such as Qwen/Qwen1.5-7B (type qwen2)")),
    ("baichuan", _own_code("a copy of its weights converted to the type llama")),
    ("mixformer-sequential|phi-msft", _own_code("microsoft/phi-1_5 or microsoft/phi-2 (type phi)")),
    ("Yi", _own_code("01-ai/Yi-6B as it is today (type llama)")),
    (
        "gpt_bigcode-santacoder",
        _own_code("bigcode/gpt_bigcode-santacoder (type gpt_bigcode)"),
    ),
    ("gpt2|gptj|gpt_neo|codegen|cohere.*|nemotron|olmo|exaone.*", _LATER),
)

# What a checkpoint's class computes beyond the decoder; "ForCausalLM" and wrappers generate text.
_OTHER_TASK = re.compile(r"For(?!CausalLM|ConditionalGeneration|VisionText2Text)[A-Z]\w*$")


def reason(model_type: str) -> str | None:
    """Why a ``model_type`` without a converter has none, if that is known."""
    return next((why for types, why in _REASONS if re.fullmatch(types, model_type)), None)


def both_directions(key: str) -> str:
    """The sentence about a decoder that attends to what comes later too, as a key says."""
    return (
        f"The model attends in both directions ({key}): it makes embeddings, and generates no text."
    )


def refuse_other_models(config: Mapping[str, Any]) -> None:
    """Refuses what a ``model_type`` does not show: an encoder, code of its own, a head, no mask.

    Args:
        config: A config.json.

    Raises:
        UnsupportedError: It is none that generates text from what it has read.
    """
    if config.get("is_encoder_decoder") is True:
        raise UnsupportedError(
            f"The model type {shown(config.get('model_type'))} is not supported: {_BOTH}."
        )
    if not config.get("is_causal", True):
        # The masks of transformers then let every class see in both directions.
        raise UnsupportedError(both_directions("is_causal"))
    classes = config.get("architectures")
    names = [name for name in classes if isinstance(name, str)] if isinstance(classes, list) else []
    if config.get("model_type") == "gpt2" and "GPT2LMHeadCustomModel" in names:
        instead = reason("gpt_bigcode-santacoder")
        raise UnsupportedError(f'The model type "gpt2" of these files is not supported: {instead}.')
    for name in names:
        task = _OTHER_TASK.search(name)
        if task is not None:
            raise UnsupportedError(
                f"The checkpoint is a {name}, whose head gives no next token; only models of the "
                "kind ForCausalLM are supported."
            )
