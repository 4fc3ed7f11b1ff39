"""What this machine says of itself: /proc, /sys and the Raspberry Pi's firmware.

Owns reading; every value may be missing and is then None. Refuses to judge: ``doctor.py`` does.
"""

from __future__ import annotations

import os
import platform
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

from awq_edge.free_memory import limited_groups, memory_figures

# Cores by implementer and part number in /proc/cpuinfo, as far as boards and phones use them; as
# Linux's arch/arm64/include/asm/cputype.h names them.
_ARM, _QUALCOMM = 0x41, 0x51
_PARTS = {
    (_ARM, 0xD03): "Cortex-A53",
    (_ARM, 0xD04): "Cortex-A35",
    (_ARM, 0xD05): "Cortex-A55",
    (_ARM, 0xD07): "Cortex-A57",
    (_ARM, 0xD08): "Cortex-A72",
    (_ARM, 0xD09): "Cortex-A73",
    (_ARM, 0xD0A): "Cortex-A75",
    (_ARM, 0xD0B): "Cortex-A76",
    (_ARM, 0xD0C): "Neoverse-N1",
    (_ARM, 0xD0D): "Cortex-A77",
    (_ARM, 0xD40): "Neoverse-V1",
    (_ARM, 0xD41): "Cortex-A78",
    (_ARM, 0xD42): "Cortex-A78AE",
    (_ARM, 0xD44): "Cortex-X1",
    (_ARM, 0xD46): "Cortex-A510",
    (_ARM, 0xD47): "Cortex-A710",
    (_ARM, 0xD48): "Cortex-X2",
    (_ARM, 0xD49): "Neoverse-N2",
    (_ARM, 0xD4B): "Cortex-A78C",
    (_ARM, 0xD4D): "Cortex-A715",
    (_ARM, 0xD4E): "Cortex-X3",
    (_ARM, 0xD4F): "Neoverse-V2",
    (_ARM, 0xD80): "Cortex-A520",
    (_ARM, 0xD81): "Cortex-A720",
    (_ARM, 0xD82): "Cortex-X4",
    (_QUALCOMM, 0x800): "Kryo 2xx Gold",
    (_QUALCOMM, 0x801): "Kryo 2xx Silver",
    (_QUALCOMM, 0x802): "Kryo 3xx Gold",
    (_QUALCOMM, 0x803): "Kryo 3xx Silver",
    (_QUALCOMM, 0x804): "Kryo 4xx Gold",
    (_QUALCOMM, 0x805): "Kryo 4xx Silver",
}


@dataclass(frozen=True)
class Throttling:
    """The firmware's word of power and heat, now and at any time since the board started."""

    under_voltage: bool
    capped: bool
    throttled: bool
    soft_limit: bool
    under_voltage_since_boot: bool
    capped_since_boot: bool
    throttled_since_boot: bool
    soft_limit_since_boot: bool

    @classmethod
    def from_bits(cls, bits: int) -> Throttling:
        """From the number that ``vcgencmd get_throttled`` prints."""
        return cls(*(bool(bits >> bit & 1) for bit in (0, 1, 2, 3, 16, 17, 18, 19)))


@dataclass(frozen=True)
class Board:
    """One machine at one moment. Sizes in bytes, clocks in MHz, temperatures in degrees Celsius."""

    name: str | None
    cpu: str | None
    cores: int
    machine: str
    userland_bits: int
    kernel: str
    glibc: str | None
    python: str
    page_bytes: int
    memory_total: int | None
    memory_available: int | None
    swap_total: int | None
    swap_used: int | None
    governor: str | None
    max_mhz: float | None
    temperature: float | None
    throttling: Throttling | None


def read_board(root: Path = Path("/")) -> Board:
    """Reads this machine.

    Args:
        root: Where /proc and /sys are.
    """
    memory = memory_figures(root)
    groups = limited_groups(root)
    cpufreq = root / "sys/devices/system/cpu/cpu0/cpufreq"
    khz = file_number(cpufreq / "cpuinfo_max_freq")
    swap_total, swap_free = memory.get("SwapTotal"), memory.get("SwapFree")
    return Board(
        name=_name(root),
        cpu=_cpu(root),
        cores=_cores(),
        machine=platform.machine(),
        userland_bits=8 * struct.calcsize("P"),
        kernel=platform.release(),
        glibc=_glibc(),
        python=platform.python_version(),
        page_bytes=os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096,
        memory_total=_least(memory.get("MemTotal"), [group.limit for group in groups]),
        memory_available=_least(memory.get("MemAvailable"), [group.available for group in groups]),
        swap_total=swap_total,
        swap_used=None if swap_total is None or swap_free is None else swap_total - swap_free,
        governor=file_text(cpufreq / "scaling_governor"),
        max_mhz=None if khz is None else khz / 1000,
        temperature=read_temperature(root),
        throttling=read_throttling(root),
    )


def read_temperature(root: Path = Path("/")) -> float | None:
    """The hottest thermal zone."""
    values = [
        value
        for path in root.glob("sys/class/thermal/thermal_zone*/temp")
        if (value := file_number(path)) is not None
    ]
    return max(values) / 1000 if values else None


def read_throttling(root: Path = Path("/")) -> Throttling | None:
    """What the Raspberry Pi's firmware tells; None on other machines."""
    # The address in the name came with the Raspberry Pi 5; newer kernels have no such file.
    places = sorted(root.glob("sys/devices/platform/soc*/soc*:firmware/get_throttled"))
    text = file_text(places[0]) if places else None
    if text is None:
        program = shutil.which("vcgencmd")
        if program is None:
            return None
        try:
            done = subprocess.run(
                [program, "get_throttled"], capture_output=True, text=True, timeout=5, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        text = done.stdout.strip().rpartition("=")[2]
    try:
        return Throttling.from_bits(int(text, 16))
    except ValueError:
        return None


def _name(root: Path) -> str | None:
    for path in ("proc/device-tree/model", "sys/class/dmi/id/product_name"):
        text = file_text(root / path)
        if text:
            return text
    return None


def _cpu(root: Path) -> str | None:
    """The kinds of cores, most of them first: "4 x Cortex-A76"."""
    names: dict[str, int] = {}
    parts: dict[str, int] = {}
    implementer = 0
    text = file_text(root / "proc/cpuinfo") or ""
    for line in text.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "model name":
            names[value] = names.get(value, 0) + 1
        elif key == "CPU implementer":
            implementer = int(value, 16)
        elif key == "CPU part":
            part = _PARTS.get((implementer, int(value, 16)), f"core {implementer:#x}/{value}")
            parts[part] = parts.get(part, 0) + 1
    # Some Arm kernels have both lines, and then the name is only "ARMv8 Processor rev 1 (v8l)".
    kinds = sorted((parts or names).items(), key=lambda item: -item[1])
    return " + ".join(f"{count} x {kind}" for kind, count in kinds) or None


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _glibc() -> str | None:
    try:
        text = os.confstr("CS_GNU_LIBC_VERSION")
    except (AttributeError, OSError, ValueError):
        return None
    return text.rpartition(" ")[2] if text else None


def _least(machine: int | None, groups: list[int]) -> int | None:
    """The machine's memory, or what a container or service may use of it."""
    return None if machine is None else min([machine, *groups])


def file_text(path: Path) -> str | None:
    """A small file's text; the NUL that ends a device-tree string is no part of it."""
    try:
        return path.read_bytes().decode("utf-8", "replace").strip("\0\n ")
    except OSError:
        return None


def file_number(path: Path) -> float | None:
    """The number that a small file holds; None where it is missing or holds no number."""
    text = file_text(path)
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
