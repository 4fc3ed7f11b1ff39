"""``awq-edge selftest``: passes here, and says so when a kernel is wrong.

That a wrong kernel is found is shown in tests/native/runtime/selftest_test.cpp.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from conftest import Command
from typer.testing import CliRunner

from awq_edge import _native
from awq_edge._native import SelftestResult
from awq_edge.cli.main import application
from awq_edge.errors import AwqEdgeError, OutOfMemoryError, UnsupportedError

RIGHT = SelftestResult("reference", "attention", 90, 0)


def test_every_kernel_of_this_cpu_passes(command: Command) -> None:
    result = command("selftest", "--device", "cpu", "--json")
    assert result.status == 0, result.err
    document = json.loads(result.out)
    assert document["passed"] is True
    assert document["kernels"] == _native.kernel_tables()
    # As many operations for every table, and more than a few cases of each.
    operations = {r["operation"] for r in document["results"]}
    assert len(document["results"]) == len(operations) * len(document["kernels"])
    assert all(r["cases"] >= 15 and r["differing"] == 0 for r in document["results"])


def test_the_report_is_short(command: Command) -> None:
    lines = command("selftest", "--device", "cpu").out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "reference",
        *_native.kernel_tables()[:-1],
    ]
    assert all(line.endswith("the same bits") for line in lines)


@pytest.mark.parametrize("as_json", [False, True])
def test_wrong_bits_are_told_and_end_with_one(
    as_json: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(report: Callable[[SelftestResult], None]) -> None:
        report(SelftestResult("reference", "attention", 90, 0))
        report(SelftestResult("neon", "attention", 90, 2))

    monkeypatch.setattr(_native, "selftest", wrong)
    monkeypatch.setattr(_native, "kernel_tables", lambda: ["neon", "reference"])
    result = CliRunner().invoke(application(), ["selftest", *(["--json"] if as_json else [])])
    assert result.exit_code == 1
    if as_json:
        assert '"passed": false' in result.output
    else:
        assert "reference: 1 operations, 90 cases, the same bits" in result.output
        assert "neon: 1 operations, 90 cases, 2 of them DIFFER" in result.output
        assert "neon, attention: 2 cases differ" in result.output


@pytest.mark.parametrize("refusal", [UnsupportedError, OutOfMemoryError])
def test_a_machine_without_a_free_gpu_says_so_in_one_sentence(
    refusal: type[AwqEdgeError], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(report: Callable[[SelftestResult], None]) -> None:
        raise refusal("there is no NVIDIA driver")

    monkeypatch.setattr(_native, "gpu_selftest", absent)
    result = CliRunner().invoke(application(), ["selftest", "--device", "cuda"])
    assert result.exit_code == 1
    assert isinstance(result.exception, refusal)
    monkeypatch.setattr(_native, "selftest", lambda report: report(RIGHT))
    monkeypatch.setattr(_native, "kernel_tables", lambda: ["reference"])
    result = CliRunner().invoke(application(), ["selftest"])
    assert result.exit_code == 0
    assert "No GPU was tested: there is no NVIDIA driver" in result.output
    result = CliRunner().invoke(application(), ["selftest", "--device", "cpu"])
    assert "GPU" not in result.output
    command("selftest", "--device", "tpu").assert_one_sentence("cpu, auto, cuda")


@pytest.mark.parametrize(
    "results, words",
    [
        ([SelftestResult("cuda", "norm_one", 18, 2)], "norm_one: 18 cases, 2 of them DIFFER"),
        ([SelftestResult("cuda", "norm_one", 0, 0)], "norm_one: 0 cases, NOTHING was compared"),
        ([], "computes wrong results"),
    ],
)
def test_a_wrong_gpu_beside_a_right_cpu_ends_with_one(
    results: list[SelftestResult], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_native, "selftest", lambda report: report(RIGHT))
    monkeypatch.setattr(_native, "kernel_tables", lambda: ["reference"])
    monkeypatch.setattr(
        _native, "gpu_selftest", lambda report: [report(entry) for entry in results]
    )
    result = CliRunner().invoke(application(), ["selftest"])
    assert result.exit_code == 1
    assert words in result.output


def test_a_report_that_raises_ends_the_selftest() -> None:
    told = []

    def stop(result: SelftestResult) -> None:
        told.append(result)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _native.selftest(stop)
    assert len(told) == 1


@pytest.mark.parametrize(
    "results",
    [
        [],
        [SelftestResult("reference", "attention", 90, 0)],
        [SelftestResult("reference", "attention", 90, 0), SelftestResult("neon", "rope", 0, 0)],
    ],
)
def test_what_was_not_compared_has_not_passed(
    results: list[SelftestResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_native, "selftest", lambda report: [report(entry) for entry in results])
    monkeypatch.setattr(_native, "kernel_tables", lambda: ["neon", "reference"])
    result = CliRunner().invoke(application(), ["selftest"])
    assert result.exit_code == 1
    assert "NOTHING was compared" in result.output
