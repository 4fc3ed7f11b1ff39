"""``awq-edge doctor``: reads a machine as it is, and judges made-up ones."""

from __future__ import annotations

import json
import platform
from dataclasses import replace
from pathlib import Path

import pytest
from boards import STORIES
from conftest import Command

from awq_edge import Model, _native
from awq_edge.device import board as board_module
from awq_edge.device.board import Board, Throttling, read_board
from awq_edge.device.doctor import OK, PROBLEM, WARNING, Finding, examine, fit, judge_fit

CPUINFO_PI4 = "".join(
    f"processor\t: {core}\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm crc32 cpuid\n"
    "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: 0xd08\nCPU revision\t: 3\n\n"
    for core in range(4)
)
NO_THROTTLING = Throttling(*[False] * 8)
PI = Board(
    name="Raspberry Pi 4 Model B Rev 1.4",
    cpu="4 x Cortex-A72",
    cores=4,
    machine="aarch64",
    userland_bits=64,
    kernel="6.12",
    glibc="2.36",
    python="3.11.2",
    page_bytes=4096,
    memory_total=4_000_000_000,
    memory_available=3_400_000_000,
    swap_total=200_000_000,
    swap_used=0,
    governor="ondemand",
    max_mhz=1800.0,
    temperature=48.3,
    throttling=NO_THROTTLING,
)


def _write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def _found(board: Board, subject: str, kernels: tuple[str, ...] = ("neon", "reference")) -> Finding:
    (finding,) = (f for f in examine(board, list(kernels)) if f.subject == subject)
    return finding


# ---- reading -------------------------------------------------------------------------------------


def test_a_raspberry_pi_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = _write(
        tmp_path,
        {
            "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
            "proc/cpuinfo": CPUINFO_PI4,
            "proc/meminfo": "MemTotal:  3884360 kB\nMemFree: 1 kB\nMemAvailable: 3400000 kB\n"
            "SwapTotal: 204796 kB\nSwapFree: 104796 kB\nHugePages_Total: 0\n",
            "sys/class/thermal/thermal_zone0/temp": "48312\n",
            "sys/class/thermal/thermal_zone1/temp": "51000\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand\n",
            "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "1800000\n",
            "sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n",
        },
    )
    board = read_board(root)
    assert board.name == "Raspberry Pi 4 Model B Rev 1.4"
    assert board.cpu == "4 x Cortex-A72"
    assert board.memory_total == 3884360 * 1024
    assert board.memory_available == 3400000 * 1024
    assert board.swap_used == 100000 * 1024
    assert board.temperature == pytest.approx(51.0)
    assert board.governor == "ondemand"
    assert board.max_mhz == pytest.approx(1800.0)
    assert board.throttling == Throttling(True, False, True, False, True, False, True, False)


def test_big_and_little_cores_are_both_named(tmp_path: Path) -> None:
    little = CPUINFO_PI4.replace("0xd08", "0xd05")
    big = CPUINFO_PI4.replace("0xd08", "0xd0b")[: len(CPUINFO_PI4) // 2]
    board = read_board(_write(tmp_path, {"proc/cpuinfo": little + big}))
    assert board.cpu == "4 x Cortex-A55 + 2 x Cortex-A76"


def test_a_machine_that_tells_nothing_is_read_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board_module.shutil, "which", lambda _: None)
    board = read_board(tmp_path)
    assert (board.name, board.cpu, board.memory_total, board.swap_used) == (None,) * 4
    assert (board.temperature, board.throttling, board.governor) == (None,) * 3
    for finding in examine(board, ["neon", "reference"]):
        assert finding.text


def test_the_firmware_is_asked_by_its_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "vcgencmd"
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for answer, expected in (
        ("echo throttled=0x0", NO_THROTTLING),
        (
            "echo throttled=0x80008",
            replace(NO_THROTTLING, soft_limit=True, soft_limit_since_boot=True),
        ),
        ("echo VCHI initialization failed; exit 1", None),
        ("echo nonsense", None),
    ):
        program.write_text(f"#!/bin/sh\n{answer}\n")
        program.chmod(0o755)
        assert board_module.read_throttling(tmp_path) == expected


# ---- judging -------------------------------------------------------------------------------------


def test_a_sound_board_has_no_advice() -> None:
    findings = examine(PI, ["neon", "reference"])
    assert {finding.level for finding in findings} == {OK}
    assert not any(finding.advice for finding in findings)
    assert _found(PI, "kernels").text == "neon (this CPU also runs reference)"


