"""InternLM3: Llama under another name."""

from __future__ import annotations

from awq_edge.architecture import Architecture

from .base import LLAMA_NAMES, SHARED_DEFAULTS, Config, Converter

_DEFAULTS = {
    **SHARED_DEFAULTS,
    "vocab_size": 128512,
    "intermediate_size": 10240,
    "num_hidden_layers": 48,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
}
# Those of the class, and those of the first files.
_KEYS = {"qkv_bias": ("attention_bias",), "bias": ("mlp_bias",)}


def _architecture(config: Config) -> Architecture:
    bias = config.flag("bias")
    return config.decoder(
        qkv_bias=config.flag("qkv_bias"), output_bias=bias, feed_forward_bias=bias
    )


CONVERTER = Converter("internlm3", LLAMA_NAMES, _architecture, _DEFAULTS, keys=_KEYS)
