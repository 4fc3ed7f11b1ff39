"""What all processes of a run use together: memory, time of the processor, and how many they are.

Owns reading that from /proc. Refuses to decide: ``program.py`` compares it with the limits.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Use:
    """Of a process and everything that descends from it.

    Attributes:
        processes: Processes and threads.
        memory_bytes: Resident; what several share counts once.
        cpu_seconds: Of those that live, and of those that ended and were waited for.
    """

    processes: int
    memory_bytes: int
    cpu_seconds: float

    def __add__(self, other: Use) -> Use:
        """Both together."""
        return Use(
            self.processes + other.processes,
            self.memory_bytes + other.memory_bytes,
            self.cpu_seconds + other.cpu_seconds,
        )


NOTHING = Use(0, 0, 0.0)


def count(root: int) -> Use:
    """What ``root`` and its descendants use now."""
    total = NOTHING
    for pid in tree(root):
        with suppress(OSError, ValueError, IndexError):  # it has ended meanwhile
            total += _use(pid)
    return total


def tree(root: int) -> list[int]:
    """A process and its descendants; processes that end meanwhile may be missing."""
    found, waiting = [root], [root]
    while waiting:
        for child in _children(waiting.pop()):
            found.append(child)
            waiting.append(child)
    return found


def kill(root: int, *, itself: bool = True) -> None:
    """Ends a process's descendants, whatever they do meanwhile, and then itself."""
    while True:
        others = [pid for pid in tree(root) if pid != root and not _is_dead(pid)]
        if not others:
            break
        for pid in others:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if itself:  # number 1 of a namespace takes all of it along
            break
    if itself:
        with suppress(OSError):
            os.kill(root, signal.SIGKILL)


def _children(pid: int) -> list[int]:
    children: list[int] = []
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            children += map(int, (thread / "children").read_text("ascii").split())
    except FileNotFoundError:
        if not Path(f"/proc/self/task/{os.getpid()}/children").exists():
            return _scanned_children(pid)
    except (OSError, ValueError):
        pass  # it has ended meanwhile
    return children


def _scanned_children(parent: int) -> list[int]:
    """For kernels that do not list them."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError, ValueError, IndexError):
                if int(_stat(int(entry.name))[1]) == parent:
                    found.append(int(entry.name))
    return found


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third on: its second may hold anything."""
    content = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    return content.rpartition(")")[2].split()


def _is_dead(pid: int) -> bool:
    try:
        return _stat(pid)[0] in ("Z", "X")
    except (OSError, IndexError):
        return True


def _use(pid: int) -> Use:
    fields = _stat(pid)
    if fields[0] in ("Z", "X"):
        return Use(0, 0, _seconds(fields))
    return Use(int(fields[17]), _memory(pid, fields), _seconds(fields))


def _seconds(fields: list[str]) -> float:
    return sum(map(int, fields[11:15])) / _TICKS  # user and system, of itself and of the dead


def _memory(pid: int, fields: list[str]) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text("ascii", "replace").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return int(fields[21]) * _PAGE
