"""The sessions of one model: which of them a prompt takes, so that as little as possible is read.

Owns the cache in memory: sessions whose text has ended keep their context, and the longest
beginning that a prompt shares with any of them, or with one that is being used, is not read again.
Refuses files (``stored_contexts.py``) and threads: the engine's is the only one that comes here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from awq_edge.errors import OutOfMemoryError

if TYPE_CHECKING:
    from awq_edge.model import Model
    from awq_edge.serve.texts import Text
    from awq_edge.session import Session

# Copying a context is one pass over memory; below this, reading the tokens costs as little.
LEAST_COPIED_TOKENS = 16


class Sessions:
    """Sessions of a model: used ones, and idle ones in the order in which they were given back."""

    def __init__(
        self, model: Model, most: int, may_grow: Callable[[int], bool] = lambda size_bytes: True
    ) -> None:
        """Begins without a session.

        Args:
            model: Whose they are.
            most: How many there may be.
            may_grow: Whether one that is not the first may take so many bytes.
        """
        self.model = model
        self._may_grow = may_grow
        self._most = most
        self.used: list[Session] = []
        self.idle: list[Session] = []

    @property
    def bytes(self) -> int:
        """What they have allocated."""
        need = self.model.memory()
        return (len(self.used) + len(self.idle)) * need.cache_bytes + (
            need.scratch_bytes if self.used or self.idle else 0
        )

    def take(self, text: Text, *, copy: bool = True) -> Session | None:
        """A session for a text, with as much of its prompt in the context as any other has.

        Args:
            text: What is asked.
            copy: False for a session whose context will be replaced.

        Returns:
            The session, which is used from now on; None where all are used, or the memory is.
        """
        source, shared = self._best(text) if copy else (None, 0)
        if source in self.idle and self._is_continued(source, shared):
            return self._use(source)
        target = self._free(source)
        if target is None:
            return None
        if source is not None and source is not target and shared >= LEAST_COPIED_TOKENS:
            target.take_over(source, shared)
        return target

    def give_back(self, session: Session) -> None:
        """The session's text has ended; its context stays for the next one."""
        self.used.remove(session)
        if not session.closed:
            self.idle.append(session)

    def shared(self, text: Text) -> int:
        """Tokens at the beginning of a prompt that need not be read."""
        return self._best(text)[1]

    def close_idle(self) -> None:
        """Gives the memory of the idle ones back."""
        while self.idle:
            self.idle.pop().close()

    def _best(self, text: Text) -> tuple[Session | None, int]:
        best: Session | None = None
        most = 0
        # Those given back last come first: equal ones are left to their own conversation.
        for session in [*reversed(self.idle), *self.used]:
            shared = text.reusable(session)
            if shared > most:
                best, most = session, shared
        return best, most

    def _is_continued(self, session: Session | None, shared: int) -> bool:
        """Whether a context is worth less than what the prompt adds to it: then it goes on."""
        return session is not None and session.position - shared <= shared

    def _free(self, source: Session | None) -> Session | None:
        """A session whose context may go: a new one, or the idle one that waits longest."""
        count = len(self.used) + len(self.idle)
        if count < self._most and (count == 0 or self._may_grow(self.model.memory().cache_bytes)):
            try:
                session = self.model.session()
            except OutOfMemoryError:
                if not self.idle:
                    if not self.used:
                        raise
                    return None
            else:
                self.used.append(session)
                return session
        if not self.idle:
            return None
        # The one that has the prompt's beginning stays, if another can go.
        others = [session for session in self.idle if session is not source]
        return self._use(others[0] if others else self.idle[0])

    def _use(self, session: Session) -> Session:
        self.idle.remove(session)
        self.used.append(session)
        return session
