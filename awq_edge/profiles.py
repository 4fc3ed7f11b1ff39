"""What is known of each device: loads ``targets/<device>/profile.toml`` into a frozen dataclass.

Owns the meaning of the keys. Refuses to measure: a profile holds published figures and says where
each is from.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from awq_edge.errors import InvalidArgumentError

if sys.version_info >= (3, 11):
    import tomllib
else:  # the standard library has no TOML reader before 3.11
    import tomli as tomllib


@dataclass(frozen=True)
class Profile:
    """One device.

    Attributes:
        name: Folder name, as ``--target`` takes it.
        title: Name for people.
        cpu: Cores, clock and instruction set, one line.
        machine: What ``uname -m`` prints.
        kernels: Kernel table that dispatch picks there.
        ram_gib: Memory sizes the device is sold with, GiB; empty if it is not one device.
        read_gb_s: Memory bandwidth that decoding can reach, 10^9 bytes per second; None if unknown.
        read_source: Where ``read_gb_s`` is from.
        decode_threads: Threads that saturate the memory; None lets the runtime choose.
        prefill_threads: Threads for reading a prompt; None lets the runtime choose.
        gpu_modules: What native/cuda/compile.py makes for the device's GPU; empty without one.
        pythons: Python versions of the systems that the device usually runs.
        boards: How the device begins its own name in /proc/device-tree/model; empty if it varies.
        members: Devices that all this holds for but what they say themselves: title, cores, memory
            and its rate, threads for prompts, and how they begin their names. Empty for one device.
    """

    name: str
    title: str
    cpu: str
    machine: str
    kernels: str
    ram_gib: tuple[int, ...]
    read_gb_s: float | None
    read_source: str | None
    decode_threads: int | None
    prefill_threads: int | None
    gpu_modules: tuple[str, ...]
    pythons: tuple[str, ...]
    boards: tuple[str, ...]
    members: tuple[Profile, ...] = ()

    def devices(self) -> tuple[Profile, ...]:
        """Its members, or itself."""
        return self.members or (self,)

    def member(self, board: str, memory_bytes: int) -> Profile:
        """The member that a board is.

        Args:
            board: What it calls itself.
            memory_bytes: What the system has of its memory, which is less than was sold.

        Returns:
            The profile itself if it has no members, or none that has so much memory.
        """
        named = [m for m in self.members if any(board.startswith(name) for name in m.boards)]
        fits = [m for m in named or self.members if memory_bytes <= max(m.ram_gib) * 2**30]
        return min(fits, key=lambda member: max(member.ram_gib), default=self)

    def decode_roofline(self, decode_bytes: int) -> float | None:
        """Tokens per second if memory reads were all that decoding costs.

        Args:
            decode_bytes: Bytes read for one token: weights, and keys and values if they matter.
        """
        return None if self.read_gb_s is None else self.read_gb_s * 1e9 / decode_bytes


def targets_directory() -> Path:
    """The folder with a folder per device: in the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    installed = package / "targets"
    return installed if installed.is_dir() else package.parent / "targets"


def load_profiles() -> list[Profile]:
    """Every device's profile, in order of name."""
    return [_load(path) for path in sorted(targets_directory().glob("*/profile.toml"))]


def load_profile(name: str) -> Profile:
    """One device's profile.

    Raises:
        InvalidArgumentError: No device of that name.
    """
    path = targets_directory() / name / "profile.toml"
    if not path.is_file():
        known = ", ".join(profile.name for profile in load_profiles())
        raise InvalidArgumentError(f"There is no target {name!r}; choose one of {known}.")
    return _load(path)


def _load(path: Path) -> Profile:
    data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    memory = data.get("memory", {})
    threads = data.get("threads", {})
    profile = Profile(
        name=path.parent.name,
        title=data["title"],
        cpu=data["cpu"],
        machine=data["machine"],
        kernels=data["kernels"],
        ram_gib=tuple(data["ram_gib"]),
        read_gb_s=memory.get("read_gb_s"),
        read_source=memory.get("source"),
        decode_threads=threads.get("decode"),
        prefill_threads=threads.get("prefill"),
        gpu_modules=tuple(data.get("gpu_modules", ())),
        pythons=tuple(data["pythons"]),
        boards=tuple(data.get("boards", ())),
    )
    members = tuple(
        replace(
            profile,
            title=member["title"],
            cpu=member["cpu"],
            boards=tuple(member["boards"]),
            ram_gib=tuple(member["ram_gib"]),
            read_gb_s=member["read_gb_s"],
            prefill_threads=member["prefill"],
        )
        for member in data.get("members", ())
    )
    return replace(profile, members=members)
