"""What several test files share: the small packed model, the command line, and outside inputs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from serving import Server

from awq_edge import Model, chat

ROOT = Path(__file__).resolve().parents[2]
# A shell that starts the tests in the background has them, and what they start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Processes side by side share the cores; this must stand before anything loads torch.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# By the clock a busy machine gives a prompt up soon, for people's sake; a test can wait.
chat._WALL_SECONDS = 60.0
STORIES = ROOT / "tests/data/stories260k.awq.gguf"


# ---- side by side: pytest -n 2 -------------------------------------------------------------------

# A file stays in one process, for what it has made once; so do the files that share a folder: the
# tests' own builds and Debian (boards.py), and the builds in the user's cache.
_UNITS = {
    "test_build.py": "boards",
    "test_embed_c.py": "boards",
    "test_emulated_board.py": "boards",
    "test_emulated_families.py": "boards",
    "test_deploy.py": "user's cache",
    "test_raspberry_pi_document.py": "user's cache",
    **dict.fromkeys(
        (
            "test_serve_access.py",
            "test_serve_anthropic.py",
            "test_serve_cache.py",
            "test_serve_ollama.py",
            "test_serve_openai.py",
            "test_serve_structure.py",
        ),
        "serve",
    ),
}
# These take longest: begun last, one of them would keep a single core busy at the end.
_FIRST = (
    *("boards", "test_arm_emulated.py", "user's cache"),  # each compiles a library for a device
    *("test_eval_tasks.py", "test_distributed.py"),
)


def _unit(nodeid: str) -> str:
    name = nodeid.partition("::")[0].rpartition("/")[2]
    return _UNITS.get(name, name)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    from xdist.scheduler import LoadScopeScheduling

    class ByUnit(LoadScopeScheduling):  # type: ignore[misc,unused-ignore]  # as xdist is typed
        def _split_scope(self, nodeid: str) -> str:
            return _unit(nodeid)

    config.option.loadscopereorder = False
    return ByUnit(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {unit: place for place, unit in enumerate(_FIRST)}
    items.sort(key=lambda item: order.get(_unit(item.nodeid), len(order)))


# ---- fixtures ------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def assets() -> Path:
    """The directory of real inputs that are too large for the repository."""
    directory = os.environ.get("AWQ_EDGE_ASSETS", "")
    if not directory:
        pytest.skip("AWQ_EDGE_ASSETS does not name the directory of real inputs")
    return Path(directory)


@pytest.fixture(scope="session")
def stories_path() -> Path:
    return STORIES


@pytest.fixture
def stories() -> Iterator[Model]:
    """The small model, open with two threads."""
    with Model.open(STORIES, threads=2) as model:
        yield model


@pytest.fixture(scope="session")
def chat_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chat model of the examples, packed without calibration."""
    path = tmp_path_factory.mktemp("chat") / "novels-chat.awq.gguf"
    subprocess.run(
        [
            *(sys.executable, "-m", "awq_edge.cli.main", "convert", ROOT / "examples/novels-chat"),
            *("--method", "rtn", "--quiet", "-o", path),
        ],
        check=True,
        timeout=300,
    )
    return path


@pytest.fixture(scope="session")
def scenes_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of the examples that sees pictures, rounded to nearest: the same everywhere."""
    pytest.importorskip("torch")
    from awq_edge import conversion

    path = tmp_path_factory.mktemp("scenes") / "scenes-8m.awq.gguf"
    conversion.convert(str(ROOT / "examples/scenes-8m"), path, conversion.Options(method="rtn"))
    return path


@pytest.fixture(scope="session")
def server(chat_file: Path) -> Iterator[Server]:
    """``awq-edge serve`` with that model."""
    started = Server(chat_file)
    yield started
    started.stop()


class CommandResult:
    """What a command printed and how it ended."""

    def __init__(self, process: subprocess.CompletedProcess[bytes]) -> None:
        self.status = process.returncode
        self.out = process.stdout.decode("utf-8")
        self.err = process.stderr.decode("utf-8")

    def assert_one_sentence(self, *words: str) -> None:
        """The command failed with a readable error that holds ``words``, and no traceback."""
        assert self.status == 1, (self.status, self.err)
        assert self.err.startswith("awq-edge: "), self.err
        assert "Traceback" not in self.err
        assert "unexpected" not in self.err
        for word in words:
            assert word in self.err, (word, self.err)


Command = Callable[..., CommandResult]


@pytest.fixture
def command() -> Command:
    """Runs ``awq-edge`` in a process of its own, as a user would."""

    def run(
        *arguments: object, stdin: bytes = b"", environment: dict[str, str] | None = None
    ) -> CommandResult:
        process = subprocess.run(
            [sys.executable, "-m", "awq_edge.cli.main", *map(str, arguments)],
            input=stdin,
            capture_output=True,
            cwd=ROOT,
            env={**os.environ, "TERM": "dumb", **(environment or {})},
            timeout=300,
            check=False,
        )
        return CommandResult(process)

    return run


@pytest.fixture
def broken_file(tmp_path: Path) -> Callable[[str], Path]:
    """Makes a path that holds no usable model, by the name of what is wrong with it."""

    def make(fault: str) -> Path:
        path = tmp_path / "model.awq.gguf"
        whole = STORIES.read_bytes()
        if fault == "directory":
            path.mkdir()
        elif fault == "empty":
            path.write_bytes(b"")
        elif fault == "truncated":
            path.write_bytes(whole[: len(whole) // 2])
        elif fault == "wrong magic":
            path.write_bytes(b"GGML" + whole[4:])
        elif fault == "text":
            path.write_text("Once upon a time\n" * 100)
        else:
            assert fault == "missing"
        return path

    return make


BAD_FILES = {
    "missing": "No such file",
    "directory": "directory",
    "empty": "0 bytes",
    "truncated": "cut off",
    "wrong magic": "magic",
    "text": "magic",
}
