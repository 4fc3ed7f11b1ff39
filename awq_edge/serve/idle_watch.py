"""A thread that sleeps until the next model has been idle for long enough.

Owns the thread and its one wait. Refuses models: whoever makes it says what is dropped. Where
nothing can expire the wait has no end, and where something can it ends once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class IdleWatch:
    """Calls a function when it is time."""

    def __init__(self, drop: Callable[[], float | None]) -> None:
        """Starts the thread.

        Args:
            drop: Drops what has expired; gives the seconds until something else will, None for
                never.
        """
        self._drop = drop
        self._condition = threading.Condition()
        self._changed = True
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="awq-edge idle models", daemon=True)
        self._thread.start()

    def look(self) -> None:
        """Something was used, released or told how long to stay."""
        with self._condition:
            self._changed = True
            self._condition.notify()

    def close(self) -> None:
        """Ends the thread, which may be dropping something."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        self._thread.join()

    def _run(self) -> None:
        seconds: float | None = None
        while True:
            with self._condition:
                if not self._changed and not self._closed:
                    self._condition.wait(seconds)
                if self._closed:
                    return
                self._changed = False
            seconds = self._drop()
