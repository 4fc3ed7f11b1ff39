"""``awq-edge chat``: through a pipe and on a terminal, with the chat model in examples/."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch")

from awq_edge import Model
from awq_edge.conversation import Conversation
from awq_edge.errors import ContextFullError
from awq_edge.generation import GenerationConfig

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [str(Path(sys.executable).parent / "awq-edge")]
GREEDY = ["--temperature", "0", "--max-tokens", "12"]


@pytest.fixture(scope="module")
def chat_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chat") / "novels-chat.awq.gguf"
    arguments = ["convert", str(ROOT / "examples" / "novels-chat"), "--method", "rtn"]
    subprocess.run([*COMMAND, *arguments, "-o", str(path)], check=True, capture_output=True)
    return path


@pytest.fixture
def model(chat_file: Path) -> Iterator[Model]:
    with Model.open(chat_file, device="cpu", threads=1) as opened:
        yield opened


def piped(file: Path, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "chat", str(file), "--threads", "1", *GREEDY, *options],
        input=text,
        capture_output=True,
        text=True,
        timeout=120,
    )


def answers(model: Model, *texts: str, **settings: object) -> list[str]:
    config = GenerationConfig(temperature=0, max_tokens=12)
    talk = Conversation(model, config=config, **settings)  # type: ignore[arg-type]
    return ["".join(talk.ask(text)) for text in texts]


def test_a_pipe_says_each_line_and_gets_the_answers(chat_file: Path, model: Model) -> None:
    done = piped(chat_file, "Good morning!\nWhat is your name?\n")
    assert done.returncode == 0, done.stderr
    first, second = answers(model, "Good morning!", "What is your name?")
    assert done.stdout == f"{first}\n{second}\n"
    assert first.strip() and second.strip()


def test_the_second_turn_reads_only_what_is_new(model: Model) -> None:
    talk = Conversation(model, config=GenerationConfig(temperature=0, max_tokens=12))
    list(talk.ask("Good morning!"))
    list(talk.ask("Good night!"))
    assert talk.last is not None
    assert talk.last.reused_tokens > 15
    assert len(talk.last.prompt_tokens) - talk.last.reused_tokens < 25


def test_undo_and_retry_give_the_same_answer(chat_file: Path, model: Model) -> None:
    done = piped(chat_file, "Good morning!\n/retry\n/undo\nGood morning!\n/exit\nnever said\n")
    (first,) = answers(model, "Good morning!")
    assert done.stdout == f"{first}\n" * 3
    assert "Good morning!" in done.stderr


def test_a_conversation_is_saved_and_loaded(chat_file: Path, tmp_path: Path, model: Model) -> None:
    kept = tmp_path / "talk.json"
    assert piped(chat_file, f"Good morning!\n/save {kept}\n").returncode == 0
    done = piped(chat_file, f"/load {kept}\nWhat is your name?\n")
    _, second = answers(model, "Good morning!", "What is your name?")
    assert done.stdout == f"{second}\n"
    again = piped(chat_file, f"Hello\n/save {kept}\n")
    assert again.returncode == 1 and "exists already" in again.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [("/sing\n", "no command /sing"), ("/load /nowhere\n", "No such file"), ("/save\n", "name")],
)
def test_a_wrong_command_ends_a_pipe_with_a_sentence(
    chat_file: Path, text: str, words: str
) -> None:
    done = piped(chat_file, text)
    assert done.returncode == 1
    assert words in done.stderr and "Traceback" not in done.stderr


def test_a_full_context_drops_the_oldest_turns_or_stops(chat_file: Path) -> None:
    config = GenerationConfig(temperature=0, max_tokens=8)
    with Model.open(chat_file, device="cpu", threads=1, context_length=96) as model:
        talk = Conversation(model, config=config)
        for _ in range(8):
            list(talk.ask("Good morning, my dear friend, how do you do?"))
        assert talk.dropped and talk.turns[0]["role"] == "user"
        strict = Conversation(model, config=config, drop_oldest=False)
        with pytest.raises(ContextFullError, match="/reset"):
            for _ in range(8):
                list(strict.ask("Good morning, my dear friend, how do you do?"))
        with pytest.raises(ContextFullError, match="say less"):
            list(talk.ask("word " * 200))
        assert talk.turns[-1]["role"] == "assistant"


def test_a_base_model_is_no_chat_model() -> None:
    done = piped(ROOT / "tests" / "data" / "stories260k.awq.gguf", "Hello\n")
    assert done.returncode == 1 and "awq-edge run" in done.stderr


def test_ctrl_c_stops_the_answer_and_not_the_program(chat_file: Path) -> None:
    child, terminal = pty.fork()
    if child == 0:
        arguments = ["chat", str(chat_file), "--threads", "1", "--temperature", "1", "--seed", "1"]
        os.execv(COMMAND[0], [COMMAND[0], *arguments])
    seen = b""

    def until(words: bytes, seconds: float = 60.0) -> None:
        nonlocal seen
        end = time.monotonic() + seconds
        while words not in seen:
            assert time.monotonic() < end, seen
            if select.select([terminal], [], [], 0.1)[0]:
                seen += os.read(terminal, 4096)

    try:
        until(b"> ")
        os.write(terminal, b"Tell me a tale of the sea.\n")
        until(b"\n", 60)
        before, end = len(seen), time.monotonic() + 60
        while len(seen) < before + 40:
            assert time.monotonic() < end, seen
            if select.select([terminal], [], [], 0.1)[0]:
                seen += os.read(terminal, 4096)
        os.kill(child, signal.SIGINT)
        seen = b""
        until(b"> ")
        os.write(terminal, b"/exit\n")
        assert os.waitpid(child, 0)[1] == 0
    finally:
        os.close(terminal)
