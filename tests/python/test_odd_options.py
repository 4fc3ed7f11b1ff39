"""Every option of the commands that run a model, with values that make no sense: never a surprise.

In this process, for there are hundreds of them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from conftest import STORIES

from awq_edge.cli.main import application, main

VALUES = (
    *("", "-1", "0", "1" + "0" * 30, "nan", "-inf", "1e400", "\udcff", "a\nb\x1b[2J", "٣"),
    *("/dev/null", ".", "/nonexistent/a", "x" * 5000),
)
# What each command needs at least, small enough to be done at once.
NEEDED = {
    "run": [STORIES, "-p", "Once", "-n", "2", "--threads", "1"],
    "inspect": [STORIES],
    "bench": [STORIES, "-p", "4", "-n", "4", "-r", "1", "--threads", "1"],
    "eval ppl": [STORIES, "--text", "{text}", "--context", "64", "--chunks", "1"],
    "eval kld": [
        *(STORIES, "--reference", STORIES, "--text", "{text}"),
        *("--context", "64", "--chunks", "1"),
    ],
    "export": [STORIES, "gguf", "{out}"],
    "doctor": [STORIES],
}


def command_of(name: str) -> Any:
    found: Any = typer.main.get_command(application())
    for word in name.split():
        found = found.commands[word]
    return found


def lines(name: str) -> Iterator[list[str]]:
    """The command line with one thing wrong, for each thing and value."""
    needed = [str(word) for word in NEEDED[name]]
    parameters = command_of(name).params
    arguments = [p for p in parameters if p.param_type_name == "argument"]
    for place in range(min(len(arguments), len(needed))):
        for value in VALUES:
            yield [*needed[:place], value, *needed[place + 1 :]]
    for option in parameters:
        if option.param_type_name == "argument" or option.name == "help":
            continue
        if option.is_flag:
            yield [*needed, option.opts[0]]
        else:
            yield from ([*needed, option.opts[0], value] for value in VALUES)


@pytest.mark.parametrize("name", NEEDED)
def test_odd_values_are_results_or_sentences(
    name: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("torch", reason="some commands need the extra [convert]")
    places = {"{text}": str(tmp_path / "text"), "{out}": str(tmp_path / "out.gguf")}
    (tmp_path / "text").write_text("Once upon a time there was a little girl. " * 40)
    monkeypatch.chdir(tmp_path)  # for outputs without a folder
    for line in lines(name):
        line = [places.get(word, word) for word in line]
        if line[-2:-1] in (["--repetitions"], ["--generate"]) and line[-1].startswith("1000"):
            continue  # a long time is what was asked for
        monkeypatch.setattr(sys, "argv", ["awq-edge", *name.split(), *line])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capfd.readouterr()
        assert ended.value.code in (0, 1, 2), line
        assert "unexpected" not in printed.err, (line, printed)  # a story may have the word
        for text in printed:
            assert "Traceback" not in text, (line, text)
            assert "\x1b" not in text, (line, text)
        assert bool(ended.value.code) == printed.err.startswith("awq-edge: "), (line, printed)
        for left in tmp_path.iterdir():
            if left.name != "text" and left.is_file():
                left.unlink()
