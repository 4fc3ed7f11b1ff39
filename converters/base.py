"""The Converter record, the registry by ``config.model_type``, and how a config.json is read.

Owns what families share in their configurations. Refuses mathematics and weights: a converter says
which names to read and what the decoder looks like. A new family is a new file in this folder.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from awq_edge.architecture import Architecture, RopeScaling
from awq_edge.errors import CheckpointError, UnsupportedError

# Our tensor names to theirs, for the many families that follow Llama; N stands for the layer.
LLAMA_NAMES = {
    "token_embd": "model.embed_tokens",
    "output": "lm_head",
    "output_norm": "model.norm",
    "blk.N.attn_norm": "model.layers.N.input_layernorm",
    "blk.N.attn_q": "model.layers.N.self_attn.q_proj",
    "blk.N.attn_k": "model.layers.N.self_attn.k_proj",
    "blk.N.attn_v": "model.layers.N.self_attn.v_proj",
    "blk.N.attn_output": "model.layers.N.self_attn.o_proj",
    "blk.N.ffn_norm": "model.layers.N.post_attention_layernorm",
    "blk.N.ffn_gate": "model.layers.N.mlp.gate_proj",
    "blk.N.ffn_up": "model.layers.N.mlp.up_proj",
    "blk.N.ffn_down": "model.layers.N.mlp.down_proj",
}


@dataclasses.dataclass(frozen=True)
class Converter:
    """One model family."""

    model_type: str  # of config.json
    names: Mapping[str, str]  # ours to theirs, without ".weight" and ".bias"
    read_config: Callable[[Config], Architecture]

    def architecture(self, config: Mapping[str, Any]) -> Architecture:
        """The decoder that a config.json describes."""
        return self.read_config(Config(config))

    def checkpoint_name(self, name: str) -> str:
        """The checkpoint's name of one of our tensors, for example ``blk.3.attn_q.weight``."""
        stem, _, kind = name.rpartition(".")
        parts = stem.split(".")
        if parts[0] == "blk":
            layer = parts[1]
            return f"{self.names[f'blk.N.{parts[2]}'].replace('.N.', f'.{layer}.')}.{kind}"
        return f"{self.names[stem]}.{kind}"


class Config:
    """A config.json whose values are fetched with their type, or refused in one sentence."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        """Takes the parsed file."""
        self._values = values

    def get(self, key: str, default: Any = None) -> Any:
        """A value as it stands; null counts as absent."""
        value = self._values.get(key)
        return default if value is None else value

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise CheckpointError(
                f"config.json should have a whole number {key}; it has {value!r}."
            )
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A number."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise CheckpointError(f"config.json should have a number {key}; it has {value!r}.")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise CheckpointError(f"config.json should say true or false for {key}, not {value!r}.")
        return value

    def head_size(self, default: int | None = None) -> int:
        """Width of a head; by default the hidden size is divided among the heads."""
        if default is None:
            default = self.integer("hidden_size") // self.integer("num_attention_heads")
        return self.integer("head_dim", default)

    def rope(self) -> tuple[float, RopeScaling | None]:
        """Base and scaling, from either place where transformers has kept them."""
        values = self.get("rope_parameters", self.get("rope_scaling", {}))
        if not isinstance(values, Mapping):
            raise CheckpointError(f"config.json has rotary parameters {values!r}, not a table.")
        parameters = Config(values)
        if (
            self.number("partial_rotary_factor", parameters.number("partial_rotary_factor", 1.0))
            != 1
        ):
            raise UnsupportedError("Models that rotate only a part of each head are not supported.")
        theta = parameters.number("rope_theta", self.number("rope_theta", 10000.0))
        kind = parameters.get("rope_type", parameters.get("type", "default"))
        if kind == "default":
            return theta, None
        if kind == "linear":
            return theta, RopeScaling("linear", parameters.number("factor"))
        if kind == "llama3":
            return theta, RopeScaling(
                "llama3",
                factor=parameters.number("factor"),
                low_frequency_factor=parameters.number("low_freq_factor"),
                high_frequency_factor=parameters.number("high_freq_factor"),
                original_context_length=parameters.integer("original_max_position_embeddings"),
            )
        raise UnsupportedError(
            f"The rotary scaling {kind!r} is not supported; linear and llama3 are."
        )

    def decoder(self, **fields: Any) -> Architecture:
        """The fields that families of the Llama kind name alike; ``fields`` adds or overrides."""
        activation = self.get("hidden_act", "silu")
        if activation not in ("silu", "swish"):
            raise UnsupportedError(f"The activation {activation!r} is not supported; only silu is.")
        theta, scaling = self.rope()
        heads = self.integer("num_attention_heads")
        values: dict[str, Any] = {
            "layers": self.integer("num_hidden_layers"),
            "hidden_size": self.integer("hidden_size"),
            "vocabulary_size": self.integer("vocab_size"),
            "context_length": self.integer("max_position_embeddings"),
            "heads": heads,
            "kv_heads": self.integer("num_key_value_heads", heads),
            "head_size": fields.pop("head_size", None) or self.head_size(),
            "feed_forward_size": self.integer("intermediate_size"),
            "norm_epsilon": self.number("rms_norm_eps", 1e-6),
            "rope_theta": theta,
            "rope_scaling": scaling,
            "tied_head": self.flag("tie_word_embeddings"),
        }
        return Architecture(**{**values, **fields})

    def qwen_windows(self) -> tuple[int, ...]:
        """Sliding windows as Qwen writes them: a switch, then the first layer or a list."""
        layers = self.integer("num_hidden_layers")
        if not self.flag("use_sliding_window"):
            return (0,) * layers
        window = self.integer("sliding_window", 4096)
        first = self.integer("max_window_layers", 28)
        kinds = self.get("layer_types") or [
            "sliding_attention" if layer >= first else "full_attention" for layer in range(layers)
        ]
        unknown = set(kinds) - {"sliding_attention", "full_attention"}
        if unknown:
            raise UnsupportedError(f"The layer type {sorted(unknown)[0]!r} is not supported.")
        return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)


def known_model_types() -> list[str]:
    """Every supported ``model_type``, in order."""
    return sorted(_registry())


def find(config: Mapping[str, Any]) -> Converter:
    """The converter for a config.json.

    Raises:
        UnsupportedError: No file in this folder is for its family.
    """
    model_type = config.get("model_type")
    converter = _registry().get(str(model_type))
    if converter is None:
        known = ", ".join(known_model_types())
        raise UnsupportedError(
            f"The model type {model_type!r} is not supported; the known ones are {known}."
        )
    return converter


def _registry() -> dict[str, Converter]:
    """CONVERTER of every other file in this folder, by its model type."""
    package = __name__.rpartition(".")[0]
    modules = [
        importlib.import_module(f"{package}.{module.name}")
        for module in pkgutil.iter_modules([str(Path(__file__).parent)])
        if module.name != "base"
    ]
    return {module.CONVERTER.model_type: module.CONVERTER for module in modules}
