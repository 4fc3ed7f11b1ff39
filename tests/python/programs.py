"""Programs for tests: this repository's own as modules, and others that are watched."""

from __future__ import annotations

import array
import fcntl
import importlib.util
import subprocess
import sys
import termios
import time
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def program(path: str) -> ModuleType:
    """The module of a path below the repository."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def send_and_see_read(process: subprocess.Popen[bytes], text: bytes) -> None:
    """Writes to a program's standard input, a pipe, and waits until the program has taken it."""
    assert process.stdin is not None
    process.stdin.write(text)
    process.stdin.flush()
    left = array.array("i", [len(text)])
    deadline = time.monotonic() + 60
    while left[0]:
        assert process.poll() is None, "the program has ended"
        assert time.monotonic() < deadline, "the program never read its input"
        time.sleep(0.01)
        fcntl.ioctl(process.stdin, termios.FIONREAD, left)
