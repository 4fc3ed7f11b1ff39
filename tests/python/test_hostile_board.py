"""A board that lies, or never ends its answer: limits, one sentence, nothing for the terminal.

The board is a program that stands for ssh. What a real one does is in test_deploy.py.
"""

from __future__ import annotations

import json
import platform
import re
from pathlib import Path
from typing import Any

import pytest
from boards import STORIES
from conftest import Command

from awq_edge.device import deploy as steps
from awq_edge.device import ssh
from awq_edge.device.answers import read_facts, read_report, shown
from awq_edge.device.bundle import Bundle, Requirements
from awq_edge.device.ssh import Remote
from awq_edge.errors import BoardError, InvalidArgumentError
from awq_edge.profiles import load_profile

pytestmark = pytest.mark.skipif(platform.system() == "Windows", reason="a script stands for ssh")
FACTS = {
    "board": "A board",
    "machine": "aarch64",
    "glibc": "2.36",
    "python": "3.11",
    "memory_total_kb": "4000000",
    "memory_free_kb": "3000000",
    "disk_free_kb": "90000000",
    "prefix": "/home/pi/.local/share/awq-edge",
}
REPORT: dict[str, Any] = {
    "prompt": "Once",
    "text": " upon a time",
    "tokens": 4,
    "prefill_tokens_per_second": 3.5,
    "decode_tokens_per_second": 2,
    "decode_bytes": 1000,
    "kernels": "neon",
    "threads": 4,
    "peak_rss_bytes": 1 << 20,
    "temperature": [None, 50.5],
    "throttling": [None, {"throttled": False}],
    "board": {"name": "A board", "cores": 4, "swap_total": None, "throttling": None},
}
# What no output may hold, whatever a board says.
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\u2066]")


def _board(folder: Path, script: str) -> str:
    """A program for --ssh; ``$last`` is the command for the board."""
    path = folder / "ssh"
    path.write_text(f"#!/bin/bash\nfor last; do :; done\n{script}\n")
    path.chmod(0o755)
    return str(path)


def _answer(values: dict[str, str]) -> str:
    return "".join(f"{name}={value}\n" for name, value in values.items())


def test_honest_answers_are_read() -> None:
    facts = read_facts("board", "Welcome!\n" + _answer(FACTS) + "Bye\n")
    assert facts.memory_free_bytes == 3000000 * 1024
    assert facts.prefix == FACTS["prefix"]
    assert read_report("board", json.dumps(REPORT)) == {
        **REPORT,
        "decode_tokens_per_second": 2.0,
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("machine", "aarch64 \x1b[2J"),
        ("machine", ""),
        ("glibc", "two"),
        ("python", "3.11; rm -rf /"),
        ("python", "-3"),
        ("memory_free_kb", "1e9"),
        ("memory_free_kb", "-1"),
        ("memory_total_kb", "\u0663"),
        ("disk_free_kb", "9" * 5000),
        ("prefix", "home"),
        ("prefix", "/tmp/\x1b]0;owned\x07"),
        ("prefix", ""),
    ],
)
def test_facts_that_cannot_be_are_one_sentence(name: str, value: str) -> None:
    with pytest.raises(BoardError, match="print nothing"):
        read_facts("board", _answer({**FACTS, name: value}))


def test_a_missing_fact_is_one_sentence() -> None:
    for name in FACTS:
        with pytest.raises(BoardError, match="print nothing"):
            read_facts("board", _answer({key: FACTS[key] for key in FACTS if key != name}))


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "[]",
        "null",
        "[" * 100_000,
        '{"prompt": ' * 50_000,
        *(json.dumps({key: REPORT[key] for key in REPORT if key != name}) for name in REPORT),
        *(
            json.dumps({**REPORT, name: value})
            for name, value in (
                ("text", 1),
                ("tokens", "4"),
                ("tokens", -1),
                ("tokens", 1.5),
                ("threads", True),
                ("decode_bytes", 10**30),
                ("decode_tokens_per_second", "fast"),
                ("decode_tokens_per_second", float("nan")),
                ("prefill_tokens_per_second", float("inf")),
                ("temperature", [1]),
                ("temperature", ["hot", 1]),
                ("temperature", 7),
                ("throttling", [[], []]),
                ("throttling", [{"a": "b"}, None]),
                ("board", "none"),
            )
        ),
    ],
)
def test_a_report_of_another_form_is_one_sentence(answer: str) -> None:
    with pytest.raises(BoardError, match="gave no report"):
        read_report("board", answer)


def test_text_of_a_board_cannot_steer_a_terminal() -> None:
    evil = "a\x1b[2Jb\x07\x9b1m\u202ec\x00\r\n"
    assert STEERING.search(shown(evil)) is None
    assert "\n" not in shown(evil)
    assert len(shown("x" * 10_000)) < 400
    report = {
        **REPORT,
        "text": evil,
        "kernels": evil,
        "throttling": [{evil: True}, None],
        "board": {evil: evil, "throttling": {evil: True}},
    }
    found = read_report("board", json.dumps(report))
    for text in (
        found["text"],
        found["kernels"],
        *found["throttling"][0],
        *found["board"],
        *found["board"]["throttling"],
    ):
        assert STEERING.search(text) is None, text


