"""The tower and the connector within a model that sees pictures.

Owns, for each type of such models: how its config.json fills the record of ``vision/architecture``,
how its tensors are called, and where its pictures stand in a text. Refuses mathematics and weights.
What is decoded is ``text_part.py``'s; how a picture is prepared, ``preprocessor.py``'s.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from awq_edge.errors import CheckpointError, UnsupportedError
from awq_edge.vision.architecture import Resampler, VisionArchitecture

from .cross_part import CrossPart, block_tensor, cross_part
from .open_flamingo import MODEL_TYPE, PICTURE
from .preprocessor import grid_sizes
from .values import Values, shown

_ACTIVATIONS: Mapping[str, str] = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    **dict.fromkeys(("gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu_accurate"), "gelu_tanh"),
    "silu": "silu",
    "relu": "relu",
}
# What the classes of towers take for keys that are absent.
CLIP = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_SIGLIP = {**CLIP, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
_IDEFICS1 = {
    **CLIP,
    "patch_size": 14,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
}
_PERCEIVER = {
    "resampler_n_latents": 64,
    "resampler_depth": 6,
    "resampler_n_heads": 16,
    "resampler_head_dim": 96,
}
_IDEFICS = {**_SIGLIP, "hidden_size": 1152, "num_attention_heads": 16, "patch_size": 32}
# In front of the names of each part, the longest first.
_TOWERS = (
    "model.vision_tower.vision_model.",
    "vision_tower.vision_model.",
    "model.vision_tower.",
    "vision_tower.",
    "model.vision_model.",
    "vision_model.",
    "model.visual.",
    "visual.",
    "vision_encoder.",
)
_PROJECTORS = (
    "model.multi_modal_projector.",
    "multi_modal_projector.",
    "model.connector.",
    "connector.",
    "model.visual.merger.mlp.",
    "visual.merger.mlp.",
    "mm_projector.",
    "MP.",
)
_RESAMPLERS = ("model.perceiver_resampler.",)
# What a gated block makes of pictures alone; the rest of it belongs to the decoder.
SEEN = (".k_proj.", ".v_proj.", ".k_layer_norm.", ".to_k.", ".to_v.")
_NEWLINES = ("model.image_newline", "image_newline")
# Of many towers' checkpoints, and of no use to a decoder: pooling heads, tables that count.
_UNUSED = ("tower.head.", "tower.embeddings.position_ids")

_LAYER_NAMES = {
    "ln1": "layer_norm1",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_out": "self_attn.out_proj",
    "ln2": "layer_norm2",
    "ffn_up": "mlp.fc1",
    "ffn_down": "mlp.fc2",
}
_IDEFICS_RESAMPLER = {
    "ln_rows": "0.context_layer_norm",
    "ln1": "0.latents_layer_norm",
    "attn_q": "0.q_proj",
    "attn_k": "0.k_proj",
    "attn_v": "0.v_proj",
    "attn_out": "0.output_proj",
    "attn_q_norm": "0.q_layer_norm",
    "attn_k_norm": "0.k_layer_norm",
    "ln2": "1.ln",
    "ffn_up": "1.fc",
    "ffn_down": "1.c_proj",
}
_OPEN_FLAMINGO_RESAMPLER = {
    "ln_rows": "0.norm_media",
    "ln1": "0.norm_latents",
    "attn_q": "0.to_q",
    "attn_k": "0.to_k",
    "attn_v": "0.to_v",
    "attn_out": "0.to_out",
    "ln2": "1.0",
    "ffn_up": "1.1",
    "ffn_down": "1.3",
}
_TOWER_NAMES = {
    "v.patch_embd": "tower.embeddings.patch_embedding",
    "v.position_embd": "tower.embeddings.position_embedding",
    "v.pre_ln": "tower.pre_layrnorm",  # so they spell it
    "v.post_ln": "tower.post_layernorm",
}
_CLASS = "tower.embeddings.class_embedding"
THETA = 10000.0  # of towers that turn patches


@dataclasses.dataclass(frozen=True)
class ResamplerNames:
    """What a checkpoint calls the tensors of a resampler.

    Attributes:
        layers: In front of a layer's number.
        of_layer: Our names of a layer's tensors to theirs.
        post_norm: The norm behind the last layer.
    """

    layers: str
    of_layer: Mapping[str, str]
    post_norm: str

    def stored_name(self, name: str) -> str:
        """Theirs of one of ours."""
        if name == "v.resampler.latents":
            return "resampler.latents"
        stem, _, kind = name.rpartition(".")
        *_, layer, ours = stem.split(".")
        if ours == "post_ln":
            return f"resampler.{self.post_norm}.{kind}"
        return f"resampler.{self.layers}.{layer}.{self.of_layer[ours]}.{kind}"


@dataclasses.dataclass(frozen=True)
class VisionPart:
    """What a config.json says of a tower.

    Attributes:
        family: Which one, for reports and for what is done to prompts.
        architecture: The record.
        connector: Our names of the connector's tensors to theirs.
        placeholder: Id of the token that stands for a row of a picture.
        layout: What stands around a picture's rows, as ``vision/prompt.py`` knows it.
        around: Ids of the tokens in front of them and behind, where the layout has such.
        sizes: Heights and widths that tiles of any resolution make up; None: the processor's.
        most_tiles: Of how many of them the decoder reads the rows; 0: of all.
        positions: Which row of the position table each patch has; None: its own.
        transposed: Whether the connector's matrix is stored by columns.
        norm_offset: What is added to the weight of the connector's norm.
        layers_at: In front of a layer's number in their names.
        layer_names: Our names of a layer's tensors to theirs.
        tower_names: Our names of the tower's other tensors to theirs, whole or without the kind.
        fused: Whether queries, keys and values are one matrix, in this order.
        one_table: Whether the position table stands in a batch of one.
        frames: Of a video that the patch matrix reads; a still picture is the same in all. 0: it
            reads pictures.
        theta: Base of the frequencies by which a tower turns rows and columns.
        ends: Id of the token behind which a text looks at no picture; None: there is none.
        spelt: How the placeholder is spelt, where config.json does not know its id.
        apart: Whether the texts around pictures are tokenised one by one.
        aspect: What becomes of a picture before its processor: squash, pad, grid, or nothing.
        tiles: Of such a grid, how many it has at least and at most.
        end: What stands behind the rows of each tile, tokenised by itself.
        resampler: Our names of a resampler's layer to theirs, and its layers' and its norm's.
        cross: The gated blocks that pictures' keys and values belong to.
        settings: How pictures are prepared where no file says so; None: a file must.
    """

    family: str
    architecture: VisionArchitecture
    connector: Mapping[str, str]
    placeholder: int
    layout: str
    around: tuple[int, int] | None = None
    sizes: tuple[tuple[int, int], ...] | None = None
    most_tiles: int = 0
    positions: npt.NDArray[np.int64] | None = None
    transposed: bool = False
    norm_offset: float = 0.0
    layers_at: str = "tower.encoder.layers."
    layer_names: Mapping[str, str] = dataclasses.field(default_factory=lambda: _LAYER_NAMES)
    tower_names: Mapping[str, str] = dataclasses.field(default_factory=lambda: _TOWER_NAMES)
    fused: bool = False
    one_table: bool = False
    frames: int = 0
    theta: float = THETA
    ends: int | None = None
    spelt: str = ""
    apart: bool = False
    aspect: str = ""
    tiles: tuple[int, int] = (0, 0)
    end: str = ""
    resampler: ResamplerNames | None = None
    cross: CrossPart | None = None
    settings: Mapping[str, Any] | None = None

    def stored_name(self, name: str) -> str:
        """What a checkpoint calls one of our tensors, its prefix made ours."""
        if name == "v.class_embd":
            return _CLASS
        if name == "mm.image_newline":
            return "newline"
        stem, _, kind = name.rpartition(".")
        if name.startswith("v.resampler.") and self.resampler is not None:
            return self.resampler.stored_name(name)
        if name.startswith("mm.blk.") and self.cross is not None:
            _, _, layer, ours = name.split(".", 3)
            return self.cross.stored_name(int(layer), ours)
        if name in self.connector:
            return f"projector.{self.connector[name]}"
        if stem in self.connector:
            return f"projector.{self.connector[stem]}.{kind}"
        if name in self.tower_names:
            return self.tower_names[name]
        if stem in self.tower_names:
            return f"{self.tower_names[stem]}.{kind}"
        _, _, layer, matrix = stem.split(".")
        return f"{self.layers_at}{layer}.{self.layer_names[matrix]}.{kind}"

    def is_unused(self, stored: str) -> bool:
        """Whether a checkpoint may hold a tensor that no file takes."""
        if stored.startswith(_UNUSED):
            return True
        if stored.startswith("tower.post_layernorm."):
            return not self.architecture.post_norm
        parts = stored.split(".")
        behind = parts[:3] == ["tower", "encoder", "layers"] and parts[3].isdigit()
        return behind and int(parts[3]) >= self.architecture.layers


def vision_tensor(name: str) -> str | None:
    """A tensor's name with its prefix made ours; None if it is of another part."""
    named = (("projector.", _PROJECTORS), ("resampler.", _RESAMPLERS), ("tower.", _TOWERS))
    for ours, prefixes in named:
        for prefix in prefixes:
            if name.startswith(prefix):
                return ours + name[len(prefix) :]
    block = block_tensor(name)
    if block is not None:
        return block if any(part in block for part in SEEN) else None
    return "newline" if name in _NEWLINES else None


