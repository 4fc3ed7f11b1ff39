"""Anthropic's ``/v1/messages``: its requests read, its answers written.

Owns the words of that protocol alone. The facts that clients rely on: the event's name decides,
``message_start`` comes first, every block begins and stops, tokens from a cache are counted apart.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

from awq_edge.generation import GenerationConfig
from awq_edge.limited_json import parse_json
from awq_edge.serve.answers import Answer, Delta, Ending
from awq_edge.serve.fields import Fields
from awq_edge.serve.messages import content_parts, content_text, joined, tool
from awq_edge.serve.picture_parts import check_number, part_of, picture_of_source, pictures_in
from awq_edge.serve.settings import MOST_TOKENS, read_settings
from awq_edge.serve.wanted import Wanted

_STOP_REASONS = {"length": "max_tokens", "tool_calls": "tool_use"}
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def read_request(body: Fields, defaults: GenerationConfig, *, counting: bool = False) -> Wanted:
    """What a request asks for.

    Args:
        body: Its fields.
        defaults: How to draw where it does not say.
        counting: Whether only the prompt counts.

    Raises:
        RequestError: A field has the wrong type or value.
    """
    max_tokens = body.integer("max_tokens", 1, MOST_TOKENS)
    if max_tokens is None and not counting:
        raise body.wrong("max_tokens", "is missing.")
    config = read_settings(body, defaults, max_tokens)
    stops = body.texts("stop_sequences", 64)
    if stops:
        config = replace(config, stop=tuple(stop for stop in stops if stop))
    thinking = body.inner("thinking")
    variables = {} if thinking is None else {"enable_thinking": thinking.text("type") != "disabled"}
    return Wanted(
        model=body.text("model") or "",
        config=config,
        messages=_messages(body),
        tools=[
            tool(
                fields.required_text("name"),
                fields.text("description"),
                fields.value("input_schema"),
                fields,
                "input_schema",
            )
            for fields in body.each("tools")
        ],
        tool_choice=_tool_choice(body),
        variables=variables,
        stream=body.boolean("stream"),
    )


def _tool_choice(body: Fields) -> str:
    choice = body.inner("tool_choice")
    if choice is None:
        return "auto"
    kind = choice.required_text("type")
    if kind == "tool":
        return ":" + choice.required_text("name")
    if kind not in _CHOICES:
        raise choice.wrong("type", "is not one of auto, any, tool, none.")
    return _CHOICES[kind]


def _messages(body: Fields) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    system = content_text(body, "system")
    if system:
        messages.append({"role": "system", "content": system})
    for fields in body.each("messages"):
        role = fields.required_text("role")
        if role not in ("user", "assistant"):
            raise fields.wrong("role", "is not one of user, assistant.")
        if isinstance(fields.value("content"), str):
            messages.append({"role": role, "content": fields.value("content")})
        elif role == "user":
            messages += _user(fields)
        else:
            messages.append(_assistant(fields))
    if not any(message["role"] != "system" for message in messages):
        raise body.wrong("messages", "is empty: say something.")
    check_number(sum(1 for _ in pictures_in(messages)), "messages")
    return messages


def _user(fields: Fields) -> Iterator[dict[str, Any]]:
    """Results of calls as messages of their own, then what was said."""
    parts: list[str | dict[str, Any]] = []
    for block in fields.each("content"):
        kind = block.required_text("type")
        if kind == "tool_result":
            yield {
                "role": "tool",
                "tool_call_id": block.text("tool_use_id") or "",
                "content": content_parts(block, "content"),
            }
        elif kind == "text":
            parts.append(block.text("text") or "")
        elif kind == "image":
            parts.append(part_of(picture_of_source(block)))
        else:
            raise block.wrong("type", f"is {kind!r:.40}: the server reads texts and pictures.")
    if parts:
        yield {"role": "user", "content": joined(parts)}


def _assistant(fields: Fields) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    texts, calls = [], []
    for block in fields.each("content"):
        kind = block.required_text("type")
        if kind == "text":
            texts.append(block.text("text") or "")
        elif kind == "thinking":
            message["reasoning_content"] = block.text("thinking") or ""
        elif kind == "tool_use":
            function = {
                "name": block.required_text("name"),
                "arguments": block.value("input") or {},
            }
            calls.append({"id": block.text("id") or "", "type": "function", "function": function})
        elif kind != "redacted_thinking":
            raise block.wrong("type", f"is {kind!r:.40}: no answer of a model holds that here.")
    message["content"] = "\n".join(texts)
    if calls:
        message["tool_calls"] = calls
    return message


class MessageWriter:
    """Writes the answer to one request."""

    def __init__(self, answer: Answer) -> None:
        """Begins an answer."""
        self._answer = answer
        self._head = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": answer.model_name,
        }
        self._blocks = 0
        self._open: str | None = None

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """The events of a stream; their ``type`` is their name."""
        prompt = len(self._answer.texts[0].prompt)
        message: dict[str, Any] = {
            **self._head,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": prompt, "output_tokens": 0},
        }
        yield {"type": "message_start", "message": message}
        yield {"type": "ping"}
        async for delta in self._answer:
            for event in self._of_delta(delta):
                yield event
        for event in self._stop_block():
            yield event
        reason, sequence = stop_of(self._answer.endings[0])
        yield {
            "type": "message_delta",
            "delta": {"stop_reason": reason, "stop_sequence": sequence},
            "usage": self._usage(),
        }
        yield {"type": "message_stop"}

    async def whole(self) -> dict[str, Any]:
        """The answer as one object."""
        blocks: list[dict[str, Any]] = []
        async for delta in self._answer:
            _collect(blocks, delta)
        for block in blocks:
            if block["type"] == "tool_use":
                block["input"] = _input(block["input"])
        reason, sequence = stop_of(self._answer.endings[0])
        return {
            **self._head,
            "content": blocks,
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": self._usage(),
        }

    def _of_delta(self, delta: Delta) -> Iterator[dict[str, Any]]:
        if delta.reasoning:
            yield from self._block("thinking", {"thinking": "", "signature": ""})
            yield self._piece({"type": "thinking_delta", "thinking": delta.reasoning})
        if delta.content:
            yield from self._block("text", {"text": ""})
            yield self._piece({"type": "text_delta", "text": delta.content})
        call = delta.call
        if call is not None:
            if call.id:
                yield from self._stop_block()
                begun = {"id": call.id, "name": call.name, "input": {}}
                yield from self._block("tool_use", begun)
            if call.arguments:
                yield self._piece({"type": "input_json_delta", "partial_json": call.arguments})

    def _block(self, kind: str, begun: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if self._open == kind:
            return
        yield from self._stop_block()
        self._open = kind
        block = {"type": kind, **begun}
        yield {"type": "content_block_start", "index": self._blocks, "content_block": block}

    def _piece(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": self._blocks, "delta": delta}

    def _stop_block(self) -> Iterator[dict[str, Any]]:
        if self._open is None:
            return
        if self._open == "thinking":
            # Clients send it back unread; there is nothing here that could be signed.
            yield self._piece({"type": "signature_delta", "signature": ""})
        yield {"type": "content_block_stop", "index": self._blocks}
        self._open = None
        self._blocks += 1

    def _usage(self) -> dict[str, Any]:
        usage = self._answer.usage
        return {
            "input_tokens": usage.prompt_tokens - usage.cached_tokens,
            "cache_read_input_tokens": usage.cached_tokens,
            "cache_creation_input_tokens": 0,
            "output_tokens": usage.tokens,
        }


def stop_of(ending: Ending) -> tuple[str, str | None]:
    """``stop_reason`` and ``stop_sequence``."""
    if ending.finish == "stop" and ending.stop_string is not None:
        return "stop_sequence", ending.stop_string
    return _STOP_REASONS.get(ending.finish, "end_turn"), None


def _collect(blocks: list[dict[str, Any]], delta: Delta) -> None:
    for kind, key, text in (
        ("thinking", "thinking", delta.reasoning),
        ("text", "text", delta.content),
    ):
        if text:
            if not blocks or blocks[-1]["type"] != kind:
                signed = {"signature": ""} if kind == "thinking" else {}
                blocks.append({"type": kind, key: "", **signed})
            blocks[-1][key] += text
    call = delta.call
    if call is not None:
        if call.id:
            blocks.append({"type": "tool_use", "id": call.id, "name": call.name, "input": ""})
        blocks[-1]["input"] += call.arguments


def _input(text: str) -> Any:
    try:
        return parse_json(text.encode()) if text else {}
    except ValueError:
        return {"arguments": text}
