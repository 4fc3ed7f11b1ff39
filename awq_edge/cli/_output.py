"""Everything that the command line prints.

Owns standard output (results) and standard error (status, warnings, progress), for people, for
``--json`` and for ``--quiet``. Refuses error text: ``_errors.py`` owns it. Works without a
terminal, on a dumb one and in a pipe; rich is imported only when something needs it. What it prints
may come from a file, so control characters are spelt out (``terminal_text.py``); only the text that
a model writes goes into a pipe as it is.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from awq_edge.quantities import duration_text
from awq_edge.terminal_text import printable, printable_json, printable_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

# In a pipe or a log a bar is useless: a line is enough, and not more often than this.
_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """One running piece of work: a bar on a terminal, now and then a line elsewhere."""

    def __init__(
        self,
        description: str,
        total: float,
        bar: RichProgress | None,
        *,
        silent: bool,
    ) -> None:
        """Begins at zero; ``Output.progress`` is the way to get one."""
        self._description = description = printable_line(description)
        self._total = total
        self._done = 0.0
        self._note = ""
        self._bar = bar
        self._silent = silent
        self._started = self._printed = time.monotonic()
        self._task: TaskID | None = None
        if bar is not None:
            self._task = bar.add_task(description, total=total, note="")

    def advance(self, steps: float = 1, note: str = "") -> None:
        """Counts ``steps`` more as done; ``note`` stays until the next one."""
        self._done += steps
        if note:
            self._note = printable_line(note)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=steps, note=self._note)
        elif not self._silent:
            self._print_line()

    def note(self, note: str) -> None:
        """Changes the text behind the bar without counting anything as done."""
        if not self._done:  # the time before the first step tells nothing of the steps
            self._started = time.monotonic()
        self.advance(0, note)

    def line(self, text: str) -> None:
        """Prints a line that stays, above the bar."""
        if self._bar is not None:
            self._bar.console.print(printable(text))
        elif not self._silent:
            _write(sys.stderr, text + "\n")

    def _print_line(self) -> None:
        now = time.monotonic()
        if now - self._printed < _SECONDS_BETWEEN_LINES or not (self._done or self._note):
            return
        self._printed = now
        parts = []
        if self._done:
            left = (now - self._started) * (self._total - self._done) / self._done
            share = 100 * self._done / self._total if self._total else 100.0
            parts = [f"{share:.0f} %", f"{duration_text(max(left, 0))} left"]
        if self._note:
            parts.append(self._note)
        _write(sys.stderr, f"{self._description}: {', '.join(parts)}\n")


class Output:
    """Prints for one command.

    With ``as_json`` the result is one JSON document; with ``quiet`` there are no status lines.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        """Opens nothing; streams are looked up at each call."""
        self.as_json = as_json
        self.quiet = quiet

    # ---- standard error ----------------------------------------------------------------------

    def status(self, text: str) -> None:
        """Tells what happens, on standard error; silent when quiet."""
        if not self.quiet:
            _write(sys.stderr, text + "\n")

    def status_piece(self, piece: str) -> None:
        """A part of a line of status that goes on, shown at once."""
        if not self.quiet:
            _write(sys.stderr, piece)
            sys.stderr.flush()

    def warning(self, text: str) -> None:
        """Tells what may be wrong, on standard error, even when quiet."""
        _write(sys.stderr, f"warning: {text}\n")

    @contextlib.contextmanager
    def progress(self, description: str, total: float) -> Iterator[Progress]:
        """Shows progress on standard error while the block runs.

        Args:
            description: what runs, a few words.
            total: how much there is to do, in the unit that ``Progress.advance`` counts.
        """
        if self.quiet or not is_live_terminal(sys.stderr):
            yield Progress(description, total, None, silent=self.quiet)
            return
        from rich.progress import (
            BarColumn,
            TaskProgressColumn,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as RichProgress

        bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=_console(sys.stderr),
            transient=True,
        )
        with bar:
            yield Progress(description, total, bar, silent=False)

    # ---- standard output ---------------------------------------------------------------------

    def stream(self, piece: str) -> None:
        """Writes a piece of a model's text to standard output at once; not in JSON mode.

        A terminal is shown control characters spelt out; a pipe or a file gets the text as it is.
        """
        if not self.as_json:
            sys.stdout.write(printable(piece) if sys.stdout.isatty() else piece)
            sys.stdout.flush()

    def line(self, text: str = "") -> None:
        """A line of a result for people."""
        if not self.as_json:
            _write(sys.stdout, text + "\n")

    def fields(self, fields: Mapping[str, object], title: str = "") -> None:
        """Names and values, aligned, for people."""
        if self.as_json:
            return
        if title:
            self.line(printable_line(title))
        shown = {printable_line(name): value for name, value in fields.items()}
        width = max((len(name) for name in shown), default=0)
        for name, value in shown.items():
            self.line(f"  {name:<{width}}  {printable_line(str(value))}")

    def table(
        self, columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = ""
    ) -> None:
        """A table for people: the first column to the left, the others to the right."""
        if self.as_json:
            return
        from rich import box
        from rich.table import Table

        heading = printable_line(title) or None
        table = Table(box=box.SIMPLE, pad_edge=False, title=heading, title_justify="left")
        for index, column in enumerate(columns):
            name = printable_line(column)
            table.add_column(name, justify="left" if index == 0 else "right", no_wrap=True)
        for row in rows:
            table.add_row(*(printable_line(str(cell)) for cell in row))
        _console(sys.stdout).print(table)

    def json(self, document: Any) -> None:
        """The result as one JSON document; only in JSON mode.

        JSON has no NaN and no infinity: null stands for them.
        """
        if self.as_json:
            import json

            text = json.dumps(_finite(document), ensure_ascii=False, indent=2, allow_nan=False)
            sys.stdout.write(printable_json(text) + "\n")


def _finite(value: Any) -> Any:
    """A document with None for every float that is no number."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return value


def _write(stream: Any, text: str) -> None:
    stream.write(printable(text))


def is_live_terminal(stream: Any) -> bool:
    """Whether lines can be redrawn there."""
    return bool(stream.isatty()) and os.environ.get("TERM", "") not in ("", "dumb")


def _console(stream: Any) -> Console:
    from rich.console import Console

    # A pipe has no width: a wide table is better there than a cut one.
    width = None if stream.isatty() else 240
    return Console(file=stream, markup=False, highlight=False, emoji=False, width=width)
