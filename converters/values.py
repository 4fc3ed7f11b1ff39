"""A table of a config.json whose values are fetched with their type, or refused in one sentence.

Owns what absent keys and null mean. Refuses to know what a key is for.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from awq_edge.errors import CheckpointError

# Sizes beyond are refused where they are read, so that nothing is ever made in such a number.
_LARGEST = (1 << 31) - 1


class Values:
    """A config.json, or a table in it.

    A key that is absent has the value of the family's class; null is what the class makes of it,
    where it knows a meaning, and refused elsewhere.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        defaults: Mapping[str, Any],
        keys: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        """Takes the parsed table, the values of absent keys, and other names of keys."""
        self.values = values
        self._defaults = defaults
        self._keys = {} if keys is None else keys

    def get(self, key: str, default: Any = None) -> Any:
        """A value as it stands, None for null; an absent one is the class's, or ``default``."""
        return self.values.get(self._called(key), self._defaults.get(key, default))

    def _called(self, key: str) -> str:
        """The name under which the file has a key; an absent one is called as in the family."""
        names = (*self._keys.get(key, ()), key)
        # A value counts before null, and null before nothing.
        return min(names, key=lambda n: (n not in self.values, self.values.get(n) is None))

    def of_the_class(self, key: str) -> Any:
        """What the family's class takes for an absent key; None if it has no such."""
        return self._defaults.get(key)

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number that counts something."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise CheckpointError(
                f"config.json should have a whole number {self._called(key)}; it has "
                f"{shown(value)}."
            )
        if not -_LARGEST <= value <= _LARGEST:
            raise CheckpointError(
                f"config.json has {shown(value)} for {self._called(key)}, which is too large."
            )
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number."""
        value = self.get(key, default)
        try:
            if not isinstance(value, bool) and math.isfinite(value):
                return float(value)
        except (TypeError, OverflowError):
            pass
        raise CheckpointError(
            f"config.json should have a number {self._called(key)}; it has {shown(value)}."
        )

    def divisor(self, key: str) -> float:
        """A finite number that something is divided by, so not 0."""
        value = self.number(key)
        if value == 0:
            raise CheckpointError(
                f"config.json has 0 for {self._called(key)}, by which numbers are divided."
            )
        return value

    def number_or(self, key: str, default: float) -> float:
        """A finite number; null is the default too."""
        return default if self.get(key) is None else self.number(key)

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false; null is the default."""
        value = self.get(key, default)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise CheckpointError(
                f"config.json should say true or false for {self._called(key)}, not {shown(value)}."
            )
        return value

    def table(self, key: str) -> Values:
        """A table of further keys; null and absent: an empty one."""
        values = {} if self.get(key) is None else self.get(key)
        if not isinstance(values, Mapping):
            raise CheckpointError(
                f"config.json should have a table {self._called(key)}, not {shown(values)}."
            )
        return Values(values, {})


def shown(value: Any) -> str:
    """A value of a config.json for an error text: as JSON, and short."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]} …"
