"""Gemma 3: Gemma 2 with norms on queries and keys, and two bases of the rotary embedding.

Of the models that see images the text part is read (``text_part.py``).
"""

from __future__ import annotations

from awq_edge.architecture import Architecture
from awq_edge.errors import CheckpointError

from .base import Config, Converter, Stored
from .gemma import gemma_stored
from .gemma2 import GEMMA2_DEFAULTS, SANDWICH_NAMES, sandwich_fields, scaled_queries
from .rotary import FULL, SLIDING, LayerRopes, read_ropes_by_layer_type

_NAMES = {
    **SANDWICH_NAMES,
    "blk.N.attn_q_norm": "model.layers.N.self_attn.q_norm",
    "blk.N.attn_k_norm": "model.layers.N.self_attn.k_norm",
}

_DEFAULTS = {
    **GEMMA2_DEFAULTS,
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
    "sliding_window_pattern": 6,
}


def _layer_types(config: Config) -> tuple[str, ...]:
    if config.get("layer_types") is not None:
        return config.layer_types(lambda layer: False)
    pattern = config.integer("sliding_window_pattern")
    if pattern < 1:
        raise CheckpointError(f"config.json has {pattern} for sliding_window_pattern.")
    return config.layer_types(lambda layer: (layer + 1) % pattern != 0)


def _ropes(config: Config) -> LayerRopes:
    thetas = {
        FULL: config.number_or("rope_theta", _DEFAULTS["rope_theta"]),
        SLIDING: config.number_or("rope_local_base_freq", _DEFAULTS["rope_local_base_freq"]),
    }
    return read_ropes_by_layer_type(config, _layer_types(config), thetas)


def _architecture(config: Config) -> Architecture:
    # attn_logit_softcapping stands in the files, and the class takes no notice of it.
    return config.decoder(
        **sandwich_fields(config),
        ropes=_ropes(config),
        sliding_windows=config.windows(_layer_types(config)),
        qk_norm=True,
    )


def _stored(config: Config, a: Architecture, stem: str) -> Stored:
    change = gemma_stored(config, a, stem)
    return scaled_queries(config, a, change) if stem == "attn_q_norm" else change


CONVERTER = Converter("gemma3_text", _NAMES, _architecture, _DEFAULTS, _stored, ropes=_ropes)
