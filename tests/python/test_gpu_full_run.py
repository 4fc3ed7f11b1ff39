"""benchmarks/cuda: the program for minutes with a GPU, and the comparison that it starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_emulated_gpu import EMULATED, LIBRARY, gpu

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benchmarks" / "cuda"
sys.path.insert(0, str(FOLDER))

import full_run  # noqa: E402


def test_a_step_that_hangs_costs_no_other_its_result(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    # A child that ignores what ends politely, and tells of itself before it hangs.
    child = f"trap '' TERM INT; echo $$ > {alive}; while :; do sleep 1; done"
    hanging = [
        "sh",
        "-c",
        f'echo begun; sh -c "{child}" & while [ ! -s {alive} ]; do :; done; wait',
    ]
    steps = [
        full_run.Step("first", 60, ["sh", "-c", "echo one; echo two"]),
        full_run.Step("hangs", 10, hanging),
        full_run.Step("fails", 60, ["sh", "-c", "echo why >&2; exit 3"]),
        full_run.Step("absent", 60, ["no-such-program"]),
        full_run.Step("last", 60, ["true"]),
        full_run.Step("long", 1e6, ["true"]),
    ]
    results = full_run.run_all(steps, tmp_path / "results", 600)
    assert [result.ended for result in results] == [
        "passed",
        "OUT OF TIME",
        "FAILED (3)",
        "not run: there is no no-such-program",
        "passed",
        "not run: no time left",
    ]
    assert (tmp_path / "results" / "first.log").read_text() == "one\ntwo\n"
    assert (tmp_path / "results" / "hangs.log").read_text() == "begun\n"
    assert results[2].last == "why"
    assert (tmp_path / "results" / "summary.txt").read_text() == full_run.summary(results)
    with pytest.raises(ProcessLookupError):
        # A zombie of nobody's is gone as soon as init has seen it.
        for _ in range(100):
            os.kill(int(alive.read_text()), 0)
            subprocess.run(["sleep", "0.1"], check=True)


def _run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(FOLDER / program), *map(str, arguments)],
        env={**os.environ, **gpu()},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_step_that_does_not_exist_is_one_sentence(tmp_path: Path) -> None:
    done = _run("full_run.py", EMULATED, tmp_path, "--only", "doctor,dentist")
    assert done.returncode == 1
    assert done.stderr.startswith("There is no step dentist: there are doctor, selftest, ")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not LIBRARY.exists(), reason=f"{LIBRARY} is not built")
def test_checks_pass_on_the_emulated_gpu(tmp_path: Path) -> None:
    done = _run("full_run.py", EMULATED, tmp_path, "--only", "doctor,cycles", "--cycles", 20)
    text = (tmp_path / "summary.txt").read_text()
    assert done.returncode == 0, (text, done.stderr)
    assert [line.split()[:2] for line in text.splitlines()] == [
        ["doctor", "passed"],
        ["cycles", "passed"],
    ]
    assert "20 cycles: process " in text


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["no-such-shape"], "There is no shape no-such-shape: there are tinyllama-1.1b, "),
        (["--peers", "eager,lazy"], "There is no peer lazy: there are eager, compiled."),
    ],
)
def test_the_comparison_refuses_what_it_does_not_know(arguments: list[str], sentence: str) -> None:
    done = _run("compare.py", EMULATED, *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith(sentence)
