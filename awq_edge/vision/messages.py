"""Messages with pictures: taken apart before a chat template sees them, put together behind it.

Owns where a picture may stand in a conversation, and what becomes of one in a model whose template
knows no pictures. Refuses rendering (``chat.py``) and ids (``picture_prompt.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from awq_edge.errors import InvalidArgumentError
from awq_edge.vision.prompt import Marked

_KINDS = ("text", "image")


def taken_apart(
    messages: Sequence[Mapping[str, Any]],
    images: Sequence[Any],
    marked: Marked,
    *,
    in_parts: bool,
) -> tuple[list[dict[str, Any]], list[Any]]:
    """Messages for a template, and the pictures in them in order.

    A content is a text or a list of parts: ``{"type": "text", "text": …}`` and ``{"type": "image",
    "image": …}``. Parts without an ``image`` take those of ``images`` in turn; where there is no
    such part at all, these stand in front of the last message of the user.

    Args:
        messages: Oldest first.
        images: Pictures that are handed in beside them.
        marked: Hides the family's words that a user typed.
        in_parts: Whether the template reads contents in parts; otherwise it gets texts, each
            picture its place and a line's end.

    Raises:
        InvalidArgumentError: A part is of no kind that is known, a picture is none of the user's,
            or there are more or fewer pictures than parts for them.
    """
    parted = [(message, _parts(message)) for message in messages]
    waiting = [part for _, parts in parted for part in parts if _waits(part)]
    given = list(images)
    if given and not waiting:
        _last_of_user(parted)[:0] = [{"type": "image"} for _ in given]
    elif len(given) != len(waiting):
        raise InvalidArgumentError(
            f"The messages have {len(waiting)} places for pictures, and {len(given)} pictures are "
            "given: their numbers must be the same."
        )
    turn, found, rendered = iter(given), [], []
    for message, parts in parted:
        shown: list[dict[str, Any]] = []
        for part in parts:
            if part["type"] == "text":
                shown.append({"type": "text", "text": marked.hidden(part["text"])})
                continue
            if message.get("role") == "assistant":
                raise InvalidArgumentError(
                    "A turn of the assistant's holds a picture; it has none."
                )
            found.append(next(turn) if _waits(part) else part["image"])
            shown.append({"type": "image"})
        content: Any = shown if in_parts else _as_text(shown, marked)
        # A message without content stays one: of tool calls, for example.
        others = {k: marked.hidden_in(v) for k, v in message.items() if k != "content"}
        rendered.append({**others, "content": content} if "content" in message else others)
    return rendered, found


def reads_parts(template: str) -> bool:
    """Whether a chat template knows pictures: then it reads contents in parts."""
    return "image" in template


def _waits(part: Mapping[str, Any]) -> bool:
    return bool(part["type"] == "image" and part.get("image") is None)


def _parts(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    if not isinstance(message, Mapping):
        raise InvalidArgumentError(
            f"A message is a table with 'role' and 'content', not {message!r:.80}."
        )
    content = message.get("content")
    if content is None:
        return []
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, (list, tuple)):
        raise InvalidArgumentError(
            f"A message's content is a text or a list of parts, not a {type(content).__name__}."
        )
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in _KINDS or (kind == "text" and not isinstance(part.get("text"), str)):
            raise InvalidArgumentError(
                f"A part of a message is {str(part)[:60]!r}; parts are "
                "{'type': 'text', 'text': …} and {'type': 'image', 'image': …}."
            )
    return [dict(part) for part in content]


def _last_of_user(
    parted: Sequence[tuple[Mapping[str, Any], list[dict[str, Any]]]],
) -> list[dict[str, Any]]:
    for number in reversed(range(len(parted))):
        if parted[number][0].get("role") == "user":
            return parted[number][1]
    raise InvalidArgumentError("Pictures are given, and no message of the user's to show them in.")


def _as_text(parts: Sequence[Mapping[str, Any]], marked: Marked) -> str:
    place = marked.rules.in_front
    return "".join(place if part["type"] == "image" else part["text"] for part in parts)
