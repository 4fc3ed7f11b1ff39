"""OpenFlamingo: a tower, a language model and, in a file of its own, what was trained between them.

Owns how the three call their tensors, what they must agree in, and the one configuration that is
made of them: OpenFlamingo has no config.json. Refuses to open files (``flamingo_directory.py``).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from awq_edge.errors import CheckpointError, UnsupportedError

MODEL_TYPE = "open_flamingo"
# The family's program adds them to any tokenizer, in this order; the first ends a shot.
END_OF_SHOT, PICTURE = "<|endofchunk|>", "<image>"
# Of every head, of the resampler as of the blocks.
_HEAD_SIZE = 64

# What processes of a training put into names; the numbers are the same.
_WRAPPINGS = ("_checkpoint_wrapped_module.", "_fsdp_wrapped_module.", "module.")
_LANGUAGE, _RESAMPLER = "lang_encoder.", "perceiver."
# Blocks are called once by their own list, and once within the layers that they stand before.
_BLOCK = re.compile(r"lang_encoder\.(?:.*\.)?gated_cross_attn_layers?\.(?P<rest>.+)")
_BLOCK_IN_LAYER = re.compile(
    r"lang_encoder\..*\.(?P<layer>\d+)\.gated_cross_attn_layer\.(?P<rest>.+)"
)
_DECODER_LAYER = re.compile(r"\.(\d+)\.decoder_layer\.")
# The untrained layers once more, and a copy of the tower.
_COPIES = ("lang_encoder.old_decoder_blocks.", "vision_encoder.")

# In front of the tower's tensors in a file of the whole CLIP; and what they begin with in one of
# the tower alone.
_CLIP_TOWER = "vision_model."
_CLIP_PARTS = ("embeddings.", "encoder.layers.", "pre_layrnorm.", "post_layernorm.")
# The tower by the names of open_clip, in front of a layer's number and behind it; and of CLIP's
# class in transformers.
_OPEN_CLIP = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "ln_pre": "pre_layrnorm",  # so transformers spells it
    "ln_post": "post_layernorm",
}
_OPEN_CLIP_LAYER = {
    "ln_1": "layer_norm1",
    "attn.out_proj": "self_attn.out_proj",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_RESBLOCK = re.compile(r"transformer\.resblocks\.(?P<layer>\d+)\.(?P<rest>.+)")
_FUSED = re.compile(r"attn\.in_proj_(?P<kind>weight|bias)")
# Of every tower of open_clip's, where its configuration does not say.
_OPEN_CLIP_HEAD = 64

Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Part:
    """Rows of a stored tensor, by the name that they have in one part of the model.

    Attributes:
        name: In its part.
        share: Which one of ``shares`` equal parts of the rows.
        shares: How many there are.
    """

    name: str
    share: int = 0
    shares: int = 1


def trained_tensor(name: str) -> list[Part]:
    """What checkpoint.pt's tensors are: of blocks ``blocks.N.``, of the resampler ``resampler.``.

    Others have the name that the language model's own file has for them. Keys and values, which
    are one matrix, are taken apart. Empty: a copy of what lies elsewhere.
    """
    for wrapping in _WRAPPINGS:
        name = name.replace(wrapping, "")
    if name.startswith(_COPIES):
        return []
    if name.startswith(_RESAMPLER):
        return _keys_and_values(f"resampler.{name[len(_RESAMPLER) :]}")
    inside = _BLOCK_IN_LAYER.fullmatch(name)
    if inside is not None:
        return _keys_and_values(f"blocks.{inside['layer']}.{inside['rest']}")
    block = _BLOCK.fullmatch(name)
    if block is not None:
        return _keys_and_values(f"blocks.{block['rest']}")
    if name.startswith(_LANGUAGE):
        return [Part(_DECODER_LAYER.sub(r".\1.", name[len(_LANGUAGE) :]))]
    raise CheckpointError(
        f"checkpoint.pt holds {name}, which no OpenFlamingo has: it is another model's file."
    )


def _keys_and_values(name: str) -> list[Part]:
    before, fused, behind = name.partition(".to_kv.")
    if not fused:
        return [Part(name)]
    return [Part(f"{before}.{kind}.{behind}", n, 2) for n, kind in enumerate(("to_k", "to_v"))]


def clip_tensor(name: str) -> str | None:
    """What a tensor of transformers' file is, by ``tower.``; None: no part of the tower."""
    inner = name.removeprefix(_CLIP_TOWER)
    return f"tower.{inner}" if inner.startswith(_CLIP_PARTS) else None


def open_clip_tensor(name: str) -> list[Part]:
    """What a tensor of open_clip's file is, by ``tower.`` and transformers' names.

    Empty: no part of the tower.
    """
    _, visual, rest = name.partition("visual.")
    if not visual:
        return []
    layer = _RESBLOCK.fullmatch(rest)
    if layer is None:
        stem, _, kind = rest.rpartition(".")
        named = _OPEN_CLIP.get(rest) or (_OPEN_CLIP.get(stem) and f"{_OPEN_CLIP[stem]}.{kind}")
        return [Part(f"tower.{named}")] if named else []
    before = f"tower.encoder.layers.{layer['layer']}."
    fused = _FUSED.fullmatch(layer["rest"])
    if fused is not None:
        kinds = enumerate(("q_proj", "k_proj", "v_proj"))
        return [Part(f"{before}self_attn.{name}.{fused['kind']}", n, 3) for n, name in kinds]
    stem, _, kind = layer["rest"].rpartition(".")
    return [Part(f"{before}{_OPEN_CLIP_LAYER[stem]}.{kind}")] if stem in _OPEN_CLIP_LAYER else []


