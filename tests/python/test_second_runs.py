"""Every command twice in a row, and once more after one that was killed: it works, or says how."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import STORIES

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import checkpoints  # noqa: E402  (after the checks for the packages of the extra convert)

from awq_edge.cli import main as command_line  # noqa: E402

_TINY = "--method rtn --group-size 32 --quiet"
_JUDGED = "--text text.txt --context 32 --chunks 1"

# Arguments, and what a second run says where the first one's result is in its way.
COMMANDS: dict[str, tuple[str, str | None]] = {
    "convert": (f"convert source -o new.gguf {_TINY}", "exists already; add --force"),
    "convert --force": (f"convert source -o new.gguf {_TINY} --force", None),
    "convert --export": (
        f"convert bare -o new.gguf {_TINY} --export gguf stock.gguf",
        "exists already",
    ),
    "export": ("export model.gguf gguf stock.gguf", "choose another name"),
    "inspect": ("inspect model.gguf --verify", None),
    "run": ("run model.gguf --prompt Once --max-tokens 4", None),
    "bench": ("bench model.gguf --prompt 8 --generate 4 --repetitions 1", None),
    "eval ppl": (f"eval ppl model.gguf {_JUDGED}", None),
    "eval kld": (f"eval kld source --reference source {_JUDGED}", None),
    "targets": ("targets", None),
    "doctor": ("doctor model.gguf", None),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    shutil.copyfile(STORIES, tmp_path / "model.gguf")
    (tmp_path / "text.txt").write_text("Once upon a time there was a girl. " * 20)
    checkpoints.save(
        checkpoints.random_model("llama", num_hidden_layers=2, rope_theta=10000.0),
        tmp_path / "bare",
    )
    shutil.copytree(tmp_path / "bare", tmp_path / "source")
    checkpoints.save_tokenizer(tmp_path / "source")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TERM", "dumb")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a forked child has none of its parent's threads
    yield tmp_path
    torch.set_num_threads(threads)


def run(arguments: str, kill_after: float | None = None) -> tuple[int, str]:
    """Runs a command in a child; its status, minus the signal that ended it, and what it said."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            for number in (1, 2):
                os.dup2(os.open(f"said.{number}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            sys.stdout = open(1, "w", closefd=False)  # pytest's are its own
            sys.stderr = open(2, "w", closefd=False)
            sys.argv = ["awq-edge", *arguments.split()]
            command_line.main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    said = Path("said.2").read_text(errors="replace") if Path("said.2").exists() else ""
    return status, said


def results(folder: Path) -> dict[str, bytes]:
    """What lies there that a command may have written."""
    ignored = ("model.gguf", "text.txt", "bare", "source", "cache", "said.1", "said.2")
    return {
        entry.name: entry.read_bytes() if entry.is_file() else b""
        for entry in folder.iterdir()
        if entry.name not in ignored
    }


@pytest.mark.skipif(sys.version_info < (3, 9), reason="waitstatus_to_exitcode")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_runs_again(name: str, folder: Path) -> None:
    arguments, refusal = COMMANDS[name]
    begun = time.monotonic()
    assert run(arguments)[0] == 0, run(arguments)[1]
    seconds = time.monotonic() - begun
    whole = results(folder)

    status, said = run(arguments)
    assert results(folder) == whole
    if refusal is None:
        assert status == 0, said
    else:
        assert status == 1 and refusal in said and "Traceback" not in said

    for part in (0.3, 0.7):
        for entry in whole:
            (folder / entry).unlink(missing_ok=True)
        run(arguments, kill_after=part * seconds)
        status, said = run(arguments)
        done = refusal is not None and status == 1 and refusal in said  # before it was killed
        assert status == 0 or done, said
        assert results(folder) == whole
