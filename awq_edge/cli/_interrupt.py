"""Ctrl-C as KeyboardInterrupt, but never in the middle of an import.

Extension modules that are interrupted while they load swallow that, or stay half-loaded and fail
later in ways of their own. Owns the handler of SIGINT. Refuses text: ``_errors.py`` owns it.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_SECONDS_BETWEEN_TRIES = 0.05


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Answers Ctrl-C while the block runs, once the modules that are being loaded are whole."""
    handler = signal.getsignal(signal.SIGINT)
    # A shell may want it to be ignored; Windows has no way to try again.
    if handler not in (signal.default_int_handler, signal.SIG_DFL) or not hasattr(
        signal, "pthread_kill"
    ):
        yield
        return
    signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            # To this thread: a signal that another one gets does not end a sleep or a read here.
            again = threading.Timer(
                _SECONDS_BETWEEN_TRIES, signal.pthread_kill, (threading.get_ident(), number)
            )
            again.daemon = True
            again.start()
            return
        frame = frame.f_back
    raise KeyboardInterrupt
