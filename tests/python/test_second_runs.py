"""Every command twice in a row, and once more after one that was killed or interrupted."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import STORIES

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import checkpoints  # noqa: E402  (after the checks for the packages of the extra convert)
from boards import WORK  # noqa: E402
from ssh_board import SshBoard, running_board  # noqa: E402
from stand_in import write_wheel  # noqa: E402

from awq_edge import __version__  # noqa: E402
from awq_edge.cli import main as command_line  # noqa: E402
from awq_edge.device import bundle as bundle_module  # noqa: E402
from awq_edge.device import deploy as deploy_module  # noqa: E402
from awq_edge.device import library as library_module  # noqa: E402
from awq_edge.device.wheel import wheel_name  # noqa: E402
from awq_edge.profiles import load_profile  # noqa: E402

_TINY = "--method rtn --group-size 32 --quiet"
_JUDGED = "--text text.txt --context 32 --chunks 1"
_PAGE = (
    "analyze source --output page.html --group-size 32 --samples 2 --sequence-length 32 "
    f"--calibration text.txt --sizes none --quiet {_JUDGED}"
)
BOARD = load_profile("rpi4b")
_BOARD = f"--target {BOARD.name} --python 3.11 --wheel {wheel_name(BOARD)} --quiet"

# What a board says of its first text.
REPORT = {
    "prompt": "Once",
    "text": " upon a time",
    "kernels": "reference",
    "tokens": 3,
    "decode_bytes": 1000,
    "threads": 1,
    "peak_rss_bytes": 1000,
    "prefill_tokens_per_second": 1.0,
    "decode_tokens_per_second": 1.0,
    "temperature": [None, None],
    "throttling": [None, None],
    "board": {},
}

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
    "analyze": (_PAGE, "exists already"),
    "analyze --force": (f"{_PAGE} --force", None),
    "bundle to a folder": (f"bundle model.gguf {_BOARD} --output board", "exists already"),
    "bundle to an archive": (f"bundle model.gguf {_BOARD} --output board.tar", "exists already"),
    "build": (f"build --target {BOARD.name} --output dist", None),
    "pull": ("pull file://{folder}/model.gguf --name kept.gguf", "is there already"),
    "pull --force": ("pull file://{folder}/model.gguf --name kept.gguf --force", None),
    "list": ("list", None),
    "ps": ("ps", None),
    "selftest": ("selftest --quiet", None),
    "targets": ("targets", None),
    "doctor": ("doctor model.gguf", None),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    shutil.copyfile(STORIES, tmp_path / "model.gguf")
    (tmp_path / "text.txt").write_text("Once upon a time there was a girl. " * 60)
    checkpoints.save(
        checkpoints.random_model("llama", num_hidden_layers=2, rope_theta=10000.0),
        tmp_path / "bare",
    )
    shutil.copytree(tmp_path / "bare", tmp_path / "source")
    checkpoints.save_tokenizer(tmp_path / "source")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("AWQ_EDGE_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("TERM", "dumb")
    # A board's packages, made up: no index is asked.
    (tmp_path / "index").mkdir()
    for name in ("index/numpy-1.0-py3-none-any.whl", wheel_name(BOARD)):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr(
                "numpy-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: numpy\nVersion: 1.0\n"
            )
            archive.writestr("numpy-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            named = ("METADATA", "WHEEL", "RECORD")
            record = "".join(f"numpy-1.0.dist-info/{name},,\n" for name in named)
            archive.writestr("numpy-1.0.dist-info/RECORD", record)
    monkeypatch.setattr(bundle_module, "runtime_requirements", lambda extras: ["numpy"])
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    _small_library(tmp_path / "native", monkeypatch)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a forked child has none of its parent's threads
    yield tmp_path
    torch.set_num_threads(threads)


def _small_library(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What 'build' compiles: three C files instead of all sources, by the tools of all."""
    tree.mkdir()
    names = ("one", "two", "three")
    for name in names:
        (tree / f"{name}.c").write_text(f"int {name}(int x) {{ return x + {len(name)}; }}\n")
    sources = " ".join(f"{name}.c" for name in names)
    (tree / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.22)\nproject(small C)\n"
        f"add_library(awq_edge SHARED {sources})\n"
    )
    monkeypatch.setattr(library_module, "native_source_directory", lambda: tree)
    # The C library that the compiler makes for a board, once.
    (WORK / "zig").mkdir(parents=True, exist_ok=True)
    monkeypatch.setenv("ZIG_GLOBAL_CACHE_DIR", str(WORK / "zig"))


