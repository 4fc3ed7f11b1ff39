"""The application: which path is answered by what, and how bytes come and go.

Owns reading bodies within their limit, streams with their pings, and that a client who leaves ends
its texts. Refuses the words of protocols: each has its module.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from awq_edge.chat import templates
from awq_edge.limited_json import parse_json
from awq_edge.model import Model
from awq_edge.serve import anthropic, ollama, openai_chat, openai_completions, openai_responses
from awq_edge.serve.answers import Answer
from awq_edge.serve.faults import (
    Fault,
    RequestError,
    anthropic_error,
    error_body,
    fault_of,
    ollama_error,
    openai_error,
)
from awq_edge.serve.fields import Fields
from awq_edge.serve.grammar import token_table
from awq_edge.serve.health import health_table
from awq_edge.serve.metrics import metrics_text
from awq_edge.serve.page import page_routes
from awq_edge.serve.service import Service
from awq_edge.token_ids import token_ids

_PING_SECONDS = 15.0
# Of a body that comes in drops.
_BODY_SECONDS = 30.0
# Of what is longer than the limit, in limits.
_MOST_DISCARDED = 8
_STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

Handler = Callable[[Request], Awaitable[Response]]


class Table(Response):
    """A JSON object; half a surrogate pair that a client sent is no failure."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Its bytes."""
        return _json(content)


def application(service: Service) -> Starlette:
    """The application over a service."""
    handlers = _Handlers(service)
    routes: list[BaseRoute] = [
        Route("/v1/chat/completions", handlers.chat, methods=["POST"]),
        Route("/v1/completions", handlers.completions, methods=["POST"]),
        Route("/v1/responses", handlers.responses, methods=["POST"]),
        Route("/v1/embeddings", handlers.embeddings, methods=["POST"]),
        Route("/v1/messages", handlers.messages, methods=["POST"]),
        Route("/v1/messages/count_tokens", handlers.count_tokens, methods=["POST"]),
        Route("/api/chat", handlers.ollama_chat, methods=["POST"]),
        Route("/api/generate", handlers.ollama_generate, methods=["POST"]),
        Route("/api/embed", handlers.embeddings, methods=["POST"]),
        Route("/api/embeddings", handlers.embeddings, methods=["POST"]),
        Route("/api/show", handlers.ollama_show, methods=["POST"]),
        Route("/api/tags", handlers.ollama_tags),
        Route("/api/ps", handlers.ollama_ps),
        Route("/api/version", handlers.ollama_version),
        Route("/tokenize", handlers.tokenize, methods=["POST"]),
        Route("/detokenize", handlers.detokenize, methods=["POST"]),
        Route("/v1/models", handlers.models),
        Route("/v1/models/{name:path}", handlers.model),
        Route("/health", handlers.health),
        Route("/metrics", handlers.metrics),
        *page_routes(),
    ]
    return Starlette(
        routes=routes,
        exception_handlers={Exception: _on_error, HTTPException: _on_http_error},
    )


def _failed(request: Request, error: BaseException) -> Response:
    return _fault(request, fault_of(error))


def _fault(request: Request, fault: Fault) -> Response:
    body = error_body(request.url.path, fault)
    return Table(body, fault.status, headers=fault.headers)


async def _on_error(request: Request, error: Exception) -> Response:
    return _failed(request, error)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = {404: f"There is nothing at {request.url.path[:80]}.", 405: "Use another method."}
    return _fault(request, Fault(error.status_code, text.get(error.status_code, error.detail)))


