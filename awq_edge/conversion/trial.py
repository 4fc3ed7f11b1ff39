"""The trial of a finished file before it gets its name: what was written is opened and evaluated.

Owns that a file which a conversion leaves runs: the runtime itself opens it, and a few tokens
spread over the vocabulary give finite logits. Refuses to judge quality.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from awq_edge.errors import AwqEdgeError, UnsupportedError
from awq_edge.model_file import PackedFile
from awq_edge.stages import layer_tensor_names
from awq_edge.torch_decoder import Layer, Positions, embedded

_TOKENS = 8  # enough that a token attends to others; each costs about one pass over the file


def check_runs(path: Path) -> None:
    """Opens a finished file with the runtime and evaluates some tokens.

    Raises:
        UnsupportedError: The runtime refuses it, or values are not finite; the text names the first
            layer where they are not.
    """
    from awq_edge._native import NativeModel, NativeSession

    try:
        model = NativeModel(path)
    except AwqEdgeError as error:
        raise UnsupportedError(
            f"The runtime would refuse the converted model, so nothing was written: {error}"
        ) from error
    try:
        info = model.info()
        length = min(_TOKENS, info.context_length)
        tokens = np.linspace(0, info.vocabulary_size - 1, length).astype(np.int64)
        session = NativeSession(model, context_length=length, threads=0, prefill_threads=0)
        try:
            logits = np.empty((length, info.vocabulary_size), dtype=np.float32)
            session.evaluate(tokens.tolist(), logits)
        finally:
            session.close()
    finally:
        model.close()
    if not np.isfinite(logits).all():
        where = _first_overflow(PackedFile(path), torch.from_numpy(tokens)[None])
        raise UnsupportedError(
            f"The converted model gives values that are not finite in {where}, so nothing was "
            "written: weights or norms there are too large; the checkpoint is probably damaged."
        )


def _first_overflow(file: PackedFile, tokens: torch.Tensor) -> str:
    """Which part of the decoder gives the first values that are not finite, for tokens [1, t]."""
    a = file.architecture

    def weights(name: str) -> torch.Tensor:
        return torch.from_numpy(file.floats(name))

    with torch.inference_mode():
        hidden = embedded(a, weights, weights("token_embd.weight")[tokens])
        positions = Positions.of(a, tokens.shape[1], weights)
        for number in range(a.layers):
            tensors = {
                name: weights(f"blk.{number}.{name}") for name in layer_tensor_names(a, number)
            }
            hidden = Layer(a, number, tensors, positions, kv_fp16=True).run(hidden)
            if not bool(torch.isfinite(hidden).all()):
                return f"layer {number}"
    return "the head"