@pytest.mark.parametrize(
    ("change", "subject", "level", "words"),
    [
        ({"userland_bits": 32}, "system", PROBLEM, "64-bit system"),
        ({"glibc": "2.28"}, "C library", PROBLEM, "2.31"),
        ({"glibc": None}, "C library", PROBLEM, "glibc"),
        ({"memory_available": 500_000_000}, "memory", WARNING, "Close other programs"),
        ({"swap_used": 150_000_000}, "swap", WARNING, "seconds for each token"),
        ({"governor": "powersave"}, "clock", WARNING, "scaling_governor"),
        ({"temperature": 74.0}, "temperature", WARNING, "heat sink"),
        ({"temperature": 82.0}, "temperature", PROBLEM, "slows down"),
        (
            {"throttling": replace(NO_THROTTLING, under_voltage=True)},
            "power",
            PROBLEM,
            "power supply",
        ),
        (
            {"throttling": replace(NO_THROTTLING, under_voltage_since_boot=True)},
            "power",
            WARNING,
            "power supply",
        ),
        ({"throttling": replace(NO_THROTTLING, throttled=True)}, "throttling", PROBLEM, "Cool"),
        (
            {"throttling": replace(NO_THROTTLING, capped_since_boot=True)},
            "throttling",
            WARNING,
            "Cool",
        ),
    ],
)
def test_each_trouble_gets_one_sentence_of_advice(
    change: dict[str, object], subject: str, level: str, words: str
) -> None:
    finding = _found(replace(PI, **change), subject)  # type: ignore[arg-type]  # by name
    assert finding.level == level
    assert words in finding.advice
    assert finding.advice.endswith(".")


def test_slow_kernels_are_told() -> None:
    finding = _found(PI, "kernels", ("reference",))
    assert finding.level == WARNING
    assert "Cortex-A72" in finding.advice


# ---- fitting -------------------------------------------------------------------------------------


def test_a_model_that_fits_is_told_with_its_longest_context() -> None:
    with Model.open(STORIES) as model:
        result = fit(model, PI, None)
        assert result.largest_context == model.info.context_length == 512
        assert judge_fit(result, model.name).level == OK


def test_a_tight_board_is_told_the_context_that_fits() -> None:
    with Model.open(STORIES) as model:
        half = model.memory(256).total_bytes
        result = fit(model, replace(PI, memory_available=half + 150_000_000), None)
        assert 256 <= result.largest_context < 512
        assert model.memory(result.largest_context).total_bytes <= result.available_bytes
        assert model.memory(result.largest_context + 1).total_bytes > result.available_bytes
        finding = judge_fit(result, model.name)
    assert finding.level == WARNING
    assert f"--context {result.largest_context}" in finding.advice


def test_a_board_that_is_too_small_is_told_so() -> None:
    with Model.open(STORIES) as model:
        result = fit(model, replace(PI, memory_available=100_000_000), None)
        finding = judge_fit(result, model.name)
    assert result.largest_context == 0
    assert finding.level == PROBLEM
    assert "smaller" in finding.advice


# ---- the command ---------------------------------------------------------------------------------


def test_the_command_tells_of_this_machine(command: Command) -> None:
    result = command("doctor", STORIES, "--context", "100", "--json")
    assert result.status in (0, 1), result.err
    document = json.loads(result.out)
    assert document["board"]["machine"] == platform.machine()
    assert document["kernels"] == _native.kernel_tables()
    assert document["kernels"][-1] == "reference"
    assert document["fit"]["context_length"] == 100
    problems = [f for f in document["findings"] if f["level"] == PROBLEM]
    assert result.status == (1 if problems else 0)


def test_the_report_is_readable(command: Command) -> None:
    out = command("doctor", STORIES).out
    for subject in ("board", "system", "C library", "page size", "kernels", "memory", "model"):
        assert any(line[4:].strip().startswith(subject) for line in out.splitlines()), subject


def test_a_bad_file_is_one_sentence(command: Command, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_text("no model" * 40)
    command("doctor", tmp_path / "a.gguf").assert_one_sentence("magic")


def test_a_context_beyond_the_trained_one_is_one_sentence(command: Command) -> None:
    result = command("doctor", STORIES, "--context", 4096)
    result.assert_one_sentence("4096 tokens", "trained for 512")
