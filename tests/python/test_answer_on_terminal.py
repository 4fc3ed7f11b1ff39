"""Markdown on a terminal: what stands there in the end does not depend on how it arrived."""

from __future__ import annotations

import io
import os
import random
import re
import sys
from collections.abc import Callable

import pytest

from awq_edge.cli import _markdown
from awq_edge.cli._markdown import AnswerOnTerminal
from awq_edge.reasoning import Piece

COLUMNS, LINES = 40, 12

TEXT = """\
# A heading

A paragraph of **bold** words that is longer than one line of this narrow terminal.
A second line <b>with brackets</b>.

1. first

   continued

2. second with `code`

```python
def f(x):

    return x
```

| a | b |
|---|---|
| 1 | 2 |

The end.
"""


class Screen:
    """The few things of a terminal that an answer uses; every row that was ever begun."""

    def __init__(self) -> None:
        self.rows: list[str] = [""]
        self.row = self.column = 0

    def write(self, text: str) -> None:
        for match in re.finditer(r"\x1b\[(\d*)([A-Za-z;\d]*?[A-Za-z])|.|\n", text, re.DOTALL):
            token = match[0]
            if token == "\n":
                self.row, self.column = self.row + 1, 0
            elif token == "\r":
                self.column = 0
            elif token.endswith("A") and token.startswith("\x1b"):
                up = int(match[1] or 1)
                assert up < LINES, "the cursor cannot go beyond the screen"
                self.row -= up
                assert self.row >= 0
            elif token == "\x1b[J":
                self.rows[self.row] = self.rows[self.row][: self.column]
                del self.rows[self.row + 1 :]
            elif token.startswith("\x1b"):
                assert token.endswith("m"), token
            else:
                if self.column == COLUMNS:
                    self.row, self.column = self.row + 1, 0
                self._put(token)
                continue
            while len(self.rows) <= self.row:
                self.rows.append("")

    def _put(self, letter: str) -> None:
        while len(self.rows) <= self.row:
            self.rows.append("")
        row = self.rows[self.row].ljust(self.column)
        self.rows[self.row] = row[: self.column] + letter + row[self.column + 1 :]
        self.column += 1

    def text(self) -> str:
        return "\n".join(row.rstrip() for row in self.rows)


class LateLoader:
    """Markdown that is there only when the answer has ended."""

    is_done = False

    def begin(self) -> None:
        pass

    def wait(self) -> None:
        pass


def terminal(
    patch: pytest.MonkeyPatch, loader: _markdown._Loader | LateLoader, width: Callable[[], int]
) -> io.StringIO:
    """What is written to a terminal on which everything is drawn at once."""
    patch.setattr(_markdown.shutil, "get_terminal_size", lambda: os.terminal_size((width(), LINES)))
    patch.setattr(_markdown, "_SECONDS_BETWEEN_DRAWINGS", 0.0)
    loader.begin()
    loader.wait()
    patch.setattr(_markdown, "_loader", loader)
    sink = io.StringIO()
    patch.setattr(sys, "stdout", sink)
    return sink


def shown(pieces: list[Piece], *, late: bool = False) -> str:
    """All rows of the terminal after an answer."""
    with pytest.MonkeyPatch.context() as patch:
        loader = LateLoader() if late else _markdown._Loader()
        sink = terminal(patch, loader, lambda: COLUMNS)
        answer = AnswerOnTerminal()
        for piece in pieces:
            answer.add(piece)
        answer.finish()
    screen = Screen()
    screen.write(sink.getvalue())
    return screen.text()


def cut(text: str, rng: random.Random) -> list[Piece]:
    places = sorted({0, len(text), *rng.choices(range(len(text)), k=rng.randrange(1, 60))})
    return [Piece(text[a:b]) for a, b in zip(places, places[1:])]


def test_markdown_is_drawn_and_angle_brackets_stay() -> None:
    whole = shown([Piece(TEXT)])
    for words in ("A heading", "bold", "<b>with brackets</b>", "continued", "return x", "The end."):
        assert whole.count(words) == 1, whole
    for marks in ("**", "```", "|---", "# A"):
        assert marks not in whole
    assert re.search(r"^ 1 first$", whole, re.MULTILINE), whole
    assert re.search(r"^ 2 second with code$", whole, re.MULTILINE), whole


@pytest.mark.parametrize("seed", range(8))
def test_the_screen_does_not_depend_on_the_pieces(seed: int) -> None:
    pieces = cut(TEXT, random.Random(seed))
    assert shown(pieces) == shown([Piece(TEXT)])


def test_letter_by_letter() -> None:
    assert shown([Piece(letter) for letter in TEXT]) == shown([Piece(TEXT)])


def test_what_came_before_markdown_was_loaded_is_redrawn() -> None:
    text = "A **bold** word, and more words than one row of the terminal holds.\n\n- one\n- two\n"
    assert shown(cut(text, random.Random(1)), late=True) == shown([Piece(text)])


def test_rows_that_have_left_the_screen_are_never_touched() -> None:
    text = "\n".join(f"row **{number}**" for number in range(3 * LINES))
    late = shown([Piece(text)], late=True).rstrip().split("\n")
    assert late[0] == "row **0**" and late[-1] == f"row {3 * LINES - 1}"
    code = "```\n" + "\n".join(f"x = {number}" for number in range(3 * LINES)) + "\n```\n"
    whole = shown([Piece(letter) for letter in code])
    assert [f"x = {number}" in whole for number in range(3 * LINES)] == [True] * 3 * LINES


def test_a_window_that_is_made_narrower_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A terminal breaks the rows that stand there; what is redrawn begins at the first of them."""
    width = [COLUMNS]
    sink = terminal(monkeypatch, _markdown._Loader(), lambda: width[0])
    answer = AnswerOnTerminal()
    answer.add(Piece("some **words** " * 6))
    rows = sink.getvalue().count("\n") + 1
    assert rows == 2
    width[0] = COLUMNS // 2
    sink.truncate(0)
    answer.add(Piece("and more"))
    # Both rows are longer than the new width: four stand on the screen.
    assert "\x1b[3A\x1b[J" in sink.getvalue()


def test_reasoning_is_dim_and_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    sink = io.StringIO()
    monkeypatch.setattr(sys, "stdout", sink)
    answer = AnswerOnTerminal()
    answer.add(Piece("Let me **see**", is_reasoning=True))
    answer.add(Piece("Good morning."))
    answer.finish()
    assert "\x1b[2mLet me **see**\x1b[0m\n\n" in sink.getvalue()
    assert shown([Piece("Hm", is_reasoning=True), Piece("Yes.")]) == "Hm\n\nYes.\n"


def test_a_model_cannot_steer_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\\x1b]0;title\\x07" in shown([Piece("a \x1b]0;title\x07 b")])
    sink = io.StringIO()
    monkeypatch.setattr(sys, "stdout", sink)
    answer = AnswerOnTerminal()
    answer.add(Piece("see [here](http://example.org/)"))
    answer.finish()
    assert "\x1b]8;" not in sink.getvalue() and "http://example.org/" in sink.getvalue()
