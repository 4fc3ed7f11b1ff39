"""The chat page of ``awq-edge serve``: three static files, and what a browser is told about them.

Owns the page's routes and headers. Refuses everything else: the page asks the server's own API,
with the key that a person enters, and keeps conversations in the browser alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
# Nothing but these files and this server: not even a page that was tampered with could send a
# conversation elsewhere, and nobody may put the page into a frame.
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


def page_routes() -> list[Route]:
    """The page's routes, for an application of Starlette's."""
    from starlette.routing import Route

    return [
        Route(path, _answering(name, kind), methods=["GET"])
        for path, (name, kind) in _FILES.items()
    ]


def _answering(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    """What answers with one of the files; it is read once."""
    from starlette.responses import Response

    content = Path(__file__).with_name(name).read_bytes()
    headers = {**HEADERS, "ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"'}

    async def answer(request: Request) -> Response:
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=kind, headers=headers)

    return answer
