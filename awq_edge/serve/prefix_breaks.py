"""Clients that change the beginning of their own prompts, so that no cache can help them.

A clock in the system message, or devices in another order, make every turn of a conversation a
new prompt. Owns the recognition: a prompt that holds the end of the last one of its client, but not
its beginning. Refuses texts: what it tells is a place, never a word of anybody.
"""

from __future__ import annotations

import array
import logging
from collections import OrderedDict
from collections.abc import Iterable

_log = logging.getLogger("awq_edge.serve")

_MOST_CLIENTS = 64
# Of the last prompt's end, without what a template puts behind every prompt.
_SAMPLE = 24
_BEHIND = 16
# A shorter conversation costs nothing to read.
_LEAST_TOKENS = 128


class PrefixBreaks:
    """What was seen so far. For one thread.

    Attributes:
        count: Prompts that broke their prefix.
    """

    def __init__(self) -> None:
        """Has seen nothing."""
        self.count = 0
        self._last: OrderedDict[str, array.array[int]] = OrderedDict()
        self._told: set[str] = set()

    def see(self, client: str, prompt: Iterable[int]) -> int | None:
        """Looks at a prompt.

        Args:
            client: Whose.
            prompt: What stands at each position: ids, and numbers of what is no token.

        Returns:
            The token from which on everything is read again although it was there before; None
            where nothing is wrong.
        """
        now = array.array("Q", prompt)
        last = self._last.pop(client, None)
        self._last[client] = now
        if len(self._last) > _MOST_CLIENTS:
            self._told.discard(self._last.popitem(last=False)[0])
        if last is None or len(last) < _LEAST_TOKENS:
            return None
        common = next((i for i, (a, b) in enumerate(zip(last, now)) if a != b), len(last))
        sample = last[-_SAMPLE - _BEHIND : -_BEHIND].tobytes()
        if common >= len(last) - _SAMPLE - _BEHIND or sample not in now.tobytes():
            return None
        self.count += 1
        if client not in self._told:
            self._told.add(client)
            _log.warning(
                "a client changes its prompts at token %d of %d, and all that follows is read "
                "again: what changes, a clock for example, belongs to the end",
                common,
                len(now),
            )
        return common
