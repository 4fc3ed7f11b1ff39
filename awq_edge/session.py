"""One conversation: the tokens so far, and what the C library keeps of them.

Owns ``Session``: thin and typed over the C library. A session serves one thread at a time and says
so if two meet.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from awq_edge.errors import ContextFullError, InvalidArgumentError
from awq_edge.generation import Generation, GenerationConfig, Progress, Prompt

if TYPE_CHECKING:
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray

    from awq_edge._native import NativeSession
    from awq_edge.model import Model


class Session:
    """One conversation: the tokens so far and their keys and values.

    A context manager. Serves one thread at a time.
    """

    def __init__(
        self,
        model: Model,
        *,
        context_length: int,
        threads: int,
        prefill_threads: int,
        kv: str,
    ) -> None:
        """Allocates the cache; ``Model.session`` is the way to get a session."""
        from awq_edge._native import NativeSession

        self.model = model
        self.context_length = context_length
        self.kv = kv
        self._native: NativeSession | None = NativeSession(
            model.native,
            context_length=context_length,
            threads=threads,
            prefill_threads=prefill_threads,
            kv_type=kv,
        )
        self.kernels = self._native.kernels
        self.threads = self._native.threads
        self.prefill_threads = self._native.prefill_threads
        self._tokens: list[int] = []
        self._busy = threading.Lock()
        self._generation: Generation | None = None  # whose text the context continues

    @property
    def closed(self) -> bool:
        """Whether the session was closed."""
        return self._native is None

    @property
    def tokens(self) -> tuple[int, ...]:
        """Everything in the context."""
        return tuple(self._tokens)

    @property
    def position(self) -> int:
        """How many tokens are in the context."""
        return len(self._tokens)

    def close(self) -> None:
        """Frees the cache. A second call does nothing."""
        if self._native is not None:
            with self._use() as native:
                native.close()
                self._native = None

    def __enter__(self) -> Session:
        """The session itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the session."""
        self.close()

    @property
    def earliest(self) -> int:
        """The lowest position, apart from 0, that ``truncate`` can go back to.

        0, unless the model has layers with a sliding window and they have dropped what came before.
        """
        with self._use() as native:
            return int(native.earliest)

    def reusable(self, prompt: Sequence[int]) -> int:
        """How many tokens at the beginning of a prompt need not be computed again.

        Never the last one: its logits are what the next token is drawn from.
        """
        shared = 0
        for old, new in zip(self._tokens, prompt[:-1]):
            if old != new:
                break
            shared += 1
        # Layers with a sliding window may have forgotten what comes before.
        return shared if shared == self.position or shared >= self.earliest else 0

    def truncate(self, position: int) -> None:
        """Forgets every token from ``position`` on; see ``earliest``."""
        if not 0 <= position <= len(self._tokens):
            raise InvalidArgumentError(
                f"Position {position} is not in the context, which holds {len(self._tokens)} "
                "tokens."
            )
        with self._use() as native:
            native.truncate(position)
            del self._tokens[position:]

    def evaluate(self, tokens: Sequence[int], *, progress: Progress | None = None) -> None:
        """Appends tokens. The result does not depend on how a text is divided into calls.

        Args:
            tokens: Ids.
            progress: Called with the tokens done and their number; may raise to stop. What was
                read until then stays in the context.
        """
        self._append(tokens, None, progress)

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Appends tokens and gives the logits after each: float32 [tokens, vocabulary]."""
        import numpy as np

        self._require_room(len(tokens))
        result = np.empty((len(tokens), self.model.info.vocabulary_size), np.float32)
        if len(tokens):
            self._append(tokens, result, None)
        return result

    def generate(
        self,
        prompt: Prompt,
        config: GenerationConfig | None = None,
        **settings: Any,
    ) -> Generation:
        """Continues a prompt, which replaces what is in the context; see ``Model.generate``."""
        config = config or GenerationConfig()
        if settings:
            try:
                config = replace(config, **settings)
            except TypeError as error:
                raise InvalidArgumentError(f"GenerationConfig: {error}.") from error
        return Generation(self, prompt, config)

    def _append(self, tokens: Sequence[int], logits: Any, progress: Progress | None) -> None:
        tokens = [int(token) for token in tokens]
        self._require_room(len(tokens))
        vocabulary_size = self.model.info.vocabulary_size
        for token in tokens:
            if not 0 <= token < vocabulary_size:
                raise InvalidArgumentError(
                    f"Token {token} is not in the vocabulary of {vocabulary_size}."
                )
        with self._use() as native:
            try:
                native.evaluate(tokens, logits, progress)
            finally:
                self._tokens += tokens[: native.position - len(self._tokens)]

    def _require_room(self, count: int) -> None:
        if self.position + count > self.context_length:
            raise ContextFullError(
                f"{count} more tokens do not fit: the context of {self.context_length} already "
                f"holds {self.position}."
            )

    @contextmanager
    def _use(self) -> Iterator[Any]:
        """The native session, for one thread."""
        if not self._busy.acquire(blocking=False):
            raise InvalidArgumentError(
                "This session is in use by another thread: give each its own (Model.session())."
            )
        try:
            if self._native is None:
                raise InvalidArgumentError("The session is closed.")
            yield self._native
        finally:
            self._busy.release()