class _Handlers:
    """What answers each path."""

    def __init__(self, service: Service) -> None:
        self._service = service

    # ---- OpenAI ------------------------------------------------------------------------------

    async def chat(self, request: Request) -> Response:
        try:
            body = await self._body(request)
            wanted = openai_chat.read_request(body, self._service.defaults)
            answer = await self._service.answer(wanted, _client(request))
        except Exception as error:
            return _failed(request, error)
        writer = openai_chat.ChatWriter(answer, wanted, _token_bytes(answer))
        if wanted.stream:
            return _events(answer, writer.chunks())
        return await self._whole(request, answer, writer.whole())

    async def completions(self, request: Request) -> Response:
        try:
            body = await self._body(request)
            wanted = openai_completions.read_request(body, self._service.defaults)
            answer = await self._service.answer(wanted, _client(request))
        except Exception as error:
            return _failed(request, error)
        writer = openai_completions.CompletionWriter(answer, wanted, _token_bytes(answer))
        if wanted.stream:
            return _events(answer, writer.chunks())
        return await self._whole(request, answer, writer.whole())

    async def responses(self, request: Request) -> Response:
        try:
            body = await self._body(request)
            wanted = openai_responses.read_request(body, self._service.defaults)
            answer = await self._service.answer(wanted, _client(request))
        except Exception as error:
            return _failed(request, error)
        writer = openai_responses.ResponseWriter(body, answer, wanted)
        if not wanted.stream:
            return await self._whole(request, answer, writer.whole())

        def failed(error: Exception) -> dict[str, Any]:
            return writer.failed(openai_error(fault_of(error)))

        return _named_events(answer, writer.events(), failed, b": ping\n\n")

    async def embeddings(self, request: Request) -> Response:
        return _fault(
            request,
            Fault(
                501,
                "Embeddings are not supported: the runtime gives logits, not hidden states.",
                code="unsupported",
            ),
        )

    async def models(self, request: Request) -> Response:
        listed = [_model_table(served) for served in self._service.models.all]
        return Table({"object": "list", "data": listed})

    async def model(self, request: Request) -> Response:
        try:
            served = self._service.models.find(request.path_params["name"])
            return Table(_model_table(served))
        except RequestError as error:
            return _failed(request, error)

    # ---- Anthropic ---------------------------------------------------------------------------

    async def messages(self, request: Request) -> Response:
        try:
            body = await self._body(request)
            wanted = anthropic.read_request(body, self._service.defaults)
            answer = await self._service.answer(wanted, _client(request))
        except Exception as error:
            return _failed(request, error)
        writer = anthropic.MessageWriter(answer)
        if not wanted.stream:
            return await self._whole(request, answer, writer.whole())

        def failed(error: Exception) -> dict[str, Any]:
            return anthropic_error(fault_of(error))

        ping = anthropic.event_bytes({"type": "ping"})
        return _named_events(answer, writer.events(), failed, ping)

    async def count_tokens(self, request: Request) -> Response:
        try:
            body = await self._body(request)
            wanted = anthropic.read_request(body, self._service.defaults, counting=True)
            return Table({"input_tokens": await self._service.count_tokens(wanted)})
        except Exception as error:
            return _failed(request, error)

    # ---- Ollama ------------------------------------------------------------------------------

    async def ollama_chat(self, request: Request) -> Response:
        try:
            body = await self._body(request)
            name = body.text("model") or ""
            if ollama.only_loads(body, "messages"):
                await self._load(name)
                return Table(ollama.loaded(name, chat=True))
            wanted = ollama.read_chat(body, self._service.defaults)
            answer = await self._service.answer(wanted, _client(request))
        except Exception as error:
            return _failed(request, error)
        writer = ollama.OllamaWriter(answer, name, chat=True)
        return await self._ollama(request, answer, writer, stream=wanted.stream)

    async def ollama_generate(self, request: Request) -> Response:
        try:
            body = await self._body(request)
            name = body.text("model") or ""
            model = await self._load(name)
            if ollama.only_loads(body, "prompt"):
                return Table(ollama.loaded(name, chat=False))
            has_template = bool(templates(model.metadata))
            wanted = ollama.read_generate(body, self._service.defaults, has_template)
            answer = await self._service.answer(wanted, _client(request))
        except Exception as error:
            return _failed(request, error)
        writer = ollama.OllamaWriter(answer, name, chat=False)
        return await self._ollama(request, answer, writer, stream=wanted.stream)

    async def ollama_show(self, request: Request) -> Response:
        try:
            body = await self._body(request)
            name = body.text("model") or body.text("name") or ""
            return Table(ollama.show_table(await self._load(name)))
        except Exception as error:
            return _failed(request, error)

    async def ollama_tags(self, request: Request) -> Response:
        listed = [ollama.tag_table(served) for served in self._service.models.all]
        return Table({"models": listed})

    async def ollama_ps(self, request: Request) -> Response:
        running = [served for served in self._service.models.all if served.model is not None]
        return Table({"models": [ollama.running_table(served) for served in running]})

    async def ollama_version(self, request: Request) -> Response:
        return Table(ollama.version_table())

    async def _ollama(
        self, request: Request, answer: Answer, writer: ollama.OllamaWriter, *, stream: bool
    ) -> Response:
        if not stream:
            return await self._whole(request, answer, writer.whole())

        async def lines() -> AsyncIterator[bytes]:
            try:
                async for line in writer.lines():
                    yield _json(line) + b"\n"
            except Exception as error:
                yield _json(ollama_error(fault_of(error))) + b"\n"

        return _Stream(answer, lines(), "application/x-ndjson")

    async def _load(self, name: str) -> Model:
        """The open model of a name."""
        served = self._service.models.find(name)
        model = await asyncio.to_thread(self._service.models.use, served)
        self._service.models.release(served)
        return model

    # ---- texts and ids -----------------------------------------------------------------------

    async def tokenize(self, request: Request) -> Response:
        try:
            body = await self._body(request)
            text = body.text("content")
            if text is None:
                text = body.required_text("prompt")
            add = body.boolean("add_special", True)
            model = await self._load(body.text("model") or "")
            ids = await asyncio.to_thread(model.tokenize, text, add_bos=None if add else False)
            return Table({"tokens": ids, "count": len(ids)})
        except Exception as error:
            return _failed(request, error)

    async def detokenize(self, request: Request) -> Response:
        try:
            body = await self._body(request)
            model = await self._load(body.text("model") or "")
            ids = token_ids(body.list_of("tokens"), model.info.vocabulary_size)
            text = await asyncio.to_thread(model.detokenize, ids)
            return Table({"content": text, "prompt": text})
        except Exception as error:
            return _failed(request, error)

    # ---- the server itself -------------------------------------------------------------------

    async def health(self, request: Request) -> Response:
        table = health_table(self._service)
        return Table(table, 200 if table["status"] == "ok" else 503)

    async def metrics(self, request: Request) -> Response:
        return PlainTextResponse(
            metrics_text(self._service), media_type="text/plain; version=0.0.4"
        )

    # ---- what they share ---------------------------------------------------------------------

    async def _body(self, request: Request) -> Fields:
        """The fields of a request's body."""
        limit = self._service.limits.body_bytes
        too_long = RequestError(
            f"The body is longer than {limit} bytes, which is the most that is read.", status=413
        )
        data = bytearray()
        over = 0

        async def read() -> None:
            nonlocal over
            async for part in request.stream():
                if len(data) + len(part) <= limit:
                    data.extend(part)
                else:
                    over += len(part)
                    # Most clients read the answer only once they have sent everything.
                    if over > _MOST_DISCARDED * limit:
                        raise too_long

        try:
            await asyncio.wait_for(read(), _BODY_SECONDS)
        except asyncio.TimeoutError:
            raise RequestError("The body did not arrive in time.", status=408) from None
        if over:
            raise too_long
        try:
            value = parse_json(bytes(data))
        except ValueError as error:
            raise RequestError(f"The body is no JSON: {_json_reason(error)}.") from None
        return Fields(value)

    async def _whole(
        self, request: Request, answer: Answer, writing: Awaitable[dict[str, Any]]
    ) -> Response:
        """The answer as one object, unless the client leaves before."""
        writer = asyncio.ensure_future(writing)
        left = asyncio.ensure_future(_left(request))
        try:
            await asyncio.wait({writer, left}, return_when=asyncio.FIRST_COMPLETED)
            if not writer.done():
                return Response(status_code=499)
            return Table(writer.result())
        except Exception as error:
            return _failed(request, error)
        finally:
            answer.close()
            for task in (writer, left):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task


