"""Reading guesses of the next tokens together with the last one, where that saves time.

A step reads the weights once for one row or for several. What a text's next token is drawn from
does not depend on that, so a guess is right when it is the token that is drawn anyway: a text is
the same with guesses and without, whatever it is drawn with. What changes is how many tokens a step
gives, and what a step costs; both are measured. Guessing rests where it promises nothing, and where
it promises something it may lose a hundredth of a text's time and what it has gained.

Owns the choice of how many tokens are guessed. Refuses the guesses (``guess_sources.py``) and their
check (``generation.py``).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from awq_edge.guess_costs import Account, Pool, StepCosts
from awq_edge.guess_sources import DraftModel, DraftSessions, GuessSource, TextLookup

if TYPE_CHECKING:
    from awq_edge.generation import GenerationConfig
    from awq_edge.model import Model

# Guesses of one step. What most of them are worth falls with each.
_WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16)
# The library reads the weights once for so many rows.
_MOST_ROWS = 128
# Guessing must promise so much more than its absence, for promises are not exact.
_LEAST_GAIN = 1.05
# Of what may be lost, for a step with several guesses; a single one may lose all of it.
_RISK = 0.25
_FIRST_REST, _LONGEST_REST = 128, 4096
# What was seen counts so much less with each guess, and a text begins with what others have shown,
# as if it had seen so many guesses of its own.
_KEPT, _FIRST_TRUST = 0.95, 3.0
# So much of what is known of a text's guesses counts after a rest.
_REMEMBERED = 0.3


class Speculation:
    """What all texts of a model share.

    Attributes:
        draft: The smaller model's contexts, if there is one.
        costs: Of the larger model's steps.
        pool: What a text's guesses may lose at first.
        guessed: Tokens that were guessed.
        right: Those of them that came true.
        rests: How often guessing was switched off for a while because it would lose.
    """

    def __init__(self, model: Model, *, lookup: bool, draft: Model | None) -> None:
        """Takes the sources.

        Args:
            model: Whose texts they are.
            lookup: Whether texts are searched for what followed before.
            draft: A smaller model of the same tokens.
        """
        self._lookup = lookup
        self.costs = StepCosts()
        self.draft = None if draft is None else DraftSessions(draft, model, self.costs)
        self.pool = Pool()
        self.guessed = 0
        self.right = 0
        self.rests = 0
        self._records = (_Record(), _Record())

    def guesses(self, config: GenerationConfig, seed: int) -> Guesses:
        """For one text that is drawn like this."""
        of_texts, of_drafts = self._records
        tried = []
        if self._lookup:
            tried.append(_Tried(TextLookup(), of_texts))
        if self.draft is not None:
            tried.append(_Tried(DraftModel(self.draft, config, seed), of_drafts))
        return Guesses(self, tried)


class Guesses:
    """One text's guesses.

    Attributes:
        guessed: Tokens that were guessed for it.
        right: Those of them that came true.
    """

    def __init__(self, shared: Speculation, tried: list[_Tried]) -> None:
        """Takes the sources, the first one first."""
        self._shared = shared
        self._tried = tried
        self._asked: _Tried | None = None
        self._texts = 1  # that the last step wrote
        self._account = Account(shared.pool)
        self.guessed = 0
        self.right = 0

    @property
    def resting(self) -> bool:
        """Whether every source is switched off, for it would lose."""
        return all(tried.rest > 0 for tried in self._tried)

    def next(self, text: memoryview, drawn: int, most: int, texts: int) -> list[int]:
        """What is read behind a text's last token in the next step.

        Args:
            text: uint32 [tokens].
            drawn: How many of them were drawn.
            most: For how many there is room.
            texts: How many texts the step writes.
        """
        self._asked, self._texts = None, texts
        self._account.step()
        alone = self._shared.costs.seconds(texts)
        if alone is None:
            return []  # the first steps show what guesses are compared with
        token_seconds = alone / texts
        for tried in self._tried:
            width = self._width(tried, text, most, texts, alone)
            if width == 0:
                continue
            spare = self._account.steps * token_seconds
            began = time.perf_counter()
            found = tried.source.guess(text, drawn, width, spare)
            self._account.spend((time.perf_counter() - began) / token_seconds)
            if found:
                self._asked = tried
                return found
        return []

    def checked(self, guessed: int, right: int) -> None:
        """Notes how many of the last guesses came true before the first that did not."""
        tried = self._asked
        if tried is not None:
            tried.learn(guessed, right)
            alone, more = (self._shared.costs.seconds(self._texts * n) for n in (1, 1 + guessed))
            self._account.spend((more / alone - 1 if alone and more else 0.0) - right)
        for counts in (self, self._shared):
            counts.guessed += guessed
            counts.right += right

    def close(self) -> None:
        """The text has ended."""
        self._account.close()
        for tried in self._tried:
            tried.source.close()

    def _width(self, tried: _Tried, text: memoryview, most: int, texts: int, alone: float) -> int:
        """How many tokens of a source promise most of those that may be risked.

        0 where none may, and where it rests.
        """
        if tried.rest > 0:
            tried.rest -= 1
            if tried.rest == 0:
                tried.forget()
            return 0
        costs = self._shared.costs
        least = _LEAST_GAIN / alone
        promising = []
        for width in _WIDTHS:
            if texts * (1 + width) > _MOST_ROWS:
                break
            seconds = costs.seconds(texts * (1 + width)) or alone
            rate = tried.expected(width) / (seconds + texts * width * tried.source.token_seconds)
            if rate > least:
                promising.append((rate, min(width, most)))
        if not promising:
            tried.begin_rest()
            self._shared.rests += 1
            return 0
        for _rate, width in sorted(promising, reverse=True):
            more = costs.most_seconds(texts * (1 + width)) or alone
            lost = more / alone - 1 + tried.source.seconds(text, width) / (alone / texts)
            if lost <= self._account.steps * (1.0 if width == 1 else _RISK):
                return width
        return 0


class _Record:
    """How often a kind of source was right, in all texts."""

    def __init__(self) -> None:
        self.right, self.wrong = 2.0, 1.0  # trusted until it is known better
        self.next_rest = _FIRST_REST

    def learn(self, right: int, wrong: int) -> None:
        self.right = _KEPT * self.right + right
        self.wrong = _KEPT * self.wrong + wrong


class _Tried:
    """A source, and how often it was right for one text."""

    def __init__(self, source: GuessSource, record: _Record) -> None:
        self.source = source
        self.rest = 0  # steps until it is asked again
        self._record = record
        known = _FIRST_TRUST / (record.right + record.wrong)
        self._right, self._wrong = known * record.right, known * record.wrong

    def learn(self, guessed: int, right: int) -> None:
        """Notes a guess: of its tokens none counts behind the first that was wrong."""
        wrong = 1 if right < guessed else 0
        self._right = _KEPT * self._right + right
        self._wrong = _KEPT * self._wrong + wrong
        self._record.learn(right, wrong)
        if not wrong:
            self._record.next_rest = _FIRST_REST

    def expected(self, width: int) -> float:
        """Tokens that a step with so many guesses gives, the one after the last right one too."""
        share = self._right / (self._right + self._wrong)
        return sum(share**place for place in range(width + 1))

    def begin_rest(self) -> None:
        """Switches it off for a while, each time for longer."""
        record = self._record
        self.rest, record.next_rest = record.next_rest, min(2 * record.next_rest, _LONGEST_REST)

    def forget(self) -> None:
        """After a rest the text may be another: it is tried again, and soon judged."""
        known = _REMEMBERED / (self._right + self._wrong)
        self._right, self._wrong = known * self._right + 1.0, known * self._wrong + 0.3
