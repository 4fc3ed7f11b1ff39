"""nanoVLM: a SigLIP tower, squares of patches side by side through one matrix, a SmolLM2.

Owns how its config.json, which names no type and has words of its own for everything, fills the
records of tower and decoder; what its program tells a tokenizer that lies in another repository;
and how it prepares pictures. Refuses mathematics and weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from awq_edge.architecture import Architecture
from awq_edge.errors import CheckpointError, UnsupportedError
from awq_edge.vision.architecture import VisionArchitecture
from awq_edge.vision.prompt import WHOLE_FIRST, tile_word

from .base import SHARED_DEFAULTS, Config, Converter
from .dialogue import Dialogue
from .values import Values, shown
from .vision_part import VisionPart, tower_fields

_PICTURE = "<|image|>"
_TEXT_KEYS = {
    "hidden_size": ("lm_hidden_dim",),
    "intermediate_size": ("lm_inter_dim",),
    "num_hidden_layers": ("lm_n_blocks",),
    "num_attention_heads": ("lm_n_heads",),
    "num_key_value_heads": ("lm_n_kv_heads",),
    "vocab_size": ("lm_vocab_size",),
    "max_position_embeddings": ("lm_max_position_embeddings",),
    "rms_norm_eps": ("lm_rms_eps",),
    "rope_theta": ("lm_re_base",),
    "tie_word_embeddings": ("lm_tie_weights",),
}
# What a file of today's program has for them: it writes every key.
_TEXT_DEFAULTS = {
    **SHARED_DEFAULTS,
    "hidden_size": 960,
    "intermediate_size": 2560,
    "num_attention_heads": 15,
    "num_key_value_heads": 5,
    "vocab_size": 49218,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
}
_TOWER_KEYS = {
    "hidden_size": ("vit_hidden_dim",),
    "intermediate_size": ("vit_inter_dim",),
    "num_hidden_layers": ("vit_n_blocks",),
    "num_attention_heads": ("vit_n_heads",),
    "image_size": ("vit_img_size",),
    "patch_size": ("vit_patch_size",),
    "layer_norm_eps": ("vit_ln_eps",),
}
_TOWER_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 512,
    "patch_size": 16,
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu_pytorch_tanh",
    "mp_pixel_shuffle_factor": 4,
    "mp_image_token_length": 64,
    "max_img_size": 2048,
}
# As ``text_part.py`` calls a decoder's tensors, "model." in front.
_NAMES = {
    "token_embd": "model.token_embedding",
    "output": "model.head",
    "output_norm": "model.norm",
    "blk.N.attn_norm": "model.blocks.N.norm1",
    "blk.N.attn_q": "model.blocks.N.attn.q_proj",
    "blk.N.attn_k": "model.blocks.N.attn.k_proj",
    "blk.N.attn_v": "model.blocks.N.attn.v_proj",
    "blk.N.attn_output": "model.blocks.N.attn.out_proj",
    "blk.N.ffn_norm": "model.blocks.N.norm2",
    "blk.N.ffn_gate": "model.blocks.N.mlp.gate_proj",
    "blk.N.ffn_up": "model.blocks.N.mlp.up_proj",
    "blk.N.ffn_down": "model.blocks.N.mlp.down_proj",
}
_LAYER_NAMES = {
    "ln1": "ln1",
    **dict.fromkeys(("attn_q", "attn_k", "attn_v"), "attn.qkv_proj"),
    "attn_out": "attn.out_proj",
    "ln2": "ln2",
    "ffn_up": "mlp.fc1",
    "ffn_down": "mlp.fc2",
}
_TOWER_NAMES = {
    "v.patch_embd": "tower.patch_embedding.conv",
    "v.position_embd.weight": "tower.patch_embedding.position_embedding",
    "v.post_ln": "tower.layer_norm",
}


def _architecture(config: Config) -> Architecture:
    if config.number("lm_attn_scaling", 1.0) != 1:
        raise UnsupportedError(
            "This nanoVLM multiplies the cosines and sines of its positions (lm_attn_scaling), "
            "which is not done here."
        )
    return config.decoder()


CONVERTER = Converter("nanovlm_text", _NAMES, _architecture, _TEXT_DEFAULTS, keys=_TEXT_KEYS)


def nanovlm(config: Values, decoder_size: int) -> VisionPart:
    """The tower and the connector of a nanoVLM.

    Args:
        config: config.json of the whole.
        decoder_size: Width of the decoder.
    """
    values = Values(config.values, _TOWER_DEFAULTS, _TOWER_KEYS)
    if values.flag("vit_cls_flag"):
        raise UnsupportedError(
            "The connector of this nanoVLM reads a token that is no patch (vit_cls_flag), and its "
            "pictures then have no rows."
        )
    architecture = VisionArchitecture(
        **tower_fields(values, values.integer("num_hidden_layers")),
        decoder_size=decoder_size,
        post_norm=True,
        regroup=values.integer("mp_pixel_shuffle_factor"),
        connector="linear",
        connector_bias=False,
    )
    if architecture.grid % architecture.regroup:
        raise UnsupportedError(
            f"The tower's {architecture.grid} patches on a side are no multiple of the "
            f"mp_pixel_shuffle_factor {architecture.regroup}."
        )
    if values.integer("mp_image_token_length") != architecture.tokens:
        raise CheckpointError(
            f"config.json has {values.integer('mp_image_token_length')} for mp_image_token_length, "
            f"and a tile of this tower becomes {architecture.tokens} rows."
        )
    longest = values.integer("max_img_size")
    _check_words(config, -(-longest // architecture.image_size))
    return VisionPart(
        "nanovlm",
        architecture,
        {"mm.0": "proj"},
        0,
        WHOLE_FIRST,
        layers_at="tower.blocks.",
        layer_names=_LAYER_NAMES,
        tower_names=_TOWER_NAMES,
        fused=True,
        one_table=True,
        spelt=_PICTURE,
        settings={
            "image_processor_type": "NanoVLMImageProcessor",
            "size": {"longest_edge": longest},
            "max_image_size": {"longest_edge": architecture.image_size},
            "resize_to_max_side_len": values.flag("resize_to_max_side_len"),
        },
    )


def _words(config: Values) -> Mapping[str, Any]:
    return config.table("vlm_extra_tokens").values


def _check_words(config: Values, most: int) -> None:
    """Refuses a program that says other things around a picture than today's.

    Args:
        config: config.json of the whole.
        most: Rows and columns of tiles that a picture may have.
    """
    words = _words(config)
    if "global_image_token" not in words:
        raise UnsupportedError(
            "This is a nanoVLM from before its pictures had a tile of the whole "
            "(vlm_extra_tokens has no global_image_token), whose prompts are not written here; "
            "lusxvr/nanoVLM-460M-8k and lusxvr/nanoVLM-230M-8k are of today's form."
        )
    if most > 8:
        raise UnsupportedError(
            f"This nanoVLM cuts a picture into up to {most} rows and columns of tiles; its "
            "program has words for 8."
        )
    wanted = {"image_token": _PICTURE, "global_image_token": "<|global_image|>"}
    for row in range(1, most + 1):
        for column in range(1, most + 1):
            wanted[f"r{row}c{column}"] = tile_word(row, column)
    for name, word in wanted.items():
        if words.get(name) != word:
            raise UnsupportedError(
                f"The vlm_extra_tokens of this nanoVLM have {shown(words.get(name))} for {name}; "
                f"{word} is what is written into prompts here."
            )


def dialogue(config: Mapping[str, Any]) -> Dialogue:
    """What the program of a nanoVLM tells the tokenizer, by config.json of the whole."""
    values = Values(config, {})
    template = values.get("lm_chat_template")
    return Dialogue(
        placeholder=_PICTURE,
        settings={"extra_special_tokens": dict(_words(values))},
        templates=(("", template),) if isinstance(template, str) else (),
    )
