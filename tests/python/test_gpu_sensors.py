"""What a GPU says of itself: two Jetsons as recorded, NVML by a stand-in, power over a time."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from awq_edge.device import gpu_sensors
from awq_edge.device.board import read_board
from awq_edge.device.doctor import examine
from awq_edge.device.gpu_sensors import GpuState, PowerMeter, read_gpu_state, read_rails

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RECORDED = Path(__file__).resolve().parents[1] / "data" / "jetson_boards.toml"

NVML = """
unsigned nvmlInit_v2(void) { return 0; }
unsigned nvmlDeviceGetCount_v2(unsigned *count) { *count = COUNT; return 0; }
unsigned nvmlDeviceGetHandleByIndex_v2(unsigned i, void **device) { *device = &*device; return i; }
unsigned nvmlDeviceGetPowerUsage(void *d, unsigned *mw) { (void)d; *mw = 71500; return 0; }
unsigned nvmlDeviceGetClockInfo(void *d, unsigned which, unsigned *mhz) {
    (void)d; *mhz = which == 1 ? 1980 : 3201; return 0;
}
unsigned nvmlDeviceGetMaxClockInfo(void *d, unsigned which, unsigned *mhz) {
    (void)d; (void)which; *mhz = 0; return 3; /* not supported */
}
unsigned nvmlDeviceGetTemperature(void *d, unsigned which, unsigned *c) {
    (void)d; *c = which == 0 ? 41 : 0; return 0;
}
"""


def _tree(root: Path, board: str) -> Path:
    for name, text in tomllib.loads(RECORDED.read_text())[board].items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_an_orin_nano_is_read(tmp_path: Path) -> None:
    state = read_gpu_state(_tree(tmp_path, "orin_nano"))
    assert state is not None
    assert state == GpuState(
        release="36.4.3",
        power_mode="MAXN_SUPER (2)",
        mhz=306.0,
        max_mhz=1020.0,
        memory_mhz=None,
        temperature=48.406,
        watts=state.watts,
        rails="VDD_IN",
    )
    assert state.watts == pytest.approx(4.952 * 1.184)


def test_an_agx_has_a_sum_of_rails(tmp_path: Path) -> None:
    state = read_gpu_state(_tree(tmp_path, "agx_orin"))
    assert state is not None
    assert state.power_mode == "MODE_30W (2)"
    assert state.rails == "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0 + VDDQ_VDD2_1V8AO"
    assert state.watts == pytest.approx(3.150 + 14.312 + 4.968 + 1.091)
    assert state.temperature == 77.281  # of the hottest place: the GPU's own zone sleeps


def test_root_sees_the_memory_clock(tmp_path: Path) -> None:
    root = _tree(tmp_path, "orin_nano")
    rate = root / "sys/kernel/debug/bpmp/debug/clk/emc/rate"
    rate.parent.mkdir(parents=True)
    rate.write_text("3199000000\n")
    state = read_gpu_state(root)
    assert state is not None and state.memory_mhz == 3199.0


@pytest.mark.parametrize(
    ("name", "text", "mode"),
    [
        ("var/lib/nvpmodel/status", "pmode:0009\n", "mode 9"),
        ("var/lib/nvpmodel/status", "\x00\xff", None),
        ("etc/nvpmodel.conf", "", "mode 2"),
    ],
)
def test_power_modes_without_a_name(tmp_path: Path, name: str, text: str, mode: str | None) -> None:
    root = _tree(tmp_path, "orin_nano")
    (root / name).write_text(text)
    state = read_gpu_state(root)
    assert state is not None and state.power_mode == mode


def test_a_board_may_say_nothing(tmp_path: Path) -> None:
    assert read_gpu_state(tmp_path) is None
    assert read_rails(tmp_path) == (None, None)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_text("# R39 (release), REVISION: 2.0, GCID: 1\n")
    assert read_gpu_state(tmp_path) == GpuState("39.2.0", *[None] * 7)


def test_readings_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    root = _tree(tmp_path, "orin_nano")
    chip = root / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1"
    (chip / "curr1_input").write_text("\n")
    (chip / "in2_input").unlink()
    watts, rails = read_rails(root)
    assert rails == "VDD_SOC"
    assert watts == pytest.approx(4.952 * 0.304)


def test_the_doctor_says_it(tmp_path: Path) -> None:
    state = read_gpu_state(_tree(tmp_path, "agx_orin"))
    found = {f.subject: f for f in examine(read_board(), ["reference"], None, state)}
    assert found["Jetson Linux"].text == "36.4.7 (JetPack 6)"
    assert found["GPU state"].text.startswith(
        "power mode MODE_30W (2), 407 of 612 MHz, 77 °C, 23.5"
    )
    assert "nvpmodel" in found["GPU state"].advice
    fastest = read_gpu_state(_tree(tmp_path / "nano", "orin_nano"))
    found = {f.subject: f for f in examine(read_board(), ["reference"], None, fastest)}
    assert found["GPU state"].advice == ""


@pytest.mark.parametrize("name", ["NVIDIA Jetson Orin Nano Developer Kit", "Jetson AGX Orin"])
def test_jetpack_5_is_one_sentence(name: str) -> None:
    """What the library says there; some boards do not name their maker under JetPack 5."""
    board = replace(read_board(), name=name)
    old = "the NVIDIA driver supports CUDA 11.4, needed is 12.0 (JetPack 6) or newer"
    state = GpuState("35.4.1", *[None] * 7)
    found = {f.subject: f for f in examine(board, ["neon_dotprod", "reference"], old, state)}
    assert (found["GPU"].level, found["GPU"].text) == ("warning", old)
    assert found["GPU"].advice == "Until then everything runs on the CPU."
    assert found["Jetson Linux"].text == "35.4.1 (JetPack 5)"


def _nvml(folder: Path, count: int) -> gpu_sensors._Nvml | None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    source = folder / "nvml.c"
    source.write_text(NVML.replace("COUNT", f"{count}"))
    library = folder / f"libnvidia-ml-{count}.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    return gpu_sensors._Nvml.open(f"{library}")


def test_nvml_of_one_gpu(tmp_path: Path) -> None:
    nvml = _nvml(tmp_path, 1)
    assert nvml is not None
    assert nvml.state() == GpuState(None, None, 1980.0, None, 3201.0, 41.0, 71.5, "the card")


def test_nvml_of_several_gpus_or_none(tmp_path: Path) -> None:
    assert _nvml(tmp_path, 2) is None
    assert gpu_sensors._Nvml.open(f"{tmp_path}/none.so.1") is None
    empty = tmp_path / "empty.so.1"
    empty.write_bytes(b"")
    assert gpu_sensors._Nvml.open(f"{empty}") is None


def test_power_is_a_mean_over_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0.0, 0.5)
    monkeypatch.setattr(gpu_sensors.time, "monotonic", lambda: next(clock))
    readings = iter([4.0, 8.0, 8.0, 4.0])
    meter = PowerMeter(lambda: (next(readings, None), "VDD_IN"), interval=60)
    with meter:
        meter._note()
        meter._note()
    power = meter.power()
    assert power is not None
    assert power.watts == pytest.approx((6 + 8 + 6) * 0.5 / 1.5)
    assert (power.seconds, power.rails) == (1.5, "VDD_IN")


def test_a_meter_reads_by_itself_and_ends() -> None:
    count, many, waits = itertools.count(), threading.Event(), []

    def read() -> tuple[float, str]:
        if next(count) == 11:
            many.set()
        return 5.0, "VDD_IN"

    with PowerMeter(read, interval=0.01) as meter:
        began = time.monotonic()
        wait = meter._done.wait

        def noted(seconds: float) -> bool:
            waits.append(seconds)
            return wait(seconds)

        meter._done.wait = noted  # type: ignore[method-assign]  # what it asks for
        assert many.wait(60)
        time.sleep(max(0.0, began + 1.1 - time.monotonic()))  # a second makes a power
    power = meter.power()
    assert power is not None and power.watts == pytest.approx(5.0)
    assert set(waits) == {0.01}
    assert meter._thread is not None and not meter._thread.is_alive()


def test_no_sensor_and_no_time_are_no_power() -> None:
    with PowerMeter(lambda: (None, None)) as meter:
        pass
    assert meter.power() is None
    with PowerMeter(lambda: (5.0, "VDD_IN")) as meter:
        pass
    assert meter.power() is None
