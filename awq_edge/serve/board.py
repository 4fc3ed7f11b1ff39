"""What the machine says of itself: temperature, throttling, memory of this process.

Owns reading it from the kernel. Refuses to run programs: ``vcgencmd`` would cost more than it says.
"""

from __future__ import annotations

import os
from pathlib import Path

_THERMAL = Path("/sys/class/thermal")
# On Raspberry Pi OS the firmware's word on under-voltage and throttling: its low bits are now.
_THROTTLED = Path("/sys/devices/platform/soc/soc:firmware/get_throttled")
_FREQUENCY = Path("/sys/devices/system/cpu/cpu0/cpufreq")
_NOW_BITS = 0xF


def temperature_celsius(root: Path = _THERMAL) -> float | None:
    """The hottest thermal zone; None where the kernel has none."""
    found = []
    for path in root.glob("thermal_zone*/temp"):
        value = _integer(path)
        if value is not None and -50_000 < value < 200_000:
            found.append(value / 1000)
    return max(found) if found else None


def throttled(path: Path = _THROTTLED) -> bool | None:
    """Whether the board runs slower than it could; None where it does not say."""
    try:
        return bool(int(path.read_text("ascii").strip(), 16) & _NOW_BITS)
    except (OSError, ValueError):
        return None


def memory_bytes() -> int:
    """What this process holds for itself, also what was swapped out; 0 where unknown.

    Mapped weights are not counted: the kernel can drop and read them again.
    """
    try:
        text = Path("/proc/self/status").read_text("ascii", "replace")
    except OSError:
        return 0
    total = 0
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        if name in ("RssAnon", "VmSwap"):
            total += int(rest.split()[0]) * 1024
    return total


def _integer(path: Path) -> int | None:
    try:
        return int(path.read_text("ascii").strip())
    except (OSError, ValueError):
        return None


def processes_cpu_seconds() -> float:
    """Of this process, all threads together."""
    times = os.times()
    return times.user + times.system
