"""The paths of Ollama's interface."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from awq_edge.chat import templates
from awq_edge.serve import embeddings, ollama
from awq_edge.serve.answers import Answer
from awq_edge.serve.faults import fault_of, ollama_error
from awq_edge.serve.fields import Fields
from awq_edge.serve.http import (
    Paths,
    Stream,
    Table,
    client_of,
    failed,
    json_bytes,
)


class OllamaPaths(Paths):
    """What answers them."""

    def routes(self) -> list[Route]:
        """Which path is answered by what."""
        return [
            Route("/api/chat", self.chat, methods=["POST"]),
            Route("/api/generate", self.generate, methods=["POST"]),
            Route("/api/embed", self.embed, methods=["POST"]),
            Route("/api/embeddings", self.embeddings, methods=["POST"]),
            Route("/api/show", self.show, methods=["POST"]),
            Route("/api/pull", self.pull, methods=["POST"]),
            Route("/api/tags", self.tags),
            Route("/api/ps", self.ps),
            Route("/api/version", self.version),
        ]

    async def chat(self, request: Request) -> Response:
        """Answers ``/api/chat``."""
        try:
            body = await self.body(request)
            name = body.text("model") or ""
            self._keep(name, body)
            if ollama.only_loads(body, "messages"):
                await self.load(name)
                return Table(ollama.loaded(name, chat=True))
            wanted = ollama.read_chat(body, self.service.defaults)
            answer = await self.service.answer(wanted, client_of(request))
        except Exception as error:
            return failed(request, error)
        writer = ollama.OllamaWriter(answer, name, chat=True)
        return await self._answered(request, answer, writer, stream=wanted.stream)

    async def generate(self, request: Request) -> Response:
        """Answers ``/api/generate``."""
        try:
            body = await self.body(request)
            name = body.text("model") or ""
            self._keep(name, body)
            model = await self.load(name)
            if ollama.only_loads(body, "prompt"):
                return Table(ollama.loaded(name, chat=False))
            has_template = bool(templates(model.metadata))
            wanted = ollama.read_generate(body, self.service.defaults, has_template)
            answer = await self.service.answer(wanted, client_of(request))
        except Exception as error:
            return failed(request, error)
        writer = ollama.OllamaWriter(answer, name, chat=False)
        return await self._answered(request, answer, writer, stream=wanted.stream)

    async def show(self, request: Request) -> Response:
        """Answers ``/api/show``."""
        try:
            body = await self.body(request)
            name = body.text("model") or body.text("name") or ""
            return Table(ollama.show_table(await self.load(name)))
        except Exception as error:
            return failed(request, error)

    async def pull(self, request: Request) -> Response:
        """Answers ``/api/pull``, with which clients make sure of a model: it is here, or it is not.

        Nothing is fetched at a client's word.
        """
        try:
            body = await self.body(request)
            name = body.text("model") or body.text("name") or ""
            self.service.models.require(name)
            done = {"status": "success"}
            if not body.boolean("stream", True):
                return Table(done)
            return Response(json_bytes(done) + b"\n", media_type="application/x-ndjson")
        except Exception as error:
            return failed(request, error)

    async def tags(self, request: Request) -> Response:
        """Answers ``/api/tags``."""
        listed = [ollama.tag_table(served) for served in self.service.models.all]
        return Table({"models": listed})

    async def ps(self, request: Request) -> Response:
        """Answers ``/api/ps``."""
        running = [served for served in self.service.models.all if served.model is not None]
        return Table({"models": [ollama.running_table(served) for served in running]})

    async def version(self, request: Request) -> Response:
        """Answers ``/api/version``."""
        return Table(ollama.version_table())

    def _keep(self, name: str, body: Fields) -> None:
        """Does what ``keep_alive`` says, if it says something."""
        seconds = ollama.read_keep_alive(body)
        if seconds is not None:
            self.service.models.keep(self.service.models.find(name), seconds)

    async def _answered(
        self, request: Request, answer: Answer, writer: ollama.OllamaWriter, *, stream: bool
    ) -> Response:
        if not stream:
            return await self.whole(request, answer, writer.whole())

        async def lines() -> AsyncIterator[bytes]:
            try:
                async for line in writer.lines():
                    yield json_bytes(line) + b"\n"
            except Exception as error:
                yield json_bytes(ollama_error(fault_of(error))) + b"\n"

        return Stream(answer, lines(), "application/x-ndjson")

    async def embed(self, request: Request) -> Response:
        """Answers ``/api/embed``."""
        try:
            body = await self.body(request)
            name = body.text("model") or ""
            self._keep(name, body)
            if ollama.only_loads(body, "input"):
                await self.load(name)
                return Table({"model": name, "embeddings": []})
            wanted = embeddings.read_ollama(body, "input")
        except Exception as error:
            return failed(request, error)

        async def table() -> dict[str, Any]:
            found = await embeddings.embed(self.service, wanted, client_of(request))
            return embeddings.ollama_table(found, wanted)

        return await self.unless_left(request, table())

    async def embeddings(self, request: Request) -> Response:
        """Answers ``/api/embeddings``, for one text."""
        try:
            body = await self.body(request)
            self._keep(body.text("model") or "", body)
            wanted = embeddings.read_ollama(body, "prompt")
        except Exception as error:
            return failed(request, error)

        async def table() -> dict[str, Any]:
            found = await embeddings.embed(self.service, wanted, client_of(request))
            return {"embedding": found.vectors[0].tolist()}

        return await self.unless_left(request, table())
