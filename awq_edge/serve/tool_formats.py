"""How models write calls of functions: the formats, and which one a chat template teaches.

Owns the table and the system text for models whose template knows no tools. Refuses to read what a
model writes: ``tool_reader.py`` does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ToolFormat:
    """How calls look in a model's text.

    Attributes:
        name: For people.
        begin: What stands before a call, or before all of them.
        end: What stands behind; empty: the end of the text.
        bare: A call may also begin the answer without ``begin``, as a JSON object.
        arguments: The key of the arguments.
        is_list: Calls stand in one JSON list.
    """

    name: str
    begin: str
    end: str = ""
    bare: bool = False
    arguments: str = "arguments"
    is_list: bool = False


HERMES = ToolFormat("hermes", "<tool_call>", "</tool_call>")
# What a template must hold for its format, the more telling ones first.
_BY_TEMPLATE = (
    ("[TOOL_CALLS]", ToolFormat("mistral", "[TOOL_CALLS]", is_list=True)),
    ("<|/tool_call|>", ToolFormat("phi", "<|tool_call|>", "<|/tool_call|>", is_list=True)),
    ("<|tool_call|>", ToolFormat("granite", "<|tool_call|>", is_list=True)),
    ("<tool_call>", HERMES),
    (
        "<|python_tag|>",
        ToolFormat("llama3", "<|python_tag|>", bare=True, arguments="parameters"),
    ),
    ('"parameters"', ToolFormat("json", "", bare=True, arguments="parameters")),
)


def tool_format(template: str) -> ToolFormat | None:
    """The format that a template teaches; None where it knows no tools."""
    if "tools" not in template:
        return None
    for marker, found in _BY_TEMPLATE:
        if marker in template:
            return found
    return HERMES


_EMULATED = """\
You may call functions. They are described by these JSON schemas:
{schemas}
To call one, answer with a JSON object within tags, and nothing else:
<tool_call>
{{"name": "function name", "arguments": {{"argument": "value"}}}}
</tool_call>"""


def emulated(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Messages that teach and hold calls in plain text, for a template that knows no tools.

    Args:
        messages: In OpenAI's form.
        tools: Functions; without any, earlier calls are written as text all the same.
    """
    written = [_plain(message) for message in messages]
    if not tools:
        return written
    schemas = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    text = _EMULATED.format(schemas=schemas)
    if written and written[0]["role"] == "system":
        first = {**written[0], "content": f"{written[0]['content']}\n\n{text}"}
        return [first, *written[1:]]
    return [{"role": "system", "content": text}, *written]


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    if message["role"] == "tool":
        around = "<tool_response>\n", "\n</tool_response>"
        content = message["content"]
        if isinstance(content, str):
            return {"role": "user", "content": content.join(around)}
        first, last = ({"type": "text", "text": text} for text in around)
        return {"role": "user", "content": [first, *content, last]}
    calls = message.get("tool_calls")
    if not calls:
        return dict(message)
    texts = [str(message["content"])] if message["content"] else []
    texts += [
        f"<tool_call>\n{json.dumps(call['function'], ensure_ascii=False)}\n</tool_call>"
        for call in calls
    ]
    return {"role": "assistant", "content": "\n".join(texts)}
