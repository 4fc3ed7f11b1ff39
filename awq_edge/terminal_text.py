"""Text of others, before a terminal sees it: what would steer the terminal is spelt out.

Owns which characters those are and how they are written. Names, metadata, templates, paths, answers
of boards and a model's own words may hold anything; exceptions (``errors.py``) and everything that
the command line prints (``cli/_output.py``, ``cli/_errors.py``) pass through here. Doing it twice
changes nothing.
"""

from __future__ import annotations

import re

# Control characters of both sets, apart from tab and line feed; what turns the direction of the
# text behind it around, or ends a line where no line ends; halves of surrogate pairs, which stand
# for the bytes of a path that is not UTF-8.
_STEERING = "\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_IN_TEXT = re.compile(f"[{_STEERING}]")
_IN_LINE = re.compile(f"[{_STEERING}\n\t]")


def printable(text: str) -> str:
    """A text of several lines: tabs and line breaks stay."""
    return _IN_TEXT.sub(_spelt, text)


def printable_line(text: str) -> str:
    """A text that must stay within its line, such as a name."""
    return _IN_LINE.sub(_spelt, text)


def printable_json(document: str) -> str:
    """A JSON document in which only line breaks between values are raw: its values stay equal."""
    return _IN_TEXT.sub(lambda found: f"\\u{ord(found[0]):04x}", document)


def _spelt(found: re.Match[str]) -> str:
    code = ord(found[0])
    short = {0x09: r"\t", 0x0A: r"\n", 0x0D: r"\r"}.get(code)
    return short or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")
