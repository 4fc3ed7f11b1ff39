"""Error text and exit status, whatever went wrong."""

from __future__ import annotations

import ctypes
import errno
import importlib
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, STORIES, Command
from programs import send_and_see_read

from awq_edge import __version__, errors, free_memory, terminal_text
from awq_edge.cli import _errors, _output, main


def test_version(command: Command) -> None:
    result = command("--version")
    assert (result.status, result.out) == (0, f"awq-edge {__version__}\n")


def test_no_command_shows_the_help(command: Command) -> None:
    result = command()
    assert result.status == 0
    for name in ("convert", "inspect", "run", "eval", "bench"):
        assert name in result.out


def test_unknown_command(command: Command) -> None:
    result = command("rnu")
    assert result.status == 2
    assert "rnu" in result.err
    assert "awq-edge --help" in result.err


@pytest.mark.parametrize("name", ["convert", "inspect", "run", "bench"])
def test_missing_argument(command: Command, name: str) -> None:
    result = command(name)
    assert result.status == 2
    assert f"awq-edge {name} --help" in result.err


@pytest.mark.parametrize(
    "name", [["convert"], ["inspect"], ["run"], ["bench"], ["eval"], ["eval", "ppl"]]
)
def test_every_command_explains_itself(command: Command, name: list[str]) -> None:
    result = command(*name, "--help")
    assert result.status == 0
    assert "Usage" in result.out


SENTENCES = [
    (errors.InvalidArgumentError("too small."), "too small."),
    (errors.FileInvalidError("rule 7 is broken."), "inspect --verify"),
    (errors.InternalError("oops."), "please report"),
    (ModuleNotFoundError("no torch", name="torch"), "pip install 'awq-edge[convert]'"),
    (ModuleNotFoundError("no sub", name="google.protobuf"), "pip install 'awq-edge[convert]'"),
    (MemoryError(), "out of memory"),
    (OSError(errno.ENOSPC, "No space left on device", "/x"), "/x: No space left on device."),
    (ZeroDivisionError("division by zero"), "AWQ_EDGE_DEBUG=1"),
    (ModuleNotFoundError("no own", name="awq_edge.lost"), "AWQ_EDGE_DEBUG=1"),
]


@pytest.mark.parametrize(("error", "words"), SENTENCES, ids=lambda value: type(value).__name__)
def test_error_is_a_sentence(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    words: str,
) -> None:
    monkeypatch.delenv("AWQ_EDGE_DEBUG", raising=False)
    assert _errors.exit_status(error) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("awq-edge: ")
    assert words in printed.err
    assert "Traceback" not in printed.err


def test_debugging_shows_the_traceback(command: Command) -> None:
    environment = {"AWQ_EDGE_DEBUG": "1"}
    result = command("inspect", "/nonexistent", environment=environment)
    assert result.status == 1
    assert "Traceback" in result.err
    assert "FileUnreadableError" in result.err


