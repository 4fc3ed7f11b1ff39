"""Families that are refused, each with its reason, and decoders within larger models."""

from __future__ import annotations

from typing import Any

import pytest
from awq_edge.converters import find, known_model_types, text_part

from awq_edge.errors import CheckpointError, InvalidArgumentError, UnsupportedError


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        # By type.
        (dict(model_type="mamba2"), "state-space model.*recurrent state"),
        (dict(model_type="falcon_mamba"), "state-space model"),
        (dict(model_type="jamba"), "mixes .*state-space"),
        (dict(model_type="falcon_h1"), "mixes .*state-space"),
        (dict(model_type="nemotron_h"), "mixes .*state-space"),
        (dict(model_type="zamba2"), "mixes .*state-space"),
        (dict(model_type="lfm2"), "short gated convolutions"),
        (dict(model_type="lfm2_moe"), "short gated convolutions"),
        (dict(model_type="qwen3_next"), "linear attention"),
        (dict(model_type="qwen3_5_moe"), "linear attention"),
        (dict(model_type="kimi_linear"), "linear attention"),
        (dict(model_type="rwkv7"), "is recurrent"),
        (dict(model_type="recurrent_gemma"), "is recurrent"),
        (dict(model_type="gpt_oss"), "sink weights"),
        (dict(model_type="gemma3n"), "embeddings of their own"),
        (dict(model_type="qwen3_vl_moe"), "experts, which lie in one tensor"),
        (dict(model_type="llava_qwen2"), "VILA's three folders"),
        (dict(model_type="llava_next_video"), "between its tower and its decoder"),
        (dict(model_type="gemma3n_text"), "embeddings of their own"),
        (dict(model_type="gemma4"), "size of their heads"),
        (dict(model_type="t5"), "has an encoder"),
        (dict(model_type="whisper"), "has an encoder"),
        (dict(model_type="marian"), "has an encoder"),
        (dict(model_type="bert"), "is an encoder"),
        (dict(model_type="modernbert"), "is an encoder"),
        (dict(model_type="deepseek_v3"), "latent attention"),
        (dict(model_type="minicpm3"), "latent attention"),
        (dict(model_type="kimi_k2"), "latent attention"),
        (dict(model_type="phi3small"), "code of its own; use Phi-3-mini"),
        (dict(model_type="chatglm"), "code of its own; use .*glm-4-9b-chat-hf"),
        (dict(model_type="qwen"), "code of its own; use .*Qwen1.5"),
        (dict(model_type="baichuan"), "code of its own"),
        (dict(model_type="mixformer-sequential"), "code of its own; use microsoft/phi-1_5"),
        (dict(model_type="open_flamingo"), "a directory that holds checkpoint.pt"),
        (dict(model_type="Yi"), "code of its own; use 01-ai/Yi-6B"),
        (dict(model_type="gpt2"), "no converter for it"),
        (dict(model_type="cohere2"), "no converter for it"),
        (dict(model_type="exaone4"), "no converter for it"),
        (dict(model_type="no_such_family"), "known ones are .*llama.*mistral3"),
        # By what a configuration says beside its type.
        (
            dict(model_type="gpt2", architectures=["GPT2LMHeadCustomModel"]),
            "use bigcode/gpt_bigcode-santacoder",
        ),
        (dict(model_type="llama", is_encoder_decoder=True), "has an encoder"),
        (
            dict(model_type="llama", architectures=["LlamaForSequenceClassification"]),
            "LlamaForSequenceClassification, whose head",
        ),
    ],
)
def test_refusals(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedError, match=words) as raised:
        find(changes)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("value", [False, None, 0])
def test_a_decoder_that_sees_what_comes_later(value: object) -> None:
    """As embedding models have it: transformers masks nothing then, whatever the family."""
    transformers = pytest.importorskip("transformers")
    import torch
    from transformers.masking_utils import create_causal_mask

    sizes = dict(num_hidden_layers=1, is_causal=value, attn_implementation="eager")
    config = transformers.Qwen2Config(**sizes)
    assert create_causal_mask(config, torch.zeros(1, 3, 8), None, None) is None
    for model_type in known_model_types():
        if model_type not in text_part.WRAPPERS:
            with pytest.raises(UnsupportedError, match=r"both directions \(is_causal\)"):
                find({"model_type": model_type, "is_causal": value})


@pytest.mark.parametrize("model_type", ["stablelm", "gpt_neox", "llama", "qwen3", "falcon"])
def test_a_head_without_a_width(model_type: str) -> None:
    """Also where the hidden size is divided: transformers reads the key for the rotation."""
    config = {"model_type": model_type, "head_dim": 0}
    with pytest.raises(InvalidArgumentError, match="head_dim is 0"):
        find(config).architecture(config)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (dict(model_type="mistral3"), "should have a table text_config"),
        (dict(model_type="mistral3", text_config=[1]), "table text_config, not"),
        (
            dict(model_type="mistral3", text_config={"model_type": "mixtral"}),
            '"mixtral"; known are mistral, ministral, ministral3',
        ),
        (dict(model_type="mistral3", text_config={"model_type": ["x"]}), "known are mistral"),
    ],
)
def test_refused_text_parts(config: dict[str, Any], words: str) -> None:
    with pytest.raises((UnsupportedError, CheckpointError), match=words):
        text_part.text_config(config)


def test_a_text_part_is_told_what_counts_for_the_whole() -> None:
    """A head for another task, and a head that the class ties."""
    inner = {"hidden_size": 64, "tie_word_embeddings": False, "eos_token_id": 1}
    outer = {
        "model_type": "mistral3",
        "architectures": ["Mistral3ForSequenceClassification"],
        "eos_token_id": [1, 106],
        "text_config": inner,
    }
    text = text_part.text_config(outer)
    assert text["model_type"] == "mistral" and text["eos_token_id"] == [1, 106]
    assert text["tie_word_embeddings"] is True
    with pytest.raises(UnsupportedError, match="whose head"):
        find(text)
    assert text_part.text_config({**outer, "tie_word_embeddings": False})[
        "tie_word_embeddings"
    ] is (False)


def test_names_of_a_text_part() -> None:
    layer = "layers.0.self_attn.q_proj.weight"
    for prefix in ("language_model.model.", "model.language_model."):
        assert text_part.text_tensor(prefix + layer) == f"model.{layer}"
    for name in ("lm_head.weight", "language_model.lm_head.weight"):
        assert text_part.text_tensor(name) == "lm_head.weight"
    for name in ("vision_tower.layers.0.q.weight", "model.multi_modal_projector.norm.weight"):
        assert text_part.text_tensor(name) is None
