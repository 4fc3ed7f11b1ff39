"""Who may ask: keys, hosts and origins, before anything of a request is read.

Owns the ASGI layer in front of the application. By default a server is for this machine: it listens
on the loopback, answers only to its own names (a web page that resolves its own name to 127.0.0.1
reaches nothing), and to no other web page. Keys are compared in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import socket
from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Sequence
from typing import Any

from awq_edge.serve.faults import Fault, error_body

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

# What tells nothing of anybody: a page must load before a key can be typed into it.
_OPEN_PATHS = ("/", "/health", "/page", "/favicon.ico")
_ALLOWED_HEADERS = "authorization, content-type, x-api-key, anthropic-version, anthropic-beta"


class Access:
    """Lets requests through to an application, or answers them itself."""

    def __init__(
        self,
        application: Application,
        *,
        keys: Sequence[bytes] = (),
        hosts: Iterable[str] = (),
        origins: Iterable[str] = (),
    ) -> None:
        """Stands in front of an application.

        Args:
            application: Of ASGI.
            keys: One of them must be in the header; none: nobody is asked.
            hosts: Names that this server has besides those of its machine.
            origins: Web pages of others that may ask, as ``https://example.org``; ``*`` is all.
        """
        self._application = application
        self._keys = tuple(hashlib.sha256(key).digest() for key in keys)
        name = socket.gethostname().lower()
        self._hosts = {"localhost", name, f"{name}.local", *(host.lower() for host in hosts)}
        self._origins = frozenset(origin.rstrip("/").lower() for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._application(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        origin = headers.get(b"origin", b"").decode("latin-1").rstrip("/").lower()
        host = headers.get(b"host", b"").decode("latin-1").lower()
        foreign = bool(origin) and origin.partition("://")[2] != host
        cors: list[tuple[bytes, bytes]] = []
        if foreign and self._is_allowed(origin):
            cors = _cors_headers(origin)
        if not self._is_ours(host):
            fault = Fault(403, "This server does not answer to the name in the Host header.")
        elif foreign and not cors:
            fault = Fault(403, "Web pages of other origins may not use this server.")
        elif scope["method"] == "OPTIONS" and cors:
            await _answer(send, 204, [*cors, *_PREFLIGHT], b"")
            return
        else:
            client = self._client(scope, headers)
            if client is not None:
                scope["awq_edge.client"] = client
                await self._application(scope, receive, _with_headers(send, cors))
                return
            fault = Fault(401, "The key is missing or wrong.", code="invalid_api_key")
        body = json.dumps(error_body(scope["path"], fault)).encode()
        extra = [(name.encode(), value.encode()) for name, value in fault.headers.items()]
        await _answer(
            send, fault.status, [*cors, *extra, (b"content-type", b"application/json")], body
        )

    def _client(self, scope: Scope, headers: MutableMapping[bytes, bytes]) -> str | None:
        """Whose turn a request takes: a key's or an address's; None without the key."""
        address = scope.get("client") or ("",)
        if not self._keys:
            return str(address[0])
        bearer = headers.get(b"authorization", b"")
        given = bearer[7:].strip() if bearer[:7].lower() == b"bearer " else b""
        digest = hashlib.sha256(given or headers.get(b"x-api-key", b"").strip()).digest()
        # All of them, so that the time says nothing about which was near.
        found = [hmac.compare_digest(digest, key) for key in self._keys]
        if any(found):
            return f"key {found.index(True)}"
        path = scope["path"]
        is_open = path in _OPEN_PATHS or path.startswith("/page/")
        return str(address[0]) if is_open else None

    def _is_ours(self, host: str) -> bool:
        name = host.rpartition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
        if name.rstrip(".") in self._hosts or "*" in self._hosts:
            return True
        try:  # a name can be made to lead here, an address only leads where it does
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return True

    def _is_allowed(self, origin: str) -> bool:
        return "*" in self._origins or origin in self._origins


_PREFLIGHT = [
    (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
    (b"access-control-allow-headers", _ALLOWED_HEADERS.encode()),
    (b"access-control-max-age", b"600"),
]


def _cors_headers(origin: str) -> list[tuple[bytes, bytes]]:
    return [(b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"Origin")]


def _with_headers(send: Send, headers: list[tuple[bytes, bytes]]) -> Send:
    async def send_with(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *headers]
        await send(message)

    return send_with if headers else send


async def _answer(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})
