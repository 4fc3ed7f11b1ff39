"""How bytes come and go: bodies within their limit, JSON, streams with their pings.

Owns that a client who leaves ends its texts. Refuses the words of protocols: what has paths of its
own derives from ``Paths``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import weakref
from collections.abc import AsyncIterator, Awaitable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from awq_edge.limited_json import parse_json
from awq_edge.model import Model
from awq_edge.serve.answers import Answer
from awq_edge.serve.faults import Fault, RequestError, error_body, fault_of
from awq_edge.serve.fields import Fields
from awq_edge.serve.service import Service
from awq_edge.serve.texts import BusyError

_PING_SECONDS = 15.0
# Without a byte of a body. A line that is slow is waited for, as long as it brings something: a
# photograph takes minutes over a bad Wi-Fi.
_PAUSE_SECONDS = 30.0
# A body that comes in drops gets so long, and a second more for so many bytes that have come.
_BODY_SECONDS = 60.0
_LEAST_BYTES_PER_SECOND = 2000
# Of what is longer than the limit, in limits.
_MOST_DISCARDED = 8
_STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class Table(Response):
    """A JSON object; half a surrogate pair that a client sent is no failure."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Its bytes."""
        return json_bytes(content)


def failed(request: Request, error: BaseException) -> Response:
    """The answer for an exception, in the shape of the path's protocol."""
    return fault_response(request, fault_of(error))


def fault_response(request: Request, fault: Fault) -> Response:
    """The answer for an error, in the shape of the path's protocol."""
    body = error_body(request.url.path, fault)
    return Table(body, fault.status, headers=fault.headers)


class Paths:
    """What the paths of every protocol share.

    Attributes:
        service: What answers.
    """

    def __init__(self, service: Service) -> None:
        """Answers by a service."""
        self.service = service

    async def body(self, request: Request) -> Fields:
        """The fields of a request's body."""
        limits = self.service.limits
        limit = limits.picture_body_bytes if self.service.sees_pictures else limits.body_bytes
        too_long = RequestError(
            f"The body is longer than {limit} bytes, which is the most that is read.", status=413
        )
        data = bytearray()
        over = 0
        busy: BusyError | None = None
        held = self.service.long_bodies.hold()

        async def read() -> None:
            nonlocal over, busy
            async for part in _arriving(request):
                if busy is None and len(data) + len(part) <= limit:
                    try:
                        held.grow(len(data) + len(part))
                        data.extend(part)
                        continue
                    except BusyError as error:
                        busy = error
                        data.clear()
                        held.release()
                over += len(part)
                # Most clients read the answer only once they have sent everything.
                if over > _MOST_DISCARDED * limit:
                    raise too_long

        try:
            await read()
            if busy is not None:
                raise busy
            if over:
                raise too_long
            try:
                if held.size:  # long enough for the loop's other streams to notice
                    value = await asyncio.to_thread(parse_json, bytes(data))
                else:
                    value = parse_json(bytes(data))
            except ValueError as error:
                raise RequestError(f"The body is no JSON: {_json_reason(error)}.") from None
            fields = Fields(value)
        except BaseException:
            held.release()
            raise
        if held.size:
            weakref.finalize(fields, held.release)
        return fields

    async def whole(
        self, request: Request, answer: Answer, writing: Awaitable[dict[str, Any]]
    ) -> Response:
        """The answer as one object, unless the client leaves before."""
        try:
            return await self.unless_left(request, writing)
        finally:
            answer.close()

    async def unless_left(self, request: Request, writing: Awaitable[dict[str, Any]]) -> Response:
        """An object that takes time, unless the client leaves before; then it is cancelled."""
        writer = asyncio.ensure_future(writing)
        left = asyncio.ensure_future(_left(request))
        try:
            await asyncio.wait({writer, left}, return_when=asyncio.FIRST_COMPLETED)
            if not writer.done():
                return Response(status_code=499)
            return Table(writer.result())
        except Exception as error:
            return failed(request, error)
        finally:
            for task in (writer, left):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task

    async def load(self, name: str) -> Model:
        """The open model of a name."""
        served = self.service.models.find(name)
        model = await asyncio.to_thread(self.service.models.use, served)
        self.service.models.release(served)
        return model


async def _arriving(request: Request) -> AsyncIterator[bytes]:
    """The parts of a body, as long as they keep coming.

    Raises:
        RequestError: They do not, or too slowly.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + _BODY_SECONDS
    parts = request.stream().__aiter__()
    while True:
        seconds = min(_PAUSE_SECONDS, end - loop.time())
        try:
            part = await asyncio.wait_for(parts.__anext__(), seconds)
        except StopAsyncIteration:
            return
        except asyncio.TimeoutError:
            raise RequestError(
                f"The body did not arrive in time: nothing came for {_PAUSE_SECONDS:.0f} seconds, "
                f"or less than {_LEAST_BYTES_PER_SECOND} bytes a second for longer than "
                f"{_BODY_SECONDS:.0f}.",
                status=408,
            ) from None
        end += len(part) / _LEAST_BYTES_PER_SECOND
        yield part


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


def client_of(request: Request) -> str:
    """Whose turn a request takes."""
    return str(request.scope.get("awq_edge.client", ""))


async def pinged(parts: AsyncIterator[bytes], ping: bytes) -> AsyncIterator[bytes]:
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


def json_bytes(value: Any) -> bytes:
    """JSON as it is sent."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


class Stream(StreamingResponse):
    """A stream whose answer ends with it, also when the client left before it began."""

    def __init__(self, answer: Answer, parts: AsyncIterator[bytes], media_type: str) -> None:
        """Begins with the first part."""
        super().__init__(parts, media_type=media_type, headers=_STREAM_HEADERS)
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answer.close()
