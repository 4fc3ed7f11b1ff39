"""Closed objects, threads that go on, processes that fork or end: errors, never a signal."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from awq_edge import Model, errors
from awq_edge._native import NativeModel, NativeSession

TINY = Path(__file__).parent.parent / "data" / "tiny.awq.gguf"


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A program in an interpreter of its own, for at most half a minute."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(TINY), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_native_session_outlives_its_model() -> None:
    model = NativeModel(TINY)
    session = NativeSession(model, context_length=64, threads=1, prefill_threads=1)
    session.evaluate([1, 2, 3])
    model.close()
    session.evaluate([4, 5, 6])
    assert session.position == 6
    for use in (model.info, model.metadata, model.tensors, lambda: model.memory(10)):
        with pytest.raises(errors.InvalidArgumentError, match="model is closed"):
            use()
    session.close()
    session.close()
    with pytest.raises(errors.InvalidArgumentError, match="session is closed"):
        session.evaluate([1])


def test_a_kept_exception_keeps_no_file_open(tmp_path: Path) -> None:
    path = Path(shutil.copy(TINY, tmp_path / "own.gguf"))
    model = NativeModel(path)
    with pytest.raises(errors.InvalidArgumentError) as kept:
        model.memory(1 << 30)
    model.close()
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(path) not in maps.read_text(encoding="utf-8")
    assert "positions" in str(kept.value)


def test_closing_beside_every_other_call() -> None:
    """Only our errors, whatever the moment."""
    unexpected: list[BaseException] = []
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        model = Model.open(TINY, threads=2, context_length=64, check_memory=False)

        def use(model: Model = model) -> None:
            try:
                while True:
                    with model.session() as session:
                        session.evaluate([1, 2, 3])
                    model.native.metadata()
                    model.native.tensors()
                    model.generate([1, 2], max_tokens=2).text()
            except errors.AwqEdgeError:
                pass
            except BaseException as error:
                unexpected.append(error)

        threads = [threading.Thread(target=use) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.01)
        model.close()
        for thread in threads:
            thread.join()
        with pytest.raises(errors.InvalidArgumentError, match="is closed"):
            model.session()
    assert not unexpected


@pytest.mark.parametrize("call", ["evaluate", "selftest"])
def test_a_process_may_end_while_a_thread_is_in_a_callback(call: str) -> None:
    """The interpreter ends such a thread by unwinding its stack, and that of the library."""
    result = run(
        """
        import sys, threading, time
        from awq_edge import Model, _native
        inside = threading.Event()
        def callback(*_):
            inside.set()
            while True:
                time.sleep(0.0002)
        def work():
            if sys.argv[2] == "selftest":
                _native.selftest(callback)
            else:
                session = Model.open(sys.argv[1], check_memory=False).session(threads=2)
                session.evaluate([5] * 300, progress=callback)
        threading.Thread(target=work, daemon=True).start()
        inside.wait()
        """,
        call,
    )
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_goes_on() -> None:
    """Also while another thread of the parent is computing; what that one holds is an error."""
    model = Model.open(TINY, threads=2, prefill_threads=2, check_memory=False)
    session, busy = model.session(), model.session()
    session.evaluate([1, 2, 3])
    stop = threading.Event()

    def compute() -> None:
        while not stop.is_set():
            busy.truncate(0)
            busy.evaluate([7] * 200)

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        for _ in range(5):
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    session.evaluate([4] * 140)
                    model.shared_session.evaluate([1, 2])
                    try:
                        busy.evaluate([1])
                    except errors.InvalidArgumentError:
                        pass
                    status = 0
                finally:
                    os._exit(status)
            assert wait(child) == 0
    finally:
        stop.set()
        thread.join()
        model.close()


def wait(child: int) -> int:
    """The status of a child, which may take two minutes."""
    for _ in range(12000):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    raise AssertionError("the child hangs")


@pytest.mark.parametrize("name", ["tiny\0.gguf", "\0", "a/\0b"])
def test_a_path_with_nul_is_refused(name: str) -> None:
    with pytest.raises(errors.InvalidArgumentError, match="NUL character"):
        Model.open(name)


def test_a_fifo_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    for path in (tmp_path / "pipe.gguf", Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(errors.FileUnreadableError, match="not a regular file"):
            Model.open(path)
