"""What a process does when a file that it has mapped cannot be read any more.

A failing memory card, or a file that another program cuts short, makes the system send SIGBUS to
whoever reads, and Python has no exception for it. Owns the wish of a program to end with a sentence
then; the handler is the C library's (``native/failure/unreadable_file.cpp``) and comes with it. A
program that does not ask keeps its own handler.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any

_EXIT_STATUS = 1
_program = ""


def exit_on_unreadable_file(program: str) -> None:
    """Lets such a file end the process at once with one sentence on standard error and status 1.

    For programs that own their process: nothing is closed or flushed then, as after a kill.

    Args:
        program: What the sentence begins with; 1 to 61 bytes of UTF-8.

    Raises:
        InvalidArgumentError: ``program`` is empty or longer.
    """
    from awq_edge import errors

    global _program
    if not 1 <= len(program.encode()) <= 61 or "\0" in program:
        raise errors.InvalidArgumentError("program has 1 to 61 bytes.")
    _program = program
    native = sys.modules.get("awq_edge._native.library")
    if native is not None and native.load.cache_info().currsize:
        install(*native.load())


def install(ffi: Any, library: Any) -> None:
    """Installs the handler if the program has asked for it; called once the library is loaded."""
    if _program:
        # Where the system refuses, a fault ends the process as it would have without asking.
        library.awqe_exit_on_unreadable_file(_program.encode(), _EXIT_STATUS, ffi.NULL)


def before_mapping() -> None:
    """For those who map files without the C library: sees to it that the handler is there."""
    from awq_edge import errors

    if _program:
        from awq_edge._native import library

        with contextlib.suppress(errors.UnsupportedError):  # converting needs no library
            library.load()
