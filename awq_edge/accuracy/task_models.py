"""Models as tasks see them: log-probabilities and continuations, packed or in floats.

Owns the two kinds and their chat prompts. Refuses to know a task or a harness.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from awq_edge.errors import UnsupportedError
from awq_edge.tokenizer import IncrementalDecoder, StopStrings, Tokenizer, eos_token_ids

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from awq_edge.accuracy.perplexity import LogitsSource
    from awq_edge.model import Model

# Logits are fetched this many positions at a time: 34 MB for a vocabulary of 128,256.
_BLOCK = 64


class TaskModel(Protocol):
    """What a task asks of a model.

    Attributes:
        tokenizer: The model's.
        context_length: Tokens that fit.
        vocabulary_size: Tokens that the model knows.
        metadata: Entries of a model file: chat template and special tokens.
    """

    tokenizer: Tokenizer
    context_length: int
    vocabulary_size: int
    metadata: Mapping[str, Any]

    def next_token_logits(self, tokens: Sequence[int], first: int) -> Iterable[NDArray[np.float32]]:
        """See ``awq_edge.accuracy.perplexity.LogitsSource``."""

    def generate(
        self, tokens: Sequence[int], stop: Sequence[str], max_tokens: int, temperature: float
    ) -> str:
        """Continues a prompt until a stop string, the end of the text or ``max_tokens``."""


class PackedTaskModel:
    """A packed file in the runtime; prompts that begin alike are read once."""

    def __init__(self, model: Model) -> None:
        """Uses the model's shared session."""
        self._session = model.shared_session
        self.tokenizer = model.tokenizer
        self.context_length = self._session.context_length
        self.vocabulary_size: int = model.info.vocabulary_size
        self.metadata: Mapping[str, Any] = model.metadata

    def next_token_logits(self, tokens: Sequence[int], first: int) -> Iterator[NDArray[np.float32]]:
        """See ``TaskModel``."""
        session, cached = self._session, self._session.tokens
        shared = 0
        # Reused positions change nothing: the runtime's results do not depend on how a text is fed.
        while shared < min(first, len(cached)) and cached[shared] == tokens[shared]:
            shared += 1
        session.truncate(shared)
        if shared < first:
            session.evaluate(tokens[shared:first])
        for begin in range(first, len(tokens), _BLOCK):
            yield session.logits(tokens[begin : begin + _BLOCK])

    def generate(
        self, tokens: Sequence[int], stop: Sequence[str], max_tokens: int, temperature: float
    ) -> str:
        """See ``TaskModel``."""
        generation = self._session.generate(
            tokens, max_tokens=max_tokens, temperature=temperature, stop=tuple(stop), seed=0
        )
        return generation.text()


class FloatTaskModel:
    """A float checkpoint; it has no cache, so every new token reads the whole text again."""

    def __init__(
        self,
        source: LogitsSource,
        tokenizer: Tokenizer,
        context_length: int,
        metadata: Mapping[str, Any],
    ) -> None:
        """Takes an open checkpoint."""
        self._source = source
        self.tokenizer = tokenizer
        self.context_length = context_length
        self.vocabulary_size = source.vocabulary_size
        self.metadata = metadata

    def next_token_logits(self, tokens: Sequence[int], first: int) -> Iterable[NDArray[np.float32]]:
        """See ``TaskModel``."""
        return self._source.next_token_logits(tokens, first)

    def generate(
        self, tokens: Sequence[int], stop: Sequence[str], max_tokens: int, temperature: float
    ) -> str:
        """See ``TaskModel``."""
        if temperature > 0:
            raise UnsupportedError(
                "A float checkpoint continues texts greedily only; this task asks for a "
                f"temperature of {temperature:g}."
            )
        ends = eos_token_ids(self.metadata)
        decoder, stops = IncrementalDecoder(self.tokenizer, tokens), StopStrings(stop)
        text, known = "", list(tokens)
        for _ in range(min(max_tokens, self.context_length - len(known))):
            (logits,) = (row for row in self.next_token_logits(known, len(known) - 1))
            token = int(logits[-1].argmax())
            if token in ends:
                break
            known.append(token)
            text += stops.add(decoder.add(token))
            if stops.found:
                return text
        return text + stops.add(decoder.finish()) + stops.finish()


def chat_prompt(
    model: TaskModel, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True
) -> str:
    """The prompt for a conversation, by the model's own template; its tokens are all there are."""
    from awq_edge import chat

    return chat.chat_prompt(
        model.metadata, model.tokenizer, messages, add_generation_prompt=add_generation_prompt
    )
