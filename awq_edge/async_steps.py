"""A generation's steps beside an event loop: each is computed in a thread, one after the other.

Owns what happens when the waiting task is cancelled: the step ends first, within a token or a part
of the prompt, because the session is the thread's until then. Refuses to draw by itself.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from awq_edge.errors import CancelledError

if TYPE_CHECKING:
    from awq_edge.generation import Generation


async def next_piece(generation: Generation) -> str | None:
    """The next piece of a text; None at its end.

    Raises:
        AwqEdgeError: As the generation's own step.
        asyncio.CancelledError: The task was cancelled; the text can go on where it was.
    """
    import asyncio

    given_up = threading.Event()

    def go_on(_done: int, _total: int) -> None:
        if given_up.is_set():
            raise CancelledError("The reading of the prompt was given up.")

    def step() -> str | None:
        generation.start(go_on)
        return next(generation, None)

    computing = asyncio.get_running_loop().run_in_executor(None, step)
    try:
        return await asyncio.shield(computing)
    except asyncio.CancelledError:
        given_up.set()
        while not computing.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({computing})
        if computing.exception() is None and (piece := computing.result()):
            generation.take_back(piece)
        raise
