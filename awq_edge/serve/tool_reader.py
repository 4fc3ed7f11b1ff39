"""Calls of functions, read from a text while it arrives.

Owns the cut between text and calls, and the pieces of a call's arguments. Text that may turn out to
be a marker is held back; what begins like a call and is none is given out as text. Refuses to judge
arguments: they go to the client as the model wrote them.
"""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass
from typing import Union

from awq_edge.serve.answers import ToolCallPart
from awq_edge.serve.tool_formats import ToolFormat
from awq_edge.tokenizer import overlap

Part = Union[str, ToolCallPart]

_NAME = re.compile(r'"name"\s*:\s*("(?:[^"\\]|\\.)*")')
_SPACE = " \t\r\n"
# A list's punctuation between calls.
_BETWEEN = _SPACE + ",["


def new_call_id() -> str:
    """An id that no other call has."""
    return f"call_{secrets.token_hex(12)}"


@dataclass
class _Call:
    """A JSON object that is being read."""

    text: str = ""
    depth: int = 0
    in_string: bool = False
    escaped: bool = False
    arguments_from: int = -1  # where the value of the arguments begins
    arguments_to: int = -1
    told: int = 0  # characters of the arguments that were given out
    part: ToolCallPart | None = None  # its beginning, once it was given out


class ToolReader:
    """Reads one answer."""

    def __init__(self, form: ToolFormat) -> None:
        """Begins with the answer's first character."""
        self._form = form
        self._held = ""
        self._within = False
        self._call: _Call | None = None
        self._at_start = form.bare
        self._count = 0

    @property
    def called(self) -> bool:
        """Whether there was a call."""
        return self._count > 0

    def add(self, text: str) -> list[Part]:
        """What can be told now."""
        self._held += text
        parts: list[Part] = []
        while self._advance(parts):
            pass
        return parts

    def finish(self) -> list[Part]:
        """What was held back, at the end of the text."""
        parts: list[Part] = []
        call, self._call = self._call, None
        held, self._held = self._held, ""
        if call is not None:
            if call.part is None:  # it never became one
                parts.append(call.text + held)
        elif held and not (self._within and not held.strip(_BETWEEN + "]")):
            parts.append(held)
        return parts

    def _advance(self, parts: list[Part]) -> bool:
        """One step; False when more text is needed."""
        if self._call is not None:
            return self._read_call(self._call, parts)
        if self._within:
            return self._read_between(parts)
        if self._at_start:
            start = self._held.lstrip(_SPACE)
            if not start:
                return False
            if start[0] == "{":
                self._held, self._within, self._at_start = start, True, False
                return True
            self._at_start = False
        return self._read_text(parts)

    def _read_text(self, parts: list[Part]) -> bool:
        begin = self._form.begin
        if not begin:
            if self._held:
                parts.append(self._held)
                self._held = ""
            return False
        place = self._held.find(begin)
        if place >= 0:
            before = self._held[:place].rstrip(_SPACE)
            if before and not self._count:
                parts.append(before)
            self._held, self._within = self._held[place + len(begin) :], True
            return True
        kept = overlap(self._held, begin)
        # White space before a call belongs to the call.
        ready = self._held[: len(self._held) - kept]
        shown = ready.rstrip(_SPACE)
        if shown:
            parts.append(shown)
        self._held = self._held[len(shown) :]
        return False

    def _read_between(self, parts: list[Part]) -> bool:
        """After a marker, or after a call: another call, the end marker, or text."""
        rest = self._held.lstrip(_BETWEEN if self._form.is_list else _SPACE + ";,")
        if not rest:
            return False
        end = self._form.end
        if rest[0] == "{":
            self._call, self._held = _Call(), rest
            return True
        if self._form.is_list and rest[0] == "]":
            self._held = rest[1:]
            self._within = bool(end)
            return True
        if end and rest.startswith(end):
            self._held, self._within = rest[len(end) :], False
            return True
        if end and end.startswith(rest):
            return False
        if self._form.begin and rest.startswith(self._form.begin):
            self._held = rest[len(self._form.begin) :]
            return True
        if self._form.begin and self._form.begin.startswith(rest):
            return False
        # No call after all.
        self._within = False
        parts.append(self._held if self._count else self._form.begin + self._held)
        self._held = ""
        return False

    def _read_call(self, call: _Call, parts: list[Part]) -> bool:
        text, self._held = self._held, ""
        for place, character in enumerate(text):
            call.text += character
            if self._take(call, character):
                self._held = text[place + 1 :]
                self._tell(call, parts, whole=True)
                self._call = None
                return True
        self._tell(call, parts, whole=False)
        return False

    def _take(self, call: _Call, character: str) -> bool:
        """Follows the JSON by one character; True at the end of the object."""
        if call.in_string:
            if call.escaped:
                call.escaped = False
            elif character == "\\":
                call.escaped = True
            elif character == '"':
                call.in_string = False
            return False
        if character == '"':
            call.in_string = True
        elif character in "{[":
            call.depth += 1
        elif character in "}]":
            call.depth -= 1
            if call.arguments_from >= 0 and call.arguments_to < 0 and call.depth <= 1:
                # A value in brackets ends with its own, any other one before the object's.
                call.arguments_to = len(call.text) - (0 if call.depth == 1 else 1)
            return call.depth <= 0
        elif character == "," and call.depth == 1:
            if call.arguments_from >= 0 and call.arguments_to < 0:
                call.arguments_to = len(call.text) - 1
        elif character == ":" and call.depth == 1 and call.arguments_from < 0:
            key = call.text[:-1].rstrip(_SPACE)
            if key.endswith(('"arguments"', '"parameters"')):
                call.arguments_from = len(call.text)
        return False

    def _tell(self, call: _Call, parts: list[Part], *, whole: bool) -> None:
        if call.part is None:
            # Until the arguments have begun, every "name" is the call's own.
            limit = call.arguments_from if call.arguments_from >= 0 else len(call.text)
            name = _NAME.search(call.text, 0, limit)
            if name is None and whole:
                name = _NAME.search(call.text, max(call.arguments_to, 0))
            if name is None or not (whole or call.arguments_from >= 0):
                if whole:
                    parts.append(call.text)
                return
            call.part = ToolCallPart(self._count, new_call_id(), json.loads(name[1]), "")
            self._count += 1
            parts.append(call.part)
        piece = self._arguments(call, whole)[call.told :]
        if piece:
            call.told += len(piece)
            parts.append(ToolCallPart(call.part.index, "", "", piece))

    def _arguments(self, call: _Call, whole: bool) -> str:
        """The arguments as far as they can be given out."""
        if call.arguments_from < 0:
            return "{}" if whole else ""
        end = call.arguments_to if call.arguments_to >= 0 else len(call.text)
        value = call.text[call.arguments_from : end].lstrip(_SPACE)
        if value.startswith('"'):  # JSON within a string, as some models write it
            if call.arguments_to < 0:
                return ""
            try:
                return str(json.loads(value))
            except ValueError:
                return value
        return value.rstrip(_SPACE) if call.arguments_to >= 0 else value
