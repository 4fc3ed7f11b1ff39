"""SmolLM3: Llama whose every fourth layer rotates nothing."""

from __future__ import annotations

from awq_edge.architecture import Architecture
from awq_edge.errors import CheckpointError

from .base import LLAMA_NAMES, SHARED_DEFAULTS, Config, Converter
from .rotary import LayerRopes, without_some

_DEFAULTS = {
    **SHARED_DEFAULTS,
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "rope_theta": 2e6,
    "sliding_window": None,
    "no_rope_layer_interval": 4,
    "tie_word_embeddings": True,
}


def _rotates(config: Config) -> tuple[bool, ...]:
    """Whether a layer rotates. In no_rope_layers, against its name, 1 is a layer that does."""
    layers = config.layers()
    stated = config.get("no_rope_layers")
    if stated is None:
        interval = config.integer("no_rope_layer_interval")
        if interval < 1:
            raise CheckpointError(f"config.json has {interval} for no_rope_layer_interval.")
        return tuple((layer + 1) % interval != 0 for layer in range(layers))
    known = isinstance(stated, list) and all(number in (0, 1) for number in stated)
    if not known or len(stated) < layers:
        raise CheckpointError(
            f"config.json should have a list no_rope_layers of {layers} numbers, each 0 or 1."
        )
    return tuple(bool(number) for number in stated[:layers])


def _ropes(config: Config) -> LayerRopes:
    return without_some(config.rope(), _rotates(config))


def _architecture(config: Config) -> Architecture:
    used = config.flag("use_sliding_window") and config.get("sliding_window") is not None
    rotates = _rotates(config)
    kinds = config.layer_types(lambda layer: used and not rotates[layer])
    attention_bias = config.flag("attention_bias")
    return config.decoder(
        ropes=_ropes(config),
        sliding_windows=config.windows(kinds, used),
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        feed_forward_bias=config.flag("mlp_bias"),
    )


CONVERTER = Converter("smollm3", LLAMA_NAMES, _architecture, _DEFAULTS, ropes=_ropes)
