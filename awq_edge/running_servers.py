"""Servers of this user that run on this machine: a small file for each, which goes when it ends.

Owns the files and the test whether a server still lives: a process number alone may be another
program's by now. Refuses to ask servers anything; ``cli/ps.py`` does.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from awq_edge.errors import FileUnreadableError
from awq_edge.limited_json import parse_json
from awq_edge.outputs.whole_file import write_whole
from awq_edge.user_cache import is_sound, own_folder

_FOLDER = "servers"
_MOST_BYTES = 1 << 16


@dataclass(frozen=True)
class RunningServer:
    """One server.

    Attributes:
        pid: Its process.
        process_started: When that began, as the kernel counts; "" where it does not say.
        address: Where it answers.
        models: Names of what it serves.
        since: Seconds of the clock since 1970.
    """

    pid: int
    process_started: str
    address: str
    models: tuple[str, ...]
    since: float


@contextlib.contextmanager
def announced(address: str, models: Sequence[str]) -> Iterator[None]:
    """Tells ``awq-edge ps`` of this process's server while the block runs.

    Without a cache directory nobody is told, and the server runs all the same.

    Args:
        address: Where it answers.
        models: Names of what it serves.
    """
    pid = os.getpid()
    server = RunningServer(pid, _process_started(pid), address, tuple(models), time.time())
    path: Path | None = None
    with contextlib.suppress(OSError):  # also a cache that cannot be trusted
        path = own_folder(_FOLDER) / f"{pid}-{address.rpartition(':')[2]}.json"
        write_whole(path, json.dumps(asdict(server)).encode())
    try:
        yield
    finally:
        if path is not None:
            with contextlib.suppress(OSError):
                path.unlink()


def running_servers() -> list[RunningServer]:
    """Those that live, oldest first; files of others are deleted."""
    try:
        folder = own_folder(_FOLDER)
    except FileUnreadableError:
        return []
    if not is_sound(folder):
        return []
    found = []
    for path in sorted(folder.glob("*.json")):
        server = _read(path)
        if server is not None and _lives(server):
            found.append(server)
        else:
            with contextlib.suppress(OSError):
                path.unlink()
    return sorted(found, key=lambda server: server.since)


def _read(path: Path) -> RunningServer | None:
    try:
        with path.open("rb") as file:
            table = parse_json(file.read(_MOST_BYTES))
        return RunningServer(
            pid=int(table["pid"]),
            process_started=str(table["process_started"]),
            address=str(table["address"]),
            models=tuple(str(name) for name in table["models"]),
            since=float(table["since"]),
        )
    except (OSError, OverflowError, ValueError, KeyError, TypeError):
        return None


def _lives(server: RunningServer) -> bool:
    try:
        os.kill(server.pid, 0)
    except (OSError, OverflowError):
        return False
    return server.pid > 0 and _process_started(server.pid) == server.process_started


def _process_started(pid: int) -> str:
    """Clock ticks from the machine's start to the process's, and which start that was."""
    try:
        # The name in brackets may hold anything, also brackets.
        fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{fields[19]} {boot}"
    except (OSError, IndexError):
        return ""
