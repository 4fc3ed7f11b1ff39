"""``async for`` over a generation: the same text, a free loop, a session that survives."""

from __future__ import annotations

import asyncio

import pytest

from awq_edge import Model
from awq_edge.errors import InvalidArgumentError
from awq_edge.generation import Generation

PROMPT = "Once upon a time"


def text_of(model: Model, prompt: str = PROMPT) -> str:
    with model.session() as session:
        return session.generate(prompt, max_tokens=40, seed=5).text()


async def gathered(generation: Generation) -> str:
    return "".join([piece async for piece in generation])


def test_the_text_is_that_of_a_plain_loop(stories: Model) -> None:
    assert asyncio.run(gathered(stories.generate(PROMPT, max_tokens=40, seed=5))) == text_of(
        stories
    )


def test_texts_of_several_sessions_are_not_mixed_up(stories: Model) -> None:
    prompts = [PROMPT, "The old cat", "A boy and a dog"]

    async def one(prompt: str) -> str:
        with stories.session() as session:
            return await gathered(session.generate(prompt, max_tokens=40, seed=5))

    async def all_of_them() -> list[str]:
        return list(await asyncio.gather(*map(one, prompts)))

    assert asyncio.run(all_of_them()) == [text_of(stories, prompt) for prompt in prompts]


def test_the_loop_runs_on_while_a_step_is_computed(stories: Model) -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def both() -> None:
        counting = asyncio.ensure_future(count())
        await gathered(stories.generate(PROMPT, max_tokens=20, seed=5))
        counting.cancel()

    asyncio.run(both())
    assert turns > 20


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_cancelled_text_leaves_a_session_that_goes_on(after: int, stories: Model) -> None:
    expected = text_of(stories)

    async def cancelled() -> tuple[str, str]:
        pieces: list[str] = []
        generation = stories.generate(PROMPT, max_tokens=40, seed=5)

        async def read() -> None:
            async for piece in generation:
                pieces.append(piece)

        task = asyncio.ensure_future(read())
        while len(pieces) < after:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        before = "".join(pieces)
        return before, await gathered(generation)

    before, rest = asyncio.run(cancelled())
    assert before + rest == expected, "the piece that was being computed is not lost"
    assert text_of(stories) == expected
    assert stories.generate(PROMPT, max_tokens=40, seed=5).text() == expected


def test_a_long_prompt_is_given_up_between_its_parts(stories: Model) -> None:
    prompt = [1, *[400] * 500]

    async def cancelled() -> int:
        generation = stories.generate(prompt, max_tokens=1)
        task = asyncio.ensure_future(gathered(generation))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return stories.shared_session.position

    assert asyncio.run(cancelled()) <= len(prompt)
    assert stories.generate(PROMPT, max_tokens=40, seed=5).text() == text_of(stories)


def test_errors_come_out_of_the_loop(stories: Model) -> None:
    generation = stories.generate(PROMPT, max_tokens=40, seed=5)

    async def disturbed() -> None:
        async for _ in generation:
            stories.logits([1, 2])

    with pytest.raises(InvalidArgumentError, match="taken over"):
        asyncio.run(disturbed())
