"""The prompt of a conversation, as the model's template writes it.

Owns what goes to the template beside messages, and answers that a client has begun. A template that
knows no tools is told of them in the system's message.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from awq_edge.chat import templates
from awq_edge.errors import InvalidArgumentError, UnsupportedError
from awq_edge.model import Model
from awq_edge.serve.faults import RequestError
from awq_edge.serve.tool_formats import emulated
from awq_edge.serve.wanted import Wanted
from awq_edge.vision.messages import reads_parts, taken_apart
from awq_edge.vision.picture_prompt import PicturePrompt
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


@dataclass(frozen=True)
class ChatPrompt:
    """What a conversation is for a model.

    Attributes:
        text: As the template writes it, what a user typed for a picture's place marked.
        ids: Its tokens.
        pictures: The same with its pictures; None where it has none.
    """

    text: str
    ids: list[int]
    pictures: PicturePrompt | None = None


def chat_prompt(model: Model, wanted: Wanted) -> ChatPrompt:
    """The prompt of a conversation; encodes no picture.

    Raises:
        RequestError: The template refuses the messages, or a picture cannot be read.
        UnsupportedError: The model has no template.
    """
    messages: Sequence[Mapping[str, Any]] = wanted.messages or ()
    tools = list(wanted.tools) if wanted.tool_choice != "none" else []
    template = template_of(model, tools=bool(tools))
    settings: dict[str, Any] = dict(wanted.variables)
    if "tools" not in template:
        messages = emulated(messages, tools)
    elif tools:
        settings["tools"] = tools
    begun = _begun_answer(messages)
    if not model.sees_pictures:
        text = _rendered(model, messages, settings, begun)
        return ChatPrompt(text, model.tokenizer.encode(text, add_bos=False))
    # Templates of such models read contents in parts, and leave texts out.
    marked = Marked.new(model.pictures.rules)
    plain, sent = taken_apart(messages, (), marked, in_parts=reads_parts(template))
    if begun is not None:
        begun = marked.hidden(begun)
    text = _rendered(model, plain, marked.hidden_in(settings), begun)
    if not sent:
        ids = marked.tokens(model.tokenizer, marked.hidden(text), [], add_bos=False)
        return ChatPrompt(text, ids)
    if model.pictures.looked_at:
        raise UnsupportedError(
            f"{model.name} looks at pictures through layers of its own, which are not served so "
            "far: run and chat show them to it."
        )
    pictures = model.pictures.together([picture.prepared(model) for picture in sent])
    whole = PicturePrompt.of_text(
        model.pictures, model.tokenizer, text, marked, pictures, add_bos=False
    )
    return ChatPrompt(text, whole.tokens, whole)


def _rendered(
    model: Model,
    messages: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    begun: str | None,
) -> str:
    """The template's text; an assistant's message at its end, ``begun``, is gone on with."""
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
