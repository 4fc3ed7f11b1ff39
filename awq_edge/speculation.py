"""Reading guesses of the next tokens together with the last one, where that saves time.

A step reads the weights once for one row or for several. What a text's next token is drawn from
does not depend on that, so a guess is right when it is the token that is drawn anyway: a text is
the same with guesses and without, whatever it is drawn with. What changes is how many tokens a step
gives, and what a step costs; both are measured, and guessing rests where it would lose.

Owns the choice of how many tokens are guessed. Refuses the guesses (``guess_sources.py``) and their
check (``generation.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from awq_edge.guess_sources import DraftModel, DraftSessions, GuessSource, TextLookup

if TYPE_CHECKING:
    from awq_edge.generation import GenerationConfig
    from awq_edge.model import Model

# Guesses of one step. What most of them are worth falls with each.
_WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16)
# The library reads the weights once for so many rows.
_MOST_ROWS = 128
# Of a wider step that was not measured yet: optimistic, so that it is tried once.
_ROW_SHARE = 0.08
# Guessing must promise so much more than its absence, for promises are not exact.
_LEAST_GAIN = 1.05
_FIRST_REST, _LONGEST_REST = 128, 4096
# What was seen counts so much less with each guess, and a text begins with what others have shown,
# as if it had seen so many guesses of its own.
_KEPT, _FIRST_TRUST = 0.95, 3.0
# So much of what is known of a text's guesses counts after a rest.
_REMEMBERED = 0.3


class StepCosts:
    """Seconds of a step by its rows, as they were measured."""

    def __init__(self) -> None:
        """Knows nothing."""
        self._seconds: dict[int, float] = {}

    def learn(self, rows: int, seconds: float) -> None:
        """Notes a step."""
        before = self._seconds.get(rows)
        self._seconds[rows] = seconds if before is None else 0.8 * before + 0.2 * seconds

    def seconds(self, rows: int) -> float | None:
        """What a step of so many rows takes, or will; None until one was measured."""
        if rows in self._seconds:
            return self._seconds[rows]
        below = max((known for known in self._seconds if known < rows), default=None)
        above = min((known for known in self._seconds if known > rows), default=None)
        if below is None:
            return None if above is None else self._seconds[above]
        low = self._seconds[below]
        if above is None:
            return low * (1 + _ROW_SHARE * (rows - below))
        share = (rows - below) / (above - below)
        return low + share * (self._seconds[above] - low)


class Speculation:
    """What all texts of a model share.

    Attributes:
        draft: The smaller model's contexts, if there is one.
        costs: Of the larger model's steps.
        guessed: Tokens that were guessed.
        right: Those of them that came true.
        rests: How often guessing was switched off for a while because it would lose.
    """

    def __init__(self, *, lookup: bool, draft: Model | None) -> None:
        """Takes the sources.

        Args:
            lookup: Whether texts are searched for what followed before.
            draft: A smaller model of the same tokens.
        """
        self._lookup = lookup
        self.draft = None if draft is None else DraftSessions(draft)
        self.costs = StepCosts()
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
        for tried in self._tried:
            width = min(most, self._width(tried, texts))
            found = tried.source.guess(text, drawn, width) if width > 0 else []
            if found:
                self._asked = tried
                return found
        self._asked = None
        return []

    def checked(self, guessed: int, right: int) -> None:
        """Notes how many of the last guesses came true before the first that did not."""
        tried = self._asked
        if tried is not None:
            tried.learn(guessed, right)
        for counts in (self, self._shared):
            counts.guessed += guessed
            counts.right += right

    def close(self) -> None:
        """The text has ended."""
        for tried in self._tried:
            tried.source.close()

    def _width(self, tried: _Tried, texts: int) -> int:
        """How many tokens of a source promise most; 0 where it rests."""
        if tried.rest > 0:
            tried.rest -= 1
            if tried.rest == 0:
                tried.forget()
            return 0
        costs = self._shared.costs
        alone = costs.seconds(texts)
        if alone is None:
            return 0  # the first steps show what guesses are compared with
        best, most = 0, _LEAST_GAIN / alone
        for width in _WIDTHS:
            if texts * (1 + width) > _MOST_ROWS:
                break
            seconds = costs.seconds(texts * (1 + width))
            if seconds is None:
                continue
            rate = tried.expected(width) / (seconds + texts * width * tried.source.token_seconds)
            if rate > most:
                best, most = width, rate
        if best == 0:
            tried.begin_rest()
            self._shared.rests += 1
        return best


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
