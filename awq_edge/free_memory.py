"""How much memory this process may still take: of the machine, and of its container or service.

Owns reading /proc/meminfo and Linux's control groups, versions 1 and 2; where there is no such file
psutil is asked, which takes longer to load than a small model. Refuses to judge: whoever asks knows
what needs the memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class FreeMemory:
    """What a new allocation can have without swapping, in bytes.

    Attributes:
        available: Free, or held by a cache that gives way.
        group_limit: The limit of the container or service, where that leaves less than the machine.
    """

    available: int
    group_limit: int | None


@dataclass(frozen=True)
class GroupMemory:
    """What one control group allows, in bytes."""

    limit: int
    available: int


def read_free_memory(root: Path = Path("/")) -> FreeMemory:
    """Reads the machine and the control groups.

    Args:
        root: Where /proc and /sys/fs/cgroup are.
    """
    machine = memory_figures(root).get("MemAvailable")
    if machine is None:
        import psutil

        machine = int(psutil.virtual_memory().available)
    tightest = min(limited_groups(root), key=lambda group: group.available, default=None)
    if tightest is None or machine <= tightest.available:
        return FreeMemory(machine, None)
    return FreeMemory(tightest.available, tightest.limit)


def memory_figures(root: Path = Path("/")) -> dict[str, int]:
    """/proc/meminfo, in bytes; nothing where there is none.

    Args:
        root: Where /proc is.
    """
    try:
        lines = (root / "proc/meminfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return {}
    found = {}
    for line in lines:
        key, _, value = line.partition(":")
        words = value.split()
        if len(words) == 2 and words[1] == "kB" and words[0].isascii() and words[0].isdigit():
            found[key] = int(words[0]) * 1024
    return found


def limited_groups(root: Path = Path("/")) -> list[GroupMemory]:
    """The groups with a limit that this process is in, the parents of its own included.

    Args:
        root: Where /proc/self/cgroup and /sys/fs/cgroup are.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text("utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        # "4:memory:/docker/1f3a" of version 1, "0::/user.slice" of version 2.
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            names = ("memory.max", "memory.current", "inactive_file", "active_file")
            mounted = root / "sys/fs/cgroup"
        elif "memory" in controllers.split(","):
            names = (
                *("memory.limit_in_bytes", "memory.usage_in_bytes"),
                *("total_inactive_file", "total_active_file"),
            )
            mounted = root / "sys/fs/cgroup/memory"
        else:
            continue
        for directory in _upwards(mounted, path):
            group = _read_group(directory, *names)
            if group is not None:
                found.append(group)
    return found


def _upwards(mounted: Path, path: str) -> Iterator[Path]:
    """A group and its parents. Inside a container only the last of them, the mount, may exist."""
    group = PurePosixPath(path.lstrip("/"))
    for part in (group, *group.parents):
        yield mounted / part


def _read_group(directory: Path, limit: str, usage: str, *caches: str) -> GroupMemory | None:
    """One group; None without a limit ("max" in version 2, files that are not there)."""
    try:
        limit_bytes = int((directory / limit).read_text("utf-8"))
        used = int((directory / usage).read_text("utf-8"))
        pairs = [
            line.split() for line in (directory / "memory.stat").read_text("utf-8").splitlines()
        ]
        statistics = {name: int(value) for name, value in pairs}
    except (OSError, ValueError):
        return None
    # The page cache counts as used, but gives way.
    used -= sum(statistics.get(name, 0) for name in caches)
    return GroupMemory(limit_bytes, max(0, limit_bytes - max(0, used)))
