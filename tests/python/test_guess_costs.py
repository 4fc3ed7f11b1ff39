"""What guessing ahead may lose: counted on a machine whose clock goes by the work alone."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from awq_edge import GenerationConfig, Model
from awq_edge.guess_costs import StepCosts
from awq_edge.session import Session
from awq_edge.speculation import Speculation

LOST = 1.02  # of a text's time: what "never slower than 0.98 times" leaves
TOKENS = 128


class Clock:
    """``time.perf_counter``, by the work that was done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


# ---- costs ---------------------------------------------------------------------------------------


def test_costs_are_read_between_what_was_measured() -> None:
    costs = StepCosts()
    assert costs.seconds(1) is None
    costs.learn(1, 1.0)
    costs.learn(5, 3.0)
    assert costs.seconds(1) == 1.0
    assert costs.seconds(3) == 2.0
    further = costs.seconds(9)
    assert further is not None and 3.0 < further < 6.0


def test_a_step_that_waited_for_something_else_changes_nothing() -> None:
    costs = StepCosts()
    for seconds in (1.0, 1.0, 90.0, 1.0):
        costs.learn(1, seconds)
    assert costs.seconds(1) == 1.0
    for _ in range(7):  # and what stays changed is believed
        costs.learn(1, 2.0)
    assert costs.seconds(1) == 2.0


# ---- guesses whose quality is given --------------------------------------------------------------


class Oracle:
    """Guesses that cost what a test says."""

    def __init__(self, clock: Clock, token_seconds: float, first_seconds: float) -> None:
        self.clock = clock
        self.token_seconds, self.first_seconds = token_seconds, first_seconds
        self.asked = 0

    def seconds(self, text: memoryview, most: int) -> float:
        return most * self.token_seconds + (0 if self.asked else self.first_seconds)

    def guess(self, text: memoryview, drawn: int, most: int, spare: float) -> list[int]:
        self.clock.now += self.seconds(text, most)
        self.asked += 1
        return [1] * most

    def close(self) -> None:
        """Nothing."""


class Run:
    """Texts one after the other: a step costs 1 for its first row and ``row`` for each other."""

    def __init__(self, clock: Clock, model: Model, *, row: float, token: float, first: float):
        self.clock, self.row, self.token, self.first = clock, row, token, first
        self.shared = Speculation(model, lookup=True, draft=None)
        self.random = random.Random(5)
        self.asked = 0

    def text(self, right: Callable[[int], float], tokens: int = TOKENS) -> float:
        """Writes a text whose guesses at a place are right so often; gives its time."""
        guesses = self.shared.guesses(GenerationConfig(), 1)
        oracle = Oracle(self.clock, self.token, self.first)
        guesses._tried[0].source = oracle
        began, done = self.clock.now, 0
        while done < tokens:
            found = guesses.next(memoryview(b"\0\0"), 0, max(1, tokens - done - 1), 1)
            seconds = 1 + self.row * len(found)
            self.clock.now += seconds
            self.shared.costs.learn(1 + len(found), seconds)
            came = 0
            while came < len(found) and self.random.random() < right(done):
                came += 1
            if found:
                guesses.checked(len(found), came)
            done += came + 1
        guesses.close()
        self.asked += oracle.asked
        return (self.clock.now - began) / done


@pytest.fixture
def run(clock: Clock, stories: Model) -> Callable[..., Run]:
    return lambda row, token=0.0, first=0.0: Run(clock, stories, row=row, token=token, first=first)


def always(right: float) -> Callable[[int], float]:
    """Guesses that are right so often at every place."""
    return lambda _place: right


def test_what_gains_is_used(run: Callable[..., Run]) -> None:
    assert run(row=0.05).text(always(0.9), 4000) < 0.25
    assert run(row=0.2).text(always(0.6), 4000) < 0.8
    assert run(row=0.05, token=0.1).text(always(0.8), 4000) < 0.6
    short = run(row=0.05, token=0.12, first=0.6)
    assert short.text(always(0.85)) < 0.7
    assert short.shared.rests == 0


@pytest.mark.parametrize("row", [0.02, 0.08, 0.3, 1.0])
@pytest.mark.parametrize("token", [0.0, 0.1, 0.35, 1.0])
@pytest.mark.parametrize("right", [0.0, 0.1, 0.3, 0.5])
def test_nothing_is_lost_beyond_two_hundredths(
    run: Callable[..., Run], row: float, token: float, right: float
) -> None:
    """In any text, the first of a process too, and over all of them."""
    machine = run(row=row, token=token, first=4 * token)
    times = [machine.text(always(right)) for _ in range(12)]
    assert max(times) < LOST, times
    assert sum(times) / len(times) < 1.01 + 1 / (12 * TOKENS), times


