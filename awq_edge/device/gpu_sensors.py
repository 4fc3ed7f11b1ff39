"""What a GPU says of itself at work: power mode, clocks, heat, power; and energy over a time.

Owns reading: a Jetson's files below /proc, /sys, /etc and /var, or NVML of another machine with one
NVIDIA GPU. Every value may be missing and is then None. Refuses to judge, to change a clock and to
start programs: nvpmodel and nvidia-smi are not called.
"""

from __future__ import annotations

import ctypes
import functools
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from awq_edge.device.board import file_number, file_text

# How a Jetson's GPU is called in its device tree and in devfreq; others that are there too are
# video engines.
_GPU_NAMES = ("gpu", "ga10b", "gpu-gpc-0")
# A rail that holds all of the module's power: of Orin Nano and NX.
_WHOLE = "VDD_IN"
_NVML = "libnvidia-ml.so.1"
# What NVML measures; a CPU's work is no part of it.
CARD = "the card"


@dataclass(frozen=True)
class GpuState:
    """One moment.

    Attributes:
        release: A Jetson's L4T release, "36.4.3"; None on other machines.
        power_mode: A Jetson's, "MAXN_SUPER (2)".
        mhz: The clock, now.
        max_mhz: The most that the clock may reach; on a Jetson in this power mode.
        memory_mhz: The memory's clock, now; on a Jetson only root may read it.
        temperature: Degrees Celsius.
        watts: The power of ``rails``, now.
        rails: What is measured: names of a Jetson's rails, or "the card".
    """

    release: str | None
    power_mode: str | None
    mhz: float | None
    max_mhz: float | None
    memory_mhz: float | None
    temperature: float | None
    watts: float | None
    rails: str | None


def read_gpu_state(root: Path = Path("/")) -> GpuState | None:
    """Reads the GPU of this machine; None if nothing is known of one.

    Args:
        root: Where /proc, /sys, /etc and /var are.
    """
    release = _release(root)
    clocks = _clocks(root)
    if release is None and clocks is None:
        nvml = _nvml() if root == Path("/") else None
        return None if nvml is None else nvml.state()
    mhz, max_mhz = clocks or (None, None)
    memory_hz = file_number(root / "sys/kernel/debug/bpmp/debug/clk/emc/rate")
    watts, rails = read_rails(root)
    return GpuState(
        release=release,
        power_mode=_power_mode(root),
        mhz=mhz,
        max_mhz=max_mhz,
        memory_mhz=None if memory_hz is None else memory_hz / 1e6,
        temperature=_temperature(root),
        watts=watts,
        rails=rails,
    )


def read_rails(root: Path = Path("/")) -> tuple[float | None, str | None]:
    """Watts of a Jetson's module by its INA3221, and of which rails: all of it, or a sum of parts.

    The parts of an AGX Orin do not hold what is lost before them: their sum is less than a meter at
    the input shows.
    """
    rails = {}
    for label in sorted(root.glob("sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*/in*_label")):
        name, number = file_text(label), label.name[2 : -len("_label")]
        millivolts = file_number(label.parent / f"in{number}_input")
        milliamperes = file_number(label.parent / f"curr{number}_input")
        # A channel that nothing is connected to has no name, or is called so; the sum of the
        # shunts' voltages has a label too, but no current.
        if name and name != "NC" and millivolts is not None and milliamperes is not None:
            rails[name] = millivolts * milliamperes / 1e6
    if _WHOLE in rails:
        return rails[_WHOLE], _WHOLE
    return (sum(rails.values()), " + ".join(rails)) if rails else (None, None)


@dataclass(frozen=True)
class Power:
    """Power over a time.

    Attributes:
        watts: The mean.
        seconds: How long.
        rails: What was measured.
    """

    watts: float
    seconds: float
    rails: str


