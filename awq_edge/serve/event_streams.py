"""Server-sent events whose names decide, as Anthropic's and OpenAI's newer clients read them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.responses import Response

from awq_edge.serve.answers import Answer
from awq_edge.serve.http import Stream, json_bytes, pinged


def named_events(
    answer: Answer,
    events: AsyncIterator[dict[str, Any]],
    told: Callable[[Exception], dict[str, Any]],
    ping: bytes,
) -> Response:
    """Server-sent events whose names decide."""

    async def parts() -> AsyncIterator[bytes]:
        try:
            async for event in events:
                yield event_bytes(event)
        except Exception as error:
            yield event_bytes(told(error))

    return Stream(answer, pinged(parts(), ping), "text/event-stream")


def event_bytes(event: dict[str, Any]) -> bytes:
    """One event as it is sent."""
    return f"event: {event['type']}\n".encode() + b"data: " + json_bytes(event) + b"\n\n"
