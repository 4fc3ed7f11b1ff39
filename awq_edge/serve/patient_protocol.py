"""uvicorn's connections, which end where a request's head does not come.

Owns that wait alone. uvicorn waits for a head without end, and takes so many connections at most:
some hundred that say nothing, or a byte a minute, would keep everybody else out.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

# From a connection's beginning, or a head's first byte, to its end. Browsers open connections ahead
# and leave them alone: they open another.
_HEAD_SECONDS = 30.0


class PatientProtocol(H11Protocol):
    """A connection that is closed unless a request begins."""

    _waiting: asyncio.TimerHandle | None = None

    # asyncio has it for every transport, and uvicorn for those that can be written to.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """It waits for its first request."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Looks whether the head is whole."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()
        elif self._waiting is None and not self.transport.is_closing():
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """There is nothing to wait for."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._waiting = self.loop.call_later(_HEAD_SECONDS, self._end)

    def _stop_waiting(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.cancel()

    def _end(self) -> None:
        self._waiting = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
