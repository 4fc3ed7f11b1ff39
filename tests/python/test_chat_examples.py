"""The examples that talk: each is run as its first lines say."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from serving import Server

from awq_edge import Model

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


def test_the_script_talks_in_turns_and_side_by_side(chat_file: Path) -> None:
    command = [sys.executable, EXAMPLES / "04_chat.py", chat_file]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("> ")] == [
        "> Good morning!",
        "> What is your name?",
        "> How do you do?",
        "> Shall we go for a walk?",
    ]
    with Model.open(chat_file, device="cpu") as model:
        messages = [{"role": "system", "content": "Be brief."}]
        messages.append({"role": "user", "content": "Good morning!"})
        assert model.chat(messages, max_tokens=60, seed=1).text().splitlines()[0] in lines


def test_the_c_program_talks_to_the_server(server: Server, tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler on this machine")
    program = tmp_path / "chat"
    flags = ["-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-pedantic"]
    source = EXAMPLES / "05_chat_over_http.c"
    subprocess.run([compiler, *flags, source, "-o", program], check=True)
    done = subprocess.run(
        [program, "127.0.0.1", str(server.port)],
        input='Good morning!\nWhat "is" your\tname?\n',
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = done.stdout.splitlines()
    assert len([line for line in answers if line.strip()]) >= 2
    away = subprocess.run(
        [program, "127.0.0.1", "9"], input="Hello\n", capture_output=True, text=True, check=False
    )
    assert away.returncode == 1 and "nobody answers" in away.stderr


def test_langchain_asks_the_server(server: Server) -> None:
    pytest.importorskip("langchain_openai")
    command = [sys.executable, EXAMPLES / "06_langchain.py", f"{server.url}/v1"]
    environment = {**os.environ, "LANGCHAIN_TRACING_V2": "false"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
