"""Messages of a request as a chat template may see them.

Owns the tolerant reading of roles and contents: a list of text parts, null, ``developer``, a null
description or id are all read. What cannot be read is a sentence with its place, never a failure
inside the template. Pictures stay where they stand (``picture_parts.py``); sound is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Union

from awq_edge.limited_json import parse_json
from awq_edge.serve.fields import Fields
from awq_edge.serve.picture_parts import (
    check_number,
    part_of,
    picture_of_source,
    picture_of_url,
    pictures_in,
    pictures_of_list,
)

# A text, or parts as chat templates have them.
Content = Union[str, "list[dict[str, Any]]"]

_ROLES = {"developer": "system", "function": "tool"}
_KNOWN_ROLES = ("system", "user", "assistant", "tool")
_REASONING = ("reasoning_content", "reasoning", "thinking")


def read_messages(body: Fields) -> list[dict[str, Any]]:
    """``messages`` of a request in OpenAI's or Ollama's form."""
    messages = [_message(fields) for fields in body.each("messages")]
    if not messages:
        raise body.wrong("messages", "is empty: say something.")
    check_number(sum(1 for _ in pictures_in(messages)), "messages")
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
    shown = role in ("user", "tool")
    content: Content = (
        content_parts(fields, "content") if shown else content_text(fields, "content")
    )
    if shown and "images" in fields:
        content = [*pictures_of_list(fields), *_as_parts(content)]
    message: dict[str, Any] = {"role": role, "content": content}
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
    """The text of a content where no picture can stand: a string, a list of text parts, or null."""
    content = content_parts(fields, name)
    if isinstance(content, list):
        raise fields.wrong(name, "holds a picture: those stand in messages of the user.")
    return content


def content_parts(fields: Fields, name: str) -> Content:
    """A content: its text, or where pictures stand in it the parts of ``vision/messages.py``."""
    value = fields.value(name)
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise fields.wrong(name, "is no text: use a string or a list of parts.")
    return joined(_part(part, f"{fields.path(name)}[{i}]") for i, part in enumerate(value))


def joined(parts: Iterable[str | dict[str, Any]]) -> Content:
    """Texts, those that follow each other in lines, with pictures between; a text if it is one."""
    found: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, dict):
            found.append(part)
        elif found and found[-1]["type"] == "text":
            found[-1] = {"type": "text", "text": f"{found[-1]['text']}\n{part}"}
        else:
            found.append({"type": "text", "text": part})
    if any(part["type"] == "image" for part in found):
        return found
    return str(found[0]["text"]) if found else ""


def _part(value: Any, name: str) -> str | dict[str, Any]:
    if isinstance(value, str):
        return value
    part = Fields(value, name)
    kind = part.text("type", "text") or "text"
    if kind == "refusal":
        return part.text("refusal") or ""
    if kind in ("text", "input_text", "output_text"):
        return part.text("text") or ""
    if kind == "image_url":
        if isinstance(part.value("image_url"), str):
            return part_of(picture_of_url(part, "image_url", part.text("detail")))
        inner = part.inner("image_url")
        if inner is None:
            raise part.wrong("image_url", "is missing.")
        return part_of(picture_of_url(inner, "url", inner.text("detail")))
    if kind == "input_image":
        if "file_id" in part:
            raise part.wrong("file_id", "is not supported: nothing is stored here.")
        return part_of(picture_of_url(part, "image_url", part.text("detail")))
    if kind == "image":
        return part_of(picture_of_source(part))
    raise part.wrong("type", f"is {kind!r:.40}: the server reads texts and pictures.")


def _as_parts(content: Content) -> list[dict[str, Any]]:
    if isinstance(content, list):
        return content
    return [{"type": "text", "text": content}] if content else []


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