def run(
    arguments: str | list[str], kill_after: float | None = None, by: int = signal.SIGKILL
) -> tuple[int, str]:
    """Runs a command in a child; its status, minus the signal that ended it, and what it said."""
    begun, begin = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(begun)
            for number in (1, 2):
                os.dup2(os.open(f"said.{number}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            sys.stdout = open(1, "w", closefd=False)  # pytest's are its own
            sys.stderr = open(2, "w", closefd=False)
            words = arguments.split() if isinstance(arguments, str) else arguments
            sys.argv = ["awq-edge", *words]
            os.close(begin)
            command_line.main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    os.close(begin)
    with os.fdopen(begun) as pipe:
        pipe.read()  # until it begins
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, by)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    said = Path("said.2").read_text(errors="replace") if Path("said.2").exists() else ""
    return status, said


def results(folder: Path) -> dict[str, bytes]:
    """What lies there that a command may have written: every file, and every folder as empty."""
    given = ("model.gguf", "text.txt", "bare", "source", "index", "native", wheel_name(BOARD))
    ignored = (*given, "cache", "said.1", "said.2")
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
        if path.relative_to(folder).parts[0] not in ignored
    }


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@pytest.mark.skipif(sys.version_info < (3, 9), reason="waitstatus_to_exitcode")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_runs_again(name: str, folder: Path) -> None:
    if name.startswith("analyze"):
        pytest.importorskip("matplotlib")
    if name == "build":
        pytest.importorskip("ziglang")
    arguments, refusal = COMMANDS[name]
    arguments = arguments.replace("{folder}", str(folder))
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

    for part, by in ((0.3, signal.SIGKILL), (0.7, signal.SIGINT)):
        for top in {Path(entry).parts[0] for entry in whole}:
            remove(folder / top)
        status, said = run(arguments, kill_after=part * seconds, by=by)
        assert "Traceback" not in said
        assert by == signal.SIGKILL or status in (0, 1, 130), said
        status, said = run(arguments)
        done = refusal is not None and status == 1 and refusal in said  # before it was killed
        assert status == 0 or done, said
        assert results(folder) == whole


@pytest.fixture
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshBoard]:
    with running_board(tmp_path_factory.mktemp("board")) as started:
        yield started


@pytest.mark.skipif(platform.machine() != "x86_64", reason="this machine stands for x86_64-linux")
def test_deploy_runs_again(folder: Path, board: SshBoard, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a real ssh server; a package of one module stands for awq-edge on the board."""
    profile = load_profile("x86_64-linux")
    write_wheel(folder / wheel_name(profile), __version__)
    # The first text would be the real package's.
    monkeypatch.setattr(deploy_module, "first_run", lambda remote, prefix, model: REPORT)
    wheel = ("--wheel", wheel_name(profile), "--target", profile.name)
    options = ("--ignore-memory", "--quiet", "--ssh", board.ssh)
    arguments = ["deploy", "model.gguf", "board", *wheel, *options]

    def on_the_board() -> dict[str, object]:
        program = board.home / ".local/bin/awq-edge"
        said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
        return {
            "program": said.stdout,
            "model": (board.prefix / "models/model.gguf").read_bytes(),
            "folders": sorted(path.name for path in board.prefix.iterdir()),
            "releases": len(list((board.prefix / "releases").iterdir())),
        }

    begun = time.monotonic()
    assert run(arguments)[0] == 0, Path("said.2").read_text()
    seconds = time.monotonic() - begun
    whole = on_the_board()
    assert whole["model"] == STORIES.read_bytes()

    assert run(arguments)[0] == 0, Path("said.2").read_text()
    assert on_the_board() == whole

    for number, part in enumerate((0.2, 0.4, 0.6, 0.8, 0.95)):
        by = signal.SIGINT if number % 2 else signal.SIGKILL
        shutil.rmtree(board.home)
        board.home.mkdir()
        status, said = run(arguments, kill_after=part * seconds, by=by)
        assert "Traceback" not in said
        assert by == signal.SIGKILL or status in (0, 130), said
        for _ in range(300):  # the board may not have noticed yet, which it says
            status, said = run(arguments)
            if "another deploy" not in said.lower():
                break
            time.sleep(0.1)
        assert status == 0, said
        assert on_the_board() == whole
