"""The engine: what each text becomes beside others, and what happens to those that leave."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import psutil
import pytest

from awq_edge import GenerationConfig, Model
from awq_edge.errors import AwqEdgeError, ContextFullError
from awq_edge.serve.engine import BLOCK_ROWS, Engine
from awq_edge.serve.fair_queue import FairQueue
from awq_edge.serve.texts import BusyError, Ended, Event, Failed, Piece, StoppingError, Text


class Heard:
    """A listener that keeps what it was told."""

    SECONDS = 120  # nothing here takes as many on the busiest machine

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.ended = threading.Event()

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if not isinstance(event, Piece):
            self.ended.set()

    def text(self) -> str:
        assert self.ended.wait(self.SECONDS)
        return "".join(event.text for event in self.events if isinstance(event, Piece))

    def tokens(self) -> list[int]:
        assert self.ended.wait(self.SECONDS)
        pieces = [event for event in self.events if isinstance(event, Piece)]
        return [token for piece in pieces for token in piece.tokens]

    def end(self) -> Ended:
        assert self.ended.wait(self.SECONDS)
        end = self.events[-1]
        assert isinstance(end, Ended), end
        return end

    def error(self) -> BaseException:
        assert self.ended.wait(self.SECONDS)
        end = self.events[-1]
        assert isinstance(end, Failed), end
        return end.error


class Halting(Heard):
    """Stops the engine's thread at its text's first piece, until it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.began, self.go_on = threading.Event(), threading.Event()

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        self.began.set()
        assert self.go_on.wait(self.SECONDS)


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine(parallel=4, most_waiting=64)
    yield made
    made.stop(0)


def asked(model: Model, prompt: str, *, client: str = "one", **settings: object) -> Text:
    config = GenerationConfig(**{"max_tokens": 24, "seed": 3, **settings})  # type: ignore[arg-type]
    return Text(model, client, model.tokenize(prompt), config, Heard())


def heard(text: Text) -> Heard:
    assert isinstance(text.listener, Heard)
    return text.listener


PROMPTS = [
    "Once upon a time",
    "Once upon a time, there was a little girl who lived in a house by the sea. " * 6,
    "The dog",
    "One day, a big bear went to the park and saw " * 9,
    "Lily said",
    "Once upon a time",
    "Tom and Sam were",
    "It was a cold day. " * 20,
    "Once upon a time, there was a little girl who lived in a house by the lake. ",
    "The cat",
]


def test_each_text_is_what_it_is_alone(stories: Model, engine: Engine) -> None:
    """Ten texts of three clients on four sessions, twice: with and without anything cached."""
    texts = [
        asked(
            stories,
            prompt,
            client=f"client {i % 3}",
            seed=i,
            temperature=0 if i % 4 == 0 else 0.9,
            max_tokens=10 + 3 * i,
            presence_penalty=0.5 if i == 2 else 0.0,
            logit_bias={261: 2.0} if i == 4 else {},
            repetition_penalty=1.2 if i == 6 else 1.0,
        )
        for i, prompt in enumerate(PROMPTS)
    ]
    alone = []
    for text in texts:
        with stories.session() as session:
            generation = session.generate(text.prompt, text.config)
            alone.append((generation.text(), generation.tokens, generation.stop_reason))
    for _ in range(2):
        engine.submit(texts)
        together = [(heard(t).text(), heard(t).tokens(), heard(t).end().reason) for t in texts]
        assert together == alone
        for text in texts:
            text.listener = Heard()
    assert engine.counts.reused_tokens > 0
    assert engine.counts.prompt_tokens == engine.counts.reused_tokens + engine.counts.read_tokens


