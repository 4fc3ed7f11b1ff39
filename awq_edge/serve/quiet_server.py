"""uvicorn's server without its clock: it looks ten times a second whether it is to end.

Owns the wait for the signal, so that a server without requests does nothing at all.
"""

from __future__ import annotations

import asyncio
import contextlib
from types import FrameType

import uvicorn


class QuietServer(uvicorn.Server):
    """Ends when a signal says so, and sleeps until then."""

    def __init__(self, config: uvicorn.Config) -> None:
        """Takes uvicorn's settings; those that need its clock do not act."""
        super().__init__(config)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._told: asyncio.Event | None = None

    async def main_loop(self) -> None:
        """Waits for the end."""
        self._loop = asyncio.get_running_loop()
        self._told = asyncio.Event()
        if not self.should_exit:  # a signal may have come before there was a loop
            await self._told.wait()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Hears a signal, on the main thread and between any two instructions."""
        super().handle_exit(sig, frame)
        if self._loop is not None and self._told is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._told.set)
