"""An answer on its way from the engine to a client.

Owns ``Answer``: an asynchronous iterator over what all choices of a request say, in the order in
which it comes, and the figures in the end. Refuses formats: each protocol has its writer.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from awq_edge.adjustment import TokenLogprob
from awq_edge.serve.engine import Engine
from awq_edge.serve.texts import Ended, Event, Failed, Piece, Text


@dataclass(frozen=True)
class ToolCallPart:
    """A part of a call of a function.

    Attributes:
        index: Which call of the choice.
        id: In the first part of a call, otherwise empty.
        name: In the first part, otherwise empty.
        arguments: The next piece of the JSON.
    """

    index: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Delta:
    """What a choice goes on with.

    Attributes:
        choice: Which.
        content: Text of the answer.
        reasoning: Text that the model thinks before.
        call: A part of a call of a function.
        logprobs: Of the tokens behind this, if asked for.
        finish: "stop", "length" or "tool_calls" with the last delta of the choice.
    """

    choice: int
    content: str = ""
    reasoning: str = ""
    call: ToolCallPart | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: str | None = None


@dataclass
class Usage:
    """Tokens and seconds of an answer, of all choices together.

    Attributes:
        prompt_tokens: Of each prompt once.
        cached_tokens: Of them, those that were not read again.
        tokens: That were drawn.
        prompt_seconds: Until the first token.
        decode_seconds: From there to the end.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    tokens: int = 0
    prompt_seconds: float = 0.0
    decode_seconds: float = 0.0


class TextReader:
    """Turns a choice's text into deltas; this one leaves it as it is."""

    def read(self, choice: int, piece: Piece) -> list[Delta]:
        """What a piece says."""
        if not piece.text and not piece.logprobs:
            return []
        return [Delta(choice, content=piece.text, logprobs=piece.logprobs)]

    def finish(self, choice: int, reason: str) -> list[Delta]:
        """What the end says; the last delta has ``finish``."""
        return [Delta(choice, finish=finish_word(reason))]


def finish_word(reason: str) -> str:
    """OpenAI's word for a ``Generation``'s reason to stop."""
    return "stop" if reason in ("eos", "stop") else "length"


@dataclass
class Ending:
    """How a choice ended.

    Attributes:
        reason: As of ``Generation``.
        finish: "stop", "length" or "tool_calls".
        stop_string: The one that ended it; None where something else did.
    """

    reason: str = ""
    finish: str = ""
    stop_string: str | None = None


@dataclass
class Answer:
    """Choices that are being written; close it when nobody listens any more.

    Attributes:
        model_name: As the server calls it.
        texts: One for each choice.
        usage: Complete when the iteration has ended.
    """

    engine: Engine
    model_name: str
    texts: Sequence[Text]
    readers: Sequence[TextReader]
    prompts: int
    usage: Usage = field(default_factory=Usage)
    endings: list[Ending] = field(default_factory=list)
    on_close: Callable[[], None] | None = None

    def __post_init__(self) -> None:
        """Makes the channel from the engine's thread to this loop."""
        loop = asyncio.get_running_loop()
        # Bounded by the context: a reader who stops reading stops nobody else.
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self.endings = [Ending() for _ in self.texts]

        def listener(choice: int) -> Callable[[Event], None]:
            def hear(event: Event) -> None:
                with contextlib.suppress(RuntimeError):  # the loop has ended
                    loop.call_soon_threadsafe(self._events.put_nowait, (choice, event))

            return hear

        for choice, text in enumerate(self.texts):
            text.listener = listener(choice)

    def submit(self) -> None:
        """Hands the texts to the engine."""
        self.engine.submit(self.texts)

    async def __aiter__(self) -> AsyncIterator[Delta]:
        """Deltas of all choices; raises what made one of them fail."""
        per_prompt = len(self.texts) // self.prompts
        missing = len(self.texts)
        while missing:
            choice, event = await self._events.get()
            reader = self.readers[choice]
            if isinstance(event, Piece):
                deltas = reader.read(choice, event)
            elif isinstance(event, Failed):
                raise event.error
            else:
                missing -= 1
                deltas = reader.finish(choice, event.reason)
                self._count(event, first=choice % per_prompt == 0)
                finish = deltas[-1].finish or "stop"
                self.endings[choice] = Ending(event.reason, finish, event.stop_string)
            for delta in deltas:
                yield delta

    def close(self) -> None:
        """Ends what is still being written; a second call does nothing."""
        self.engine.cancel(self.texts)
        done, self.on_close = self.on_close, None
        if done is not None:
            done()

    def _count(self, ended: Ended, *, first: bool) -> None:
        usage = self.usage
        if first:
            usage.prompt_tokens += ended.prompt_tokens
            usage.cached_tokens += ended.reused_tokens
        usage.tokens += ended.tokens
        usage.prompt_seconds = max(usage.prompt_seconds, ended.prompt_seconds)
        usage.decode_seconds = max(usage.decode_seconds, ended.decode_seconds)
