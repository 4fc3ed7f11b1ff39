"""Where guesses of a text's next tokens come from: the text itself, or a smaller model.

Owns the two sources. Refuses to judge them: ``speculation.py`` knows how often they were right and
what they cost. A guess decides about time and never about a text.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from awq_edge.errors import InvalidArgumentError

if TYPE_CHECKING:
    from awq_edge._native import NativeSampler
    from awq_edge.generation import GenerationConfig
    from awq_edge.model import Model
    from awq_edge.session import Session

# The longest end of a text that is looked for further up, and the shortest.
_ENDS = (3, 2)
# Tokens of a long prompt that the smaller model reads before one step of the larger one.
_DRAFT_PART = 128
# Contexts of the smaller model that are kept for conversations that go on.
_MOST_IDLE = 8


class GuessSource(Protocol):
    """Something that guesses."""

    @property
    def token_seconds(self) -> float:
        """What a guessed token costs."""
        ...

    def guess(self, text: memoryview, drawn: int, most: int) -> list[int]:
        """Tokens that may follow a text.

        Args:
            text: uint32 [tokens]; longer than at the call before, and the same so far.
            drawn: How many of them were drawn, the rest being the prompt.
            most: How many are wanted.
        """
        ...

    def close(self) -> None:
        """The text has ended."""
        ...


class TextLookup:
    """Guesses that a text goes on as it did where it last had its present end."""

    token_seconds = 0.0

    def __init__(self) -> None:
        """Has seen nothing."""
        self._places: dict[tuple[int, ...], int] = {}  # an end, and what comes behind it
        self._seen = 1

    def guess(self, text: memoryview, drawn: int, most: int) -> list[int]:
        """Copies what followed; a text that repeats itself is taken to go on doing so."""
        count = len(text)
        for place in range(self._seen, count):
            for length in _ENDS:
                if place >= length:
                    self._places[tuple(text[place - length : place])] = place
        self._seen = max(self._seen, count)
        for length in _ENDS:
            found = self._places.get(tuple(text[count - length :])) if count >= length else None
            if found is not None:
                return [text[found + i % (count - found)] for i in range(most)]
        return []

    def close(self) -> None:
        """There is nothing to give back."""


class DraftSessions:
    """The smaller model's contexts, for every text of the larger one."""

    def __init__(self, model: Model) -> None:
        """Begins without any."""
        self.model = model
        self.token_seconds = 0.0
        self.used = 0
        self._idle: list[Session] = []

    @property
    def bytes(self) -> int:
        """What they have allocated."""
        need = self.model.memory()
        count = self.used + len(self._idle)
        return count * need.cache_bytes + (need.scratch_bytes if count else 0)

    def take(self, text: memoryview) -> Session:
        """The one that has most of a text, or a new one."""
        best = max(self._idle, key=lambda session: session.reusable(text), default=None)
        if best is not None and (best.reusable(text) or len(self._idle) >= _MOST_IDLE):
            self._idle.remove(best)
        else:
            best = self.model.session()
        self.used += 1
        return best

    def give_back(self, session: Session) -> None:
        """A text has ended; its context serves the next one."""
        self.used -= 1
        if session.closed:
            return
        self._idle.append(session)
        if len(self._idle) > _MOST_IDLE:
            self._idle.pop(0).close()

    def learn(self, tokens: int, seconds: float) -> None:
        """Notes what guesses have cost."""
        each = seconds / tokens
        before = self.token_seconds
        self.token_seconds = each if before == 0.0 else 0.8 * before + 0.2 * each


class DraftModel:
    """Guesses what a smaller model of the same vocabulary would write.

    It draws with the text's own settings and random numbers: where both models think alike, so do
    their draws.
    """

    def __init__(self, sessions: DraftSessions, config: GenerationConfig, seed: int) -> None:
        """Takes what the text is drawn with; allocates nothing yet."""
        self._sessions = sessions
        self._config, self._seed = config, seed
        self._session: Session | None = None
        self._sampler: NativeSampler | None = None

    @property
    def token_seconds(self) -> float:
        """What a guessed token costs."""
        return self._sessions.token_seconds

    def guess(self, text: memoryview, drawn: int, most: int) -> list[int]:
        """Continues the text; while it still reads a long prompt, nothing."""
        if self._session is None:
            self._session = self._sessions.take(text)
        if self._sampler is None:
            self._sampler = self._config.sampler(self._seed)
        session = self._session
        most = min(most, session.context_length - len(text))
        if most <= 0 or max(text) >= self._sessions.model.info.vocabulary_size:
            return []
        known = session.reusable(text)
        session.truncate(known)
        unread = text[known:]
        if len(unread) > _DRAFT_PART:
            session.evaluate(unread[:_DRAFT_PART])
            return []
        began = time.perf_counter()
        if len(unread):
            session.evaluate(unread)
        guesses: list[int] = []
        while True:
            guesses.append(session.sample(self._sampler, drawn + len(guesses)))
            if len(guesses) == most or guesses[-1] in session.model.eos_token_ids:
                break
            session.evaluate(guesses[-1:])
        self._sessions.learn(len(guesses), time.perf_counter() - began)
        return guesses

    def close(self) -> None:
        """Gives the context back."""
        session, self._session = self._session, None
        if session is not None:
            self._sessions.give_back(session)


def check_same_tokens(model: Model, draft: Model) -> None:
    """Refuses a smaller model whose tokens are others.

    Raises:
        InvalidArgumentError: They are.
    """
    if _tokens(model) != _tokens(draft):
        raise InvalidArgumentError(
            f"{draft.path} cannot guess for {model.path}, for its tokens are others: take a "
            "smaller model of the same family."
        )


def _tokens(model: Model) -> object:
    """What each id stands for."""
    content = json.loads(str(model.metadata.get("tokenizer.huggingface.json", "{}")))
    added: Sequence[dict[str, object]] = content.get("added_tokens") or ()
    return (
        (content.get("model") or {}).get("vocab"),
        [(token.get("id"), token.get("content")) for token in added],
    )