class PowerMeter:
    """Measures while a ``with`` block runs, on a thread of its own.

    Args:
        read: Watts now and what they are of, or twice None.
        interval: Seconds between two readings: ten or more in a second.
    """

    def __init__(
        self,
        read: Callable[[], tuple[float | None, str | None]] | None = None,
        interval: float = 0.05,
    ) -> None:
        """Starts nothing yet."""
        self._read = read or read_power
        self._interval = interval
        self._done = threading.Event()
        self._readings: list[tuple[float, float]] = []
        self._rails: str | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> PowerMeter:
        """Starts measuring, where there is something to measure."""
        self._note()
        if self._readings:
            self._thread = threading.Thread(target=self._run, name="power meter", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stops measuring."""
        self._done.set()
        if self._thread is not None:
            self._thread.join()
            self._note()

    def power(self) -> Power | None:
        """The mean over the block, by trapezoids; None without a sensor or in less than a second.

        A sensor averages over some tenths of a second itself, so that less would say little.
        """
        readings = self._readings
        if self._rails is None or len(readings) < 2:
            return None
        seconds = readings[-1][0] - readings[0][0]
        if seconds < 1:
            return None
        joules = sum(
            (after - before) * (first + second) / 2
            for (before, first), (after, second) in zip(readings, readings[1:])
        )
        return Power(joules / seconds, seconds, self._rails)

    def _run(self) -> None:
        while not self._done.wait(self._interval):
            self._note()

    def _note(self) -> None:
        watts, rails = self._read()
        if watts is not None and rails is not None:
            self._readings.append((time.monotonic(), watts))
            self._rails = rails


def read_power() -> tuple[float | None, str | None]:
    """Watts of this machine's GPU now, and what they are of."""
    if _release(Path("/")) is not None:
        return read_rails()
    nvml = _nvml()
    watts = None if nvml is None else nvml.watts()
    return watts, None if watts is None else CARD


# ---- a Jetson's files ----------------------------------------------------------------------------


def _release(root: Path) -> str | None:
    """L4T's, by the first line: ``# R36 (release), REVISION: 4.3, GCID: …``."""
    text = file_text(root / "etc/nv_tegra_release") or ""
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text)
    return f"{found[1]}.{found[2]}" if found else None


def _power_mode(root: Path) -> str | None:
    """What nvpmodel has written when the mode was set: ``pmode:0002``, and that mode's name."""
    found = re.search(r"pmode:\s*(\d+)", file_text(root / "var/lib/nvpmodel/status") or "")
    if found is None:
        return None
    number = int(found[1])
    names = re.findall(
        r"^<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)",
        file_text(root / "etc/nvpmodel.conf") or "",
        re.M,
    )
    name = dict(names).get(f"{number}")
    return f"mode {number}" if name is None else f"{name} ({number})"


def _clocks(root: Path) -> tuple[float | None, float | None] | None:
    """MHz now and at most, of the devfreq device that is the GPU."""
    for device in sorted(root.glob("sys/class/devfreq/*")):
        name = file_text(device / "device/of_node/name") or device.name.rpartition(".")[2]
        if name not in _GPU_NAMES:
            continue
        now, most = file_number(device / "cur_freq"), file_number(device / "max_freq")
        return None if now is None else now / 1e6, None if most is None else most / 1e6
    return None


def _temperature(root: Path) -> float | None:
    """Of the zone ``gpu-thermal``, otherwise of the hottest place of the chip."""
    zones = {}
    for kind in root.glob("sys/class/thermal/thermal_zone*/type"):
        value = file_number(kind.parent / "temp")  # refused while the GPU sleeps
        if value is not None:
            zones[(file_text(kind) or "").lower()] = value / 1000
    return zones.get("gpu-thermal", zones.get("tj-thermal"))


# ---- NVML ----------------------------------------------------------------------------------------

# nvmlClockType_t and nvmlTemperatureSensors_t.
_SM, _MEMORY, _CORE = 1, 2, 0


class _Nvml:
    """The library that comes with the driver of a PC's or a server's GPU."""

    def __init__(self, library: ctypes.CDLL, device: ctypes.c_void_p) -> None:
        self._library = library
        self._device = device

    @classmethod
    def open(cls, name: str = _NVML) -> _Nvml | None:
        """Where the library sees one GPU: of several nobody says which one works."""
        try:
            library = ctypes.CDLL(name)
            count, device = ctypes.c_uint(), ctypes.c_void_p()
            if (
                library.nvmlInit_v2() == 0
                and library.nvmlDeviceGetCount_v2(ctypes.byref(count)) == 0
                and count.value == 1
                and library.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device)) == 0
            ):
                return cls(library, device)
        except (OSError, AttributeError):
            pass
        return None

    def watts(self) -> float | None:
        milliwatts = self._asked("nvmlDeviceGetPowerUsage")
        return None if milliwatts is None else milliwatts / 1000

    def state(self) -> GpuState:
        watts = self.watts()
        return GpuState(
            release=None,
            power_mode=None,
            mhz=self._asked("nvmlDeviceGetClockInfo", _SM),
            max_mhz=self._asked("nvmlDeviceGetMaxClockInfo", _SM),
            memory_mhz=self._asked("nvmlDeviceGetClockInfo", _MEMORY),
            temperature=self._asked("nvmlDeviceGetTemperature", _CORE),
            watts=watts,
            rails=None if watts is None else CARD,
        )

    def _asked(self, function: str, *which: int) -> float | None:
        """What a function of the form ``(device, which…, unsigned*)`` says."""
        value = ctypes.c_uint()
        call = getattr(self._library, function, None)
        if call is None or call(self._device, *which, ctypes.byref(value)) != 0:
            return None
        return float(value.value)


@functools.cache
def _nvml() -> _Nvml | None:
    return _Nvml.open()