def test_what_goes_on_reads_only_what_is_new(stories: Model, engine: Engine) -> None:
    first = asked(stories, "Once upon a time there was a dog who liked to run. " * 4)
    engine.submit([first])
    answer = heard(first).tokens()
    read = engine.counts.read_tokens
    assert read == len(first.prompt)
    prompt = [*first.prompt, *answer, *stories.tokenize(" The end.", add_bos=False)]
    second = Text(stories, "one", prompt, first.config, Heard())
    engine.submit([second])
    # The last token that was drawn was not read yet.
    assert heard(second).end().reused_tokens == len(first.prompt) + len(answer) - 1
    assert engine.counts.read_tokens - read == len(prompt) - heard(second).end().reused_tokens


def test_texts_with_one_prompt_read_it_once(stories: Model, engine: Engine) -> None:
    prompt = "There was once a very small house with a red door. " * 8
    texts = [asked(stories, prompt, seed=i) for i in range(4)]
    engine.submit(texts)
    drawn = [heard(text).text() for text in texts]
    assert len(set(drawn)) > 1
    assert engine.counts.read_tokens == len(texts[0].prompt)


def test_those_who_wait_come_when_all_others_end_at_once(stories: Model) -> None:
    engine = Engine(parallel=2, most_waiting=8)
    texts = [asked(stories, "Once", max_tokens=3) for _ in range(6)]
    engine.submit(texts)
    assert len({heard(text).text() for text in texts}) == 1
    engine.stop(5)


