"""A model's answer on a terminal: Markdown while it arrives, its reasoning dim and apart.

Owns the redrawing of the block (paragraph, list, table, code) that is being written; blocks that
are complete are drawn once and scroll away like any output. Refuses terminals that cannot move the
cursor: ``_output.py`` writes plain text there. rich's Markdown takes longer to load than the first
words take to come, so it loads beside them, and what is shown until then is redrawn.
"""

from __future__ import annotations

import io
import re
import shutil
import sys
import threading
import time
from typing import Any

from awq_edge.reasoning import Piece
from awq_edge.terminal_text import printable

# Redrawing more often is not seen, and costs the line and a small board something.
_SECONDS_BETWEEN_DRAWINGS = 0.1
_DIM, _NORMAL = "\x1b[2m", "\x1b[0m"
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_ESCAPE = re.compile(r"\x1b\[[\d;]*m")
_TAB = "    "


class AnswerOnTerminal:
    """One answer on standard output. Feed it pieces, then finish it."""

    def __init__(self) -> None:
        """Writes nothing yet."""
        self._block = ""  # what is being written, complete blocks left out
        self._rows = 0  # that it takes on the screen, beyond the one the cursor is in
        self._widths: list[int] = []  # of those rows, in columns, once it is Markdown
        self._raw = True  # whether it is shown as it came
        self._reasoning = False
        self._drawn_at = 0.0

    def add(self, piece: Piece) -> None:
        """Shows some more text."""
        text = printable(piece.text).replace("\t", _TAB)
        if piece.is_reasoning:
            if not self._reasoning:
                self._reasoning = True
            _write(f"{_DIM}{text}{_NORMAL}")
            return
        if self._reasoning:
            self._reasoning = False
            _write("\n\n")
        if not self._block and self._raw:
            text = text.lstrip()
        if not _loader.is_done:
            _loader.begin()
            _write(text)
            self._block += text
            return
        self._switch()
        self._block += text
        self._complete_blocks()
        now = time.monotonic()
        if now - self._drawn_at >= _SECONDS_BETWEEN_DRAWINGS:
            self._draw(_rendered(self._block))
            self._drawn_at = now

    def finish(self) -> None:
        """Draws what is left, also of an answer that was broken off; ends with a new line."""
        if self._reasoning:
            _write("\n")
            return
        if self._block:
            _loader.begin()
            _loader.wait()
            self._switch()
            self._complete_blocks()
            self._draw(_rendered(self._block), whole=True)
        _write("\n" if self._raw else "")
        self._block, self._rows, self._widths, self._raw = "", 0, [], True

    def _switch(self) -> None:
        """From text as it came to Markdown, if it can still be wiped away."""
        if not self._raw:
            return
        self._raw = False
        columns, lines = _size()
        self._rows = _rows(self._block, columns)
        if self._rows >= lines:
            # The first lines have left the screen: they stay as they are.
            cut = self._block.rfind("\n") + 1
            self._block = self._block[cut:]
            self._rows = _rows(self._block, columns)

    def _complete_blocks(self) -> None:
        while end := _end_of_block(self._block):
            self._draw(_rendered(self._block[:end]), whole=True)
            _write("\n")  # between blocks, as rich has it within one text
            self._block = self._block[end:].lstrip("\n")
            self._rows, self._widths = 0, []

    def _draw(self, rows: list[str], *, whole: bool = False) -> None:
        """Replaces the block on the screen: by all of it, or by what fits at its end."""
        from rich.cells import cell_len

        columns, lines = _size()
        if self._widths:  # a window that was made narrower since has broken rows in two
            above = sum(max(1, -(-width // columns)) for width in self._widths) - 1
            self._rows = min(above, lines - 1)
        shown = rows if whole else rows[-max(1, lines - 1) :]
        up = f"\x1b[{self._rows}A" if self._rows else ""
        text = "\n".join(shown) + ("\n" if whole and shown else "")
        _write(f"\r{up}\x1b[J{text}")
        self._rows = max(0, len(shown) - 1)
        self._widths = [cell_len(_ESCAPE.sub("", row)) for row in shown]


class _Loader:
    """Loads rich's Markdown in a thread of its own."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None

    @property
    def is_done(self) -> bool:
        return self._thread is not None and not self._thread.is_alive()

    def begin(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=_load, daemon=True)
            self._thread.start()

    def wait(self) -> None:
        if self._thread is not None:
            self._thread.join()


_loader = _Loader()


def _load() -> None:
    import rich.console
    import rich.markdown  # noqa: F401  # for its time


def _rendered(text: str) -> list[str]:
    """Markdown as rows of the terminal's width, with its escape sequences."""
    from markdown_it import MarkdownIt
    from rich.console import Console
    from rich.markdown import Markdown

    # Without HTML: rich leaves it out, and a model's angle brackets are text.
    parser = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])
    document = Markdown("", hyperlinks=False)  # a link shows where it leads
    document.parsed = parser.parse(text)
    for token in document.parsed:
        for part in token.children or ():
            if part.type == "softbreak":  # a verse stays a verse
                part.type = "hardbreak"
    columns, _ = _size()
    sink = io.StringIO()
    console: Any = Console(
        file=sink, width=columns, force_terminal=True, highlight=False, emoji=False
    )
    console.print(document)
    return [row.rstrip(" ") for row in sink.getvalue().strip("\n").split("\n")]


def _end_of_block(text: str) -> int:
    """Where the first block ends: behind an empty line that an unindented one follows; else 0."""
    place, fence, empty = 0, "", False
    for line in text.splitlines(keepends=True):
        if not line.endswith("\n"):
            # Its beginning is enough: it is no continuation of a list item if it is not indented.
            return place if empty and not fence and not line[0].isspace() else 0
        mark = _FENCE.match(line)
        if fence:
            if mark and mark[1].startswith(fence) and not line.strip().strip(fence[0]):
                fence = ""
        else:
            if empty and line.strip() and not line[0].isspace():
                return place
            if mark:
                fence = mark[1]
        empty = not line.strip()
        place += len(line)
    return 0


def _rows(text: str, columns: int) -> int:
    """Line ends, and breaks at the terminal's edge, in a text that begins at the left."""
    from rich.cells import get_character_cell_size

    rows = column = 0
    for letter in text:
        if letter == "\n":
            rows, column = rows + 1, 0
            continue
        width = get_character_cell_size(letter)
        if column + width > columns:
            rows, column = rows + 1, 0
        column += width
    return rows


def _size() -> tuple[int, int]:
    """Columns and lines of the terminal."""
    size = shutil.get_terminal_size()
    return max(size.columns, 10), max(size.lines, 4)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
