"""What a board says, before anybody believes it: a board may be broken, or another's.

Owns the way from its words to values, and to text of a length that a terminal may show. Refuses to
ask.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from awq_edge.errors import BoardError
from awq_edge.terminal_text import printable, printable_line

# What one line of a board may take on a terminal.
_SHOWN_LETTERS = 300
# A petabyte in kilobytes: more is no memory and no disk.
_KILOBYTES = re.compile(r"[0-9]{1,12}")
_VERSION = re.compile(r"[0-9]{1,3}\.[0-9]{1,3}")
_FACTS = (
    *("board", "machine", "glibc", "python"),
    *("memory_total_kb", "memory_free_kb", "disk_free_kb", "prefix"),
)


@dataclass(frozen=True)
class Facts:
    """What the check found on the board, and where it would install. Text is fit for a terminal."""

    board: str
    machine: str
    glibc: str
    python: str
    memory_free_bytes: int
    memory_total_bytes: int
    disk_free_bytes: int
    prefix: str


def shown(text: str, letters: int = _SHOWN_LETTERS) -> str:
    """One line that cannot steer a terminal: control characters spelt out, long ones cut."""
    return printable_line(text if len(text) <= letters else f"{text[:letters]}...")


def read_facts(host: str, answer: str) -> Facts:
    """What install.sh --check printed; a shell that greets may stand around it.

    Raises:
        BoardError: It is something else.
    """
    values = {}
    said = answer.split("\n")
    begin = max((at for at, line in enumerate(said) if line.startswith("board=")), default=0)
    for name, line in zip(_FACTS, said[begin:]):
        key, _, value = line.partition("=")
        if key == name:
            values[name] = value
    sizes = [values.get(name, "") for name in _FACTS if name.endswith("_kb")]
    prefix = values.get("prefix", "")
    sound = (
        len(values) == len(_FACTS)
        and all(_KILOBYTES.fullmatch(size) for size in sizes)
        and _VERSION.match(values["glibc"])
        and _VERSION.fullmatch(values["python"])
        and re.fullmatch(r"[a-z0-9_]{1,32}", values["machine"])
        and prefix.startswith("/")
        and prefix.isprintable()
    )
    if not sound:
        raise BoardError(
            f"{host} answered the check with something else: does its shell print text at "
            "login? Let it print nothing when ssh runs a command."
        )
    return Facts(
        board=shown(values["board"], 100),
        machine=values["machine"],
        glibc=shown(values["glibc"], 20),
        python=values["python"],
        memory_free_bytes=int(values["memory_free_kb"]) * 1024,
        memory_total_bytes=int(values["memory_total_kb"]) * 1024,
        disk_free_bytes=int(values["disk_free_kb"]) * 1024,
        prefix=prefix,
    )


def read_report(host: str, answer: str) -> dict[str, Any]:
    """The document of the first generation, with the types that ``trial.py`` gives it.

    Raises:
        BoardError: It is something else.
    """
    wrong = BoardError(f"The first generation on {host} gave no report.")
    try:
        report = json.loads(answer)
    except (ValueError, RecursionError) as error:
        raise wrong from error
    if not isinstance(report, dict):
        raise wrong
    found: dict[str, Any] = {}
    for name in ("prompt", "text", "kernels"):
        if not isinstance(report.get(name), str):
            raise wrong
        found[name] = printable(report[name])
    for name in ("tokens", "decode_bytes", "threads", "peak_rss_bytes"):
        if not _is_count(report.get(name)):
            raise wrong
        found[name] = report[name]
    for name in ("prefill_tokens_per_second", "decode_tokens_per_second"):
        if not _is_number(report.get(name)):
            raise wrong
        found[name] = float(report[name])
    temperatures = report.get("temperature")
    states = report.get("throttling")
    if not isinstance(temperatures, list) or not isinstance(states, list):
        raise wrong
    if len(temperatures) != 2 or len(states) != 2:
        raise wrong
    if not all(value is None or _is_number(value) for value in temperatures):
        raise wrong
    found["temperature"] = temperatures
    found["throttling"] = [_state(state, wrong) for state in states]
    board = report.get("board")
    if not isinstance(board, dict):
        raise wrong
    found["board"] = {
        shown(name, 40): shown(value) if isinstance(value, str) else value
        for name, value in board.items()
        if value is None or isinstance(value, (str, bool)) or _is_number(value)
    }
    found["board"]["throttling"] = _state(board.get("throttling"), wrong)
    return found


def _state(value: Any, wrong: BoardError) -> Mapping[str, bool] | None:
    if value is None:
        return None
    if not isinstance(value, dict) or len(value) > 32:
        raise wrong
    if not all(isinstance(flag, bool) for flag in value.values()):
        raise wrong
    return {shown(name, 40): flag for name, flag in value.items()}


def _is_number(value: Any) -> bool:
    # A whole number of a thousand digits is one for JSON, and none for a float.
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 1 << 63
    return isinstance(value, float) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and _is_number(value) and value >= 0
