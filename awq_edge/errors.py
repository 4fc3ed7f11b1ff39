"""The package's exceptions: one class per kind of failure, each with one sentence for the user.

Owns the classes. Refuses to print: ``awq_edge/cli/_errors.py`` does.
"""

from __future__ import annotations

from awq_edge.terminal_text import printable


class AwqEdgeError(Exception):
    """Base of every error that a user can cause and mend.

    The text says what was wrong, where, and what to do. Names and paths in it are of others: read
    as a string it holds nothing that steers a terminal.
    """

    def __str__(self) -> str:
        """The text."""
        return printable(super().__str__())


class InvalidArgumentError(AwqEdgeError, ValueError):
    """An argument can never work."""


class FileUnreadableError(AwqEdgeError, OSError):
    """The operating system refused to open, read or write a file."""


class FileInvalidError(AwqEdgeError):
    """A packed file breaks a rule of ``native/format/FORMAT.md``; the text names the rule."""


class UnsupportedError(AwqEdgeError):
    """Well-formed, but not for this release or this CPU."""


class OutOfMemoryError(AwqEdgeError, MemoryError):
    """Not enough memory for what was asked."""


class ContextFullError(AwqEdgeError):
    """The session's context has no room for that many tokens."""


class CancelledError(AwqEdgeError):
    """A callback stopped the work."""


class InternalError(AwqEdgeError):
    """A bug in awq-edge."""


class DeviceLostError(AwqEdgeError):
    """The GPU failed while it computed; what it held is gone."""


class CheckpointError(AwqEdgeError):
    """A Hugging Face checkpoint is incomplete, damaged or of a kind that cannot be converted."""


class BuildError(AwqEdgeError):
    """Compiling for a board failed; the text names the log."""


class BoardError(AwqEdgeError):
    """A board, or the way to it, is not as it must be."""
