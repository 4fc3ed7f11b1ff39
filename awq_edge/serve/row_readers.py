"""What is made of every row of a prompt, where a request asks for more than what follows it.

Owns the two kinds: log-probabilities of the prompt's own tokens, and embeddings. Refuses
evaluating: the engine fills ``target`` and hands it back. A text with one of these reads its whole
prompt, whatever a cache has of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Union

from awq_edge.adjustment import TokenLogprob, token_logprob
from awq_edge.embedding import Pooling
from awq_edge.errors import FileInvalidError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from awq_edge.model import Model

# Logits of one step: looking through them takes long beside texts that are written.
_LOGITS_BYTES = 8 << 20


class PromptScores:
    """How likely a prompt's tokens were, each behind those before it.

    Attributes:
        entries: Of the tokens from the second on, as far as they were read.
        most_rows: Of one step.
    """

    gives_hidden = False

    def __init__(self, model: Model, prompt: Sequence[int], top: int) -> None:
        """Begins a prompt; ``top`` likeliest tokens come with each."""
        self.entries: list[TokenLogprob] = []
        self._width = model.info.vocabulary_size
        self.most_rows = max(1, _LOGITS_BYTES // (4 * self._width))
        self._prompt, self._top = prompt, top

    def target(self, count: int) -> NDArray[np.float32]:
        """Where the logits after the next tokens go: float32 [count, vocabulary]."""
        import numpy as np

        return np.empty((count, self._width), np.float32)

    def take(self, rows: NDArray[np.float32]) -> None:
        """The target, filled."""
        for row in rows:
            place = len(self.entries) + 1
            if place < len(self._prompt):
                self.entries.append(token_logprob(row, self._prompt[place], self._top))


class PooledRows:
    """An embedding.

    Attributes:
        most_rows: Of one step.
    """

    gives_hidden = True
    most_rows = 1 << 30

    def __init__(self, model: Model, pooling: str) -> None:
        """Begins a text."""
        self._width = model.info.hidden_size
        self.pooled = Pooling(self._width, pooling)

    def target(self, count: int) -> NDArray[np.float32]:
        """Where the hidden states of the next tokens go: float32 [count, hidden]."""
        import numpy as np

        return np.empty((count, self._width), np.float32)

    def take(self, rows: NDArray[np.float32]) -> None:
        """The target, filled."""
        import numpy as np

        if not np.isfinite(rows).all():
            raise FileInvalidError(
                "A hidden state is not finite: the model file is damaged, check it with awq-edge "
                "inspect --verify."
            )
        self.pooled.add(rows)


RowReader = Union[PromptScores, PooledRows]