def vision_part(config: Mapping[str, Any], decoder_size: int) -> VisionPart | None:
    """The tower of a model; None for a type without one that is known.

    Args:
        config: config.json of the whole.
        decoder_size: Width of its decoder.

    Raises:
        UnsupportedError: It is of a form that is not computed here.
        CheckpointError: config.json contradicts itself.
    """
    model_type = config.get("model_type")
    # These make a record of this module's.
    from .nanovlm import nanovlm
    from .qwen_vision import qwen2_5_vl, qwen2_vl, qwen3_vl
    from .vila import vila

    readers = {
        **_READERS,
        "llava_llama": vila,
        "nanovlm": nanovlm,
        "qwen2_vl": qwen2_vl,
        "qwen2_5_vl": qwen2_5_vl,
        "qwen3_vl": qwen3_vl,
    }
    reader = readers.get(model_type) if isinstance(model_type, str) else None
    return None if reader is None else reader(Values(config, {}), decoder_size)


def _llava(config: Values, decoder_size: int) -> VisionPart:
    """LLaVA 1.5: all patches of one layer, through two matrices."""
    strategy = config.get("vision_feature_select_strategy", "default")
    return _patches("llava", config, decoder_size, -2, strategy, 32000)


def _llava_next(config: Values, decoder_size: int) -> VisionPart:
    """LLaVA 1.6: the same, of tiles, whose lines end in a learned vector."""
    strategy = config.get("vision_feature_select_strategy", "default")
    part = _patches("llava_next", config, decoder_size, -2, strategy, 32000)
    return _of_any_resolution(part, config)


