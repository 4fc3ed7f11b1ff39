"""All error text of the command line, and the exit status that goes with it.

Owns the way from an exception to one sentence with the next step. Refuses tracebacks, unless
AWQ_EDGE_DEBUG is set. Exit status: 1 for an error, 2 for a command line that makes no sense,
130 after Ctrl-C.
"""

from __future__ import annotations

import os
import sys
import traceback

from awq_edge import errors
from awq_edge.cli import _streams
from awq_edge.terminal_text import printable, printable_line

# Packages of the extras: absent on a device, and rightly so.
_EXTRA_OF = {
    **dict.fromkeys(
        (
            "gguf",
            "google",
            "huggingface_hub",
            "safetensors",
            "sentencepiece",
            "torch",
            "transformers",
        ),
        "convert",
    ),
    **dict.fromkeys(("datasets", "lm_eval"), "eval"),
    **dict.fromkeys(("llguidance", "starlette", "uvicorn"), "serve"),
    "matplotlib": "analyze",
}

# What to do next, where the sentence itself cannot know.
_NEXT_STEPS: tuple[tuple[type[errors.AwqEdgeError], str], ...] = (
    (
        errors.FileInvalidError,
        "Copy or convert the file again; 'awq-edge inspect --verify FILE' checks a copy.",
    ),
    (
        errors.InternalError,
        "This is a bug in awq-edge: please report it with the command and this text.",
    ),
)


def exit_status(error: BaseException) -> int:
    """Tells the user about ``error`` on standard error.

    Args:
        error: what ended the command.

    Returns:
        The status for the process to exit with.
    """
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":
        _say("stopped.")
        return 130
    if isinstance(error, BrokenPipeError) and _streams.reader_has_left(sys.stdout):
        _streams.forget_broken()
        return 1
    if os.environ.get("AWQ_EDGE_DEBUG", "") not in ("", "0"):
        traceback.print_exception(type(error), error, error.__traceback__)
    if hasattr(error, "format_message"):  # a usage error of typer, whichever click it is built on
        return _say_usage(error)
    _say(_sentence(error))
    return 1


def stopped() -> int:
    """Says that the user stopped the command; gives the exit status."""
    return exit_status(KeyboardInterrupt())


def _sentence(error: BaseException) -> str:
    if isinstance(error, errors.AwqEdgeError):
        for kind, step in _NEXT_STEPS:
            if isinstance(error, kind):
                return f"{error}\n{step}"
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").split(".")[0]
        if package in _EXTRA_OF:
            return (
                f"this needs the package {package!r}, which belongs on a workstation: "
                f"run pip install 'awq-edge[{_EXTRA_OF[package]}]'."
            )
    if isinstance(error, MemoryError):
        return "out of memory: close other programs, or use a smaller --context or a smaller model."
    if isinstance(error, OSError) and error.strerror:
        where = f"{_path(error.filename)}: " if error.filename else ""
        return f"{where}{error.strerror}."
    return (
        f"unexpected {type(error).__name__}: {error}. Please report it with what "
        "AWQ_EDGE_DEBUG=1 prints before the same command."
    )


def _say_usage(error: BaseException) -> int:
    message: str = error.format_message()  # type: ignore[attr-defined]  # checked by the caller
    context = getattr(error, "ctx", None)
    tip = f"\nTry '{context.command_path} --help'." if context is not None else ""
    _say(message + tip)
    return int(getattr(error, "exit_code", 2))


def _path(name: object) -> str:
    return printable_line(os.fsdecode(name) if isinstance(name, bytes) else str(name))


def _say(text: str) -> None:
    try:
        print(printable(f"awq-edge: {text}"), file=sys.stderr, flush=True)
    except OSError:  # nobody listens there: the status alone must do
        _streams.forget_broken()
