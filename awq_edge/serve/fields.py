"""Fields of a request's JSON, read by name and type.

Owns the sentences for what has the wrong type. Unknown fields are the client's business: nobody
asks for them here. ``null`` is the same as absent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from awq_edge.serve.faults import RequestError


class Fields:
    """One object of a request."""

    def __init__(self, values: object, name: str = "") -> None:
        """Takes a JSON value, which must be an object.

        Args:
            values: What stands there.
            name: How its fields are called in sentences: ``messages[2]``; empty for the body.
        """
        if not isinstance(values, dict):
            raise RequestError(
                f"{name or 'The body'} is {_kind(values)}: use an object.", param=name or None
            )
        self._values = values
        self._name = name

    def __contains__(self, name: str) -> bool:
        """Whether a field is there and not null."""
        return self._values.get(name) is not None

    @property
    def values(self) -> dict[str, Any]:
        """All fields."""
        return dict(self._values)

    def path(self, name: str) -> str:
        """A field's name from the body on."""
        return f"{self._name}.{name}" if self._name else name

    def wrong(self, name: str, what: str) -> RequestError:
        """The error for a field: ``what`` completes "NAME is"."""
        path = self.path(name)
        return RequestError(f"{path} {what}", param=path)

    def value(self, name: str) -> Any:
        """Whatever stands there."""
        return self._values.get(name)

    def text(self, name: str, default: str | None = None) -> str | None:
        """A string."""
        value = self._values.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.wrong(name, f"is {_kind(value)}: use a string.")
        return value

    def required_text(self, name: str) -> str:
        """A string that must be there."""
        value = self.text(name)
        if value is None:
            raise self.wrong(name, "is missing.")
        return value

    def boolean(self, name: str, default: bool = False) -> bool:
        """True or false."""
        value = self._values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(name, f"is {_kind(value)}: use true or false.")
        return value

    def integer(self, name: str, least: int, most: int) -> int | None:
        """A whole number; one that is written as 3.0 counts."""
        value = self._values.get(name)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(name, f"is {_kind(value)}: use a whole number.")
        if not least <= value <= most:
            raise self.wrong(name, f"is {value}: use {least} to {most}.")
        return value

    def number(self, name: str, least: float, most: float) -> float | None:
        """A number."""
        value = self._values.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
            raise self.wrong(name, f"is {_kind(value)}: use a number.")
        if not least <= value <= most:
            raise self.wrong(name, f"is {value}: use {least:g} to {most:g}.")
        return float(value)

    def list_of(self, name: str) -> Sequence[Any]:
        """A list; empty if absent."""
        value = self._values.get(name)
        if value is None:
            return ()
        if not isinstance(value, list):
            raise self.wrong(name, f"is {_kind(value)}: use a list.")
        return value

    def inner(self, name: str) -> Fields | None:
        """An object within; None if absent."""
        value = self._values.get(name)
        return None if value is None else Fields(value, self.path(name))

    def each(self, name: str) -> Iterator[Fields]:
        """The objects of a list."""
        for place, value in enumerate(self.list_of(name)):
            yield Fields(value, f"{self.path(name)}[{place}]")

    def texts(self, name: str, most: int) -> tuple[str, ...]:
        """A string or a list of strings."""
        value = self._values.get(name)
        if value is None:
            return ()
        found = [value] if isinstance(value, str) else value
        if not isinstance(found, list) or not all(isinstance(entry, str) for entry in found):
            raise self.wrong(name, f"is {_kind(value)}: use a string or a list of strings.")
        if len(found) > most:
            raise self.wrong(name, f"has {len(found)} entries: use at most {most}.")
        return tuple(found)


def _kind(value: object) -> str:
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string"}
    names.update({list: "a list", dict: "an object"})
    return names.get(type(value), "something else")
