"""Logits of a float checkpoint, for measuring its perplexity. Host only: needs the extra [convert].

Owns the decision to keep weights in memory. Refuses quantised files: those are read through the
runtime (``perplexity.py``).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from awq_edge import torch_decoder
from awq_edge.free_memory import read_free_memory

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from awq_edge.float_model import FloatModel

_FLOAT_BYTES = 4


class CheckpointSource:
    """A ``LogitsSource`` over a float model, in float32."""

    def __init__(self, model: FloatModel) -> None:
        """Keeps the weights in memory if they fit twice; otherwise each chunk reads them again."""
        self._architecture = model.architecture
        self.vocabulary_size = model.architecture.vocabulary_size
        size = sum(_elements(model.shape(name)) for name in model.tensor_names()) * _FLOAT_BYTES
        fits = 2 * size < read_free_memory().available
        self._weights = functools.cache(model) if fits else model

    def next_token_logits(self, tokens: Sequence[int], first: int) -> Iterator[NDArray[np.float32]]:
        """See ``awq_edge.accuracy.perplexity.LogitsSource``."""
        logits = torch_decoder.logits(self._weights, self._architecture, torch.tensor([tokens]))
        yield logits[0, first:].numpy()


def _elements(shape: Sequence[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
