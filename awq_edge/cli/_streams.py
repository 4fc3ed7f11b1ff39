"""The three standard streams as every command expects them: open, and forgiving.

Owns what is done about a service that closes them, an encoding that lacks a character, and a reader
that has left. Refuses to print. Loads nothing, for it runs before anything else.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Any

_NAMES = ("stdin", "stdout", "stderr")
_closed: set[str] = set()


def prepare() -> None:
    """Opens what is closed on the null device, and lets no encoding end the program.

    A number that stays free would be given to the next file that is opened, and what is meant for
    standard output would end up in a model.
    """
    for number, name in enumerate(_NAMES):
        if getattr(sys, name) is None:
            _closed.add(name)
            _open_null(number)
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def standard_input_was_closed() -> bool:
    """Whether there was none when the program began."""
    return "stdin" in _closed


def reader_has_left(stream: Any) -> bool:
    """Whether a stream is a pipe whose other end is closed."""
    import select

    try:
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLOUT)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):
        return False


def forget_broken() -> None:
    """Nobody reads our output any more: the flush at exit must not complain."""
    for stream in (sys.stdout, sys.stderr):
        if reader_has_left(stream):
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, stream.fileno())
            os.close(devnull)


def _open_null(number: int) -> None:
    try:
        os.fstat(number)  # the stream is gone, and the number is something else's
    except OSError:
        found = os.open(os.devnull, os.O_RDWR)
        if found != number:
            os.dup2(found, number)
            os.close(found)