def _onevision(config: Values, decoder_size: int) -> VisionPart:
    """LLaVA-OneVision: as 1.6, without rows beyond those of some tiles."""
    strategy = config.get("vision_feature_select_strategy", "full")
    part = _patches("llava_onevision", config, decoder_size, -1, strategy, 151646)
    wanted = config.get("vision_aspect_ratio", "anyres_max_9")
    limit = re.fullmatch(r"anyres_max_([1-9]\d{0,3})", wanted if isinstance(wanted, str) else "")
    if limit is None:
        raise UnsupportedError(
            f"The vision_aspect_ratio of this model is {shown(wanted)}; anyres_max_ with a number "
            "is supported."
        )
    return _of_any_resolution(part, config, int(limit[1]))


def _of_any_resolution(part: VisionPart, config: Values, most_tiles: int = 0) -> VisionPart:
    sizes = config.get("image_grid_pinpoints")
    return dataclasses.replace(
        part,
        architecture=dataclasses.replace(part.architecture, newline=True),
        layout="any_resolution",
        sizes=None if sizes is None else grid_sizes(sizes, "config.json"),
        most_tiles=most_tiles,
    )


def _patches(
    family: str, config: Values, decoder_size: int, layer: int, strategy: Any, placeholder: int
) -> VisionPart:
    """All patches of one layer, through two matrices: LLaVA's families, and what they default to.

    Args:
        family: Which one.
        config: config.json of the whole.
        decoder_size: Width of its decoder.
        layer: Which one is read where config.json does not say.
        strategy: What becomes of the class token.
        placeholder: Its default id.
    """
    values, clip = siglip_or_clip(config.table("vision_config"))
    if strategy != ("default" if clip else "full"):
        raise UnsupportedError(
            f"The model takes patches by the strategy {shown(strategy)}; the tower is a "
            f"{'CLIP' if clip else 'SigLIP'}, of which {'default' if clip else 'full'} is "
            "supported."
        )
    bias = config.flag("multimodal_projector_bias", True)
    return VisionPart(
        family,
        VisionArchitecture(
            **tower_fields(values, layers_read(config, values, layer)),
            decoder_size=decoder_size,
            class_token=clip,
            patch_bias=not clip,
            pre_norm=clip,
            connector="mlp",
            connector_size=decoder_size,
            connector_activation=_activation(config.get("projector_hidden_act", "gelu")),
            connector_bias=bias,
        ),
        {"mm.0": "linear_1", "mm.2": "linear_2"},
        placeholder_id(config, placeholder),
        "plain",
    )


