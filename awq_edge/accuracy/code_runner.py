"""Runs generated code in a process of its own: no network, little memory, little time.

Owns the process and its end. The confinement itself is ``confined_python.py``. Linux only: a system
that cannot cut the network off is refused, not trusted.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from awq_edge.accuracy.confined_python import NOT_CONFINED, SIGNALLED
from awq_edge.errors import UnsupportedError

_PROGRAM = Path(__file__).with_name("confined_python.py")


@dataclass(frozen=True)
class Limits:
    """What a run may use."""

    cpu_seconds: int = 10
    wall_seconds: float = 15.0
    memory_bytes: int = 1 << 30
    file_bytes: int = 1 << 20


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    passed: bool
    reason: str  # empty if it passed


def run_python(code: str, limits: Limits | None = None) -> Outcome:
    """Runs code to its end.

    Args:
        code: A whole program; it passes if nothing is raised before its last line is done.
        limits: What it may use.

    Raises:
        UnsupportedError: This system cannot cut the code off from the network.
    """
    limits = limits or Limits()
    done = secrets.token_hex(16)  # so that code which merely exits does not look finished
    settings = {
        "cpu_seconds": limits.cpu_seconds,
        "memory_bytes": limits.memory_bytes,
        "file_bytes": limits.file_bytes,
        "done": done,
    }
    # Files and not pipes: a child that the code leaves behind would keep a pipe open.
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="awq-edge-code-"))
        program, answer, complaint = (
            stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)
        )
        program.write(code.encode("utf-8", errors="replace"))
        program.seek(0)
        process = subprocess.Popen(
            # -I: neither the working directory nor the user's environment can be imported from.
            [sys.executable, "-I", str(_PROGRAM), json.dumps(settings)],
            stdin=program,
            stdout=answer,
            stderr=complaint,
            cwd=directory,
            env={"PATH": os.defpath, "HOME": directory, "TMPDIR": directory},
            start_new_session=True,
        )
        try:
            process.wait(limits.wall_seconds)
        except subprocess.TimeoutExpired:
            return Outcome(False, f"still running after {limits.wall_seconds:g} s")
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # children too
            process.wait()
        answer.seek(0)
        complaint.seek(0)
        said, lines = answer.read(), complaint.read().decode("utf-8", errors="replace").splitlines()
    status = process.returncode
    if status == NOT_CONFINED:
        raise UnsupportedError(
            "This system offers no way to cut generated code off from the network, so it is not "
            "run; measure on a Linux system."
        )
    if status == 0 and said == done.encode():
        return Outcome(True, "")
    if status > SIGNALLED:
        status = SIGNALLED - status
    if status in (-signal.SIGXCPU, -signal.SIGKILL):
        return Outcome(False, f"more than {limits.cpu_seconds} s of CPU time")
    return Outcome(False, lines[-1] if lines else f"ended with status {status}")
