"""Qwen2-VL and Qwen2.5-VL convert as the text that they hold, in each way files have it."""

import json

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

from awq_edge import torch_decoder
from awq_edge.float_model import open_float_model, open_vision_part

TEXT = dict(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=128,
    max_position_embeddings=256,
    bos_token_id=1,
    eos_token_id=2,
    rope_parameters={"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
)
MODELS = {
    "qwen2_vl": lambda: tf.Qwen2VLForConditionalGeneration(
        tf.Qwen2VLConfig(
            text_config=TEXT,
            vision_config=dict(depth=1, embed_dim=32, hidden_size=64, num_heads=2),
        )
    ),
    "qwen2_5_vl": lambda: tf.Qwen2_5_VLForConditionalGeneration(
        tf.Qwen2_5_VLConfig(
            text_config=TEXT,
            vision_config=dict(
                depth=1, hidden_size=32, out_hidden_size=64, num_heads=2, intermediate_size=40
            ),
        )
    ),
}


def older_form(directory):
    """As the released files are: the text's keys and names beside those of the whole."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    text["rope_theta"] = rope["rope_theta"]
    text["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    flat = {**text, **config}
    (directory / "config.json").write_text(json.dumps(flat), encoding="utf-8")
    path = directory / "model.safetensors"
    tensors = {
        name.replace("model.language_model.", "model.").replace("model.visual.", "visual."): tensor
        for name, tensor in load_file(path).items()
    }
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("older", [False, True], ids=["nested", "flat"])
@pytest.mark.parametrize("family", MODELS)
def test_text_has_the_logits_of_the_whole(family, older, tmp_path):
    torch.manual_seed(0)
    model = MODELS[family]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3) if parameter.dim() == 1 else parameter.normal_(0, 0.1)
    model.save_pretrained(tmp_path)
    if older:
        older_form(tmp_path)
    source = open_float_model(str(tmp_path))
    tokens = torch.arange(5, 45)[None]
    ours = torch_decoder.logits(source, source.architecture, tokens)
    with torch.no_grad():
        theirs = model(input_ids=tokens).logits
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-4
    vision, why = open_vision_part(source)
    assert vision is None
    assert "rows and columns" in why
