"""``awq-edge chat``: through a pipe and on a terminal, with the chat model in examples/."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

pytest.importorskip("torch")

from awq_edge import Model
from awq_edge.conversation import Conversation
from awq_edge.errors import ContextFullError, InternalError, InvalidArgumentError
from awq_edge.generation import GenerationConfig

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [str(Path(sys.executable).parent / "awq-edge")]
GREEDY = ["--temperature", "0", "--max-tokens", "12"]


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
    return ["".join(piece.text for piece in talk.ask(text)) for text in texts]


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


def test_a_retry_with_a_seed_is_drawn_with_the_next_one(model: Model) -> None:
    def said(pieces: Iterator[Any]) -> str:
        return "".join(piece.text for piece in pieces)

    def talk(seed: int) -> Conversation:
        return Conversation(model, config=GenerationConfig(seed=seed, max_tokens=12))

    first = talk(5)
    texts = [said(first.ask("Good morning!")), *(said(first.retry()) for _ in range(2))]
    assert texts == [said(talk(5 + i).ask("Good morning!")) for i in range(3)]
    assert len(set(texts)) == 3
    # The next question is drawn as if nothing had been asked again.
    other = talk(5)
    other.turns = list(first.turns)
    assert said(first.ask("Good night!")) == said(other.ask("Good night!"))


def test_what_is_in_a_file_is_said_first(chat_file: Path, tmp_path: Path, model: Model) -> None:
    prompt = tmp_path / "first.txt"
    prompt.write_text("Good morning!\n")
    done = piped(chat_file, "What is your name?\n", "--prompt-file", str(prompt))
    first, second = answers(model, "Good morning!", "What is your name?")
    assert done.stdout == f"{first}\n{second}\n"


def test_two_slashes_say_a_text_that_begins_with_one(chat_file: Path, model: Model) -> None:
    done = piped(chat_file, "//help me\n")
    assert done.stdout == f"{answers(model, '/help me')[0]}\n", done.stderr


def test_a_pipe_that_is_no_text_is_one_sentence(chat_file: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "chat", str(chat_file), "--threads", "1", *GREEDY],
        input=b"caf\xe9\n",
        capture_output=True,
        env={**os.environ, "PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8:strict"},
        timeout=120,
    )
    assert done.returncode == 1, done
    assert b"iconv" in done.stderr and b"Traceback" not in done.stderr


class Thinker:
    """Stands in for a model that thinks aloud: what it says is given, and may end in an error."""

    context_length = 64
    sees_pictures = False
    metadata: ClassVar = {"tokenizer.chat_template": "<think>"}

    def __init__(self, *answers: list[object]) -> None:
        self.answers = list(answers)
        self.prompts: list[object] = []
        self.tokenizer = self

    def chat_prompt(self, messages: list[dict[str, str]]) -> str:
        self.prompts.append([dict(message) for message in messages])
        return "".join(message["content"] for message in messages)

    def encode(self, text: str, *, add_bos: bool) -> list[int]:
        return [0] * len(text)

    def generate(self, tokens: list[int], config: GenerationConfig) -> Iterator[str]:
        for piece in self.answers.pop(0):
            if isinstance(piece, BaseException):
                raise piece
            yield str(piece)


def test_reasoning_is_kept_apart_and_handed_to_the_template() -> None:
    model = Thinker(["<thi", "nk>\nHm", "m.\n</think>", "\n\nYes."], ["Good."])
    talk = Conversation(model)  # type: ignore[arg-type]
    pieces = list(talk.ask("Well?"))
    assert "".join(p.text for p in pieces if p.is_reasoning) == "Hmm."
    assert "".join(p.text for p in pieces if not p.is_reasoning) == "Yes."
    list(talk.ask("And?"))
    said = {"role": "assistant", "content": "Yes.", "reasoning_content": "Hmm."}
    assert model.prompts[1] == [
        {"role": "user", "content": "Well?"},
        said,
        {"role": "user", "content": "And?"},
    ]


@pytest.mark.parametrize(
    "failing",
    [
        [InternalError("it broke")],
        ["Half an", InternalError("it broke")],
        [KeyboardInterrupt()],
        ["<think>"],
    ],
)
def test_a_retry_that_fails_keeps_the_old_answer(failing: list[object]) -> None:
    model = Thinker(["One"], ["Two"], failing, ["Three"])
    talk = Conversation(model)  # type: ignore[arg-type]
    list(talk.ask("a" * 30))
    list(talk.ask("b" * 20))  # the first exchange no longer fits, and is left out
    assert talk.dropped == 2
    before = [dict(turn) for turn in talk.turns]
    with contextlib.suppress(InternalError, KeyboardInterrupt):
        list(talk.retry())
    assert talk.turns == before and talk.dropped == 2
    assert [piece.text for piece in talk.retry()] == ["Three"]
    assert [turn["content"] for turn in talk.turns] == ["b" * 20, "Three"]


def test_a_retry_that_is_stopped_keeps_what_came() -> None:
    model = Thinker(["One"], ["Half an", KeyboardInterrupt()])
    talk = Conversation(model)  # type: ignore[arg-type]
    list(talk.ask("Well?"))
    with pytest.raises(KeyboardInterrupt):
        list(talk.retry())
    assert [turn["content"] for turn in talk.turns] == ["Well?", "Half an"]


def test_there_is_nothing_to_retry_at_first(chat_file: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="nothing to ask"):
        list(Conversation(Thinker()).retry())  # type: ignore[arg-type]
    done = piped(chat_file, "/retry\n/undo\n")
    assert done.returncode == 0 and "nothing to ask again" in done.stderr


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
