"""Perplexity by the protocol of llama.cpp's perplexity tool, so that figures compare.

Owns the cutting of a text into chunks, which positions count, and the estimate with its standard
error. Refuses to know where logits come from: a packed file and a float checkpoint are measured by
the same lines.

The text is tokenized once, with BOS if the model expects it, and cut into chunks of ``context``
tokens; a rest is dropped. The first token of every chunk is replaced by BOS (if the model expects
it). In each chunk the tokens after position ``context / 2`` are scored, each from everything before
it in the chunk: ``context - context // 2 - 1`` tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from awq_edge.errors import InvalidArgumentError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from awq_edge.session import Session

# Logits are fetched this many positions at a time: 34 MB for a vocabulary of 128,256.
_BLOCK = 64


class LogitsSource(Protocol):
    """Whatever can say how likely each next token is.

    Attributes:
        vocabulary_size: Tokens that it knows; the ids from there on have no logit.
    """

    @property
    def vocabulary_size(self) -> int:
        """See above."""

    def next_token_logits(self, tokens: Sequence[int], first: int) -> Iterable[NDArray[np.float32]]:
        """Logits after the tokens at ``first`` … of a fresh context, in blocks.

        Args:
            tokens: A whole context.
            first: The first position whose logits are wanted.

        Returns:
            float32 [positions, vocabulary] blocks, in order, len(tokens) - first rows in all.
        """


class SessionSource:
    """Logits of a packed file, by the runtime."""

    def __init__(self, session: Session) -> None:
        """Uses ``session``, and forgets what it holds."""
        self._session = session
        self.vocabulary_size: int = session.model.info.vocabulary_size

    def next_token_logits(self, tokens: Sequence[int], first: int) -> Iterator[NDArray[np.float32]]:
        """See ``LogitsSource``."""
        self._session.truncate(0)
        if first:
            self._session.evaluate(tokens[:first])
        for begin in range(first, len(tokens), _BLOCK):
            yield self._session.logits(tokens[begin : begin + _BLOCK])


@dataclass(frozen=True)
class Perplexity:
    """An estimate.

    Attributes:
        value: exp of the mean negative log-likelihood.
        standard_error: of ``value``, from the spread of single tokens; None for one token.
        tokens: How many were scored.
        chunks: How many chunks they came from.
    """

    value: float
    standard_error: float | None
    tokens: int
    chunks: int


def cut_chunks(
    tokens: Sequence[int], context: int, *, bos_token_id: int | None, limit: int | None = None
) -> list[list[int]]:
    """The chunks to score.

    Args:
        tokens: The whole text, BOS included if the model expects it.
        context: Tokens per chunk.
        bos_token_id: Put in the first place of each chunk; None leaves the text's own token there.
        limit: At most this many chunks.

    Raises:
        InvalidArgumentError: The context is below 4, or the text shorter than one chunk.
    """
    if context < 4:
        raise InvalidArgumentError(f"A context of {context} tokens is too short: use 4 or more.")
    if len(tokens) < context:
        raise InvalidArgumentError(
            f"The text has {len(tokens)} tokens, which is less than one chunk of {context}: use "
            "a longer text or a smaller context."
        )
    count = len(tokens) // context
    if limit is not None:
        count = min(count, limit)
    chunks = [list(tokens[i * context : (i + 1) * context]) for i in range(count)]
    if bos_token_id is not None:
        for chunk in chunks:
            chunk[0] = bos_token_id
    return chunks


def check_ids(tokens: Iterable[int], vocabulary_size: int) -> None:
    """Refuses ids that a model has no logit for: its tokenizer and its weights do not match.

    Raises:
        InvalidArgumentError: One lies outside; every evaluation asks before it begins.
    """
    for token in tokens:
        if not 0 <= token < vocabulary_size:
            raise InvalidArgumentError(
                f"The tokenizer gives token {token}, but the model knows only {vocabulary_size}; "
                "tokenizer and weights do not belong together."
            )


def measure(
    source: LogitsSource,
    chunks: Iterable[Sequence[int]],
    report: Callable[[Perplexity], None] | None = None,
) -> Perplexity:
    """Scores chunks.

    Args:
        source: Where logits come from.
        chunks: As ``cut_chunks`` gives them; at least one.
        report: Called after each chunk with the estimate so far.

    Raises:
        InvalidArgumentError: A chunk holds a token that the source does not know.
    """
    chunks = list(chunks)
    for chunk in chunks:
        check_ids(chunk, source.vocabulary_size)
    total = squares = 0.0
    tokens = chunk_count = 0
    for chunk in chunks:
        first = len(chunk) // 2
        position = first
        # The last token has no successor: its logits are not needed.
        for logits in source.next_token_logits(chunk[:-1], first):
            losses = _losses(logits, chunk[position + 1 : position + 1 + len(logits)])
            position += len(logits)
            tokens += len(losses)
            total += math.fsum(losses)
            squares += math.fsum(loss * loss for loss in losses)
        chunk_count += 1
        estimate = _estimate(total, squares, tokens, chunk_count)
        if report is not None:
            report(estimate)
    return estimate


def _losses(logits: NDArray[np.float32], targets: Sequence[int]) -> list[float]:
    """Negative log-likelihoods, in float64."""
    import numpy as np

    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    chosen = wide[np.arange(len(targets)), np.asarray(targets)]
    return [float(loss) for loss in np.log(np.exp(wide).sum(axis=1)) - chosen]


def _estimate(total: float, squares: float, tokens: int, chunks: int) -> Perplexity:
    mean = total / tokens
    variance = max(squares / tokens - mean * mean, 0.0)
    value = from_loss(mean)
    error = value * math.sqrt(variance / (tokens - 1)) if tokens > 1 else None
    return Perplexity(value, error, tokens, chunks)


def from_loss(mean: float) -> float:
    """The perplexity of a mean negative log-likelihood; infinite beyond what a float can hold."""
    return math.exp(mean) if mean < 700 else math.inf
