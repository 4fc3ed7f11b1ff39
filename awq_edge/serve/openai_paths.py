"""The paths of OpenAI's interfaces: chats, completions, responses, models."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from awq_edge.serve import embeddings, openai_chat, openai_completions, openai_responses
from awq_edge.serve.answers import Answer
from awq_edge.serve.event_streams import named_events
from awq_edge.serve.faults import RequestError, fault_of, openai_error
from awq_edge.serve.grammar import token_table
from awq_edge.serve.http import (
    Paths,
    Stream,
    Table,
    client_of,
    failed,
    json_bytes,
    pinged,
)
from awq_edge.serve.models import Served


class OpenAIPaths(Paths):
    """What answers them."""

    def routes(self) -> list[Route]:
        """Which path is answered by what."""
        return [
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/responses", self.responses, methods=["POST"]),
            Route("/v1/embeddings", self.embeddings, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
        ]

    async def chat(self, request: Request) -> Response:
        """Answers ``/v1/chat/completions``."""
        try:
            body = await self.body(request)
            wanted = openai_chat.read_request(body, self.service.defaults)
            answer = await self.service.answer(wanted, client_of(request))
        except Exception as error:
            return failed(request, error)
        writer = openai_chat.ChatWriter(answer, wanted, _token_bytes(answer))
        if wanted.stream:
            return events(answer, writer.chunks())
        return await self.whole(request, answer, writer.whole())

    async def completions(self, request: Request) -> Response:
        """Answers ``/v1/completions``."""
        try:
            body = await self.body(request)
            wanted = openai_completions.read_request(body, self.service.defaults)
            answer = await self.service.answer(wanted, client_of(request))
        except Exception as error:
            return failed(request, error)
        writer = openai_completions.CompletionWriter(answer, wanted, _token_bytes(answer))
        if wanted.stream:
            return events(answer, writer.chunks())
        return await self.whole(request, answer, writer.whole())

    async def responses(self, request: Request) -> Response:
        """Answers ``/v1/responses``."""
        try:
            body = await self.body(request)
            wanted = openai_responses.read_request(body, self.service.defaults)
            answer = await self.service.answer(wanted, client_of(request))
        except Exception as error:
            return failed(request, error)
        writer = openai_responses.ResponseWriter(body, answer, wanted)
        if not wanted.stream:
            return await self.whole(request, answer, writer.whole())

        def told(error: Exception) -> dict[str, Any]:
            return writer.failed(openai_error(fault_of(error)))

        return named_events(answer, writer.events(), told, b": ping\n\n")

    async def embeddings(self, request: Request) -> Response:
        """Answers ``/v1/embeddings``."""
        try:
            wanted = embeddings.read_openai(await self.body(request))
        except Exception as error:
            return failed(request, error)

        async def table() -> dict[str, Any]:
            found = await embeddings.embed(self.service, wanted, client_of(request))
            return embeddings.openai_table(found, wanted)

        return await self.unless_left(request, table())

    async def models(self, request: Request) -> Response:
        """Answers ``/v1/models``."""
        listed = [_model_table(served) for served in self.service.models.all]
        return Table({"object": "list", "data": listed})

    async def model(self, request: Request) -> Response:
        """Answers ``/v1/models/{name:path}``."""
        try:
            served = self.service.models.find(request.path_params["name"])
            return Table(_model_table(served))
        except RequestError as error:
            return failed(request, error)


def _token_bytes(answer: Answer) -> Callable[[int], bytes]:
    model = answer.texts[0].model
    return lambda token: token_table(model).bytes(token)


def _model_table(served: Served) -> dict[str, Any]:
    table = {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "awq-edge",
        "input_modalities": ["text", "image"] if served.sees_pictures else ["text"],
    }
    if served.model is not None:
        table["context_length"] = served.model.context_length
    return table


def events(answer: Answer, chunks: AsyncIterator[dict[str, Any]]) -> Response:
    """Server-sent events as OpenAI's clients read them."""

    async def lines() -> AsyncIterator[bytes]:
        try:
            async for chunk in chunks:
                yield b"data: " + json_bytes(chunk) + b"\n\n"
        except Exception as error:
            yield b"data: " + json_bytes(openai_error(fault_of(error))) + b"\n\n"
        yield b"data: [DONE]\n\n"

    return Stream(answer, pinged(lines(), b": ping\n\n"), "text/event-stream")