def open_clip_config(shapes: Shapes, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a tower in open_clip's files, as transformers writes it.

    Args:
        shapes: Of its tensors, by :func:`open_clip_tensor`.
        settings: open_clip_config.json; empty: there is none, and the tower is OpenAI's.

    Raises:
        CheckpointError: The tensors that tell its sizes are not there.
    """
    described = settings.get("model_cfg")
    model = described if isinstance(described, Mapping) else {}
    tower = model.get("vision_cfg")
    tower = tower if isinstance(tower, Mapping) else {}
    patches = _shape(shapes, "tower.embeddings.patch_embedding.weight", 4)
    positions = _shape(shapes, "tower.embeddings.position_embedding.weight", 2)
    inner = _shape(shapes, "tower.encoder.layers.0.mlp.fc1.weight", 2)
    width, patch = patches[0], patches[-1]
    side = tower.get("image_size", round(max(positions[0] - 1, 0) ** 0.5) * patch)
    # OpenAI's weights were trained with this form of GELU; open_clip's own say so if theirs were.
    quick = model.get("quick_gelu", False) if model else True
    return {
        "model_type": "clip_vision_model",
        "hidden_size": width,
        "intermediate_size": inner[0],
        "num_hidden_layers": 1 + max(_layers(shapes, "tower.encoder.layers."), default=-1),
        "num_attention_heads": max(width // int(tower.get("head_width", _OPEN_CLIP_HEAD)), 1),
        "image_size": side,
        "patch_size": patch,
        "hidden_act": "quick_gelu" if quick else "gelu",
        "layer_norm_eps": 1e-5,
    }


def whole_config(
    shapes: Shapes, layers: int, width: int, tower: Mapping[str, Any]
) -> dict[str, Any]:
    """The configuration that OpenFlamingo's parts make together.

    Args:
        shapes: Of the trained tensors, by the names of :func:`trained_tensor`.
        layers: Of the language model.
        width: Of its stream.
        tower: The configuration of the tower.

    Raises:
        CheckpointError: The parts are not of one model, or the trained one is not whole.
        UnsupportedError: It is of a form that is not computed here.
    """
    blocks = sorted(_layers(shapes, "blocks."))
    if not blocks:
        raise CheckpointError(
            "checkpoint.pt holds no gated blocks (lang_encoder.gated_cross_attn_layers): it is no "
            "OpenFlamingo, or a part of one."
        )
    every = blocks[0] + 1
    wanted = list(range(every - 1, layers, every))
    first = f"blocks.{blocks[0]}."
    reads = _shape(shapes, f"{first}attn.to_q.weight", 2)
    if reads[1] != width:
        raise CheckpointError(
            f"The gated blocks of checkpoint.pt read a stream of {reads[1]} numbers, and the "
            f"language model has {width}: they were trained with another one."
        )
    if blocks != wanted:
        raise CheckpointError(
            f"checkpoint.pt has gated blocks before the layers {_few(blocks)}; of a language model "
            f"of {layers} layers they stand before {_few(wanted)}: a part is missing, or it was "
            "trained with another one."
        )
    seen = _shape(shapes, f"{first}attn.to_k.weight", 2)
    rows = _shape(shapes, "resampler.latents", 2)
    tower_width = tower.get("hidden_size")
    if rows[1] != tower_width or seen[1] != tower_width:
        raise CheckpointError(
            f"The resampler of checkpoint.pt reads rows of {rows[1]} numbers, and the tower makes "
            f"{tower_width}: it was trained with another one."
        )
    for name in ("frame_embs", "media_time_embs"):
        if f"resampler.{name}" in shapes:
            raise UnsupportedError(
                f"The resampler of checkpoint.pt counts frames or pictures (perceiver.{name}), "
                "which no release does and nothing here computes."
            )
    return {
        "model_type": MODEL_TYPE,
        "vision_config": dict(tower),
        "num_hidden_layers": layers,
        "cross_attn_every_n_layers": every,
        "cross_heads": _heads(reads[0]),
        "cross_head_dim": _HEAD_SIZE,
        "cross_intermediate_size": _shape(shapes, f"{first}ff.1.weight", 2)[0],
        "resampler_depth": len(_layers(shapes, "resampler.layers.")),
        "resampler_n_latents": rows[0],
        "resampler_n_heads": _heads(_shape(shapes, "resampler.layers.0.0.to_q.weight", 2)[0]),
        "resampler_head_dim": _HEAD_SIZE,
        "resampler_intermediate_size": _shape(shapes, "resampler.layers.0.1.1.weight", 2)[0],
    }


def _layers(shapes: Iterable[str], before: str) -> set[int]:
    numbers = (name[len(before) :].split(".")[0] for name in shapes if name.startswith(before))
    return {int(number) for number in numbers if number.isdigit()}


def _shape(shapes: Shapes, name: str, dimensions: int) -> tuple[int, ...]:
    shape = shapes.get(name)
    if shape is None or len(shape) != dimensions:
        raise CheckpointError(f"The checkpoint has no {name} of {dimensions} dimensions.")
    return shape


def _heads(size: int) -> int:
    if size % _HEAD_SIZE or not size:
        raise UnsupportedError(
            f"Queries of checkpoint.pt have {size} numbers, which are no heads of {_HEAD_SIZE}."
        )
    return size // _HEAD_SIZE


def _few(numbers: list[int]) -> str:
    shown = ", ".join(str(number) for number in numbers[:4])
    return shown if len(numbers) <= 4 else f"{shown}, … ({len(numbers)} in all)"