def test_escape_sequences_never_reach_the_terminal(command: Command, tmp_path: Path) -> None:
    facts = dict(FACTS, board="B\x1b]0;owned\x07\x1b[2J", machine="x86_64")
    (tmp_path / "facts").write_text(_answer(facts))
    script = f"case $last in *device-tree*) uname -m;; *) cat {tmp_path}/facts;; esac"
    for line in (
        script,
        "printf 'evil \\033[2J words\\n' >&2; exit 255",
        "printf 'evil \\033[2J words\\n' >&2; exit 1",
        "printf 'install.sh: \\033[2J words\\n' >&2; exit 1",
        "printf 'Connection \\033[2J words\\n' >&2; exit 255",
    ):
        program = _board(tmp_path, line)
        result = command("deploy", STORIES, "board", "--ssh", program, "--dry-run")
        assert STEERING.search(result.out + result.err) is None, (line, result.err)
        assert "Traceback" not in result.err


def test_what_a_board_says_is_no_reason_for_a_broken_connection(tmp_path: Path) -> None:
    program = _board(tmp_path, "echo 'Installing into /home/pi' >&2; exit 255")
    with Remote("board", program) as remote:
        with pytest.raises(BoardError, match=r"^The connection to board broke: run"):
            remote.run("true")
    program = _board(tmp_path, "echo 'client_loop: send disconnect: Broken pipe' >&2; exit 255")
    with Remote("board", program) as remote:
        with pytest.raises(BoardError, match=r"broke \(client_loop: .*: Broken pipe\)"):
            remote.run("true")


@pytest.mark.parametrize("where", ["", ">&2", "| tr -d '\\n'"])
def test_an_answer_without_end_is_cut_off(where: str, tmp_path: Path) -> None:
    program = _board(tmp_path, f"yes aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa {where}")
    with Remote("board", program) as remote:
        with pytest.raises(BoardError, match="more than a megabyte"):
            remote.run("true")


def test_closing_the_connection_has_limits_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ssh is also asked to end a shared connection: what it says then is not kept either."""
    program = _board(tmp_path, "case $* in *'-O exit'*) exec yes ;; esac")
    monkeypatch.setattr(ssh, "_GOODBYE_SECONDS", 3600.0)  # its words end it, not the clock
    with Remote("board", program) as remote:
        assert remote.run("true").status == 0


def test_a_board_that_never_ends_its_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = _board(tmp_path, "exec sleep 60")
    with Remote("board", program) as remote:
        with pytest.raises(BoardError, match="did not end its answer"):
            remote.run("true", seconds=0.2)
        monkeypatch.setattr(ssh, "_SLOWEST_BYTES_PER_SECOND", 1e9)
        # More than a pipe holds: the write waits, too.
        with pytest.raises(BoardError, match="did not end its answer"):
            remote.send("true", parts=[b"x" * (1 << 20)], size_bytes=1, seconds=0.2)


def test_lines_come_while_they_are_said(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    program = _board(tmp_path, f"echo one; while [ ! -e {gate} ]; do sleep 0.01; done; printf two")
    heard: list[str] = []

    def hear(line: str) -> None:
        heard.append(line)
        gate.touch()

    with Remote("board", program) as remote:
        result = remote.run("true", heard=hear)
    assert heard == ["one"]  # the second one has no end
    assert result.output == "one\ntwo"


def test_sizes_that_a_board_claims_are_bounded(tmp_path: Path) -> None:
    class Told:
        host = "board"

        def run(self, *_: object, **__: object) -> ssh.Result:
            lines = "999999999999 model.gguf\n-5 a\n7 unknown\n\u0663 b\nx\n" + "9" * 9999 + " b\n"
            return ssh.Result(0, lines, "")

    model = tmp_path / "m"
    model.write_bytes(b"12345")
    needs = Requirements(model, load_profile("rpi4b"), (), 0, 0, 0)
    names = ("model.gguf", "a", "b")
    bundle = Bundle(needs, dict.fromkeys(names, model), dict.fromkeys(names, ""))
    found = steps.arrived(Told(), bundle, "/x")  # type: ignore[arg-type]  # a stand-in
    assert found == {"model.gguf": 5}


@pytest.mark.parametrize("host", ["", "-oProxyCommand=ls", "pi@host name", "a\nb", "a\x1b", "a\tb"])
def test_a_host_that_is_none(host: str) -> None:
    with pytest.raises(InvalidArgumentError, match="user@host"):
        Remote(host)


def test_a_long_temporary_folder_leaves_room_for_a_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("a" * 100)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with Remote("board", _board(tmp_path, f'printf "%s\\n" "$@" >{tmp_path}/words')) as remote:
        remote.run("true")
    (path,) = re.findall(r"^ControlPath=(.*)$", (tmp_path / "words").read_text(), re.M)
    assert len(path) + 17 < 104
