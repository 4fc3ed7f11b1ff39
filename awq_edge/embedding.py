"""A text's embedding: its hidden states made one vector.

Owns pooling and length. Refuses evaluating: ``Model.embed`` and the server do. Sums are those of
float64 in the order of the tokens, and the length is rounded once, so that a text has one embedding
on every machine.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from awq_edge.errors import InvalidArgumentError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

POOLINGS = ("mean", "last")


def check_pooling(pooling: str) -> None:
    """Refuses a word that is none of ``POOLINGS``."""
    if pooling not in POOLINGS:
        raise InvalidArgumentError(f"The pooling {pooling!r} is none of {', '.join(POOLINGS)}.")


class Pooling:
    """Takes the hidden states of one text, part by part."""

    def __init__(self, hidden_size: int, pooling: str) -> None:
        """Begins a text.

        Args:
            hidden_size: Of the model.
            pooling: "mean" of all tokens, or the "last" one's.
        """
        import numpy as np

        check_pooling(pooling)
        self._mean = pooling == "mean"
        self._sum: NDArray[np.float64] = np.zeros(hidden_size)
        self._count = 0

    def add(self, rows: NDArray[np.float32]) -> None:
        """The next tokens: float32 [tokens, hidden]."""
        if not self._mean:
            self._sum, self._count = rows[-1].astype("float64"), 1
            return
        for row in rows:
            self._sum += row
        self._count += len(rows)

    def vector(
        self, *, normalize: bool = True, dimensions: int | None = None
    ) -> NDArray[np.float32]:
        """The embedding: float32 [hidden].

        Args:
            normalize: Whether its length is made 1.
            dimensions: How many of its numbers to give, the first ones; None gives all.
        """
        import numpy as np

        vector = (self._sum / max(self._count, 1))[:dimensions]
        if normalize:
            length = math.sqrt(math.fsum(float(value) ** 2 for value in vector))
            vector = vector / length if length > 0 else vector
        return vector.astype(np.float32)
