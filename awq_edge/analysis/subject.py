"""The model under analysis: its weights in memory, a text to calibrate on and one to judge by.

Owns perplexity of any set of weights, and one pass over the float model that collects what its
matrices read. Refuses to change weights: the experiments do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from awq_edge import torch_decoder
from awq_edge.accuracy.perplexity import Perplexity, cut_chunks, measure
from awq_edge.calibration.text import check_tokens, token_blocks
from awq_edge.errors import InvalidArgumentError
from awq_edge.float_model import FloatModel
from awq_edge.hf_tokenizer import StoredTokenizer
from awq_edge.quantize.statistics import InputStatistics
from awq_edge.stages import input_width
from awq_edge.torch_decoder import Layer, Positions, embedded

# Share of a text that is kept for judging when no other text is given.
_HELD_OUT = 0.2

Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Settings:
    """How thoroughly to look.

    Attributes:
        bits: Of the rounded weights.
        group_size: Inputs that share a scale.
        samples: Calibration blocks.
        sequence_length: Tokens of a block.
        context: Tokens of a chunk of the judged text.
        chunks: How many of them.
        seed: Draws calibration blocks and random channels.
    """

    bits: int = 3
    group_size: int = 128
    samples: int = 32
    sequence_length: int = 256
    context: int = 256
    chunks: int = 16
    seed: int = 0


class Subject:
    """A float model whose weights are all in memory."""

    def __init__(
        self,
        model: FloatModel,
        tokenizer: StoredTokenizer,
        settings: Settings,
        calibration_text: str,
        judged_text: str,
    ) -> None:
        """Reads the weights and cuts both texts.

        Raises:
            InvalidArgumentError: A text is shorter than one block or chunk.
        """
        self.architecture = model.architecture
        self.settings = settings
        self.weights = {name: model(name) for name in model.tensor_names()}
        longest = self.architecture.context_length
        runtime = tokenizer.runtime
        bos = runtime.bos_token_id if runtime.add_bos_token else None
        tokens = runtime.encode(judged_text)
        context = min(settings.context, longest)
        self.chunks = cut_chunks(tokens, context, bos_token_id=bos, limit=settings.chunks)
        length = min(settings.sequence_length, longest)
        if len(tokenizer.encode(calibration_text)) < length:
            raise InvalidArgumentError(
                f"The calibration text is shorter than one block of {length} tokens: use a longer "
                "text or shorter blocks."
            )
        self.blocks = token_blocks(
            tokenizer, calibration_text, settings.samples, length, settings.seed
        )
        check_tokens(self.blocks, self.architecture.vocabulary_size)

    def perplexity(self, weights: Weights | None = None) -> Perplexity:
        """Of the judged text, with the model's own weights or with others of the same names."""
        return measure(_Source(weights or self.weights, self), self.chunks)

    def layers(
        self, advance: Callable[[], None] = lambda: None
    ) -> Iterator[tuple[int, dict[str, InputStatistics]]]:
        """What the stages of every layer read, by their names, one layer at a time.

        Every input is one group: the products are those of all pairs.
        """
        a = self.architecture
        weights = self.weights.__getitem__
        hidden = embedded(a, weights, self.weights["token_embd.weight"][self.blocks])
        positions = Positions.of(a, hidden.shape[1], weights)
        for number in range(a.layers):
            layer = Layer(a, number, self.layer(number), positions)
            statistics = {}
            for stage in layer.stages:
                k = input_width(a, stage)
                statistics[stage.name] = InputStatistics(k, k, hidden.device)
            with torch.inference_mode():
                for block in range(len(hidden)):
                    for step in layer.steps(hidden[block : block + 1]):
                        statistics[step.stage.name].update(step.x)
                    hidden[block : block + 1] = step.stream_after()
            yield number, statistics
            advance()

    def layer(self, index: int) -> dict[str, torch.Tensor]:
        """The tensors of one layer, without ``blk.N.``."""
        prefix = f"blk.{index}."
        return {
            name[len(prefix) :]: tensor
            for name, tensor in self.weights.items()
            if name.startswith(prefix)
        }


def divide_text(text: str) -> tuple[str, str]:
    """A part to calibrate on and a later part to judge by, which do not overlap."""
    cut = round(len(text) * (1 - _HELD_OUT))
    return text[:cut], text[cut:]


class _Source:
    """A ``LogitsSource`` over weights in memory."""

    def __init__(self, weights: Weights, subject: Subject) -> None:
        self._weights = weights
        self._architecture = subject.architecture
        self.vocabulary_size = subject.architecture.vocabulary_size

    def next_token_logits(self, tokens: Sequence[int], first: int) -> Iterator[NDArray[np.float32]]:
        """See ``awq_edge.accuracy.perplexity.LogitsSource``."""
        logits = torch_decoder.logits(
            self._weights.__getitem__, self._architecture, torch.tensor([tokens])
        )
        yield logits[0, first:].numpy()
