"""Ctrl-C as KeyboardInterrupt, but never where nobody could pass it on.

Extension modules that are interrupted while they load swallow that, or stay half-loaded and fail
later in ways of their own; a compiler that calls Python back crashes. Elsewhere Python itself
drops what is raised, as in callbacks and where objects end: there it comes again. Owns the handler
of SIGINT. Refuses text: ``_errors.py`` owns it.
"""

from __future__ import annotations

import contextlib
import functools
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

_SECONDS_BETWEEN_TRIES = 0.05
# They call Python from code of their own, which goes on without a result.
_COMPILERS = ("llvmlite", "numba")


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Answers Ctrl-C while the block runs, once what is loaded or compiled just then is whole."""
    handler = signal.getsignal(signal.SIGINT)
    # A shell may want it to be ignored; Windows has no way to try again.
    if handler not in (signal.default_int_handler, signal.SIG_DFL) or not hasattr(
        signal, "pthread_kill"
    ):
        yield
        return
    later = _Later()
    told = sys.unraisablehook
    main = threading.get_ident()

    def dropped(unraisable: Any) -> None:
        if unraisable.exc_type is KeyboardInterrupt and threading.get_ident() == main:
            later.signal(signal.SIGINT)
        else:
            told(unraisable)

    sys.unraisablehook = dropped
    signal.signal(signal.SIGINT, functools.partial(_interrupt, later))
    try:
        yield
    finally:
        later.never()
        sys.unraisablehook = told
        signal.signal(signal.SIGINT, handler)


class _Later:
    """A signal that is sent to this thread once more."""

    def __init__(self) -> None:
        self._timer: threading.Timer | None = None

    def signal(self, number: int) -> None:
        """Soon. To this thread: one that another gets ends neither a sleep nor a read here."""
        to = (threading.get_ident(), number)
        self._timer = threading.Timer(_SECONDS_BETWEEN_TRIES, signal.pthread_kill, to)
        self._timer.daemon = True
        self._timer.start()

    def never(self) -> None:
        """Not any more."""
        if self._timer is not None:
            self._timer.cancel()


def _interrupt(later: _Later, number: int, frame: FrameType | None) -> None:
    while frame is not None:
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if frame.f_code.co_filename.startswith("<frozen importlib") or package in _COMPILERS:
            later.signal(number)
            return
        frame = frame.f_back
    raise KeyboardInterrupt
