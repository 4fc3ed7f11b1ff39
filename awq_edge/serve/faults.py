"""What went wrong with a request: one status and one kind, in the shape that its protocol has.

Owns the table from exceptions to statuses, and the bodies of errors. Refuses to log what a client
has sent.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from awq_edge import errors
from awq_edge.serve.texts import BusyError, StoppingError, TimedOutError

_log = logging.getLogger("awq_edge.serve")


class RequestError(errors.AwqEdgeError):
    """A request that cannot be answered as it stands.

    Attributes:
        status: Of HTTP.
        param: The field that is wrong; None for the whole.
    """

    def __init__(self, text: str, *, param: str | None = None, status: int = 400) -> None:
        """Takes the sentence and where it belongs."""
        super().__init__(text)
        self.param = param
        self.status = status


@dataclass(frozen=True)
class Fault:
    """An error as all protocols tell it.

    Attributes:
        status: Of HTTP.
        message: One sentence.
        code: A word for programs.
        param: The field that is wrong.
        retry_after: Seconds, where trying again helps.
    """

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    retry_after: int | None = None

    @property
    def headers(self) -> dict[str, str]:
        """What goes beside the body."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return headers


def fault_of(error: BaseException) -> Fault:
    """What a client is told of an exception."""
    if isinstance(error, RequestError):
        code = {401: "invalid_api_key", 404: "model_not_found"}.get(error.status)
        return Fault(error.status, str(error), code=code, param=error.param)
    if isinstance(error, BusyError):
        return Fault(429, str(error), code="server_busy", retry_after=error.retry_after)
    if isinstance(error, StoppingError):
        return Fault(503, str(error), code="stopping", retry_after=5)
    if isinstance(error, TimedOutError):
        return Fault(504, str(error), code="timeout")
    if isinstance(error, errors.ContextFullError):
        return Fault(400, str(error), code="context_length_exceeded", param="messages")
    if isinstance(error, errors.InvalidArgumentError):
        return Fault(400, str(error))
    if isinstance(error, (errors.OutOfMemoryError, MemoryError)):
        return Fault(503, str(error) or "Out of memory.", code="out_of_memory", retry_after=30)
    if isinstance(error, errors.UnsupportedError):
        return Fault(400, str(error), code="unsupported")
    if isinstance(error, errors.AwqEdgeError):
        return Fault(500, str(error))
    # Its text might hold what the client sent.
    _log.error("a request failed: %s", type(error).__name__, exc_info=error)
    return Fault(500, "The server failed; its log says why.")


_OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def openai_error(fault: Fault) -> dict[str, Any]:
    """The body in OpenAI's shape."""
    kind = _OPENAI_TYPES.get(fault.status)
    if kind is None:
        kind = "invalid_request_error" if fault.status < 500 else "server_error"
    return {
        "error": {
            "message": fault.message,
            "type": kind,
            "param": fault.param,
            "code": fault.code,
        }
    }


def anthropic_error(fault: Fault) -> dict[str, Any]:
    """The body in Anthropic's shape."""
    kind = _ANTHROPIC_TYPES.get(fault.status)
    if kind is None:
        kind = "invalid_request_error" if fault.status < 500 else "api_error"
    return {"type": "error", "error": {"type": kind, "message": fault.message}}


def ollama_error(fault: Fault) -> dict[str, Any]:
    """The body in Ollama's shape."""
    return {"error": fault.message}


def error_body(path: str, fault: Fault) -> dict[str, Any]:
    """The body in the shape of the protocol that a path belongs to."""
    if path.startswith("/v1/messages"):
        return anthropic_error(fault)
    if path.startswith("/api/"):
        return ollama_error(fault)
    return openai_error(fault)
