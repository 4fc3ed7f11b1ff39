"""Ollama's ``/api/…``: its requests read, its answers written.

Owns the words of that protocol alone. The facts that clients rely on: streaming unless told
otherwise, one JSON object in a line and never a comment, durations in nanoseconds, arguments of
calls as objects, ``keep_alive`` as a number or a text.
"""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

from awq_edge import __version__
from awq_edge.chat import templates
from awq_edge.errors import InvalidArgumentError
from awq_edge.generation import GenerationConfig
from awq_edge.limited_json import parse_json
from awq_edge.model import Model
from awq_edge.quantities import count_text, parse_duration
from awq_edge.serve.answers import Answer, Delta
from awq_edge.serve.faults import RequestError
from awq_edge.serve.fields import Fields
from awq_edge.serve.messages import read_messages, read_tools
from awq_edge.serve.models import Served
from awq_edge.serve.picture_parts import check_number, pictures_of_list
from awq_edge.serve.settings import MOST_TOKENS, read_settings
from awq_edge.serve.wanted import Wanted

_NANOSECONDS = 1_000_000_000
_MOST_SECONDS = 1e9  # of a time that is told


def read_chat(body: Fields, defaults: GenerationConfig) -> Wanted:
    """What a request to ``/api/chat`` asks for.

    Raises:
        RequestError: A field has the wrong type or value.
    """
    return Wanted(
        model=body.text("model") or "",
        config=_settings(body, defaults),
        messages=read_messages(body),
        tools=read_tools(body),
        schema=_format(body),
        variables=_thinking(body),
        stream=body.boolean("stream", True),
    )


