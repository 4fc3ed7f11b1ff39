"""Prompts that do not stand in the command line: on standard input, or in a file.

Owns how their bytes become a text: UTF-8, with or without a byte order mark, line ends of any
system as line feeds, and without the last one, which belongs to the shell or the editor.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import BinaryIO

from awq_edge.cli._streams import standard_input_was_closed
from awq_edge.errors import FileUnreadableError, InvalidArgumentError

# Several times the longest context there is. A stream without end must not fill the memory.
_MOST_BYTES = 64 << 20


def read_standard_input() -> str:
    """All of standard input.

    Raises:
        InvalidArgumentError: It is closed, or no text.
    """
    if standard_input_was_closed():
        raise InvalidArgumentError(
            "Standard input is closed, so there is no prompt to read from it."
        )
    return _text(_read(sys.stdin.buffer, "Standard input"), "Standard input")


def read_prompt_file(path: Path, most_bytes: int = _MOST_BYTES) -> str:
    """All of a file.

    Args:
        path: The file.
        most_bytes: A larger one is refused.

    Raises:
        FileUnreadableError: It cannot be read.
        InvalidArgumentError: It is no text.
    """
    try:
        with path.open("rb") as file:
            content = _read(file, str(path), most_bytes)
    except OSError as error:
        raise FileUnreadableError(f"{path}: {error.strerror}.") from error
    return _text(content, str(path))


def _read(stream: BinaryIO, source: str, most_bytes: int = _MOST_BYTES) -> bytes:
    content = stream.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise InvalidArgumentError(
            f"{source} holds more than {most_bytes >> 20} MB, which is no prompt."
        )
    return content


def _text(content: bytes, source: str) -> str:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(
            f"{source} is not UTF-8 (byte {error.start}): convert it, for example with iconv."
        ) from error
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    return text.removesuffix("\n")
