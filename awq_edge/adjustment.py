"""What a text adds to the logits that its next token is drawn from, and what they were before.

Owns biases, the penalties for tokens that the text holds, constraints, and log-probabilities.
Refuses drawing: the C library's sampler does that. Loads numpy only when something is added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from awq_edge.errors import InvalidArgumentError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# A bias from here on down is an exclusion, as in the API that the field is known from.
_EXCLUDES = -100.0


class Constraint(Protocol):
    """What may be drawn next, for example by a grammar."""

    def allowed(self, tokens: Sequence[int]) -> NDArray[np.bool_]:
        """Whether each token of the vocabulary may follow: bool [vocabulary].

        Args:
            tokens: All that were drawn so far; more than at the call before, or as many.
        """
        ...


@dataclass(frozen=True)
class TokenLogprob:
    """A drawn token as the model itself saw it, before any setting of the sampler.

    Attributes:
        token: Its id.
        logprob: Natural logarithm of its probability.
        top: The likeliest tokens at this place with theirs, the best first.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def token_logprob(logits: NDArray[np.float32], token: int, count: int) -> TokenLogprob:
    """Log-probabilities of a token and of the ``count`` likeliest.

    Args:
        logits: float32 [vocabulary], of the model.
        token: The one that was drawn.
        count: How many of the others to give; equal ones in the order of their ids.
    """
    import numpy as np

    exact = logits.astype(np.float64)
    exact -= exact.max()
    exact -= np.log(np.exp(exact).sum())
    count = min(count, len(exact))
    top: list[int] = []
    if count:
        # Everything from the count-th value on, so that a tie does not depend on the partition.
        least = np.partition(exact, len(exact) - count)[len(exact) - count]
        candidates = np.flatnonzero(exact >= least)
        top = candidates[np.argsort(-exact[candidates], kind="stable")][:count].tolist()
    return TokenLogprob(token, float(exact[token]), tuple((i, float(exact[i])) for i in top))


class Adjustment:
    """What is added to a text's logits, token by token."""

    def __init__(
        self,
        vocabulary_size: int,
        *,
        presence_penalty: float,
        frequency_penalty: float,
        logit_bias: Mapping[int, float],
        constraint: Constraint | None,
    ) -> None:
        """Reads the biases; ``needed`` is the way to get one."""
        import numpy as np

        self._presence, self._frequency = presence_penalty, frequency_penalty
        self._constraint = constraint
        self._bias = np.zeros(vocabulary_size, np.float32)
        for token, change in logit_bias.items():
            if not 0 <= token < vocabulary_size:
                raise InvalidArgumentError(
                    f"logit_bias names the token {token}: the vocabulary has {vocabulary_size}."
                )
            self._bias[token] = -np.inf if change <= _EXCLUDES else change
        if np.isneginf(self._bias).all():
            raise InvalidArgumentError("logit_bias excludes every token: leave at least one.")

    @classmethod
    def needed(
        cls,
        vocabulary_size: int,
        *,
        presence_penalty: float,
        frequency_penalty: float,
        logit_bias: Mapping[int, float],
        constraint: Constraint | None,
    ) -> Adjustment | None:
        """The adjustment; None where nothing is ever added."""
        if not (presence_penalty or frequency_penalty or logit_bias or constraint):
            return None
        return cls(
            vocabulary_size,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            logit_bias=logit_bias,
            constraint=constraint,
        )

    def added(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """What is added before the next token is drawn: float32 [vocabulary].

        Args:
            tokens: What was drawn so far.

        Raises:
            InvalidArgumentError: The constraint and the biases leave no token.
        """
        import numpy as np

        added = self._bias.copy()
        if tokens and (self._presence or self._frequency):
            held, counts = np.unique(np.asarray(tokens, np.int64), return_counts=True)
            added[held] -= np.float32(self._presence) + np.float32(self._frequency) * counts.astype(
                np.float32
            )
        if self._constraint is not None:
            added[~self._constraint.allowed(tokens)] = -np.inf
            if np.isneginf(added).all():
                raise InvalidArgumentError(
                    "logit_bias excludes every token that the answer's form allows here."
                )
        return added
