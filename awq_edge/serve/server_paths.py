"""The paths of the server itself: health, metrics, texts and ids."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from awq_edge.serve.health import health_table
from awq_edge.serve.http import Paths, Table, failed
from awq_edge.serve.metrics import metrics_text
from awq_edge.token_ids import token_ids


class ServerPaths(Paths):
    """What answers them."""

    def routes(self) -> list[Route]:
        """Which path is answered by what."""
        return [
            Route("/tokenize", self.tokenize, methods=["POST"]),
            Route("/detokenize", self.detokenize, methods=["POST"]),
            Route("/health", self.health),
            Route("/metrics", self.metrics),
        ]

    async def tokenize(self, request: Request) -> Response:
        """Answers ``/tokenize``."""
        try:
            body = await self.body(request)
            text = body.text("content")
            if text is None:
                text = body.required_text("prompt")
            add = body.boolean("add_special", True)
            model = await self.load(body.text("model") or "")
            ids = await asyncio.to_thread(model.tokenize, text, add_bos=None if add else False)
            return Table({"tokens": ids, "count": len(ids)})
        except Exception as error:
            return failed(request, error)

    async def detokenize(self, request: Request) -> Response:
        """Answers ``/detokenize``."""
        try:
            body = await self.body(request)
            model = await self.load(body.text("model") or "")
            ids = token_ids(body.list_of("tokens"), model.info.vocabulary_size)
            text = await asyncio.to_thread(model.detokenize, ids)
            return Table({"content": text, "prompt": text})
        except Exception as error:
            return failed(request, error)

    async def health(self, request: Request) -> Response:
        """Answers ``/health``."""
        table = health_table(self.service)
        return Table(table, 200 if table["status"] == "ok" else 503)

    async def metrics(self, request: Request) -> Response:
        """Answers ``/metrics``."""
        return PlainTextResponse(metrics_text(self.service), media_type="text/plain; version=0.0.4")
