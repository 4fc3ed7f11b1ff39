"""A packed chat model, in turns and side by side: python examples/04_chat.py chat.awq.gguf."""

from __future__ import annotations

import asyncio
import sys

from awq_edge import Model


def in_turns(model: Model) -> None:
    """A conversation that goes on: only what is new of each prompt is read."""
    messages = [{"role": "system", "content": "Be brief."}]
    for said in ("Good morning!", "What is your name?"):
        messages.append({"role": "user", "content": said})
        print(f"\n> {said}")
        answer = ""
        for piece in model.chat(messages, max_tokens=60, seed=1):
            answer += piece
            print(piece, end="", flush=True)
        messages.append({"role": "assistant", "content": answer})


async def one(model: Model, said: str) -> str:
    """An answer of a session of its own; the event loop is free while it is computed."""
    with model.session(context_length=512) as session:
        prompt = model.chat_tokens([{"role": "user", "content": said}])
        return "".join([piece async for piece in session.generate(prompt, max_tokens=60, seed=1)])


async def side_by_side(model: Model) -> None:
    """Two answers at once."""
    questions = ("How do you do?", "Shall we go for a walk?")
    for said, answer in zip(questions, await asyncio.gather(*(one(model, q) for q in questions))):
        print(f"\n> {said}\n{answer}")


with Model.open(sys.argv[1]) as model:
    in_turns(model)
    asyncio.run(side_by_side(model))
