"""``awq-edge run``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import BAD_FILES, ROOT, STORIES, Command
from programs import send_and_see_read

GREEDY = ("--temperature", "0", "-n", "20")


def test_text_goes_to_stdout_and_speeds_to_stderr(command: Command) -> None:
    result = command("run", STORIES, "-p", "Once upon a time", *GREEDY, "--seed", 7)
    assert result.status == 0
    assert result.out.startswith(", there was a")
    assert result.out.endswith("\n")
    for word in ("tokens/s", "kernels", "threads", "seed 7", "--max-tokens"):
        assert word in result.err
        assert word not in result.out


def test_echo_prints_the_prompt_first(command: Command) -> None:
    result = command("run", STORIES, "-p", "Once upon a time", *GREEDY, "--echo")
    assert result.out.startswith("Once upon a time, there was a")


def test_quiet_prints_the_text_alone(command: Command) -> None:
    result = command("run", STORIES, "-p", "Once upon a time", *GREEDY, "--quiet")
    assert result.out.startswith(", there was a")
    assert result.err == ""


def test_json_is_one_document(command: Command) -> None:
    plain = command("run", STORIES, "-p", "Once upon a time", *GREEDY)
    result = command("run", STORIES, "-p", "Once upon a time", *GREEDY, "--json", "--threads", 1)
    document = json.loads(result.out)
    assert document["text"] + "\n" == plain.out
    assert document["generated_tokens"] == 20
    assert document["stop_reason"] == "length"
    assert document["threads"] == document["prefill_threads"] == 1
    assert document["decode_tokens_per_second"] > 0
    assert document["prefill_tokens_per_second"] > 0


def test_prompt_from_standard_input(command: Command) -> None:
    piped = command("run", STORIES, "-p", "-", *GREEDY, stdin=b"Once upon a time\n")
    assert piped.out == command("run", STORIES, "-p", "Once upon a time", *GREEDY).out


def test_line_ends_of_standard_input_are_no_tokens(command: Command) -> None:
    """As Windows and its editors end lines; in the middle of a prompt they are line ends too."""
    expected = command("run", STORIES, "-p", "Once\nupon a time", *GREEDY).out
    for piped in (b"Once\r\nupon a time\r\n", b"\xef\xbb\xbfOnce\nupon a time\n"):
        assert command("run", STORIES, "-p", "-", *GREEDY, stdin=piped).out == expected


def test_standard_input_that_is_not_utf8(command: Command) -> None:
    result = command("run", STORIES, "-p", "-", stdin=b"caf\xe9")
    result.assert_one_sentence("not UTF-8", "byte 3")


def test_empty_prompt_begins_with_bos(command: Command) -> None:
    result = command("run", STORIES, "-p", "", *GREEDY)
    assert result.status == 0
    assert len(result.out) > 10


def test_seed_repeats_a_text(command: Command) -> None:
    arguments = ("run", STORIES, "-p", "Once", "-n", 30, "--temperature", 1, "--quiet")
    assert command(*arguments, "--seed", 4).out == command(*arguments, "--seed", 4).out


def test_stop_string(command: Command) -> None:
    result = command("run", STORIES, "-p", "Once upon a time", "--temperature", 0, "--stop", ".")
    assert "." not in result.out
    assert "stop string" in result.err


def test_full_context_is_explained(command: Command) -> None:
    result = command("run", STORIES, "-p", "Once upon a time", "--context", 12)
    assert result.status == 0
    assert "context of 12 tokens is full" in result.err


def test_prompt_longer_than_the_context(command: Command) -> None:
    result = command("run", STORIES, "-p", "Once upon a time", "--context", 3)
    result.assert_one_sentence("context 3", "up to 512")


def test_context_beyond_the_trained_length(command: Command) -> None:
    command("run", STORIES, "-p", "a", "--context", 600).assert_one_sentence("512")


def test_long_prompt_shows_no_bar_in_a_pipe(command: Command) -> None:
    result = command("run", STORIES, "-p", "Once upon a time " * 60, "-n", 2, "--temperature", 0)
    assert result.status == 0
    assert "\x1b" not in result.err


@pytest.mark.parametrize(("fault", "words"), BAD_FILES.items())
def test_bad_file(
    command: Command, broken_file: Callable[[str], Path], fault: str, words: str
) -> None:
    path = broken_file(fault)
    result = command("run", path, "-p", "a")
    result.assert_one_sentence(str(path), words)
    assert result.out == ""


def test_unknown_kernels(command: Command) -> None:
    result = command("run", STORIES, "-p", "a", environment={"AWQ_EDGE_KERNELS": "abacus"})
    result.assert_one_sentence("abacus")


def test_model_without_chat_template(command: Command) -> None:
    command("run", STORIES, "-p", "Hi", "--chat").assert_one_sentence("no chat template")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--threads", "0"],
        ["--threads", "many"],
        ["--top-p", "1.5"],
        ["--max-tokens", "-1"],
        ["--seed", "-1"],
        ["--no-such-option"],
    ],
)
def test_nonsense_options_are_usage_errors(command: Command, arguments: list[str]) -> None:
    result = command("run", STORIES, "-p", "a", *arguments)
    assert result.status == 2
    assert arguments[0].lstrip("-") in result.err.replace("'", "")
    assert "awq-edge run --help" in result.err
    assert "Traceback" not in result.err


def test_nonsense_setting_is_one_sentence(command: Command) -> None:
    result = command("run", STORIES, "-p", "a", "--repetition-penalty", 0)
    result.assert_one_sentence("repetition_penalty")


def test_ctrl_c_is_one_line(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "awq_edge.cli.main", "run", str(STORIES), "-p", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    ) as process:
        send_and_see_read(process, b"Once")  # and waits for more
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (out, err) == (b"", b"awq-edge: stopped.\n")


def test_closed_pipe_is_quiet() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    process = subprocess.run(
        [sys.executable, "-m", "awq_edge.cli.main", "run", str(STORIES), "-p", "Once", *GREEDY],
        stdout=write_end,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        text=True,
        timeout=60,
        check=False,
    )
    os.close(write_end)
    assert process.returncode == 1
    assert process.stderr == ""


def test_terminal_without_unicode(command: Command) -> None:
    result = command(
        "run",
        STORIES,
        "-p",
        "café 🦙",
        "--echo",
        *GREEDY,
        environment={"PYTHONIOENCODING": "ascii"},
    )
    assert result.status == 0
    assert result.out.startswith("caf?")
