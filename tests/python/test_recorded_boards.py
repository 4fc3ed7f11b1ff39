"""``doctor``, target detection, thread choice and memory advice on boards that others recorded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from recorded_boards import FOLDER, NAMES, lay_out, record

from awq_edge.device import board as board_module
from awq_edge.device.board import Board, read_board
from awq_edge.device.deploy import identify
from awq_edge.device.doctor import OK, PROBLEM, WARNING, examine, fit, judge_fit
from awq_edge.device.ssh import Remote, Result
from awq_edge.free_memory import read_free_memory
from awq_edge.model import Model
from awq_edge.thread_counts import cpu_name

# Llama 3.2 1B at 4 bits with an 8-bit head: weights, and keys and values of one token.
WEIGHT_BYTES, TOKEN_BYTES = 768_000_000, 32_768
# Tokens of context that fit beside it into what is free; 0: it does not fit at all.
LONGEST = {
    "container-on-a-raspberry-pi-4": 0,
    "jetson-orin-nano": 131_072,
    "raspberry-pi-3b-plus": 0,
    "raspberry-pi-4b-1gb": 0,
    "raspberry-pi-4b-2gb": 16_253,
    "raspberry-pi-4b-32-bit-programs": 74_676,
    "raspberry-pi-4b-4gb": 74_676,
    "raspberry-pi-4b-8gb": 131_072,
    "raspberry-pi-5": 131_072,
    "raspberry-pi-zero-2-w": 0,
}


@pytest.fixture(params=NAMES)
def recorded(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"name": request.param, **record(request.param)}


def read(recorded: dict[str, Any], root: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    """The board as doctor would read it there; what Python itself tells is the board's too."""
    monkeypatch.setattr(board_module.shutil, "which", lambda _: None)
    board = read_board(lay_out(recorded, root))
    bionic = "C library" in recorded["expected"].get("problems", [])
    return replace(
        board,
        cores=sum(cores["count"] for cores in recorded["cores"]),
        machine=recorded.get("machine", "aarch64"),
        userland_bits=recorded.get("userland_bits", 64),
        glibc=None if bionic else "2.36",
    )


def test_each_board_has_a_source(recorded: dict[str, Any]) -> None:
    assert recorded["sources"]
    assert all(len(source) > 20 for source in recorded["sources"])


def test_doctor_names_the_board_and_what_is_wrong_with_it(
    recorded: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board, expected = read(recorded, tmp_path, monkeypatch), recorded["expected"]
    model = recorded.get("files", {}).get("proc/device-tree/model")
    assert board.name == (model and model.rstrip("\0"))
    assert board.cpu == expected["cpu"]
    findings = examine(board, ["neon", "reference"])
    warned = {finding.subject for finding in findings if finding.level == WARNING}
    unknown = set() if "meminfo" in recorded else {"memory"}
    assert warned == unknown | set(expected["warnings"])
    refused = {finding.subject for finding in findings if finding.level == PROBLEM}
    assert refused == set(expected.get("problems", []))
    assert all(finding.advice for finding in findings if finding.level != OK)


def test_memory_is_what_the_board_or_its_container_has(
    recorded: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board, expected = read(recorded, tmp_path, monkeypatch), recorded["expected"]
    if "meminfo" not in recorded:
        assert (board.memory_total, board.memory_available) == (None, None)
        return
    told = {key: 1024 * value for key, value in recorded["meminfo"].items()}
    assert board.memory_total == expected.get("memory_total", told["MemTotal"])
    assert board.memory_available == expected.get("memory_available", told["MemAvailable"])
    assert board.swap_total == told["SwapTotal"]
    assert board.swap_used == told["SwapTotal"] - told["SwapFree"]
    assert read_free_memory(tmp_path).available == board.memory_available


class Answering:
    """A remote board that says what it is."""

    def __init__(self, machine: str, name: str) -> None:
        self.said = f"{machine}\n{name}"

    def run(self, _script: str) -> Result:
        return Result(0, self.said, "")


def test_deploy_finds_the_target(recorded: dict[str, Any]) -> None:
    name = recorded.get("files", {}).get("proc/device-tree/model", "").rstrip("\0")
    remote = cast("Remote", Answering(recorded.get("machine", "aarch64"), name))
    assert identify(remote).name == recorded["expected"]["target"]


class OneBillion:
    """What ``fit`` asks of a model."""

    context_length = 2048
    info = SimpleNamespace(context_length=131_072)

    def memory(self, tokens: int) -> SimpleNamespace:
        return SimpleNamespace(total_bytes=WEIGHT_BYTES + TOKEN_BYTES * tokens)

    def encoding_bytes(self) -> int:
        return 0


def test_advice_on_a_model_of_a_billion_weights(
    recorded: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = read(recorded, tmp_path, monkeypatch)
    result = fit(cast("Model", OneBillion()), board, None)
    longest = LONGEST.get(recorded["name"], 0)
    assert result.largest_context == longest
    finding = judge_fit(result, "one-billion")
    assert finding.level == (OK if longest >= 2048 else PROBLEM)
    assert bool(finding.advice) == (finding.level == PROBLEM)


def test_the_cache_of_thread_counts_tells_boards_apart(tmp_path: Path) -> None:
    names = {}
    for name in NAMES:
        root = lay_out(record(name), tmp_path / name)
        names[name] = cpu_name(str(root / "proc/cpuinfo"))
    assert names["orange-pi-5"] == "0x41/0xd05 + 0x41/0xd0b"
    assert names["raspberry-pi-4b-4gb"] == "Raspberry Pi 4 Model B Rev 1.5"
    assert "unknown CPU" not in names.values()
    others = ("radxa-rk3566", "orange-pi-5", "jetson-orin-nano", "raspberry-pi-4b-4gb")
    assert len({names[name] for name in others}) == len(others)


def test_the_list_that_the_native_test_reads_is_that_of_the_records() -> None:
    """``cpus_test`` reads no TOML: a line has the threads, then each core's capacity and clock."""
    lines = []
    for name in NAMES:
        board = record(name)
        words = [name, str(board["expected"]["threads"])]
        for cores in board["cores"]:
            words += [f"{cores.get('capacity', 0)}/{cores.get('max_khz', 0)}"] * cores["count"]
        lines.append(" ".join(words) + "\n")
    assert (FOLDER / "cores.txt").read_text() == "".join(lines)


def test_records_hold_facts_alone() -> None:
    for name in NAMES:
        assert "erial" not in json.dumps(record(name)), f"{name} has a serial number"
