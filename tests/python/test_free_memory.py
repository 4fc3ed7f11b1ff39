"""Free memory: of the machine, or what a container or service leaves of it, in made-up trees."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path

import psutil
import pytest

from awq_edge import Model, free_memory
from awq_edge.device.board import read_board
from awq_edge.errors import OutOfMemoryError
from awq_edge.free_memory import FreeMemory, read_free_memory

MB = 1_000_000
MACHINE = 8000 * MB


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: namedtuple("m", "available")(MACHINE))


def test_the_kernel_tells_before_psutil_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text(
        "MemTotal:  948304 kB\nMemAvailable: 700000 kB\nHugePages_Total: 0\nDirty: x kB\n"
    )
    assert read_free_memory(tmp_path) == FreeMemory(700_000 * 1024, None)


def _groups(root: Path, cgroup: str, files: dict[str, object]) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def _v2(group: str, limit: object, used: int, cache: int = 0) -> dict[str, object]:
    return {
        f"{group}memory.max": limit,
        f"{group}memory.current": used,
        f"{group}memory.stat": f"active_file {cache - cache // 4}\ninactive_file {cache // 4}",
    }


def _v1(group: str, limit: object, used: int, cache: int = 0) -> dict[str, object]:
    return {
        f"memory/{group}memory.limit_in_bytes": limit,
        f"memory/{group}memory.usage_in_bytes": used,
        # The first two are this group's alone, the others its children's too.
        f"memory/{group}memory.stat": "cache 3\nactive_file 1\n"
        f"total_active_file {cache - cache // 4}\ntotal_inactive_file {cache // 4}",
    }


V1 = "5:cpu,cpuacct:/docker/1f\n4:memory:/docker/1f\n0::/\n"


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        # Inside a container of version 2 its group is the root of the tree.
        ("0::/\n", _v2("", 1000 * MB, 300 * MB), FreeMemory(700 * MB, 1000 * MB)),
        # The page cache gives way.
        ("0::/\n", _v2("", 1000 * MB, 900 * MB, 500 * MB), FreeMemory(600 * MB, 1000 * MB)),
        ("0::/\n", _v2("", "max", 300 * MB), FreeMemory(MACHINE, None)),
        # A parent's limit holds for its children.
        (
            "0::/a.slice/b.service\n",
            _v2("a.slice/b.service/", "max", 100 * MB) | _v2("a.slice/", 500 * MB, 200 * MB),
            FreeMemory(300 * MB, 500 * MB),
        ),
        # The tightest is the one with the least left, not the one with the lowest limit.
        (
            "0::/a.slice/b.service\n",
            _v2("a.slice/b.service/", 400 * MB, 100 * MB) | _v2("a.slice/", 500 * MB, 450 * MB),
            FreeMemory(50 * MB, 500 * MB),
        ),
        # Version 1, seen from the machine and from inside the container.
        (V1, _v1("docker/1f/", 1000 * MB, 900 * MB, 400 * MB), FreeMemory(500 * MB, 1000 * MB)),
        (V1, _v1("", 1000 * MB, 900 * MB), FreeMemory(100 * MB, 1000 * MB)),
        # What version 1 says where there is no limit.
        (V1, _v1("docker/1f/", 9223372036854771712, 900 * MB), FreeMemory(MACHINE, None)),
        # More used than allowed, as can be for a moment.
        ("0::/\n", _v2("", 100 * MB, 101 * MB), FreeMemory(0, 100 * MB)),
        # A limit that leaves more than the machine has free.
        ("0::/\n", _v2("", 9000 * MB, 0), FreeMemory(MACHINE, None)),
        ("0::/\n", _v2("", "nonsense", 0), FreeMemory(MACHINE, None)),
        ("", {}, FreeMemory(MACHINE, None)),
    ],
)
def test_the_smaller_of_machine_and_group_counts(
    cgroup: str, files: dict[str, object], expected: FreeMemory, tmp_path: Path
) -> None:
    assert read_free_memory(_groups(tmp_path, cgroup, files)) == expected


def test_a_machine_without_groups(tmp_path: Path) -> None:
    assert read_free_memory(tmp_path) == FreeMemory(MACHINE, None)


def test_a_model_too_large_for_the_container_is_refused_with_its_limit(
    stories_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = _groups(tmp_path, "0::/\n", _v2("", 50 * MB, 49_900_000))
    groups = free_memory.limited_groups(root)
    monkeypatch.setattr(free_memory, "limited_groups", lambda root: groups)
    with Model.open(stories_path) as model:
        with pytest.raises(
            OutOfMemoryError,
            match=r"100\.0 kB are free within the 50\.0 MB of this container or service:",
        ):
            model.logits([1])
        assert model.session(check_memory=False).logits([1]).shape == (1, 512)


def test_doctor_reads_the_same_limits(tmp_path: Path) -> None:
    _groups(tmp_path, "0::/\n", _v2("", 1024_000_000, 24_000_000))
    (tmp_path / "proc/meminfo").write_text("MemTotal: 3884360 kB\nMemAvailable: 3400000 kB\n")
    board = read_board(tmp_path)
    assert board.memory_total == 1024_000_000
    assert board.memory_available == 1000_000_000
