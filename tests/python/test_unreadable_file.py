"""A mapped file that cannot be read any more: one sentence and a status, where that was asked for.

The file is cut short while it is mapped; a memory card that fails looks the same to a program.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from serving import Server

from awq_edge import Model, exit_on_unreadable_file
from awq_edge.errors import FileInvalidError, InvalidArgumentError
from awq_edge.verification import verify

ROOT = Path(__file__).resolve().parents[2]
STORIES = ROOT / "tests/data/stories260k.awq.gguf"
# Behind the headers, which were read when the file was opened.
KEPT_BYTES = 4096
GENERATES = """
import os, sys
import awq_edge
path, asks = sys.argv[1:]
if asks == "before": awq_edge.exit_on_unreadable_file("my program")
with awq_edge.Model.open(path, device="cpu", threads=2) as model:
    if asks == "after": awq_edge.exit_on_unreadable_file("my program")
    os.truncate(path, 4096)
    list(model.generate("Once upon a time"))
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return Path(shutil.copyfile(STORIES, tmp_path / "stories.gguf"))


def sentence(program: str, file: Path) -> str:
    return (
        f"{program}: {file} cannot be read any more: its medium fails, or it was cut short while "
        "it was in use.\n"
    )


def python(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("asks", ["before", "after"])
def test_a_program_that_asks_ends_with_a_sentence(file: Path, asks: str) -> None:
    done = python(GENERATES, file, asks)
    assert (done.returncode, done.stderr) == (1, sentence("my program", file))


def test_a_program_that_does_not_ask_keeps_its_handlers(file: Path) -> None:
    done = python(f"import faulthandler; faulthandler.enable()\n{GENERATES}", file, "never")
    assert done.returncode == -signal.SIGBUS
    assert "Fatal Python error: Bus error" in done.stderr
    assert "any more" not in done.stderr


def test_a_name_that_says_nothing_is_refused() -> None:
    for name in ("", "x" * 62, "a\0b"):
        with pytest.raises(InvalidArgumentError, match="1 to 61 bytes"):
            exit_on_unreadable_file(name)


def test_chat_tells_which_file(chat_file: Path, tmp_path: Path) -> None:
    file = Path(shutil.copyfile(chat_file, tmp_path / "chat.gguf"))
    command = [Path(sys.executable).parent / "awq-edge", "chat", file, "--threads", "2"]
    with subprocess.Popen(
        [*command, "--max-tokens", "4"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("Good morning!\n")
        process.stdin.flush()
        assert process.stdout.readline()
        os.truncate(file, KEPT_BYTES)
        _, said = process.communicate("What is your name?\n", timeout=120)
    assert (process.returncode, said) == (1, sentence("awq-edge", file))


def test_serve_tells_which_file(file: Path) -> None:
    server = Server(file)
    try:
        body = {"model": "stories", "prompt": "Once", "max_tokens": 4}
        assert server.ask("/v1/completions", body)[0] == 200
        os.truncate(file, KEPT_BYTES)
        with pytest.raises(OSError):
            server.ask("/v1/completions", {**body, "prompt": "A new text"})
        assert server.process.wait(60) == 1
    finally:
        server.kill()
    server.collector.join(60)
    assert server.log.endswith(sentence("awq-edge", file))


def test_inspect_tells_which_file(file: Path) -> None:
    cut = (
        "import os\n"
        "from awq_edge import verification\n"
        "from awq_edge.cli.main import main\n"
        "check = verification.verify\n"
        "def cut(size):\n"
        f"    os.truncate({str(file)!r}, {KEPT_BYTES})\n"
        "verification.verify = lambda model, progress=None: check(model, cut)\n"
        "main()\n"
    )
    done = python(cut, "inspect", "--verify", file)
    assert (done.returncode, done.stderr) == (1, sentence("awq-edge", file))


@pytest.mark.parametrize("size", [0, KEPT_BYTES])
def test_a_file_that_was_cut_before_it_is_verified_is_damaged(file: Path, size: int) -> None:
    with Model.open(file, device="cpu") as model:
        os.truncate(file, size)
        with pytest.raises(FileInvalidError, match="was cut short since it was opened"):
            verify(model)


def test_conversion_tells_which_checkpoint(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "pytorch_model.bin"
    torch.save({"weights": torch.ones(1 << 20)}, path)
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from awq_edge import unreadable_files\n"
        "from awq_edge.checkpoints.pickled_file import tensors_of\n"
        "unreadable_files.exit_on_unreadable_file('awq-edge')\n"
        "tensor = tensors_of(Path(sys.argv[1]))['weights']\n"
        f"os.truncate(sys.argv[1], {KEPT_BYTES})\n"
        "print(tensor.read(0, 1 << 20).sum())\n"
    )
    done = python(program, path)
    assert (done.returncode, done.stderr) == (1, sentence("awq-edge", path))