def test_what_loses_rests(run: Callable[..., Run]) -> None:
    for right, row, token in ((0.0, 0.3, 0.0), (0.1, 0.5, 0.2), (0.5, 1.0, 0.0), (0.9, 1.1, 0.0)):
        machine = run(row=row, token=token)
        assert machine.text(always(right), 4000) < 1.011, (right, row)
        assert machine.shared.rests > 1
        assert machine.asked < 100


def test_a_text_whose_guesses_turn_bad_loses_no_more_than_it_gained(
    run: Callable[..., Run],
) -> None:
    machine = run(row=0.05, token=0.1)
    assert machine.text(lambda place: 0.95 if place < 40 else 0.0) < 1.0
    # And the next one does not pay with those gains.
    assert machine.text(always(0.0)) < LOST


# ---- a smaller model -----------------------------------------------------------------------------

ROW = 0.08  # what a row costs beside the first, of a step
SHARE = 0.12  # a step of the smaller model, of one of the larger


class Work:
    """Counts what two models evaluate, and lets the clock go by it."""

    def __init__(
        self, clock: Clock, monkeypatch: pytest.MonkeyPatch, model: Model, draft: Model
    ) -> None:
        self.passes = self.rows = self.draft_passes = self.draft_rows = 0
        together, evaluate = model.evaluate_together, Session.evaluate

        def large(batch: Sequence[tuple[Session, Any]], **more: Any) -> None:
            batch = list(batch)
            rows = sum(len(read) for _, read in batch)
            self.passes, self.rows = self.passes + 1, self.rows + rows
            clock.now += 1 + ROW * (rows - 1)
            together(batch, **more)

        def small(session: Session, tokens: Sequence[int], **more: Any) -> None:
            if session.model is draft:
                self.draft_passes += 1
                self.draft_rows += len(tokens)
                clock.now += SHARE * (1 + ROW * (len(tokens) - 1))
            evaluate(session, tokens, **more)

        monkeypatch.setattr(model, "evaluate_together", large)
        monkeypatch.setattr(Session, "evaluate", small)


LONG = "Once upon a time there was a girl. " * 30  # far more than what is read at first


@pytest.mark.parametrize("prompt", ["Once upon a time", LONG], ids=["short", "long"])
def test_a_smaller_model_that_is_never_right_costs_next_to_nothing(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, stories_path: Path, prompt: str
) -> None:
    """Counted work: passes and rows of both models, and the time that they would take."""
    with Model.open(stories_path, threads=1, draft=stories_path) as model:
        assert model.speculation is not None and model.speculation.draft is not None
        sessions = model.speculation.draft
        work = Work(clock, monkeypatch, model, sessions.model)
        monkeypatch.setattr(sessions, "_share", SHARE)
        sample = Session.sample

        def wrong(session: Session, *of: Any) -> int:
            """Of the smaller model, what one says that knows nothing."""
            drawn = sample(session, *of)
            return (drawn + 1) % 400 + 20 if session.model is sessions.model else drawn

        monkeypatch.setattr(Session, "sample", wrong)
        for seed in range(3):
            with model.session() as session:
                generation = session.generate(
                    prompt, max_tokens=TOKENS, temperature=0.8, seed=seed, logit_bias=ENDLESS
                )
                generation.start()
                began, passes = clock.now, work.passes
                generation.text()
                count = len(generation.tokens)
                assert count == TOKENS
                assert work.passes - passes <= count  # never more passes than without
                assert clock.now - began < LOST * count
        assert model.speculation.right == 0
        assert 0 < model.speculation.guessed < 40
        assert work.rows < LOST * work.passes + 3 * len(model.tokenize(prompt))
        assert work.draft_rows * SHARE < 0.2 * 3 * TOKENS


ENDLESS = {1: -100, 2: -100}  # neither BOS nor EOS ends these texts


def test_a_long_prompt_is_read_whole_once_guesses_have_paid_for_it(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, stories_path: Path
) -> None:
    with Model.open(stories_path, threads=1, draft=stories_path) as model:
        assert model.speculation is not None and model.speculation.draft is not None
        sessions = model.speculation.draft
        work = Work(clock, monkeypatch, model, sessions.model)
        monkeypatch.setattr(sessions, "_share", SHARE)
        length = len(model.tokenize(LONG))
        with model.session() as session:
            generation = session.generate(LONG, max_tokens=120, temperature=0, logit_bias=ENDLESS)
            generation.start()
            began = clock.now
            while work.draft_rows == 0:
                next(generation)
            assert work.draft_rows < 45 < length
            generation.text()
            assert work.draft_rows > length
            assert clock.now - began < 0.75 * 120
            assert generation.guesses is not None
            assert generation.guesses.right > 0.8 * generation.guesses.guessed