def siglip_or_clip(tower: Values) -> tuple[Values, bool]:
    """A tower's table with what its class takes for absent keys, and whether that is CLIP's."""
    kind = tower.get("model_type", "clip_vision_model")
    if kind not in ("clip_vision_model", "siglip_vision_model"):
        raise UnsupportedError(
            f"The tower of this model is a {shown(kind)}; clip_vision_model and "
            "siglip_vision_model are supported."
        )
    clip = kind == "clip_vision_model"
    return Values(tower.values, CLIP if clip else _SIGLIP), clip


def layers_read(
    config: Values, tower: Values, default: int, key: str = "vision_feature_layer"
) -> int:
    """How many layers are computed for the hidden states that the connector reads."""
    layers = tower.integer("num_hidden_layers")
    chosen = config.get(key, default)
    if isinstance(chosen, list):
        raise UnsupportedError(
            f"The connector of this model reads several layers of its tower side by side ({key} is "
            "a list); one is supported."
        )
    chosen = config.integer(key, default)
    computed = chosen if chosen >= 0 else layers + 1 + chosen
    if not 1 <= computed <= layers:
        raise CheckpointError(f"config.json has {chosen} for {key}, and the tower {layers} layers.")
    return computed


def _idefics(family: str, placeholder: int) -> Callable[[Values, int], VisionPart]:
    """SmolVLM and Idefics3: tiles, regrouped, through one matrix without bias."""

    def read(config: Values, decoder_size: int) -> VisionPart:
        tower = Values(config.table("vision_config").values, _IDEFICS)
        architecture = VisionArchitecture(
            **tower_fields(tower, tower.integer("num_hidden_layers")),
            decoder_size=decoder_size,
            post_norm=True,
            regroup=config.integer("scale_factor", 2),
            connector="linear",
            connector_bias=False,
        )
        if architecture.grid % architecture.regroup:
            raise UnsupportedError(
                f"The tower's {architecture.grid} patches on a side are no multiple of the "
                f"scale_factor {architecture.regroup}."
            )
        return VisionPart(
            family,
            architecture,
            {"mm.0": "modality_projection.proj"},
            placeholder_id(config, placeholder),
            "rows_and_columns",
            positions=bucketed_positions(architecture.grid),
        )

    return read


