"""A generation owns its session: interrupted anywhere it goes on, disturbed it says so."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import awq_edge
from awq_edge import Generation, Model, Session, errors

PACKAGE = str(Path(awq_edge.__file__).parent)
PROMPT = "Once upon a time"
SETTINGS: dict[str, Any] = {"max_tokens": 7, "temperature": 1.0, "seed": 5, "stop": ("zzz",)}


@contextmanager
def interrupted_after(opcodes: int) -> Iterator[list[int]]:
    """Raises KeyboardInterrupt before one opcode of the package; counts them in the list."""
    seen = [0]

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            seen[0] += 1
            if seen[0] == opcodes:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield seen
    finally:
        sys.settrace(before)


def undisturbed(model: Model) -> tuple[list[str], list[int]]:
    with model.session() as session:
        generation = session.generate(PROMPT, **SETTINGS)
        return list(generation), generation.tokens


def count_opcodes(session: Session) -> int:
    generation = session.generate(PROMPT, **SETTINGS)
    with interrupted_after(-1) as seen:
        list(generation)
    return seen[0]


def go_on(generation: Generation, pieces: list[str]) -> None:
    # Whoever keeps the exception keeps every frame, and with them what those hold.
    for piece in generation:
        pieces.append(piece)  # a piece that was given out is kept


@pytest.mark.parametrize("beginning", range(4))
def test_interrupted_anywhere_it_goes_on_as_if_nothing_had_been(
    stories: Model, beginning: int
) -> None:
    wanted, tokens = undisturbed(stories)
    with stories.session() as session:
        total = count_opcodes(session)
        assert total > 1000
        for place in range(1 + beginning, total, 61):
            session.truncate(0)
            generation = session.generate(PROMPT, **SETTINGS)
            pieces: list[str] = []
            kept: list[BaseException] = []
            try:
                with interrupted_after(place):
                    go_on(generation, pieces)
            except KeyboardInterrupt as stop:
                kept.append(stop)
            held = list(session.tokens)
            assert held == [*generation.prompt_tokens, *generation.tokens][: len(held)], place
            go_on(generation, pieces)
            assert generation.tokens == tokens, place
            assert generation.stop_reason == "length"
            # What was being handed over at that moment may be lost, and nothing else.
            assert pieces in [wanted, *lacking_one(wanted)], place
            assert generation.reused_tokens == 0


def lacking_one(pieces: list[str]) -> list[list[str]]:
    return [pieces[:i] + pieces[i + 1 :] for i in range(len(pieces))]


def test_an_interrupted_session_is_not_in_use(stories: Model) -> None:
    def use(session: Session) -> None:
        session.evaluate([1, 2, 3])
        session.logits([4, 5])
        session.truncate(2)
        session.close()

    with stories.session() as session, interrupted_after(-1) as seen:
        use(session)
    for place in range(1, seen[0] + 1, 7):
        session = stories.session(threads=1)
        try:
            with interrupted_after(place):
                use(session)
        except KeyboardInterrupt:
            pass
        if not session.closed:
            held = session.position
            assert list(session.tokens) == [1, 2, 3, 4, 5][:held]
            session.truncate(0)
            session.evaluate([7])
            # Another thread may go on with it, too.
            worker = threading.Thread(target=session.close)
            worker.start()
            worker.join()
        assert session.closed


@pytest.mark.parametrize(
    "disturb",
    [
        lambda session: session.logits([5, 6, 7]),
        lambda session: session.evaluate([9, 10]),
        lambda session: session.truncate(1),
        lambda session: session.truncate(0),
        lambda session: session.truncate(session.position - 1),
        lambda session: (session.truncate(2), session.evaluate([9] * 30)),
        lambda session: session.generate("The dog", temperature=0, max_tokens=3).text(),
        lambda session: session.model.logits([5, 6, 7]),
    ],
)
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_disturbed_text_is_the_same_or_an_error(
    stories: Model, disturb: Callable[[Session], object], steps: int
) -> None:
    wanted = "".join(undisturbed(stories)[0])
    session = stories.shared_session
    generation = session.generate(PROMPT, **SETTINGS)
    generation.start()
    text = "".join(next(generation) for _ in range(steps))
    disturb(session)
    try:
        text += generation.text()
    except errors.InvalidArgumentError as error:
        assert "taken over" in str(error)  # either is right
        # The way on that costs reading it again.
        session.truncate(0)
        text += generation.text()
    assert text == wanted


def test_a_shorter_context_is_read_again_without_a_word(stories: Model) -> None:
    wanted = "".join(undisturbed(stories)[0])
    with stories.session() as session:
        generation = session.generate(PROMPT, **SETTINGS)
        first = next(generation)
        session.truncate(2)
        assert first + generation.text() == wanted
        assert session.position >= len(generation.prompt_tokens)


def test_a_closed_session_ends_a_text_in_a_sentence(stories: Model) -> None:
    session = stories.session()
    generation = session.generate(PROMPT, **SETTINGS)
    next(generation)
    session.close()
    with pytest.raises(errors.InvalidArgumentError, match="closed"):
        generation.text()


def test_a_session_closed_beside_its_use_lives_until_the_call_ends(stories: Model) -> None:
    session = stories.session()
    before = stories.logits([3] * 300)[-1]

    def close(_done: int, _total: int) -> None:
        worker = threading.Thread(target=session.close)
        worker.start()
        worker.join()

    session.evaluate([3] * 300, progress=close)
    assert session.closed
    assert np.isfinite(before).all()


IDS: list[Any] = [
    [1.0],
    [True],
    ["5"],
    "5",
    b"ab",
    {1: 2},
    {1, 2},
    [None],
    5,
    [[1, 2]],
    np.array([1.0, 2.0]),
    np.array([True]),
    [np.float32(1)],
]


@pytest.mark.parametrize("ids", IDS, ids=repr)
def test_ids_must_be_integers(stories: Model, ids: Any) -> None:
    with stories.session() as session:
        session.evaluate([1, 2])
        for use in (session.evaluate, session.logits, session.reusable, session.generate):
            if isinstance(ids, str) and use == session.generate:
                continue  # a prompt as text
            with pytest.raises(errors.InvalidArgumentError, match="integer"):
                use(ids)
        with pytest.raises(errors.InvalidArgumentError, match="integer"):
            session.truncate(1.0)  # type: ignore[arg-type]  # that is the point
        assert session.tokens == (1, 2)


def test_integers_of_other_packages_are_ids(stories: Model) -> None:
    ids = np.array([5, 6, 7], np.int16)
    wanted = stories.logits([5, 6, 7])
    assert np.array_equal(stories.logits(ids), wanted)  # type: ignore[arg-type]  # as people do
    assert np.array_equal(stories.logits(list(ids)), wanted)
    assert stories.shared_session.tokens == (5, 6, 7)


@pytest.mark.parametrize(
    "setting",
    [
        {"max_tokens": 1.5},
        {"max_tokens": True},
        {"top_k": 3.0},
        {"top_k": None},
        {"seed": "7"},
        {"temperature": "0.5"},
        {"temperature": None},
        {"top_p": True},
        {"stop": (1,)},
    ],
)
def test_settings_of_another_type_are_named(stories: Model, setting: dict[str, Any]) -> None:
    with pytest.raises(errors.InvalidArgumentError, match=next(iter(setting))):
        stories.generate(PROMPT, **setting)
