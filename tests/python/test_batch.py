"""Sessions evaluated together, and embeddings, from Python: the same bits as alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from awq_edge import Model, Session, errors
from awq_edge._native import NativeSampler

TINY = Path(__file__).parent.parent / "data" / "tiny.awq.gguf"
GREEDY = dict(
    temperature=0.0,
    top_k=0,
    top_p=1.0,
    min_p=0.0,
    repetition_penalty=1.0,
    repetition_window=0,
    seed=0,
)


@pytest.fixture
def model() -> Iterator[Model]:
    with Model.open(TINY, threads=2, check_memory=False) as opened:
        yield opened


def prompt(text: int, length: int) -> list[int]:
    return [(31 * i * i + 17 * text + i) % 203 for i in range(length)]


def alone(model: Model, text: int, length: int, count: int) -> list[int]:
    """Greedy tokens after a prompt, in a session of its own."""
    sampler, drawn = NativeSampler(**GREEDY), []
    with model.session() as session:
        session.evaluate(prompt(text, length))
        for _ in range(count):
            drawn.append(session.sample(sampler, 0))
            session.evaluate(drawn[-1:])
    return drawn


def test_a_loop_over_one_call_serves_many_texts(model: Model) -> None:
    """Texts join and leave while others decode; a long prompt is read in parts beside them."""
    lengths = [1, 5, 140, 12, 33, 70]
    wanted = [alone(model, text, length, 12) for text, length in enumerate(lengths)]
    sampler = NativeSampler(**GREEDY)
    waiting = list(range(len(lengths)))
    unread: dict[int, list[int]] = {}
    running: dict[int, Session] = {}
    drawn: dict[int, list[int]] = {text: [] for text in waiting}
    calls = 0
    while waiting or running:
        if waiting and calls % 3 == 0:
            text = waiting.pop()
            running[text] = model.session()
            unread[text] = prompt(text, lengths[text])
        batch = {text: unread[text][:50] for text in running}
        model.evaluate_together((running[text], tokens) for text, tokens in batch.items())
        calls += 1
        for text, tokens in batch.items():
            unread[text] = unread[text][len(tokens) :]
            if not unread[text]:
                drawn[text].append(running[text].sample(sampler, 0))
                unread[text] = drawn[text][-1:]
            if len(drawn[text]) == 12:
                running.pop(text).close()
    assert [drawn[text] for text in range(len(lengths))] == wanted


def test_an_empty_batch_is_nothing(model: Model) -> None:
    model.evaluate_together([])


def test_what_a_batch_refuses_names_it_and_reads_nothing(model: Model) -> None:
    one, two = model.session(context_length=10), model.session()
    with Model.open(TINY, check_memory=False) as other, other.session() as foreign:
        with pytest.raises(errors.InvalidArgumentError, match="ask its own model"):
            model.evaluate_together([(two, [1]), (foreign, [1])])
    with pytest.raises(errors.InvalidArgumentError, match=r"inputs\[1\]: this session is in use"):
        model.evaluate_together([(two, [1]), (two, [1])])
    with pytest.raises(errors.InvalidArgumentError, match=r"inputs\[0\]: there are no tokens"):
        model.evaluate_together([(two, []), (one, [1])])
    with pytest.raises(errors.ContextFullError, match="11 more tokens do not fit"):
        model.evaluate_together([(two, [1]), (one, [1] * 11)])
    with pytest.raises(errors.InvalidArgumentError, match="203"):
        model.evaluate_together([(two, [1]), (one, [203])])
    one.close()
    with pytest.raises(errors.InvalidArgumentError, match="closed"):
        model.evaluate_together([(two, [1]), (one, [1])])
    assert two.position == 0


def test_a_callback_that_raises_leaves_whole_contexts(model: Model) -> None:
    one, two = model.session(), model.session()

    def stop(done: int, total: int) -> None:
        assert (done, total) == (128, 260)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.evaluate_together([(one, prompt(0, 60)), (two, prompt(1, 200))], progress=stop)
    assert (one.position, two.position) == (60, 68)
    assert list(two.tokens) == prompt(1, 68)
    rest = two.logits(prompt(1, 200)[68:])
    np.testing.assert_array_equal(rest, model.logits(prompt(1, 200))[68:])


def test_embeddings_take_the_place_of_tokens(model: Model) -> None:
    """A row that repeats gives what a token that repeats gives: attention sees only values."""
    session = model.session()
    rows = np.random.default_rng(1).normal(0, 0.1, (140, 72)).astype(np.float32)
    session.evaluate(prompt(0, 3))
    session.evaluate_embeddings(rows)
    session.evaluate([5])
    assert session.position == 144
    assert session.tokens == (*prompt(0, 3), *[2**32 - 1] * 140, 5)
    assert session.reusable([*session.tokens[:3], 1]) == 3
    again = model.session(threads=1)
    again.evaluate(prompt(0, 3))
    for row in rows:
        again.evaluate_embeddings(row[None])
    again.evaluate([5])
    np.testing.assert_array_equal(session.logits([7]), again.logits([7]))


@pytest.mark.parametrize("shape", [(72,), (2, 71), (1, 2, 72)])
def test_embeddings_of_another_shape_are_refused(model: Model, shape: tuple[int, ...]) -> None:
    with pytest.raises(errors.InvalidArgumentError, match=r"use \[rows, 72\]"):
        model.session().evaluate_embeddings(np.zeros(shape, np.float32))


def test_embeddings_that_are_not_finite_are_refused(model: Model) -> None:
    rows = np.zeros((4, 72), np.float32)
    rows[3, 7] = np.inf
    with pytest.raises(errors.InvalidArgumentError, match="embedding 3 holds a number"):
        model.session().evaluate_embeddings(rows)


@pytest.mark.parametrize("kv", ["fp16", "int8"])
def test_a_saved_context_goes_on_in_another_process_of_the_same_file(model: Model, kv: str) -> None:
    session = model.session(kv=kv)
    session.evaluate(prompt(2, 90))
    saved, prefix = bytes(session.save()), session.save(80)
    expected = session.logits(prompt(3, 10))
    with Model.open(TINY, check_memory=False) as again:
        other = again.session(context_length=100, kv=kv)
        other.restore(saved)
        assert list(other.tokens) == prompt(2, 90)
        assert other.reusable(prompt(2, 90)) == 90
        np.testing.assert_array_equal(other.logits(prompt(3, 10)), expected)
        other.restore(memoryview(prefix))
        other.evaluate(prompt(2, 90)[80:])
        np.testing.assert_array_equal(other.logits(prompt(3, 10)), expected)


def test_a_context_that_cannot_be_restored_says_why(model: Model) -> None:
    session = model.session()
    with pytest.raises(errors.InvalidArgumentError, match="at least one is needed"):
        session.save()
    session.evaluate(prompt(0, 9))
    with pytest.raises(errors.InvalidArgumentError, match="Position 10"):
        session.save(10)
    saved = session.save()
    saved[-1] ^= 1
    with pytest.raises(errors.FileInvalidError, match="damaged"):
        session.restore(saved)
    with pytest.raises(errors.FileInvalidError, match="no saved context"):
        session.restore(b"")
    with pytest.raises(errors.InvalidArgumentError, match="another type of cache"):
        model.session(kv="int8").restore(session.save())
    assert session.position == 9
