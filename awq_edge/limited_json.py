"""JSON of others, read within limits of depth and numbers.

Owns those limits, for checkpoints, caches and whatever else was not written by the program that
reads it. Refuses files and meaning: whoever asks knows where the text lies and what belongs in it.
"""

from __future__ import annotations

import json
from typing import Any

# Configurations nest four or five levels deep. Far from where Python's own recursion ends, so that
# whatever walks or prints a value that was read once is safe.
_MAX_DEPTH = 64
_MAX_DIGITS = 400  # of a whole number: the longest that a float may have


def parse_json(text: bytes) -> Any:
    """Any JSON value, from UTF-8 text.

    Raises:
        ValueError: It is no JSON, nested too deeply, or has a number of too many digits.
    """
    try:
        value = json.loads(text.decode("utf-8"), parse_int=_whole_number)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not _shallow(value, _MAX_DEPTH):
        raise ValueError("it is nested too deeply")
    return value


def _whole_number(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:  # the time to read one grows with the square of its length
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)


def _shallow(value: Any, levels: int) -> bool:
    """Whether lists and objects are nested at most so many levels deep."""
    if isinstance(value, dict):
        inner = value.values()
    elif isinstance(value, list):
        inner = value  # type: ignore[assignment]  # both are iterated over
    else:
        return True
    return levels > 0 and all(
        _shallow(part, levels - 1) for part in inner if isinstance(part, (dict, list))
    )
