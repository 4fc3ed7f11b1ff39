"""The prompt of a conversation, as the model's template writes it.

Owns what goes to the template beside messages, and answers that a client has begun. A template that
knows no tools is told of them in the system's message.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from awq_edge.chat import templates
from awq_edge.errors import InvalidArgumentError, UnsupportedError
from awq_edge.model import Model
from awq_edge.serve.faults import RequestError
from awq_edge.serve.tool_formats import emulated
from awq_edge.serve.wanted import Wanted
from awq_edge.vision.messages import reads_parts, taken_apart
from awq_edge.vision.prompt import Marked


def template_of(model: Model, *, tools: bool) -> str:
    """The chat template that counts.

    Raises:
        UnsupportedError: The file has none.
    """
    found = templates(model.metadata)
    if not found:
        raise UnsupportedError(
            "The model has no chat template: it is a base model; use /v1/completions."
        )
    if tools and "tool_use" in found:
        return found["tool_use"]
    return found.get("default") or next(iter(found.values()))


def chat_prompt_text(model: Model, wanted: Wanted) -> str:
    """The prompt; an assistant's message at its end is gone on with.

    Raises:
        RequestError: The template refuses the messages.
        UnsupportedError: The model has no template.
    """
    messages: Sequence[Mapping[str, Any]] = wanted.messages or ()
    tools = list(wanted.tools) if wanted.tool_choice != "none" else []
    settings: dict[str, Any] = dict(wanted.variables)
    if "tools" not in template_of(model, tools=bool(tools)):
        messages = emulated(messages, tools)
    elif tools:
        settings["tools"] = tools
    begun = _begun_answer(messages)
    if model.sees_pictures:
        # Templates of such models read contents in parts, and leave texts out.
        rules = model.pictures.rules
        parted = reads_parts(template_of(model, tools=bool(tools)))
        as_they_are = Marked.as_they_are(rules)
        messages, _ = taken_apart(messages, (), as_they_are, in_parts=parted)
    try:
        if begun is None:
            return model.chat_prompt(messages, **settings)
        text = model.chat_prompt(messages, add_generation_prompt=False, **settings)
    except InvalidArgumentError as error:
        # Without the path of the file, which is nobody's business.
        reason = error.__cause__ if isinstance(error.__cause__, InvalidArgumentError) else error
        raise RequestError(str(reason), param="messages") from error
    except TypeError as error:  # a variable of the template's that is called like one of ours
        raise RequestError(
            "A variable for the chat template has a name that it cannot have.",
            param="chat_template_kwargs",
        ) from error
    place = text.rfind(begun)
    if place < 0:
        raise RequestError(
            "The model's chat template changes the assistant's last message, so that it cannot be "
            "gone on with: end with a user's message.",
            param="messages",
        )
    return text[: place + len(begun)]


def _begun_answer(messages: Sequence[Mapping[str, Any]]) -> str | None:
    last = messages[-1]
    if last["role"] != "assistant" or last.get("tool_calls"):
        return None
    return str(last.get("content") or "").strip() or None
