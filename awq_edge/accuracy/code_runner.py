"""Runs generated code in processes of its own: no network, little memory, little time.

Owns what may be used, the supervisor's process, and its end. The supervisor, the confinement and
the verdict are ``confined/``. Linux only: a system that cannot cut the network off is refused, not
trusted.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from awq_edge.accuracy.confined.boundaries import NOT_CONFINED
from awq_edge.errors import UnsupportedError

# -I: neither the working directory nor the user's environment can be imported from; the package is
# found where this file is.
_PROGRAM = (
    "import sys\n"
    "sys.path.insert(0, {root!r})\n"
    "from awq_edge.accuracy.confined.program import main\n"
    "del sys.path[0]\n"
    "main()\n"
)
# The supervisor ends everything at the limit; it needs that much longer on a busy machine.
_GRACE_SECONDS = 15.0


@dataclass(frozen=True)
class Limits:
    """What a run may use, all of its processes together.

    Attributes:
        cpu_seconds: Time of the processor.
        wall_seconds: Time.
        memory_bytes: Memory.
        processes: Processes and threads.
        file_bytes: Of a single file.
        folder_bytes: Of all files.
        files: How many files.
    """

    cpu_seconds: int = 10
    wall_seconds: float = 15.0
    memory_bytes: int = 1 << 30
    processes: int = 64
    file_bytes: int = 1 << 20
    folder_bytes: int = 16 << 20
    files: int = 256


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    passed: bool
    reason: str  # empty if it passed


def run_python(code: str, limits: Limits | None = None) -> Outcome:
    """Runs a whole program; it passes if nothing is raised before its last line is done.

    Args:
        code: The program.
        limits: What it may use.

    Raises:
        UnsupportedError: This system cannot cut the code off from the network.
    """
    return _run({"code": code}, None, limits or Limits())


def run_tests(
    code: str,
    tests: str,
    names: Sequence[str],
    *,
    given: str = "",
    limits: Limits | None = None,
) -> Outcome:
    """Tests code: the tests run in another process, which the code can neither see nor touch.

    Args:
        code: The code, by whoever is judged.
        tests: Passes if nothing is raised. Only plain values come across from the code, and they
            are compared here.
        names: What the tests may use of the code.
        given: Runs before the tests, in their process: what they need besides the code.
        limits: What both may use together.

    Raises:
        UnsupportedError: This system cannot cut the code off from the network.
    """
    return _run({"code": code}, json.dumps([given, list(names), tests]), limits or Limits())


def _run(settings: dict[str, object], tests: str | None, limits: Limits) -> Outcome:
    root = str(Path(__file__).resolve().parents[2])
    # Files and not pipes: a child that the code leaves behind would keep a pipe open.
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="awq-edge-code-"))
        program, answer, judged = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(3))
        passed_on: tuple[int, ...] = ()
        if tests is not None:
            judged.write(tests.encode("ascii"))
            judged.seek(0)
            settings = {**settings, "tests": judged.fileno()}
            passed_on = (judged.fileno(),)
        program.write(json.dumps({**settings, **asdict(limits)}).encode("ascii"))
        program.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _PROGRAM.format(root=root)],
            stdin=program,
            stdout=answer,
            stderr=subprocess.DEVNULL,
            cwd=directory,
            env={"PATH": os.defpath, "HOME": directory, "TMPDIR": directory},
            start_new_session=True,
            pass_fds=passed_on,
        )
        try:
            process.wait(limits.wall_seconds + _GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            return Outcome(False, f"still running after {limits.wall_seconds:g} s")
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # children too
            process.wait()
        answer.seek(0)
        said = answer.read()
    if process.returncode == NOT_CONFINED:
        raise UnsupportedError(
            "This system offers no way to cut generated code off from the network, so it is not "
            "run; measure on a Linux system."
        )
    try:
        verdict = json.loads(said)
    except ValueError:
        return Outcome(False, "its supervisor was ended")
    return Outcome(bool(verdict["passed"]), str(verdict["reason"]))
