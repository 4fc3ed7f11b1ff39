"""How far one model's next-token distributions lie from another's, on the same text.

Owns the figures and their errors. Refuses to know where logits come from: packed files and float
checkpoints are ``perplexity.LogitsSource`` alike. The scored positions are those of the perplexity
protocol (``perplexity.py``), so the figures belong together.

Per scored token, with p the reference and q the model: the divergence is the sum of p log(p / q)
over the vocabulary, in nats. Top-1 agreement: both find the same token likeliest. A flip: one of
them finds the text's own next token likeliest and the other does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from awq_edge.accuracy.perplexity import check_ids, from_loss
from awq_edge.errors import InvalidArgumentError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from awq_edge.accuracy.perplexity import LogitsSource

# Rows of both models' logits that are turned into float64 at once.
_ROWS = 32


@dataclass(frozen=True)
class Divergence:
    """An estimate over all scored tokens.

    Attributes:
        mean: Of the divergences, in nats.
        standard_error: Of ``mean``, from the spread of single tokens; None for one token.
        median: Half of the divergences are smaller.
        percentile_99: 99 % of them are smaller.
        largest: The largest one.
        agreement: Share of tokens with the same likeliest next token.
        agreement_error: Its standard error; None for one token.
        flips: Share of tokens that exactly one of the models predicts right.
        reference_perplexity: Of the reference, on the same tokens.
        perplexity: Of the model.
        tokens: How many were scored.
        chunks: How many chunks they came from.
    """

    mean: float
    standard_error: float | None
    median: float
    percentile_99: float
    largest: float
    agreement: float
    agreement_error: float | None
    flips: float
    reference_perplexity: float
    perplexity: float
    tokens: int
    chunks: int


def measure(
    reference: LogitsSource,
    model: LogitsSource,
    chunks: Iterable[Sequence[int]],
    report: Callable[[Divergence], None] | None = None,
) -> Divergence:
    """Compares two models.

    Args:
        reference: Gives p, usually a float model.
        model: Gives q.
        chunks: As ``awq_edge.accuracy.perplexity.cut_chunks`` gives them; at least one.
        report: Called after each chunk with the estimate so far.

    Raises:
        InvalidArgumentError: The vocabularies differ in size, or a chunk holds a token that one of
            the models does not know.
    """
    import numpy as np

    chunks = list(chunks)
    for source in (reference, model):
        for chunk in chunks:
            check_ids(chunk, source.vocabulary_size)
    columns: list[NDArray[np.float64]] = []
    for number, chunk in enumerate(chunks, start=1):
        first = len(chunk) // 2
        # The last token has no successor: its logits are not needed.
        known = chunk[:-1]
        targets = np.asarray(chunk[first + 1 :])
        position = 0
        rows_of_both = zip(
            _rows(reference.next_token_logits(known, first)),
            _rows(model.next_token_logits(known, first)),
        )
        for p, q in rows_of_both:
            columns.append(_per_token(p, q, targets[position : position + len(p)]))
            position += len(p)
        columns = [np.concatenate(columns, axis=1)]
        estimate = _estimate(columns[0], number)
        if report is not None:
            report(estimate)
    return estimate


def _rows(blocks: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    """Blocks of exactly _ROWS rows, but for the last, however a source divides them."""
    import numpy as np

    held: list[NDArray[np.float32]] = []
    count = 0
    for block in blocks:
        held.append(block)
        count += len(block)
        if count >= _ROWS:
            joined = held[0] if len(held) == 1 else np.concatenate(held)
            whole = count // _ROWS * _ROWS
            for begin in range(0, whole, _ROWS):
                yield joined[begin : begin + _ROWS]
            held, count = [joined[whole:]], count - whole
    if count:
        yield np.concatenate(held)


def _per_token(
    p_logits: NDArray[np.float32], q_logits: NDArray[np.float32], targets: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Divergence, agreement, flip, loss of the reference, loss of the model: float64 [5, rows]."""
    import numpy as np

    if p_logits.shape != q_logits.shape:
        raise InvalidArgumentError(
            f"The reference has a vocabulary of {p_logits.shape[1]} tokens and the model one of "
            f"{q_logits.shape[1]}: they do not belong together."
        )
    p, q = _log_probabilities(p_logits), _log_probabilities(q_logits)
    rows = np.arange(len(targets))
    p_best, q_best = p.argmax(axis=1), q.argmax(axis=1)
    return np.stack(
        [
            # Rounding may leave -1e-17 where the two are equal.
            np.maximum((np.exp(p) * (p - q)).sum(axis=1), 0.0),
            (p_best == q_best).astype(np.float64),
            ((p_best == targets) != (q_best == targets)).astype(np.float64),
            -p[rows, targets],
            -q[rows, targets],
        ]
    )


def _log_probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    import numpy as np

    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return wide


def _estimate(columns: NDArray[np.float64], chunks: int) -> Divergence:
    import numpy as np

    divergences, same, flips, p_losses, q_losses = columns
    count = len(divergences)
    agreement = float(same.mean())

    def error(variance: float) -> float | None:
        return math.sqrt(variance / (count - 1)) if count > 1 else None

    return Divergence(
        mean=float(divergences.mean()),
        standard_error=error(float(divergences.var())),
        median=float(np.median(divergences)),
        percentile_99=float(np.percentile(divergences, 99)),
        largest=float(divergences.max()),
        agreement=agreement,
        agreement_error=error(agreement * (1 - agreement)),
        flips=float(flips.mean()),
        reference_perplexity=from_loss(float(p_losses.mean())),
        perplexity=from_loss(float(q_losses.mean())),
        tokens=count,
        chunks=chunks,
    )