def test_ctrl_c_is_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert _errors.exit_status(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "awq-edge: stopped.\n"


def test_ctrl_c_waits_until_a_package_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """An extension module may swallow the interrupt, or leave half of itself behind."""
    (tmp_path / "half_loaded.py").write_text(
        "import signal, sys\nsignal.raise_signal(signal.SIGINT)\nsys.loaded = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "loaded", False, raising=False)

    waited = []

    def load(*_: object, **__: object) -> None:
        importlib.import_module("half_loaded")
        time.sleep(20)
        waited.append("to the end")

    monkeypatch.setattr(main, "application", lambda _: load)
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 130
    assert not waited
    assert sys.loaded  # type: ignore[attr-defined]  # the module sets it
    assert capsys.readouterr().err == "awq-edge: stopped.\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def _stopped_in(
    work: Callable[[], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A command that does this, and then waits, ends as Ctrl-C ends it."""

    waited = []

    def command(*_: object, **__: object) -> None:
        work()
        time.sleep(20)
        waited.append("to the end")

    monkeypatch.setattr(main, "application", lambda _: command)
    hook = sys.unraisablehook
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 130
    assert not waited
    assert capsys.readouterr().err == "awq-edge: stopped.\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert sys.unraisablehook is hook


def test_ctrl_c_waits_until_a_compiler_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its machine code calls Python, and went on without a result: a crash."""
    compiled = []

    def add(_: int) -> int:
        compiled.append("whole")
        return 1

    module = {"__name__": "numba.core.compiler", "add": add, "signal": signal}
    exec("def compile():\n    signal.raise_signal(signal.SIGINT)\n    add(1)\n", module)
    _stopped_in(module["compile"], monkeypatch, capsys)  # type: ignore[arg-type]  # a function
    assert compiled == ["whole"]


@pytest.mark.parametrize("where", ["a callback", "the end of an object"])
def test_ctrl_c_is_not_lost_where_python_drops_what_is_raised(
    where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Ends:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    callback = ctypes.CFUNCTYPE(None)(lambda: signal.raise_signal(signal.SIGINT))

    def work() -> None:
        if where == "a callback":
            callback()
        else:
            Ends()

    _stopped_in(work, monkeypatch, capsys)


def test_ctrl_c_before_the_first_command_is_silent(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"
    )
    program = f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n"
    program += "from awq_edge.cli.start import start\nstart()\n"
    command = [sys.executable, "-c", program, "targets"]
    done = subprocess.run(command, capture_output=True, cwd=ROOT, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")


def test_the_package_itself_is_loaded_before_anybody_could_stop_it() -> None:
    program = "import sys, awq_edge.cli.start; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, cwd=ROOT)
    ours = [name for name in loaded.stdout.split() if name.startswith(b"awq_edge")]
    assert ours == [b"awq_edge", b"awq_edge.cli", b"awq_edge.cli.start"]


def test_ctrl_c_after_the_command_is_silent(tmp_path: Path) -> None:
    """The interpreter's own end takes a while; threads and packages print there."""
    program = (
        "import atexit, os, signal, sys, time\n"
        "atexit.register(lambda: (os.kill(os.getpid(), signal.SIGINT), time.sleep(30)))\n"
        "from awq_edge.cli.start import start\nstart()\n"
    )
    command = [sys.executable, "-c", program, "--version"]
    done = subprocess.run(command, capture_output=True, cwd=ROOT, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, b"")
    assert done.stdout == f"awq-edge {__version__}\n".encode()


# ---- standard streams ----------------------------------------------------------------------------

ONCE = f"run {STORIES} -n 2 --temperature 0 --threads 1"


def shell(line: str, **settings: object) -> subprocess.CompletedProcess[bytes]:
    """Runs one line of a shell in which ``awq-edge`` is this checkout's."""
    program = f'awq-edge() {{ "{sys.executable}" -m awq_edge.cli.main "$@"; }}\n'
    return subprocess.run(
        ["bash", "-c", program + line], capture_output=True, cwd=ROOT, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("line", "status", "words"),
    [
        (f"awq-edge {ONCE} -p - <&-", 1, b"Standard input is closed"),
        (f"awq-edge {ONCE} -p Once <&-", 0, b""),
        (f"awq-edge {ONCE} -p Once -q >&-", 0, b""),
        (f"awq-edge {ONCE} -p Once -q <&- >&- 2>&-", 0, b""),
        (f"awq-edge inspect {STORIES} >&-", 0, b""),
        ("awq-edge --version >&-", 0, b""),
        ("awq-edge inspect /nonexistent 2>&-", 1, b""),
        ("awq-edge rnu <&- >&-", 2, b"rnu"),
    ],
)
def test_closed_streams(line: str, status: int, words: bytes) -> None:
    done = shell(line)
    assert (done.returncode, b"unexpected" in done.stderr) == (status, False), done.stderr
    assert words in done.stderr
    assert b"Traceback" not in done.stderr


def test_what_is_printed_never_lands_in_a_file_of_ours(tmp_path: Path) -> None:
    """The number of a closed stream is the next one that a file gets."""
    program = (
        "import os, sys\nfrom awq_edge.cli import _streams\n_streams.prepare()\n"
        f"file = open({str(tmp_path / 'model')!r}, 'w')\nprint('text')\nsys.stdout.flush()\n"
        "assert file.fileno() > 2\n"
    )
    done = shell(f"{sys.executable} -c {shlex.quote(program)} >&-")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model").read_bytes() == b""


def test_a_reader_that_leaves_is_no_error() -> None:
    done = shell(f"awq-edge {ONCE.replace('-n 2', '-n 400')} -p Once -q | head -c 4")
    assert (len(done.stdout), done.stderr) == (4, b"")
    program = "import sys, time; time.sleep(0.5); from awq_edge.cli.main import main; main()"
    done = shell(
        f"{{ {sys.executable} -c '{program}' rnu; echo $? >&3; }} 3>&1 2>&1 >/dev/null | :"
    )
    assert done.stderr == b""


def test_a_broken_pipe_of_something_else_is_a_sentence(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert _errors.exit_status(BrokenPipeError(errno.EPIPE, "Broken pipe")) == 1
    assert capsys.readouterr().err == "awq-edge: Broken pipe.\n"


def test_a_terminated_command_ends_at_once_and_quietly() -> None:
    command = [sys.executable, "-m", "awq_edge.cli.main", *ONCE.split(), "-p", "-"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as process:
        send_and_see_read(process, b"Once")
        process.terminate()
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (-signal.SIGTERM, b"", b"")


def test_not_enough_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(free_memory, "memory_figures", lambda _: {"MemAvailable": 100_000})
    arguments = ["awq-edge", "run", str(STORIES), "-p", "Once", "-n", "1"]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 1
    assert "100.0 kB are free" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", [*arguments, "--ignore-memory"])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 0


# ---- printing ------------------------------------------------------------------------------

EVIL = "x\x1b]0;owned\x07\x1b[2J\x9b2J\u202e\udc80\r\x7fy"
HARMLESS = r"x\x1b]0;owned\x07\x1b[2J\x9b2J\u202e\udc80\r\x7fy"


def test_what_steers_a_terminal_is_spelt_out() -> None:
    assert terminal_text.printable(EVIL) == HARMLESS
    assert terminal_text.printable(HARMLESS) == HARMLESS
    text = "é 漢字\u3000\t👩\u200d🔧 نص\n"
    assert terminal_text.printable(text) == text
    assert terminal_text.printable_line("a\nb\tc") == r"a\nb\tc"
    value = {"a\x85": [EVIL.replace("\udc80", ""), "\n"]}
    document = terminal_text.printable_json(json.dumps(value, ensure_ascii=False, indent=1))
    assert json.loads(document) == value
    assert not set(document) & set("\x1b\x07\x9b\x85\u202e\x7f")


def test_nothing_printed_steers_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    output = _output.Output()
    output.status(EVIL)
    output.warning(EVIL)
    output.line(EVIL)
    output.fields({EVIL: EVIL}, title=EVIL)
    output.table((EVIL,), [(EVIL,)], title=EVIL)
    with output.progress(EVIL, 1) as bar:
        bar.line(EVIL)
        bar.advance(1, EVIL)
    _output.Output(as_json=True).json({EVIL: EVIL})
    _errors.exit_status(errors.CheckpointError(EVIL))
    _errors.exit_status(RuntimeError(EVIL))
    _errors.exit_status(OSError(errno.ENOENT, "gone", EVIL))
    printed = capsys.readouterr()
    for stream in printed:
        assert not set(stream) & set("\x1b\x07\x9b\u202e\r\x7f")
        assert stream.count(r"\x1b]0;owned") >= 6


@pytest.mark.parametrize("kind", [kind for kind in vars(errors).values() if isinstance(kind, type)])
def test_errors_read_as_strings_steer_no_terminal(kind: type[Exception]) -> None:
    assert str(kind(EVIL)) == HARMLESS if kind is not errors.AwqEdgeError else True
    error = kind(EVIL)
    assert "\x1b" not in "".join(traceback.format_exception(kind, error, None))


def test_a_model_may_write_what_it_likes_into_a_pipe(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = _output.Output()
    output.stream("a\x1b[2Jb\n")
    assert capfd.readouterr().out == "a\x1b[2Jb\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    output.stream("a\x1b[2Jb\n\t")
    assert capfd.readouterr().out == "a\\x1b[2Jb\n\t"


def test_json_mode_prints_nothing_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    output = _output.Output(as_json=True)
    output.line("a")
    output.stream("b")
    output.fields({"c": 1})
    output.table(("d",), [("e",)])
    output.json({"é": 1})
    assert capsys.readouterr().out == '{\n  "é": 1\n}\n'


def test_json_has_null_for_what_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    _output.Output(as_json=True).json({"a": [math.nan, (math.inf, 1.5)], "b": {"c": -math.inf}})
    document = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert document == {"a": [None, [None, 1.5]], "b": {"c": None}}


def test_quiet_keeps_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    output = _output.Output(quiet=True)
    output.status("a")
    with output.progress("b", 10) as progress:
        progress.advance(5, "note")
        progress.line("c")
    output.warning("hot")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "warning: hot\n")


def test_progress_in_a_pipe_prints_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_output, "_SECONDS_BETWEEN_LINES", 0.0)
    with _output.Output().progress("Working", 4) as progress:
        progress.note("looking ahead")
        assert capsys.readouterr().err == "Working: looking ahead\n"
        progress.advance(1, "layer 0")
        progress.line("a line")
    err = capsys.readouterr().err
    assert "Working: 25 %" in err
    assert "layer 0" in err
    assert "a line\n" in err
    assert "\x1b" not in err


# ---- examples ------------------------------------------------------------------------------


def test_example_generate_runs() -> None:
    process = subprocess.run(
        [sys.executable, str(ROOT / "examples/02_generate.py"), str(STORIES), "Once upon a time"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout.startswith("Once upon a time, there was")
    assert "60 tokens, ended by: length" in process.stdout
    assert "likeliest next" in process.stdout


def test_example_convert_runs(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs the extra [convert]")
    binaries = Path(sys.executable).parent
    if not (binaries / "awq-edge").is_file():
        pytest.skip("the command awq-edge is not installed beside this Python")
    process = subprocess.run(
        [
            sys.executable,
            str(ROOT / "examples/01_convert.py"),
            str(ROOT / "examples/novels-7m"),
            str(tmp_path / "model.awq.gguf"),
            "--method",
            "rtn",
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
        env={**os.environ, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"},
    )
    assert "weights in" in process.stdout
    assert (tmp_path / "model.awq.gguf").is_file()


def test_examples_fit_a_screen() -> None:
    for path in sorted(Path(ROOT / "examples").glob("*.py")):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 40, path


def test_the_command_line_can_be_called_within_a_program(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from awq_edge.cli.main import app

    app(["targets", "--json"], prog_name="awq-edge", standalone_mode=False)
    assert "rpi4b" in capsys.readouterr().out
    with pytest.raises(errors.AwqEdgeError):
        main.app(["inspect", "/nowhere"], prog_name="awq-edge", standalone_mode=False)


@pytest.mark.parametrize(
    "words",
    [
        "run PIPE -p x",
        "chat PIPE",
        "inspect PIPE",
        "bench PIPE",
        "doctor PIPE",
        "serve PIPE --port 0",
        "eval ppl PIPE --text TEXT",
        "eval kld PIPE --reference STORIES --text TEXT",
        "eval kld STORIES --reference PIPE --text TEXT",
        "eval tasks PIPE --tasks arc_easy",
        "export PIPE gguf out.gguf",
        "analyze PIPE",
        "convert PIPE -o out.gguf",
        "convert PIPE -o out.gguf --from-awq",
        "run STORIES -p x --image PIPE",
        "bundle PIPE --target rpi4b -o out",
        "deploy PIPE pi@board.invalid",
    ],
)
def test_nobody_waits_for_a_pipe_in_the_place_of_a_model(words: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "text").write_text("Once upon a time there was a little girl. " * 200)
    places = {"PIPE": "pipe.gguf", "TEXT": "text", "STORIES": str(STORIES)}
    result = subprocess.run(
        [sys.executable, "-m", "awq_edge.cli.main", *(places.get(w, w) for w in words.split())],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode in (1, 2), result
    assert result.stderr.splitlines()[-1].startswith("awq-edge: "), result
    assert "Traceback" not in result.stderr and "unexpected" not in result.stderr
