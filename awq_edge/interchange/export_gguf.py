"""Writes a stock llama.cpp file: the weights of a model as F16, for llama.cpp to run or quantise.

Owns llama.cpp's names, its order of query and key rows, and its metadata. Weights come by our names
as floats; where they come from (scaled by AWQ, or the values of a packed file) is the caller's.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from awq_edge.architecture import Architecture
from awq_edge.errors import UnsupportedError
from awq_edge.interchange.gguf_tokenizer import translate
from awq_edge.outputs.place import Place, sync, write_error
from awq_edge.outputs.workplace import Workplace
from awq_edge.stages import positions_name, tensor_names, tensor_shape

# Gives a tensor by our name: float32, a matrix [n, k] or a vector [n].
FloatSource = Callable[[str], npt.NDArray[np.float32]]

_FILE_TYPE_MOSTLY_F16 = 1
_LARGEST_HALF = 65504.0
_TOKENIZER = "tokenizer.huggingface.json"  # our model files' entry
# llama.cpp multiplies each rotary frequency's period by this tensor.
_FREQUENCY_FACTORS = "rope_freqs.weight"

# Fields of the record that these architectures may differ in. Every other one with a usual value
# must have it, those of later families too.
_MAY_DIFFER = (
    "rope_scaling",
    "activation",
    "sliding_windows",
    "qk_norm",
    "tied_head",
    "qkv_bias",
    "output_bias",
    "feed_forward_bias",
    "rotary_size",
)


def write_gguf(
    place: Place, architecture: Architecture, metadata: Mapping[str, Any], weights: FloatSource
) -> None:
    """Writes a whole file, or nothing.

    Args:
        place: Where the file appears.
        architecture: The decoder.
        metadata: Entries of one of our model files: its name and its tokenizer.
        weights: Every tensor of the decoder; asked for once each, in file order.

    Raises:
        UnsupportedError: llama.cpp has no architecture for this decoder, or no such tokenizer.
    """
    from gguf import GGUFWriter

    family = llama_cpp_architecture(architecture)
    writer = GGUFWriter(None, family)
    _describe(writer, architecture, metadata)
    _add_tokenizer(writer, architecture, metadata)
    names = [name for name in tensor_names(architecture) if name != positions_name(architecture)]
    factors = _frequency_factors(architecture)
    if factors is not None:
        writer.add_tensor_info(_FREQUENCY_FACTORS, factors.shape, factors.dtype, factors.nbytes)
    for name in names:
        shape = tensor_shape(architecture, name)
        dtype = np.dtype(np.float16 if len(shape) == 2 else np.float32)
        writer.add_tensor_info(name, shape, dtype, int(np.prod(shape)) * dtype.itemsize)
    try:
        with Workplace(place.path) as work, contextlib.closing(writer):
            path = work.path / "export"
            writer.write_header_to_file(path)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            if factors is not None:
                writer.write_tensor_data(factors)
            for name in names:
                writer.write_tensor_data(_stored(name, family, architecture, weights(name)))
            writer.close()
            with path.open("rb+") as file:
                sync(file)
            place.appear(path)
    except OSError as error:
        raise write_error(place.path, error) from error


def check_exportable(architecture: Architecture, metadata: Mapping[str, Any]) -> None:
    """Refuses what :func:`write_gguf` would refuse.

    Args:
        architecture: The decoder.
        metadata: Entries of its tokenizer.

    Raises:
        UnsupportedError: llama.cpp has no architecture for this decoder, or no such tokenizer.
    """
    llama_cpp_architecture(architecture)
    text = metadata.get(_TOKENIZER)
    if isinstance(text, str):
        translate(text, architecture.vocabulary_size)


def llama_cpp_architecture(architecture: Architecture) -> str:
    """The architecture of llama.cpp that computes what this decoder does.

    Raises:
        UnsupportedError: None that is written here does.
    """
    a = architecture
    if a.activation != "silu" or a.rotary_size:
        raise UnsupportedError(
            "No architecture of llama.cpp that is written here has this decoder's activation or "
            "rotates a part of each head."
        )
    others = [
        field.name
        for field in dataclasses.fields(a)
        if field.default is not dataclasses.MISSING and field.name not in _MAY_DIFFER
        if getattr(a, field.name) not in (field.default, (0,) * a.layers)
    ]
    if others:
        raise UnsupportedError(
            "No architecture of llama.cpp that is written here has a decoder like this one, which "
            f"differs from Llama's in {', '.join(others)}."
        )
    if a.qk_norm:
        if a.qkv_bias or a.output_bias or a.feed_forward_bias:
            raise UnsupportedError(
                "llama.cpp has no architecture with norms on queries and keys and with biases."
            )
        return "qwen3"
    if a.qkv_bias and not a.output_bias and not a.feed_forward_bias:
        return "qwen2"
    return "llama"


def _describe(writer: Any, architecture: Architecture, metadata: Mapping[str, Any]) -> None:
    a = architecture
    windows = [window for window in a.sliding_windows if window]
    if isinstance(metadata.get("general.name"), str):
        writer.add_name(metadata["general.name"])
    writer.add_file_type(_FILE_TYPE_MOSTLY_F16)
    # These architectures know no sliding window: within the window there is no difference.
    writer.add_context_length(min([a.context_length, *windows]))
    writer.add_embedding_length(a.hidden_size)
    writer.add_block_count(a.layers)
    writer.add_feed_forward_length(a.feed_forward_size)
    writer.add_head_count(a.heads)
    writer.add_head_count_kv(a.kv_heads)
    writer.add_key_length(a.head_size)
    writer.add_value_length(a.head_size)
    writer.add_rope_dimension_count(a.head_size)
    writer.add_layer_norm_rms_eps(a.norm_epsilon)
    writer.add_rope_freq_base(a.rope_theta)
    writer.add_vocab_size(a.vocabulary_size)
    if a.rope_scaling is not None and a.rope_scaling.kind == "linear":
        from gguf import RopeScalingType

        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(a.rope_scaling.factor)


def _add_tokenizer(writer: Any, architecture: Architecture, metadata: Mapping[str, Any]) -> None:
    text = metadata.get(_TOKENIZER)
    if not isinstance(text, str):
        writer.add_tokenizer_model("no_vocab")
        return
    vocabulary = translate(text, architecture.vocabulary_size)
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.add_space_prefix)
    if vocabulary.merges is not None:
        writer.add_token_merges(vocabulary.merges)
    for key, add in (
        ("tokenizer.ggml.bos_token_id", writer.add_bos_token_id),
        ("tokenizer.ggml.eos_token_id", writer.add_eos_token_id),
        ("tokenizer.chat_template", writer.add_chat_template),
    ):
        if metadata.get(key) is not None:
            add(metadata[key])
    writer.add_add_bos_token(bool(metadata.get("tokenizer.ggml.add_bos_token", False)))


def _frequency_factors(architecture: Architecture) -> npt.NDArray[np.float32] | None:
    """How much longer each rotary period is than without scaling; None where llama.cpp knows."""
    scaling = architecture.rope_scaling
    if scaling is None or scaling.kind == "linear":
        return None
    exponents = np.arange(0, architecture.head_size, 2, dtype=np.float64) / architecture.head_size
    unscaled = 1.0 / np.float64(architecture.rope_theta) ** exponents
    factors: npt.NDArray[np.float32] = (unscaled / architecture.inverse_frequencies()).astype(
        np.float32
    )
    return factors


def _stored(
    name: str, family: str, architecture: Architecture, values: npt.NDArray[np.float32]
) -> npt.NDArray[Any]:
    """A tensor as it lies in the file."""
    part = name.split(".")[-2]
    heads = {"attn_q": architecture.heads, "attn_k": architecture.kv_heads}.get(part)
    if family == "llama" and heads is not None:
        values = _interleaved(values, heads)
    if values.ndim == 1:
        return np.ascontiguousarray(values, dtype=np.float32)
    largest = float(np.abs(values).max(initial=0.0))
    if largest > _LARGEST_HALF:
        raise UnsupportedError(
            f"The weights of {name} reach {largest:g}, too large for an F16 file."
        )
    return np.ascontiguousarray(values, dtype=np.float16)


def _interleaved(values: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Reorders rows so that those which rotate together are neighbours, as llama.cpp's llama wants.

    Here, row i of a head rotates with row i + d / 2.
    """
    halves = values.reshape(heads, 2, -1, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)
