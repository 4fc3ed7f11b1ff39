"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL: pictures of any size, patches turned by row and column.

Owns how their config.json fills the record of a tower, and how their tensors are called. Refuses
mathematics and weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from awq_edge.errors import CheckpointError
from awq_edge.vision.architecture import VisionArchitecture

from .values import Values, shown
from .vision_part import THETA, VisionPart, placeholder_id, tower_fields

_KEYS = {"num_heads": 16, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
_KEYS_2 = {
    **_KEYS,
    "depth": 32,
    "embed_dim": 1280,
    "hidden_act": "quick_gelu",
    "mlp_ratio": 4,
    "in_channels": 3,
}
_KEYS_2_5 = {
    **_KEYS,
    "depth": 32,
    "hidden_size": 3584,
    "hidden_act": "silu",
    "intermediate_size": 3420,
    "in_channels": 3,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}

_KEYS_3 = {
    **_KEYS,
    "depth": 27,
    "hidden_size": 1152,
    "hidden_act": "gelu_pytorch_tanh",
    "intermediate_size": 4304,
    "in_channels": 3,
    "patch_size": 16,
    "num_position_embeddings": 2304,
    "deepstack_visual_indexes": [8, 16, 24],
}
_LAYER_NAMES = {
    "ln1": "norm1",
    **dict.fromkeys(("attn_q", "attn_k", "attn_v"), "attn.qkv"),
    "attn_out": "attn.proj",
    "ln2": "norm2",
}
_FEED_FORWARDS = {
    "plain": {"ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2"},
    "gated": {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"},
}
_LAYER_NAMES_3 = {
    **_LAYER_NAMES,
    "ffn_up": "mlp.linear_fc1",
    "ffn_down": "mlp.linear_fc2",
}
_TOWER_NAMES = {"v.patch_embd": "tower.patch_embed.proj", "v.post_ln": "tower.merger.ln_q"}
_LONGEST_SIDE = 16384


def _reader(family: str, *, windows: bool) -> Callable[[Values, int], VisionPart]:
    """Qwen2-VL and Qwen2.5-VL: pictures of any size, and patches that turn by row and column."""

    def read(config: Values, decoder_size: int) -> VisionPart:
        given = config.table("vision_config").values
        values = Values(given, _KEYS_2_5 if windows else _KEYS_2)
        width = values.integer("hidden_size" if windows else "embed_dim")
        inner = values.integer("intermediate_size") if windows else 0
        if not windows:
            inner = int(width * values.number("mlp_ratio"))
        patch, regroup = values.integer("patch_size"), values.integer("spatial_merge_size")
        step = max(patch * regroup, 1)
        window = values.integer("window_size") // step * regroup if windows else 0
        full: tuple[int, ...] = ()
        if windows:
            full = _numbers(values.get("fullatt_block_indexes"), "fullatt_block_indexes")
        fields = tower_fields(
            Values(
                {
                    "hidden_size": width,
                    "intermediate_size": inner,
                    "num_attention_heads": values.integer("num_heads"),
                    "num_channels": values.integer("in_channels"),
                    "image_size": _LONGEST_SIDE // step * step,
                    "patch_size": patch,
                    "layer_norm_eps": 1e-6,
                    "hidden_act": values.get("hidden_act"),
                },
                {},
            ),
            values.integer("depth"),
        )
        feed_forward = "gated" if windows else "plain"
        rope = values.table("rope_parameters").values
        return VisionPart(
            family,
            VisionArchitecture(
                **fields,
                decoder_size=decoder_size,
                patch_bias=False,
                post_norm=True,
                regroup=regroup,
                connector="mlp",
                connector_size=width * regroup**2,
                position="rotary",
                norm="rms" if windows else "layer",
                feed_forward=feed_forward,
                window=window,
                full_layers=full,
            ),
            {"mm.0": "0", "mm.2": "2"},
            placeholder_id(config, 151655),
            "squares",
            layers_at="tower.blocks.",
            layer_names={**_LAYER_NAMES, **_FEED_FORWARDS[feed_forward]},
            tower_names=_TOWER_NAMES,
            fused=True,
            frames=values.integer("temporal_patch_size"),
            theta=Values(rope, {"rope_theta": THETA}).number("rope_theta"),
        )

    return read


def qwen3_vl(config: Values, decoder_size: int) -> VisionPart:
    """Qwen3-VL: as Qwen2-VL, with a table of positions, and connectors behind several layers."""
    values = Values(config.table("vision_config").values, _KEYS_3)
    width, regroup = values.integer("hidden_size"), values.integer("spatial_merge_size")
    patch = values.integer("patch_size")
    step = max(patch * regroup, 1)
    places = values.integer("num_position_embeddings")
    side = math.isqrt(max(places, 0))
    if side**2 != places or not side:
        raise CheckpointError(
            f"config.json has {places} for num_position_embeddings, which are no square."
        )
    taps = _numbers(values.get("deepstack_visual_indexes"), "deepstack_visual_indexes")
    fields = tower_fields(
        Values(
            {
                **values.values,
                "num_attention_heads": values.integer("num_heads"),
                "hidden_size": width,
                "intermediate_size": values.integer("intermediate_size"),
                "num_channels": values.integer("in_channels"),
                "image_size": _LONGEST_SIDE // step * step,
                "patch_size": patch,
                "layer_norm_eps": 1e-6,
                "hidden_act": values.get("hidden_act"),
            },
            {},
        ),
        values.integer("depth"),
    )
    merger, tap = "tower.merger.{}", "tower.deepstack_merger_list.{}.{}"
    parts = {"0": "linear_fc1", "2": "linear_fc2", "norm": "norm"}
    return VisionPart(
        "qwen3_vl",
        VisionArchitecture(
            **fields,
            decoder_size=decoder_size,
            post_norm=True,
            regroup=regroup,
            connector="mlp",
            connector_size=width * regroup**2,
            position="rotary",
            position_grid=side,
            taps=taps,
        ),
        {},
        placeholder_id(config, 151655),
        "squares",
        layers_at="tower.blocks.",
        layer_names=_LAYER_NAMES_3,
        tower_names={
            "v.patch_embd": "tower.patch_embed.proj",
            "v.position_embd": "tower.pos_embed",
            "v.post_ln": merger.format("norm"),
            "mm.0": merger.format(parts["0"]),
            "mm.2": merger.format(parts["2"]),
            **{
                f"mm.tap.{number}.{ours}": tap.format(number, theirs)
                for number in range(len(taps))
                for ours, theirs in parts.items()
            },
        },
        fused=True,
        frames=values.integer("temporal_patch_size"),
        theta=Values(values.table("rope_parameters").values, {"rope_theta": THETA}).number(
            "rope_theta"
        ),
    )


def _numbers(value: Any, key: str) -> tuple[int, ...]:
    if not isinstance(value, list) or any(type(one) is not int or one < 0 for one in value):
        raise CheckpointError(f"config.json has {shown(value)} for {key}, which are no numbers.")
    return tuple(value)


qwen2_vl = _reader("qwen2_vl", windows=False)
qwen2_5_vl = _reader("qwen2_5_vl", windows=True)
