"""StarCoder2: LayerNorm, a plain feed-forward and biases in a decoder of the Llama kind."""

from __future__ import annotations

from awq_edge.architecture import Architecture

from .base import LLAMA_NAMES, SHARED_DEFAULTS, Config, Converter

_NAMES = {
    **{ours: theirs for ours, theirs in LLAMA_NAMES.items() if ours != "blk.N.ffn_gate"},
    "blk.N.ffn_up": "model.layers.N.mlp.c_fc",
    "blk.N.ffn_act": "model.layers.N.mlp.act",
    "blk.N.ffn_down": "model.layers.N.mlp.c_proj",
}

_DEFAULTS = {
    **SHARED_DEFAULTS,
    "vocab_size": 49152,
    "hidden_size": 3072,
    "intermediate_size": 12288,
    "num_hidden_layers": 30,
    "num_attention_heads": 24,
    "num_key_value_heads": 2,
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 4096,
    "norm_epsilon": 1e-5,
    "use_bias": True,
    "sliding_window": None,
    "tie_word_embeddings": True,
}


def _architecture(config: Config) -> Architecture:
    bias = config.flag("use_bias")
    window = 0 if config.get("sliding_window") is None else config.integer("sliding_window")
    return config.decoder(
        norm="layer",
        norm_bias=True,
        norm_epsilon=config.number("norm_epsilon"),
        feed_forward="plain",
        activation=config.activation(),
        sliding_windows=(window,) * config.layers(),
        qkv_bias=bias,
        output_bias=bias,
        feed_forward_bias=bias,
    )


CONVERTER = Converter("starcoder2", _NAMES, _architecture, _DEFAULTS)
