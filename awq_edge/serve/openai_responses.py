"""OpenAI's ``/v1/responses``: its requests read, its answers written.

Owns the words of that protocol alone. Nothing is stored: an answer that another request refers to
is not known here, and the client sends the conversation, as it does with the other interfaces.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from awq_edge.generation import GenerationConfig
from awq_edge.serve.answers import Answer, Delta
from awq_edge.serve.fields import Fields
from awq_edge.serve.messages import call_arguments, content_parts, content_text, tool
from awq_edge.serve.openai_chat import read_tool_choice
from awq_edge.serve.picture_parts import check_number, pictures_in
from awq_edge.serve.settings import MOST_TOKENS, read_settings
from awq_edge.serve.wanted import Wanted

Table = dict[str, Any]


def read_request(body: Fields, defaults: GenerationConfig) -> Wanted:
    """What a request asks for.

    Raises:
        RequestError: A field has the wrong type or value, or asks for what is not there.
    """
    for name in ("previous_response_id", "conversation", "prompt"):
        if name in body:
            raise body.wrong(name, "is not supported: nothing is stored here, send all messages.")
    tools = []
    for fields in body.each("tools"):
        if fields.required_text("type") != "function":
            raise fields.wrong("type", "is not known: only functions can be called.")
        name = fields.required_text("name")
        parameters = fields.value("parameters")
        tools.append(tool(name, fields.text("description"), parameters, fields, "parameters"))
    limit = body.integer("max_output_tokens", 1, MOST_TOKENS)
    return Wanted(
        model=body.text("model") or "",
        config=read_settings(body, defaults, limit),
        messages=_messages(body),
        tools=tools,
        tool_choice=read_tool_choice(body),
        schema=_schema(body),
        stream=body.boolean("stream"),
    )


def _schema(body: Fields) -> Any:
    text = body.inner("text")
    wanted = None if text is None else text.inner("format")
    if wanted is None:
        return None
    kind = wanted.text("type", "text")
    if kind == "json_object":
        return True
    if kind == "json_schema":
        if not isinstance(wanted.value("schema"), (dict, bool)):
            raise wanted.wrong("schema", "is missing: use a JSON schema.")
        return wanted.value("schema")
    if kind != "text":
        raise wanted.wrong("type", "is not one of text, json_object, json_schema.")
    return None


def _messages(body: Fields) -> list[Table]:
    messages: list[Table] = []
    instructions = body.text("instructions")
    if instructions:
        messages.append({"role": "system", "content": instructions})
    value = body.value("input")
    if isinstance(value, str):
        messages.append({"role": "user", "content": value})
        return messages
    for item in body.each("input"):
        kind = item.text("type", "message")
        if kind == "message":
            role = item.required_text("role")
            role = "system" if role == "developer" else role
            if role not in ("system", "user", "assistant"):
                raise item.wrong("role", "is not one of system, developer, user, assistant.")
            read = content_parts if role == "user" else content_text
            messages.append({"role": role, "content": read(item, "content")})
        elif kind == "function_call":
            _add_call(messages, item)
        elif kind == "function_call_output":
            messages.append(
                {
                    "role": "tool",
                    "tool_call_id": item.text("call_id") or "",
                    "content": content_parts(item, "output"),
                }
            )
        elif kind != "reasoning":
            raise item.wrong("type", f"is {kind!r:.40}, which is not known here.")
    if not any(message["role"] != "system" for message in messages):
        raise body.wrong("input", "is empty: say something.")
    check_number(sum(1 for _ in pictures_in(messages)), "input")
    return messages


def _add_call(messages: list[Table], item: Fields) -> None:
    """Calls that follow one another are one message."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    function = {
        "name": item.required_text("name"),
        "arguments": call_arguments(item.value("arguments")),
    }
    call = {"id": item.text("call_id") or "", "type": "function", "function": function}
    messages[-1].setdefault("tool_calls", []).append(call)


