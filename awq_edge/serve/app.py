"""The application: every protocol's paths in one, and what is at none of them."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from awq_edge.serve.anthropic_paths import AnthropicPaths
from awq_edge.serve.faults import Fault
from awq_edge.serve.http import failed, fault_response
from awq_edge.serve.ollama_paths import OllamaPaths
from awq_edge.serve.openai_paths import OpenAIPaths
from awq_edge.serve.page import page_routes
from awq_edge.serve.server_paths import ServerPaths
from awq_edge.serve.service import Service


def application(service: Service) -> Starlette:
    """The application over a service."""
    groups = [kind(service) for kind in (OpenAIPaths, AnthropicPaths, OllamaPaths, ServerPaths)]
    return Starlette(
        routes=[*(route for group in groups for route in group.routes()), *page_routes()],
        exception_handlers={Exception: _on_error, HTTPException: _on_http_error},
    )


async def _on_error(request: Request, error: Exception) -> Response:
    return failed(request, error)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = {404: f"There is nothing at {request.url.path[:80]}.", 405: "Use another method."}
    return fault_response(
        request, Fault(error.status_code, text.get(error.status_code, error.detail))
    )
