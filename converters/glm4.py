"""GLM-4-0414 and GLM-Z1: GLM with norms behind the branches as well."""

from __future__ import annotations

from awq_edge.architecture import Architecture

from .base import Config, Converter
from .glm import GLM_DEFAULTS, GLM_NAMES, glm_stored

_NAMES = {
    **GLM_NAMES,
    "blk.N.attn_post_norm": "model.layers.N.post_self_attn_layernorm",
    "blk.N.ffn_post_norm": "model.layers.N.post_mlp_layernorm",
}


def _architecture(config: Config) -> Architecture:
    return config.decoder(
        partial_rotary=True, norm_places="both", qkv_bias=config.flag("attention_bias")
    )


CONVERTER = Converter("glm4", _NAMES, _architecture, GLM_DEFAULTS, glm_stored)