def test_a_long_prompt_stops_nobody(stories: Model, engine: Engine) -> None:
    """It is read in parts of at most a block, and beside each the other text gets its token."""
    told: list[str] = []

    class Telling(Heard):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def __call__(self, event: Event) -> None:
            if isinstance(event, Piece):
                told.extend([self.name] * len(event.tokens))
            super().__call__(event)

    short, long = asked(stories, "Once"), asked(stories, "It was a cold day. " * 50, max_tokens=2)
    short.listener, long.listener = Telling("short"), Telling("long")
    engine.submit([short, long])
    heard(long).end()
    parts = -(-len(long.prompt) // BLOCK_ROWS)
    assert parts >= 3
    assert told[: told.index("long")].count("short") >= parts - 2
    heard(short).end()


def test_parts_of_prompts_are_as_long_as_streams_can_bear(engine: Engine) -> None:
    engine._row_seconds, engine._write_seconds = 0.002, 0.03
    assert engine._prompt_rows(writing=0) == BLOCK_ROWS
    assert engine._prompt_rows(writing=4) == 50  # a tenth of a second
    engine._write_seconds = 0.1
    assert engine._prompt_rows(writing=4) == 100  # twice as long as writing
    engine._row_seconds = 1.0
    assert engine._prompt_rows(writing=4) == 8
    engine._row_seconds = 1e-6
    assert engine._prompt_rows(writing=4) == BLOCK_ROWS - 4


def test_clients_take_turns(stories: Model) -> None:
    queue = FairQueue()
    texts = [asked(stories, "a", client=client) for client in "aaaabbc"]
    for text in texts:
        queue.add(text)
    order = []
    while len(queue):
        text = queue.take(lambda _: True)
        assert text is not None
        order.append(text.client)
    assert "".join(order) == "abcabaa"
    for text in texts:
        queue.add(text)
    assert [t.client for t in queue.remove(lambda t: t.client == "a")] == ["a"] * 4
    assert len(queue) == 3
    assert queue.take(lambda t: t.client == "c") is texts[-1]


def test_a_full_queue_says_when_to_come_again(stories: Model) -> None:
    engine = Engine(parallel=1, most_waiting=2)
    texts = [asked(stories, f"Number {i}") for i in range(3)]
    texts[0].listener = first = Halting()
    engine.submit(texts)
    assert first.began.wait(first.SECONDS)
    with pytest.raises(BusyError, match="busy") as refused:
        engine.submit([asked(stories, "one more")])
    assert 1 <= refused.value.retry_after <= 120
    engine.cancel(texts)
    first.go_on.set()
    engine.stop(5)


def test_a_text_that_is_cancelled_makes_room(stories: Model) -> None:
    engine = Engine(parallel=1, most_waiting=8)
    long, other = asked(stories, "Once"), asked(stories, "The dog")
    long.listener = halting = Halting()
    engine.submit([long, other])
    assert halting.began.wait(halting.SECONDS)
    engine.cancel([long])
    halting.go_on.set()
    assert heard(other).end()
    assert not halting.ended.is_set()
    assert engine.counts.texts["cancelled"] == 1
    engine.stop(5)


def test_late_texts_fail_and_those_that_cannot_be_are_refused(
    stories: Model, engine: Engine
) -> None:
    late = asked(stories, "Once upon a time")
    late.deadline = time.monotonic() - 1
    too_long = asked(stories, "Once upon a time " * 300)
    engine.submit([late, too_long])
    assert isinstance(heard(late).error(), BusyError)
    assert isinstance(heard(too_long).error(), ContextFullError)


def test_a_listener_that_fails_ends_nobody(stories: Model, engine: Engine) -> None:
    def broken(event: Event) -> None:
        raise RuntimeError("gone")

    text = asked(stories, "Once upon a time")
    bad = Text(stories, "two", text.prompt, text.config, broken)
    engine.submit([bad, text])
    assert heard(text).end().tokens == 24


def test_an_engine_that_stops_lets_texts_end(stories: Model) -> None:
    engine = Engine(parallel=2, most_waiting=8)
    text = asked(stories, "Once upon a time")
    text.listener = halting = Halting()
    engine.submit([text])
    assert halting.began.wait(halting.SECONDS)
    stopping = threading.Thread(target=engine.stop, args=(halting.SECONDS,))
    stopping.start()
    while not engine._stopping:
        time.sleep(0.001)
    halting.go_on.set()
    assert halting.end().tokens == 24
    stopping.join()
    with pytest.raises(StoppingError):
        engine.submit([asked(stories, "more")])


def test_an_engine_without_work_sleeps(stories: Model, engine: Engine) -> None:
    text = asked(stories, "Once upon a time")
    engine.submit([text])
    heard(text).end()

    def used() -> tuple[float, float]:
        thread = next(t for t in psutil.Process().threads() if t.id == engine._thread.native_id)
        return thread.user_time, thread.system_time

    # A text is heard before the step that wrote it has ended; on a busy machine that takes a while.
    deadline = time.monotonic() + 120
    before, now = (-1.0, -1.0), used()
    while now != before:
        assert time.monotonic() < deadline, "it never sleeps"
        time.sleep(0.3)
        before, now = now, used()


def test_logprobs_are_those_of_the_model(stories: Model, engine: Engine) -> None:
    import numpy as np

    text = asked(stories, "Once upon a time", temperature=0, repetition_penalty=1.5, max_tokens=5)
    text.logprobs = 3
    engine.submit([text])
    heard(text).end()
    pieces = [event for event in heard(text).events if isinstance(event, Piece)]
    found = [entry for piece in pieces for entry in piece.logprobs]
    assert [entry.token for entry in found] == heard(text).tokens()
    with stories.session() as session:
        rows = session.logits([*text.prompt, *heard(text).tokens()]).astype(np.float64)
    for place, entry in enumerate(found):
        row = rows[len(text.prompt) - 1 + place]
        expected = row - np.log(np.exp(row - row.max()).sum()) - row.max()
        assert entry.logprob == pytest.approx(expected[entry.token], abs=1e-12)
        assert [token for token, _ in entry.top] == np.argsort(-expected)[:3].tolist()


def test_a_bias_on_what_is_no_token_is_refused(stories: Model, engine: Engine) -> None:
    text = asked(stories, "Once", logit_bias={100_000: 1.0})
    engine.submit([text])
    error = heard(text).error()
    assert isinstance(error, AwqEdgeError)
    assert "100000" in str(error)
