"""Options of a session as the library takes them."""

from __future__ import annotations

from typing import Any

from awq_edge import errors
from awq_edge._native.library import structure

# How keys and values may be kept: the names of awqe_kv_type, in the order of the enum.
KV_TYPES = ("fp16", "int8")
# Names of the awqe_device values, in their order.
DEVICES = ("cpu", "auto", "cuda")
# AWQE_GPU_LAYERS_AUTO.
_AUTO_LAYERS = 0xFFFFFFFF
# Names of the awqe_attention values, in their order.
ATTENTIONS = ("exact", "tensor")


def kv_type_number(name: str) -> int:
    """The awqe_kv_type of a name."""
    if name not in KV_TYPES:
        raise errors.InvalidArgumentError(
            f"There is no cache of type '{name}': use one of {', '.join(KV_TYPES)}."
        )
    return KV_TYPES.index(name)


def device_number(name: str) -> int:
    """The awqe_device of a name."""
    if name not in DEVICES:
        raise errors.InvalidArgumentError(
            f"There is no device '{name}': use one of {', '.join(DEVICES)}."
        )
    return DEVICES.index(name)


def gpu_layer_number(layers: int | str | None) -> int:
    """The ``gpu_layers`` of the library: of None, which is the whole model, 0."""
    if layers is None:
        return 0
    if layers == "auto":
        return _AUTO_LAYERS
    if not isinstance(layers, int) or not 0 < layers < _AUTO_LAYERS:
        raise errors.InvalidArgumentError(
            f"There are no {layers!r} layers for a GPU: say a whole number from 1 on, or 'auto'."
        )
    return layers


def attention_number(name: str) -> int:
    """The awqe_attention of a name."""
    if name not in ATTENTIONS:
        raise errors.InvalidArgumentError(
            f"There is no attention '{name}': use one of {', '.join(ATTENTIONS)}."
        )
    return ATTENTIONS.index(name)


def thread_count(threads: int) -> int:
    """The same number, if a uint32 holds it."""
    if not 0 <= threads < 1 << 32:
        raise errors.InvalidArgumentError(f"There are no {threads} threads: ask for 0 or more.")
    return threads


def session_options(
    context_length: int,
    threads: int,
    prefill_threads: int,
    kv_type: str,
    device: str,
    gpu_layers: int | str | None = None,
    attention: str = "exact",
) -> Any:
    """An ``awqe_session_options``."""
    options = structure("awqe_session_options")
    options.kv_type = kv_type_number(kv_type)
    options.device = device_number(device)
    options.gpu_layers = gpu_layer_number(gpu_layers)
    options.attention = attention_number(attention)
    try:
        options.context_length = context_length
        options.threads = threads
        options.prefill_threads = prefill_threads
    except OverflowError as error:
        raise errors.InvalidArgumentError(
            f"The context length and thread counts are whole numbers from 0 on: {error}."
        ) from error
    return options