def _idefics1(config: Values, decoder_size: int) -> VisionPart:
    """Idefics 1: a tower whose class token stays, a resampler if there is one, gated blocks."""
    values = dict(config.table("vision_config").values)
    if "embed_dim" in values:
        values["hidden_size"] = values["embed_dim"]
    tower = Values(values, _IDEFICS1)
    cross = cross_part(config.values)
    assert cross is not None
    fields = tower_fields(tower, tower.integer("num_hidden_layers"))
    resampler = None
    if config.flag("use_resampler"):
        perceiver = Values(config.table("perceiver_config").values, _PERCEIVER)
        resampler = Resampler(
            layers=perceiver.integer("resampler_depth"),
            rows=perceiver.integer("resampler_n_latents"),
            heads=perceiver.integer("resampler_n_heads"),
            head_size=perceiver.integer("resampler_head_dim"),
            feed_forward_size=4 * fields["hidden_size"],
            activation="relu",
            norm_epsilon=1e-5,
            qk_norm=perceiver.flag("qk_layer_norms_perceiver"),
        )
    return VisionPart(
        "idefics",
        VisionArchitecture(
            **fields,
            decoder_size=decoder_size,
            class_token=True,
            keep_class=True,
            patch_bias=False,
            pre_norm=True,
            resampler=resampler,
            connector="cross",
            connector_bias=False,
            cross=cross.record,
        ),
        {},
        0,
        "around",
        spelt="<image>",
        ends=_end_of_text(config),
        resampler=ResamplerNames("blocks", _IDEFICS_RESAMPLER, "layer_norm"),
        cross=cross,
    )


def _open_flamingo(config: Values, decoder_size: int) -> VisionPart:
    """OpenFlamingo: CLIP's patches as its last layer leaves them, a resampler, gated blocks."""
    cross = cross_part(config.values)
    assert cross is not None
    tower = Values(config.table("vision_config").values, CLIP)
    resampler = Resampler(
        layers=config.integer("resampler_depth"),
        rows=config.integer("resampler_n_latents"),
        heads=config.integer("resampler_n_heads"),
        head_size=config.integer("resampler_head_dim"),
        feed_forward_size=config.integer("resampler_intermediate_size"),
        activation="gelu",
        norm_epsilon=1e-5,
    )
    return VisionPart(
        MODEL_TYPE,
        VisionArchitecture(
            **tower_fields(tower, tower.integer("num_hidden_layers")),
            decoder_size=decoder_size,
            class_token=True,
            patch_bias=False,
            pre_norm=True,
            resampler=resampler,
            connector="cross",
            connector_bias=False,
            cross=cross.record,
        ),
        {},
        0,
        "single",
        spelt=PICTURE,
        resampler=ResamplerNames("layers", _OPEN_FLAMINGO_RESAMPLER, "norm"),
        cross=cross,
        settings={
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": tower.integer("image_size")},
            "crop_size": tower.integer("image_size"),
        },
    )


def _end_of_text(config: Values) -> int | None:
    """The token that ends texts; the first of several."""
    ends = config.get("eos_token_id", 2)
    if isinstance(ends, list) and ends:
        ends = ends[0]
    return Values({"eos_token_id": ends}, {}).integer("eos_token_id") if ends is not None else None