def read_generate(body: Fields, defaults: GenerationConfig, has_template: bool) -> Wanted:
    """What a request to ``/api/generate`` asks for; a prompt is a message, unless it is ``raw``."""
    suffix = body.text("suffix") or ""
    prompt = body.text("prompt") or ""
    wanted = Wanted(
        model=body.text("model") or "",
        config=_settings(body, defaults),
        schema=_format(body),
        variables=_thinking(body),
        stream=body.boolean("stream", True),
    )
    shown = pictures_of_list(body)
    check_number(len(shown), "images")
    if suffix and shown:
        raise body.wrong("images", "is not supported together with a suffix.")
    if suffix or body.boolean("raw") or not has_template:
        images = [part["image"] for part in shown]
        return replace(wanted, prompts=[prompt], suffix=suffix, images=images)
    said: list[dict[str, Any]] = [*shown, {"type": "text", "text": prompt}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": said if shown else prompt}]
    system = body.text("system")
    if system:
        messages.insert(0, {"role": "system", "content": system})
    return replace(wanted, messages=messages)


def only_loads(body: Fields, name: str) -> bool:
    """Whether a request has nothing to say, which loads the model and no more."""
    return not body.value(name)


def read_keep_alive(body: Fields) -> float | None:
    """``keep_alive``: how long the model stays open, in seconds; None where nothing is said."""
    value = body.value("keep_alive")
    if value is None or value == "":
        return None
    if isinstance(value, str):
        try:
            return parse_duration(value)
        except InvalidArgumentError as error:
            raise RequestError(str(error), param="keep_alive") from error
    seconds = body.number("keep_alive", -math.inf, math.inf)
    return math.inf if seconds is None or seconds < 0 else seconds


def _settings(body: Fields, defaults: GenerationConfig) -> GenerationConfig:
    options = body.inner("options")
    if options is None:
        return replace(defaults, max_tokens=None)
    limit = options.integer("num_predict", -2, MOST_TOKENS)
    return read_settings(options, defaults, None if limit is None or limit < 0 else limit)


def _format(body: Fields) -> Any:
    value = body.value("format")
    if value is None or value == "":
        return None
    if value == "json":
        return True
    if isinstance(value, dict):
        return value
    raise body.wrong("format", 'is neither "json" nor a JSON schema.')


def _thinking(body: Fields) -> Mapping[str, Any]:
    value = body.value("think")
    if value is None:
        return {}
    return {"enable_thinking": bool(value)}


class OllamaWriter:
    """Writes the answer to one request, to ``/api/chat`` or ``/api/generate``."""

    def __init__(self, answer: Answer, model: str, *, chat: bool) -> None:
        """Begins an answer.

        Args:
            answer: What is written.
            model: As the client called it.
            chat: Whether texts stand in messages.
        """
        self._answer = answer
        self._model = model
        self._chat = chat
        self._began = time.perf_counter_ns()
        self._calls: dict[int, tuple[str, str]] = {}

    async def lines(self) -> AsyncIterator[dict[str, Any]]:
        """The objects of a stream."""
        async for delta in self._answer:
            self._take_call(delta)
            if delta.content or delta.reasoning:
                yield self._line(delta.content, delta.reasoning)
        if self._calls:
            yield self._line("", "", calls=self._call_tables())
        yield self._last("", "")

    async def whole(self) -> dict[str, Any]:
        """The answer as one object."""
        content = reasoning = ""
        async for delta in self._answer:
            self._take_call(delta)
            content += delta.content
            reasoning += delta.reasoning
        return self._last(content, reasoning, calls=self._call_tables())

    def _take_call(self, delta: Delta) -> None:
        call = delta.call
        if call is not None:
            name, arguments = self._calls.get(call.index, (call.name, ""))
            self._calls[call.index] = (name, arguments + call.arguments)

    def _call_tables(self) -> list[dict[str, Any]]:
        tables = []
        for name, text in self._calls.values():
            try:
                arguments = parse_json(text.encode()) if text else {}
            except ValueError:
                arguments = {"arguments": text}
            tables.append({"function": {"name": name, "arguments": arguments}})
        return tables

    def _line(
        self, content: str, reasoning: str, calls: list[dict[str, Any]] | None = None
    ) -> dict[str, Any]:
        line: dict[str, Any] = {"model": self._model, "created_at": now()}
        if self._chat:
            message: dict[str, Any] = {"role": "assistant", "content": content}
            if reasoning:
                message["thinking"] = reasoning
            if calls:
                message["tool_calls"] = calls
            line["message"] = message
        else:
            line["response"] = content
            if reasoning:
                line["thinking"] = reasoning
        return {**line, "done": False}

    def _last(
        self, content: str, reasoning: str, calls: list[dict[str, Any]] | None = None
    ) -> dict[str, Any]:
        usage, ending = self._answer.usage, self._answer.endings[0]
        return {
            **self._line(content, reasoning, calls),
            "done": True,
            "done_reason": "length" if ending.finish == "length" else "stop",
            "total_duration": time.perf_counter_ns() - self._began,
            "load_duration": 0,
            "prompt_eval_count": usage.prompt_tokens,
            "prompt_eval_duration": round(usage.prompt_seconds * _NANOSECONDS),
            "eval_count": usage.tokens,
            "eval_duration": round(usage.decode_seconds * _NANOSECONDS),
        }


def loaded(model: str, *, chat: bool) -> dict[str, Any]:
    """The answer to a request that only loads the model."""
    said = {"message": {"role": "assistant", "content": ""}} if chat else {"response": ""}
    return {"model": model, "created_at": now(), **said, "done": True, "done_reason": "load"}


def now() -> str:
    """The time in RFC 3339."""
    return _rfc3339(datetime.datetime.now(datetime.timezone.utc))


def _rfc3339(when: datetime.datetime) -> str:
    return when.isoformat().replace("+00:00", "Z")


def version_table() -> dict[str, Any]:
    """``/api/version``."""
    return {"version": __version__}


def tag_table(served: Served) -> dict[str, Any]:
    """One model of ``/api/tags`` and ``/api/ps``."""
    when = datetime.datetime.fromtimestamp(served.created, datetime.timezone.utc)
    return {
        "name": served.name,
        "model": served.name,
        "modified_at": when.isoformat().replace("+00:00", "Z"),
        "size": served.size_bytes,
        "digest": served.digest,
        "details": _details(served.model),
    }


def running_table(served: Served) -> dict[str, Any]:
    """One model of ``/api/ps``."""
    context = 0 if served.model is None else served.model.context_length
    seconds = served.expires_in
    expires = "9999-12-31T23:59:59Z"
    if seconds < _MOST_SECONDS:
        now = datetime.datetime.now(datetime.timezone.utc)
        expires = _rfc3339(now + datetime.timedelta(seconds=seconds))
    return {
        **tag_table(served),
        "expires_at": expires,
        "size_vram": 0,
        "context_length": context,
    }


def show_table(model: Model) -> dict[str, Any]:
    """``/api/show``."""
    template = templates(model.metadata).get("default", "")
    capabilities = ["completion", *(["vision"] if model.sees_pictures else [])]
    if template:
        capabilities.append("tools")
        if "enable_thinking" in template or "<think>" in template:
            capabilities.append("thinking")
    info = model.info
    return {
        "modelfile": "",
        "parameters": "",
        "template": template,
        "details": _details(model),
        "model_info": {
            "general.architecture": "awq-edge",
            "general.name": model.name,
            "general.parameter_count": info.parameters,
            "awq-edge.context_length": model.context_length,
            "awq-edge.block_count": info.layers,
            "awq-edge.embedding_length": info.hidden_size,
        },
        "capabilities": capabilities,
    }


def _details(model: Model | None) -> dict[str, Any]:
    size = "" if model is None else count_text(model.info.parameters).replace(" ", "")
    return {
        "parent_model": "",
        "format": "gguf",
        "family": "awq-edge",
        "families": ["awq-edge"],
        "parameter_size": size,
        "quantization_level": "",
    }
