"""Where guesses of a text's next tokens come from: the text itself, or a smaller model.

Owns the two sources. Refuses to judge them: ``speculation.py`` knows how often they were right and
what they cost. A guess decides about time and never about a text.
"""

from __future__ import annotations

import json
import time
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from awq_edge.errors import InvalidArgumentError
from awq_edge.guess_costs import StepCosts, wider

if TYPE_CHECKING:
    from awq_edge._native import NativeSampler
    from awq_edge.generation import GenerationConfig
    from awq_edge.model import Model
    from awq_edge.session import Session

# The longest end of a text that is looked for further up, and the shortest.
_ENDS = (3, 2)
# Tokens of a long prompt that the smaller model reads before one step of the larger one.
_DRAFT_PART = 128
# Tokens of it that are read before anything was gained.
_DRAFT_END = 32
# Of what may be lost, for reading all of it.
_INVESTED = 0.25
# Contexts of the smaller model that are kept for conversations that go on.
_MOST_IDLE = 8


class GuessSource(Protocol):
    """Something that guesses."""

    @property
    def token_seconds(self) -> float:
        """What a guessed token costs."""
        ...

    def seconds(self, text: memoryview, most: int) -> float:
        """What ``guess`` will probably take.

        Args:
            text: uint32 [tokens].
            most: How many are wanted.
        """
        ...

    def guess(self, text: memoryview, drawn: int, most: int, spare: float) -> list[int]:
        """Tokens that may follow a text.

        Args:
            text: uint32 [tokens]; longer than at the call before, and the same so far.
            drawn: How many of them were drawn, the rest being the prompt.
            most: How many are wanted.
            spare: Seconds that may be lost with this text.
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

    def seconds(self, text: memoryview, most: int) -> float:
        """Next to nothing."""
        return 0.0

    def guess(self, text: memoryview, drawn: int, most: int, spare: float) -> list[int]:
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

    def __init__(self, model: Model, larger: Model, larger_costs: StepCosts) -> None:
        """Begins without any.

        Args:
            model: The smaller one.
            larger: The larger one.
            larger_costs: Of its steps.
        """
        self.model = model
        self.costs = StepCosts()
        self._larger_costs = larger_costs
        self._share = model.info.decode_bytes / max(1, larger.info.decode_bytes)
        self.used = 0
        self._idle: list[Session] = []

    @property
    def bytes(self) -> int:
        """What they have allocated."""
        need = self.model.memory()
        count = self.used + len(self._idle)
        return count * need.cache_bytes + (need.scratch_bytes if count else 0)

    def most_reusable(self, text: memoryview) -> int:
        """How much of a text one of them has."""
        return max((session.reusable(text) for session in self._idle), default=0)

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

    def seconds(self, rows: int) -> float:
        """What reading so many tokens takes, or will: a step reads all weights once."""
        known = self.costs.seconds(rows)
        if known is None:
            known = self._share * (self._larger_costs.seconds(1) or 0.0) * wider(rows)
        return known


class DraftModel:
    """Guesses what a smaller model of the same vocabulary would write.

    It draws with the text's own settings and random numbers: where both models think alike, so do
    their draws. Of a long prompt it reads the end alone, until its guesses have gained what the
    rest costs.
    """

    def __init__(self, sessions: DraftSessions, config: GenerationConfig, seed: int) -> None:
        """Takes what the text is drawn with; allocates nothing yet."""
        self._sessions = sessions
        self._config, self._seed = config, seed
        self._session: Session | None = None
        self._sampler: NativeSampler | None = None
        # What is left out of the text: from 1, for most models need its first token, to this place.
        self._left_out = 1

    @property
    def token_seconds(self) -> float:
        """What a guessed token costs."""
        return self._sessions.seconds(1)

    def seconds(self, text: memoryview, most: int) -> float:
        """What ``guess`` will probably take."""
        unread = self._unread(text)
        if self._session is None:
            unread = min(unread, 1 + _DRAFT_END)
        return self._sessions.seconds(unread) + (most - 1) * self._sessions.seconds(1)

    def guess(self, text: memoryview, drawn: int, most: int, spare: float) -> list[int]:
        """Continues the text; while it still reads a long prompt, nothing."""
        session = self._session
        if session is None:
            unread = self._unread(text)
            session = self._session = self._sessions.take(text)
            if unread > 1 + _DRAFT_END:
                self._left_out = len(text) - _DRAFT_END
        elif self._left_out > 1 and self._sessions.seconds(len(text)) <= _INVESTED * spare:
            self._left_out = 1
        if self._sampler is None:
            self._sampler = self._config.sampler(self._seed)
        most = min(most, session.context_length - self._seen(text))
        if most <= 0:
            return []
        held = self._held(text)
        known = session.reusable(held)
        session.truncate(known)
        unread_tokens = held[known:]
        if len(unread_tokens) and max(unread_tokens) >= self._sessions.model.info.vocabulary_size:
            return []
        if len(unread_tokens) > _DRAFT_PART:
            self._read(session, unread_tokens[:_DRAFT_PART])
            return []
        if len(unread_tokens):
            self._read(session, unread_tokens)
        guesses: list[int] = []
        while True:
            guesses.append(session.sample(self._sampler, drawn + len(guesses)))
            if len(guesses) == most or guesses[-1] in session.model.eos_token_ids:
                break
            self._read(session, guesses[-1:])
        return guesses

    def close(self) -> None:
        """Gives the context back."""
        session, self._session = self._session, None
        if session is not None:
            self._sessions.give_back(session)

    def _read(self, session: Session, tokens: Sequence[int] | memoryview) -> None:
        began = time.perf_counter()
        session.evaluate(tokens)
        self._sessions.costs.learn(len(tokens), time.perf_counter() - began)

    def _seen(self, text: memoryview) -> int:
        """Tokens of a text that it looks at."""
        return len(text) - (self._left_out - 1)

    def _held(self, text: memoryview) -> memoryview:
        """What it looks at: uint32 [tokens]."""
        if self._left_out == 1:
            return text
        return memoryview(array("I", [text[0], *text[self._left_out :]]))

    def _unread(self, text: memoryview) -> int:
        """Tokens that it will read first."""
        if self._session is None:
            return len(text) - self._sessions.most_reusable(text)
        return max(1, self._seen(text) - self._session.position)


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
