"""OLMo 3: OLMo 2 with windows, and a rotary scaling on the layers without one alone."""

from __future__ import annotations

from awq_edge.architecture import Architecture

from .base import Config, Converter
from .olmo2 import OLMO2_DEFAULTS, OLMO2_NAMES, olmo2_fields
from .rotary import LAYER_TYPES, LayerRopes, read_ropes_by_layer_type

_DEFAULTS = {**OLMO2_DEFAULTS, "rope_theta": 500000.0, "sliding_window": 4096}


def _layer_types(config: Config) -> tuple[str, ...]:
    return config.layer_types(lambda layer: (layer + 1) % 4 != 0)


def _ropes(config: Config) -> LayerRopes:
    # Older files have one base for both kinds of layers.
    theta = config.number_or("rope_theta", _DEFAULTS["rope_theta"])
    return read_ropes_by_layer_type(config, _layer_types(config), dict.fromkeys(LAYER_TYPES, theta))


def _architecture(config: Config) -> Architecture:
    return config.decoder(
        **olmo2_fields(config),
        ropes=_ropes(config),
        sliding_windows=config.windows(_layer_types(config)),
    )


CONVERTER = Converter("olmo3", OLMO2_NAMES, _architecture, _DEFAULTS, ropes=_ropes)
