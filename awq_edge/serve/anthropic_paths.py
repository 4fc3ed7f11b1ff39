"""The paths of Anthropic's interface."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from awq_edge.serve import anthropic
from awq_edge.serve.event_streams import event_bytes, named_events
from awq_edge.serve.faults import anthropic_error, fault_of
from awq_edge.serve.http import Paths, Table, client_of, failed


class AnthropicPaths(Paths):
    """What answers them."""

    def routes(self) -> list[Route]:
        """Which path is answered by what."""
        return [
            Route("/v1/messages", self.messages, methods=["POST"]),
            Route("/v1/messages/count_tokens", self.count_tokens, methods=["POST"]),
        ]

    async def messages(self, request: Request) -> Response:
        """Answers ``/v1/messages``."""
        try:
            body = await self.body(request)
            wanted = anthropic.read_request(body, self.service.defaults)
            answer = await self.service.answer(wanted, client_of(request))
        except Exception as error:
            return failed(request, error)
        writer = anthropic.MessageWriter(answer)
        if not wanted.stream:
            return await self.whole(request, answer, writer.whole())

        def told(error: Exception) -> dict[str, Any]:
            return anthropic_error(fault_of(error))

        ping = event_bytes({"type": "ping"})
        return named_events(answer, writer.events(), told, ping)

    async def count_tokens(self, request: Request) -> Response:
        """Answers ``/v1/messages/count_tokens``."""
        try:
            body = await self.body(request)
            wanted = anthropic.read_request(body, self.service.defaults, counting=True)
            return Table({"input_tokens": await self.service.count_tokens(wanted)})
        except Exception as error:
            return failed(request, error)
