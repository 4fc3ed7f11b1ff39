"""One text that a server generates: what is asked for, and what its listener is told.

Owns ``Text`` and its events. Refuses sessions and threads of its own: ``engine.py`` has them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Union

from awq_edge.errors import AwqEdgeError
from awq_edge.generation import GenerationConfig

if TYPE_CHECKING:
    from awq_edge.adjustment import Constraint, TokenLogprob
    from awq_edge.model import Model
    from awq_edge.serve.row_readers import RowReader
    from awq_edge.session import Contents, Session
    from awq_edge.vision.picture_prompt import PicturePrompt


class BusyError(AwqEdgeError):
    """There is no room for another request.

    Attributes:
        retry_after: Seconds after which it may be tried again.
    """

    def __init__(self, text: str, retry_after: int) -> None:
        """Takes the sentence and the seconds."""
        super().__init__(text)
        self.retry_after = retry_after


class TimedOutError(AwqEdgeError):
    """A request took longer than the server allows."""


class StoppingError(AwqEdgeError):
    """The server is being stopped."""


@dataclass(frozen=True)
class Piece:
    """Text that is complete.

    Attributes:
        text: Never half a character; may be empty beside ``logprobs``.
        tokens: Ids that were drawn since the piece before.
        logprobs: Of each of them, if asked for.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Ended:
    """A text is whole; nothing follows.

    Attributes:
        reason: "eos", "stop", "length", "context" or "closed", as of ``Generation``.
        stop_string: The one that ended it; None where something else did.
        prompt_tokens: Of the prompt.
        reused_tokens: Of them, those that were not read again.
        tokens: Drawn, without the one that ended the text.
        waited_seconds: In the queue.
        prompt_seconds: From its end to the first token.
        decode_seconds: From there to the end.
    """

    reason: str
    stop_string: str | None
    prompt_tokens: int
    reused_tokens: int
    tokens: int
    waited_seconds: float
    prompt_seconds: float
    decode_seconds: float


@dataclass(frozen=True)
class Failed:
    """A text ended early; nothing follows."""

    error: BaseException


Event = Union[Piece, Ended, Failed]
# Called on the engine's thread; must not wait.
Listener = Callable[[Event], None]


@dataclass(eq=False)
class Text:
    """What is asked of the engine.

    Attributes:
        model: Whose session it takes.
        client: Whose turn it is: clients take turns, whatever each has asked for.
        prompt: Ids, at least one.
        config: How to draw; the seed decides the text, whatever else the engine does.
        listener: Is told of every piece and of the end.
        logprobs: How many likeliest tokens to give with each; None gives none.
        constraint: What may be drawn.
        special_tokens: Whether they are spelt out in the text.
        end_tokens: What ends it beside the model's own tokens for that.
        deadline: Of ``time.monotonic()``; None is none.
        rows: What is made of every row of the prompt; None: only what follows it counts.
        pictures: The prompt with its pictures; None where it has none.
        submitted: Of ``time.monotonic()``.
    """

    model: Model
    client: str
    prompt: Sequence[int]
    config: GenerationConfig
    listener: Listener
    logprobs: int | None = None
    constraint: Constraint | None = None
    special_tokens: bool = False
    end_tokens: Sequence[int] = ()
    deadline: float | None = None
    rows: RowReader | None = None
    pictures: PicturePrompt | None = None
    submitted: float = field(default_factory=time.monotonic)
    cancelled: bool = False

    @property
    def contents(self) -> Contents:
        """What stands at each position of the prompt: ids, or as of ``PicturePrompt``."""
        return self.prompt if self.pictures is None else self.pictures.contents

    def reusable(self, session: Session) -> int:
        """How much at the beginning of the prompt a session need not read again."""
        if self.pictures is None:
            return session.reusable(self.prompt)
        return self.pictures.reusable(session)