def bucketed_positions(side: int) -> npt.NDArray[np.int64]:
    """Which row of a table of ``side`` x ``side`` each patch of a whole tile has, int64 [patches].

    Idefics finds it by fractions, in float32: how many boundaries k / side a patch's place i / side
    reaches. With some sides that is not the patch's own row.
    """
    boundaries = np.arange(1, side, dtype=np.float32) * np.float32(1 / side)
    places = np.arange(side, dtype=np.float32) * np.float32(1.0 / side)
    places = np.minimum(places, np.float32(1.0 - 1e-6))
    rows = np.searchsorted(boundaries, places, side="right")
    return np.asarray((rows[:, None] * side + rows[None, :]).reshape(-1), dtype=np.int64)


def _gemma3(config: Values, decoder_size: int) -> VisionPart:
    """Gemma 3: means of patches, a norm, one matrix."""
    tower = Values(config.table("vision_config").values, _SIGLIP)
    fields = tower_fields(tower, tower.integer("num_hidden_layers"))
    grid = fields["image_size"] // max(fields["patch_size"], 1)
    side = round(max(config.integer("mm_tokens_per_image", 256), 0) ** 0.5)
    if side < 1 or grid % side:
        raise UnsupportedError(
            f"The tower's {grid} patches on a side are no multiple of the {side} tokens of a "
            "picture."
        )
    return VisionPart(
        "gemma3",
        VisionArchitecture(
            **fields,
            decoder_size=decoder_size,
            post_norm=True,
            pool=grid // side,
            connector_norm="rms",
            connector_norm_epsilon=fields["norm_epsilon"],
            connector="linear",
            connector_bias=False,
            bidirectional=True,
        ),
        {"mm.0.weight": "mm_input_projection_weight", "mm.norm": "mm_soft_emb_norm"},
        placeholder_id(config, 262144),
        "paragraph",
        around=(
            _token(config, ("boi_token_index", "boi_token_id"), 255999),
            _token(config, ("eoi_token_index", "eoi_token_id"), 256000),
        ),
        transposed=True,
        norm_offset=1.0,
    )


def tower_fields(values: Values, layers: int) -> dict[str, Any]:
    """The fields that towers name alike."""
    heads, width = values.integer("num_attention_heads"), values.integer("hidden_size")
    channels = values.integer("num_channels", 3)
    if heads < 1 or width % heads or channels != 3:
        raise UnsupportedError(
            f"The tower has {heads} heads for a width of {width} and {channels} channels; the "
            "width must be a multiple of the heads, and the channels 3."
        )
    return {
        "layers": layers,
        "hidden_size": width,
        "heads": heads,
        "head_size": width // heads,
        "feed_forward_size": values.integer("intermediate_size"),
        "image_size": values.integer("image_size"),
        "patch_size": values.integer("patch_size"),
        "norm_epsilon": values.number("layer_norm_eps"),
        "activation": _activation(values.get("hidden_act")),
    }


def _activation(name: Any) -> str:
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise UnsupportedError(
            f"The tower's activation {shown(name)} is not supported; {', '.join(_ACTIVATIONS)} are."
        )
    return _ACTIVATIONS[name]


def placeholder_id(config: Values, default: int) -> int:
    """The token that stands in a picture's place."""
    return _token(config, ("image_token_id", "image_token_index"), default)


def _token(config: Values, keys: tuple[str, ...], default: int) -> int:
    for key in keys:
        if config.get(key) is not None:
            return config.integer(key)
    return default


_READERS: Mapping[str, Callable[[Values, int], VisionPart]] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "llava_onevision": _onevision,
    "smolvlm": _idefics("smolvlm", 128257),
    "idefics3": _idefics("idefics3", 128257),
    "idefics": _idefics1,
    MODEL_TYPE: _open_flamingo,
    "gemma3": _gemma3,
}
# Types with a tower that is not computed, which convert as the text that they hold.
TEXT_ALONE: Mapping[str, str] = {
    "mistral3": "its tower turns patches by rows and columns in an order that is not computed here",
}