def _json_reason(error: ValueError) -> str:
    """Where the JSON is wrong, without a word of it."""
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8, from its byte {error.start} on"
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at line {error.lineno}, column {error.colno}"
    return str(error)


async def _left(request: Request) -> None:
    """Waits until the client is gone."""
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            return


def _client(request: Request) -> str:
    return str(request.scope.get("awq_edge.client", ""))


def _token_bytes(answer: Answer) -> Callable[[int], bytes]:
    model = answer.texts[0].model
    return lambda token: token_table(model).bytes(token)


def _model_table(served: Any) -> dict[str, Any]:
    table = {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "awq-edge",
    }
    if served.model is not None:
        table["context_length"] = served.model.context_length
    return table


async def _pinged(parts: AsyncIterator[bytes], ping: bytes) -> AsyncIterator[bytes]:
    """The parts, and a ping whenever nothing came for a while."""
    iterator = parts.__aiter__()
    coming: asyncio.Future[bytes] | None = None
    try:
        while True:
            if coming is None:
                coming = asyncio.ensure_future(iterator.__anext__())
            done, _ = await asyncio.wait({coming}, timeout=_PING_SECONDS)
            if not done:
                yield ping
                continue
            try:
                part = coming.result()
            except StopAsyncIteration:
                return
            coming = None
            yield part
    finally:
        if coming is not None:
            coming.cancel()


def _events(answer: Answer, chunks: AsyncIterator[dict[str, Any]]) -> Response:
    """Server-sent events as OpenAI's clients read them."""

    async def lines() -> AsyncIterator[bytes]:
        try:
            async for chunk in chunks:
                yield b"data: " + _json(chunk) + b"\n\n"
        except Exception as error:
            yield b"data: " + _json(openai_error(fault_of(error))) + b"\n\n"
        yield b"data: [DONE]\n\n"

    return _Stream(answer, _pinged(lines(), b": ping\n\n"), "text/event-stream")


def _named_events(
    answer: Answer,
    events: AsyncIterator[dict[str, Any]],
    failed: Callable[[Exception], dict[str, Any]],
    ping: bytes,
) -> Response:
    """Server-sent events whose names decide."""

    async def parts() -> AsyncIterator[bytes]:
        try:
            async for event in events:
                yield anthropic.event_bytes(event)
        except Exception as error:
            yield anthropic.event_bytes(failed(error))

    return _Stream(answer, _pinged(parts(), ping), "text/event-stream")


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


class _Stream(StreamingResponse):
    """A stream whose answer ends with it, also when the client left before it began."""

    def __init__(self, answer: Answer, parts: AsyncIterator[bytes], media_type: str) -> None:
        super().__init__(parts, media_type=media_type, headers=_STREAM_HEADERS)
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answer.close()
