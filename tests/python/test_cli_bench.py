"""``awq-edge bench``: that it measures what it says. No test looks at a speed."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from conftest import BAD_FILES, STORIES, Command

from awq_edge import Model
from awq_edge.benchmark import Measurement, measure_decode, measure_prefill

SHORT = ("-p", "16", "-n", "8", "-r", "2")


def test_table_names_the_facts(command: Command) -> None:
    result = command("bench", STORIES, *SHORT, "--threads", 1)
    assert result.status == 0
    for word in ("prefill", "decode", "tokens/s", "share of bandwidth", "kernels", "threads"):
        assert word in result.out


def test_json_adds_up(command: Command) -> None:
    result = command(
        "bench", STORIES, "-p", 16, "-p", 32, "-n", 8, "-r", 3, "--threads", 1, "--json"
    )
    document = json.loads(result.out)
    rows = document["measurements"]
    assert [(row["test"], row["tokens"]) for row in rows] == [
        ("prefill", 16),
        ("prefill", 32),
        ("decode", 8),
    ]
    assert all(len(row["repetitions"]) == 3 for row in rows)
    decode = rows[-1]
    share = decode["tokens_per_second"] * document["decode_bytes"]
    assert decode["share_of_bandwidth"] == pytest.approx(share / document["read_bytes_per_second"])
    assert rows[0]["share_of_bandwidth"] is None
    assert document["threads"] == document["prefill_threads"] == 1


def test_forced_kernels_are_the_ones_measured(command: Command) -> None:
    environment = {"AWQ_EDGE_KERNELS": "reference"}
    result = command("bench", STORIES, *SHORT, "--json", environment=environment)
    assert json.loads(result.out)["kernels"] == "reference"


@pytest.fixture
def measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], Any]:
    """A sensor that always says 12 W, by a clock of its own that counts milliseconds as seconds."""
    from awq_edge.cli.bench import bench
    from awq_edge.device import gpu_sensors

    clock = SimpleNamespace(monotonic=lambda: 1000 * time.monotonic())
    monkeypatch.setattr(gpu_sensors, "time", clock)
    application = typer.Typer()
    application.command()(bench)
    arguments = [f"{STORIES}", "-p", "8", "-n", "256", "-r", "2", "--device", "cpu", "--json"]

    def measure(rails: str) -> Any:
        monkeypatch.setattr(gpu_sensors, "read_power", lambda: (12.0, rails))
        with pytest.raises(SystemExit):
            application(arguments)
        return json.loads(capsys.readouterr().out)

    return measure


def test_energy_is_power_over_speed(measured: Callable[[str], Any]) -> None:
    document = measured("VDD_IN")
    assert document["power"]["watts"] == pytest.approx(12.0)
    assert document["power"]["rails"] == "VDD_IN"
    prefill, decode = document["measurements"]
    assert prefill["joules_per_token"] is None
    assert decode["joules_per_token"] == pytest.approx(12 / decode["tokens_per_second"])


def test_power_of_a_card_is_none_of_the_cpus(measured: Callable[[str], Any]) -> None:
    document = measured("the card")
    assert document["power"] is None
    assert all(row["joules_per_token"] is None for row in document["measurements"])


def test_cache_type_is_measured_and_named(command: Command) -> None:
    wide, narrow = (
        json.loads(command("bench", STORIES, *SHORT, "--kv", kv, "--json").out)
        for kv in ("fp16", "int8")
    )
    assert (wide["kv"], narrow["kv"]) == ("fp16", "int8")
    assert 0.5 < narrow["cache_bytes"] / wide["cache_bytes"] < 1
    command("bench", STORIES, "--kv", "int4").assert_one_sentence("int4", "fp16, int8")


def test_every_repetition_reads_all_tokens(stories: Model) -> None:
    done: list[int] = []
    with stories.session(threads=1) as session:
        measure_prefill(session, 20, 2, lambda: done.append(session.position))
        measure_decode(session, 9, 2, lambda: done.append(session.position))
    # The first prompt is not timed: it warms up.
    assert done == [20, 20, 20, 9, 9]


def test_mean_and_deviation() -> None:
    row = Measurement("decode", 1, (1.0, 2.0, 3.0))
    assert (row.mean, row.deviation) == (2.0, 1.0)
    assert Measurement("decode", 1, (5.0,)).deviation is None


def test_one_repetition_has_no_deviation(command: Command) -> None:
    arguments = ("bench", STORIES, "-p", 4, "-n", 4, "-r", 1, "--threads", 1)
    document = json.loads(command(*arguments, "--json").out)
    assert [row["deviation"] for row in document["measurements"]] == [None, None]
    assert re.search(r"decode +4 +[\d.]+ +- ", command(*arguments).out)


def test_length_beyond_the_context(command: Command) -> None:
    command("bench", STORIES, "-p", 600).assert_one_sentence("600", "512")


@pytest.mark.parametrize(("fault", "words"), BAD_FILES.items())
def test_bad_file(
    command: Command, broken_file: Callable[[str], Path], fault: str, words: str
) -> None:
    path = broken_file(fault)
    command("bench", path).assert_one_sentence(str(path), words)


def test_unknown_kernels(command: Command) -> None:
    result = command("bench", STORIES, environment={"AWQ_EDGE_KERNELS": "abacus"})
    result.assert_one_sentence("abacus")
