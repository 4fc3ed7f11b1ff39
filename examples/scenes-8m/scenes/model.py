"""The model's shape as transformers knows it, and the files of its processor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from scenes.layout import SIDE
from scenes.words import BOS, EMBEDDED, EOS, ID, IMAGE, PAD, USER

PATCH = 12
PICTURE_TOKENS = (SIDE // PATCH) ** 2
# What every conversation begins with.
PREFIX = [ID[BOS], ID[USER], *[ID[IMAGE]] * PICTURE_TOKENS]
FIRST_PICTURE_TOKEN = 2

# CLIP's own constants.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def make_model() -> LlavaForConditionalGeneration:
    """LLaVA with a CLIP tower 96/12 and a Llama; weights drawn by torch's generator, float32."""
    tower = CLIPVisionConfig(
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=3,
        image_size=SIDE,
        patch_size=PATCH,
        hidden_act="quick_gelu",
        projection_dim=192,
    )
    decoder = LlamaConfig(
        vocab_size=EMBEDDED,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        tie_word_embeddings=True,
        bos_token_id=ID[BOS],
        eos_token_id=ID[EOS],
        pad_token_id=ID[PAD],
    )
    config = LlavaConfig(
        vision_config=tower,
        text_config=decoder,
        image_token_id=ID[IMAGE],
        image_seq_length=PICTURE_TOKENS,
        projector_hidden_act="gelu",
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
        bos_token_id=ID[BOS],
        eos_token_id=ID[EOS],
        pad_token_id=ID[PAD],
    )
    return LlavaForConditionalGeneration(config)


def normalise(pictures: torch.Tensor) -> torch.Tensor:
    """uint8 [b, 3, SIDE, SIDE] to float32, as the processor does it."""
    mean = torch.tensor(MEAN, device=pictures.device)[:, None, None]
    std = torch.tensor(STD, device=pictures.device)[:, None, None]
    return (pictures.float() * (1 / 255) - mean) / std


def save_processor(directory: Path) -> None:
    """Writes preprocessor_config.json and processor_config.json."""
    settings: dict[str, dict[str, Any]] = {
        "preprocessor_config.json": {
            "crop_size": {"height": SIDE, "width": SIDE},
            "do_center_crop": True,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": MEAN,
            "image_processor_type": "CLIPImageProcessor",
            "image_std": STD,
            "processor_class": "LlavaProcessor",
            "resample": 3,  # bicubic
            "rescale_factor": 1 / 255,
            "size": {"shortest_edge": SIDE},
        },
        "processor_config.json": {
            "image_token": IMAGE,
            "num_additional_image_tokens": 1,  # the class token
            "patch_size": PATCH,
            "processor_class": "LlavaProcessor",
            "vision_feature_select_strategy": "default",
        },
    }
    for name, values in settings.items():
        (directory / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