class ResponseWriter:
    """Writes the answer to one request."""

    def __init__(self, body: Fields, answer: Answer, wanted: Wanted) -> None:
        """Begins an answer."""
        self._answer = answer
        self._output: list[Table] = []
        self._number = 0
        text = body.value("text") if isinstance(body.value("text"), dict) else {}
        self._head: Table = {
            "id": f"resp_{secrets.token_hex(16)}",
            "object": "response",
            "created_at": int(time.time()),
            "error": None,
            "incomplete_details": None,
            "instructions": body.value("instructions"),
            "max_output_tokens": body.value("max_output_tokens"),
            "metadata": body.value("metadata") or {},
            "model": answer.model_name,
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": wanted.config.temperature,
            "text": {"format": text.get("format") or {"type": "text"}},
            "tool_choice": body.value("tool_choice") or "auto",
            "tools": body.value("tools") or [],
            "top_p": wanted.config.top_p,
            "truncation": "disabled",
            "user": None,
        }

    async def events(self) -> AsyncIterator[Table]:
        """The events of a stream; their ``type`` is their name."""
        begun = {**self._head, "status": "in_progress", "output": [], "usage": None}
        yield self._event("response.created", response=begun)
        yield self._event("response.in_progress", response=begun)
        async for delta in self._answer:
            for event in self._of_delta(delta):
                yield event
        for event in self._close_item():
            yield event
        response = self._finished()
        yield self._event(f"response.{response['status']}", response=response)

    async def whole(self) -> Table:
        """The answer as one object."""
        async for delta in self._answer:
            for _ in self._of_delta(delta):
                pass
        for _ in self._close_item():
            pass
        return self._finished()

    def failed(self, error: Table) -> Table:
        """The event for an error after the beginning."""
        fault = {"code": "server_error", "message": error["error"]["message"]}
        response = {
            **self._head,
            "status": "failed",
            "error": fault,
            "output": self._output,
            "usage": None,
        }
        return self._event("response.failed", response=response)

    def _event(self, kind: str, **values: Any) -> Table:
        event = {"type": kind, "sequence_number": self._number, **values}
        self._number += 1
        return event

    def _of_delta(self, delta: Delta) -> Iterator[Table]:
        if delta.reasoning:
            yield from self._open("reasoning")
            yield self._piece("reasoning_text", delta.reasoning)
        if delta.content:
            yield from self._open("message")
            yield self._piece("output_text", delta.content)
        call = delta.call
        if call is not None:
            if call.id:
                yield from self._close_item()
                yield from self._open("function_call", call_id=call.id, name=call.name)
            if call.arguments:
                item = self._output[-1]
                item["arguments"] += call.arguments
                yield self._event(
                    "response.function_call_arguments.delta",
                    item_id=item["id"],
                    output_index=len(self._output) - 1,
                    delta=call.arguments,
                )

    def _piece(self, kind: str, text: str) -> Table:
        item = self._output[-1]
        item["content"][0]["text"] += text
        extra: Table = {"logprobs": []} if kind == "output_text" else {}
        return self._event(
            f"response.{kind}.delta",
            item_id=item["id"],
            output_index=len(self._output) - 1,
            content_index=0,
            delta=text,
            **extra,
        )

    def _open(self, kind: str, **values: Any) -> Iterator[Table]:
        """Begins an item, unless one of its kind is being written."""
        if self._output and self._output[-1]["status"] == "in_progress":
            if self._output[-1]["type"] == kind:
                return
            yield from self._close_item()
        names = {"message": "msg", "reasoning": "rs", "function_call": "fc"}
        item: Table = {"type": kind, "id": f"{names[kind]}_{secrets.token_hex(12)}"}
        item.update(status="in_progress", **values)
        if kind == "message":
            item.update(role="assistant", content=[])
        elif kind == "reasoning":
            item.update(summary=[], content=[])
        else:
            item["arguments"] = ""
        self._output.append(item)
        place = len(self._output) - 1
        yield self._event("response.output_item.added", output_index=place, item=_copy(item))
        if kind != "function_call":
            item["content"] = [_part(kind)]
            yield self._event(
                "response.content_part.added",
                item_id=item["id"],
                output_index=place,
                content_index=0,
                part=_part(kind),
            )

    def _close_item(self) -> Iterator[Table]:
        """Ends the item that is being written, if there is one."""
        if not self._output or self._output[-1]["status"] != "in_progress":
            return
        item, place = self._output[-1], len(self._output) - 1
        at = {"item_id": item["id"], "output_index": place}
        if item["type"] == "function_call":
            yield self._event(
                "response.function_call_arguments.done",
                **at,
                name=item["name"],
                arguments=item["arguments"],
            )
        else:
            kind = "output_text" if item["type"] == "message" else "reasoning_text"
            part = item["content"][0]
            extra: Table = {"logprobs": []} if kind == "output_text" else {}
            yield self._event(
                f"response.{kind}.done", **at, content_index=0, text=part["text"], **extra
            )
            yield self._event("response.content_part.done", **at, content_index=0, part=_copy(part))
        item["status"] = "completed"
        yield self._event("response.output_item.done", output_index=place, item=_copy(item))

    def _finished(self) -> Table:
        usage = self._answer.usage
        cut = self._answer.endings[0].finish == "length"
        return {
            **self._head,
            "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": self._output,
            "usage": {
                "input_tokens": usage.prompt_tokens,
                "input_tokens_details": {"cached_tokens": usage.cached_tokens},
                "output_tokens": usage.tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage.prompt_tokens + usage.tokens,
            },
        }


def _part(kind: str) -> Table:
    if kind == "message":
        return {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    return {"type": "reasoning_text", "text": ""}


def _copy(table: Table) -> Table:
    """As it is now: a later piece must not change what was said before."""
    copied: Table = json.loads(json.dumps(table))
    return copied
