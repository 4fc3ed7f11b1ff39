"""Bodies with pictures, all together within a limit: many that wait must not take the memory.

Owns the count alone. A body counts from the moment at which it is longer than a text may be until
nothing holds it any more.
"""

from __future__ import annotations

import threading

from awq_edge.serve.texts import BusyError

_RETRY_SECONDS = 5


class LongBodies:
    """What long bodies take."""

    def __init__(self, from_bytes: int, most_bytes: int) -> None:
        """Begins with none.

        Args:
            from_bytes: A shorter body does not count.
            most_bytes: Of all that count.
        """
        self._from = from_bytes
        self._most = most_bytes
        self._lock = threading.Lock()
        self._bytes = 0

    def hold(self) -> Held:
        """A body that is about to come."""
        return Held(self)

    def grow(self, size: int, more: int) -> bool:
        """Counts a body of ``size`` bytes in all, ``more`` of them new; False if it is short.

        Raises:
            BusyError: There is no room.
        """
        if size <= self._from:
            return False
        with self._lock:
            if self._bytes + more > self._most:
                raise BusyError(
                    "Too many requests with pictures are being read. Try again later.",
                    _RETRY_SECONDS,
                )
            self._bytes += more
        return True

    def give_back(self, size: int) -> None:
        """A body is gone."""
        with self._lock:
            self._bytes -= size


class Held:
    """One body.

    Attributes:
        size: That counts.
    """

    def __init__(self, bodies: LongBodies) -> None:
        """Has nothing yet."""
        self._bodies = bodies
        self.size = 0

    def grow(self, size: int) -> None:
        """It has so many bytes in all.

        Raises:
            BusyError: There is no room.
        """
        if self._bodies.grow(size, size - self.size):
            self.size = size

    def release(self) -> None:
        """It is gone; a second call does nothing."""
        size, self.size = self.size, 0
        self._bodies.give_back(size)
