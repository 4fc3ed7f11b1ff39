"""Messages of a request as a chat template may see them.

Owns the tolerant reading of roles and contents: a list of text parts, null, ``developer``, a null
description or id are all read. What cannot be read is a sentence with its place, never a failure
inside the template. Refuses pictures and sound: the server reads text alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from awq_edge.limited_json import parse_json
from awq_edge.serve.fields import Fields

_ROLES = {"developer": "system", "function": "tool"}
_KNOWN_ROLES = ("system", "user", "assistant", "tool")
_REASONING = ("reasoning_content", "reasoning", "thinking")


def read_messages(body: Fields) -> list[dict[str, Any]]:
    """``messages`` of a request in OpenAI's or Ollama's form."""
    messages = [_message(fields) for fields in body.each("messages")]
    if not messages:
        raise body.wrong("messages", "is empty: say something.")
    return messages


def read_tools(body: Fields) -> list[dict[str, Any]]:
    """``tools`` of a request in OpenAI's or Ollama's form."""
    return list(_tools(body))


def _tools(body: Fields) -> Iterator[dict[str, Any]]:
    for fields in body.each("tools"):
        if fields.text("type", "function") != "function":
            raise fields.wrong("type", "is not known: only functions can be called.")
        function = fields.inner("function") or fields
        yield tool(
            function.required_text("name"),
            function.text("description"),
            function.value("parameters"),
            function,
            "parameters",
        )


def tool(
    name: str, description: str | None, parameters: Any, fields: Fields, schema_name: str
) -> dict[str, Any]:
    """A function that the model may call, as templates expect it."""
    if parameters is not None and not isinstance(parameters, dict):
        raise fields.wrong(schema_name, "is no object: use a JSON schema.")
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": description or "",
            "parameters": parameters or {"type": "object", "properties": {}},
        },
    }


def _message(fields: Fields) -> dict[str, Any]:
    role = fields.required_text("role")
    role = _ROLES.get(role, role)
    if role not in _KNOWN_ROLES:
        raise fields.wrong("role", f"is not one of {', '.join(_KNOWN_ROLES)}.")
    message: dict[str, Any] = {"role": role, "content": content_text(fields, "content")}
    name = fields.text("name") or fields.text("tool_name")
    if name:
        message["name"] = name
    reasoning = next((fields.text(key) for key in _REASONING if key in fields), None)
    if role == "assistant" and reasoning:
        message["reasoning_content"] = reasoning
    if role == "tool" and "tool_call_id" in fields:
        message["tool_call_id"] = fields.text("tool_call_id")
    if role == "assistant" and fields.list_of("tool_calls"):
        message["tool_calls"] = [_call(call) for call in fields.each("tool_calls")]
    return message


def content_text(fields: Fields, name: str) -> str:
    """The text of a content: a string, a list of text parts, or null."""
    value = fields.value(name)
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise fields.wrong(name, "is no text: use a string or a list of parts.")
    texts = []
    for place, part in enumerate(value):
        if isinstance(part, str):
            texts.append(part)
            continue
        inner = Fields(part, f"{fields.path(name)}[{place}]")
        kind = inner.text("type", "text") or "text"
        if kind == "refusal":
            texts.append(inner.text("refusal") or "")
        elif kind in ("text", "input_text", "output_text"):
            texts.append(inner.text("text") or "")
        else:
            raise inner.wrong("type", f"is {kind!r:.40}: the server reads text alone.")
    return "\n".join(texts) if len(texts) > 1 else "".join(texts)


def _call(fields: Fields) -> dict[str, Any]:
    function = fields.inner("function") or fields
    return {
        "id": fields.text("id") or "",
        "type": "function",
        "function": {
            "name": function.required_text("name"),
            "arguments": call_arguments(function.value("arguments")),
        },
    }


def call_arguments(value: Any) -> Any:
    """Arguments of an earlier call: templates expect an object, clients send its JSON."""
    if value is None or value == "":
        return {}
    if isinstance(value, str):
        try:
            parsed = parse_json(value.encode("utf-8", "replace"))
        except ValueError:
            return value  # what the model wrote then was no JSON either
        return parsed if isinstance(parsed, dict) else value
    return value if isinstance(value, dict) else json.dumps(value)
