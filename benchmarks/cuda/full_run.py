"""Everything that a GPU has to show, in one command: checks, then sanitizers, then times.

    python benchmarks/cuda/full_run.py BUILD RESULTS [--only STEP,...] [--minutes N]
        [--file FILE ...]

BUILD: a build with -DAWQE_WITH_CUDA=ON -DAWQE_BUILD_TESTS=ON -DAWQE_BUILD_BENCHMARKS=ON. A GPU may
be at hand for minutes, so every step has a limit in seconds, what it prints lies in
RESULTS/STEP.log while it runs, and RESULTS/summary.txt is written anew behind each: a step that
hangs is ended, with all that it started, and costs no other one its result. Steps for which
--minutes leaves too little are left out and named. --only goes on where an earlier call ended. Ends
with 1 where a step failed or ran out of time.

Files with --file are compared too: greedy texts and logits on the GPU, the CPU's by ==.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests" / "data" / "tiny.awq.gguf"
SHAPE = "tinyllama-1.1b"


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: A word, and its log's name.
        limit: Seconds that it may take.
        command: Program and arguments.
    """

    name: str
    limit: float
    command: Sequence[str]


@dataclass(frozen=True)
class Result:
    """How a step ended: "passed", "FAILED (status)", "OUT OF TIME", "not run: why"."""

    name: str
    ended: str
    seconds: float
    last: str = ""


def steps(build: Path, files: Sequence[Path], cycles: int) -> list[Step]:
    """All steps, those that decide most first."""
    python = sys.executable
    command = [python, "-m", "awq_edge.cli.main"]
    here = [python, str(Path(__file__).resolve()), str(build), "-"]
    selftest = [*command, "selftest", "--device", "cuda"]
    tests = str(build / "tests" / "native" / "cuda_test")
    compare = [python, str(Path(__file__).with_name("compare.py")), str(build)]

    def sanitizer(tool: str, kernels: str = "") -> list[str]:
        # On the self-test: every kernel, in the smallest shapes that take all its ways.
        chosen = ["--kernel-regex", f"kns={kernels}"] if kernels else []
        settings = ["--tool", tool, "--error-exitcode", "9", "--target-processes", "all"]
        return ["compute-sanitizer", *settings, *chosen, *selftest]

    return [
        Step("doctor", 60, [*command, "doctor", str(TINY)]),
        Step("selftest", 120, selftest),
        # Every form of a decoder: divisions, experts, pictures' rows, caches, tensor attention.
        Step("cuda_test", 400, [tests]),
        *([Step("files", 300, [tests, *map(str, files)])] if files else []),
        Step("cycles", 240, [*here, "--cycles", str(cycles), "--only", "cycles"]),
        Step("memcheck", 240, sanitizer("memcheck")),
        Step("initcheck", 240, sanitizer("initcheck")),
        *(
            Step(f"racecheck_{kernels}", 180, sanitizer("racecheck", kernels))
            for kernels in ("attention", "norm", "gemv", "rows", "walk", "gemm")
        ),
        Step("table", 300, [*compare, "--peers", ""]),
        Step("division", 240, [*here, "--only", "division"]),
        Step("table_with_peers", 500, compare),
    ]


def run_step(step: Step, folder: Path) -> Result:
    """Runs one step to its end or its limit; its output is in the folder all the while."""
    if shutil.which(step.command[0]) is None:
        return Result(step.name, f"not run: there is no {step.command[0]}", 0)
    path = folder / f"{step.name}.log"
    started = time.monotonic()
    with path.open("wb") as log:
        process = subprocess.Popen(
            step.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
        try:
            status = process.wait(step.limit)
            ended = "passed" if status == 0 else f"FAILED ({status})"
        except subprocess.TimeoutExpired:
            ended = "OUT OF TIME"
        finally:
            # What the step itself has started and left.
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
    lines = path.read_text("utf-8", "replace").strip().splitlines()
    return Result(step.name, ended, time.monotonic() - started, lines[-1] if lines else "")


def summary(results: Sequence[Result]) -> str:
    """One line for each step."""
    return "".join(
        f"{result.name:20s} {result.ended:28s} {result.seconds:6.0f} s  {result.last}\n"
        for result in results
    )


def run_all(chosen: Sequence[Step], folder: Path, seconds: float) -> list[Result]:
    """Runs the steps that time is left for."""
    folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + seconds
    results: list[Result] = []
    for step in chosen:
        left = end - time.monotonic()
        if left < step.limit / 4:
            results.append(Result(step.name, "not run: no time left", 0))
        else:
            limited = Step(step.name, min(step.limit, left), step.command)
            results.append(run_step(limited, folder))
        print(summary(results[-1:]), end="", flush=True)
        (folder / "summary.txt").write_text(summary(results), "utf-8")
    return results


def check_cycles(count: int) -> None:
    """Opens, generates and closes: the memory of GPU and process must not grow.

    Raises:
        SystemExit: It does.
    """
    from awq_edge import Model, _native

    def used() -> tuple[int, int]:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE"), _native.gpu().free_bytes

    kept = Model.open(TINY, device="cuda")  # the driver's own memory stays as it is
    kept.logits([1])
    seen = []
    for cycle in range(count):
        if cycle in (count // 5, count - 1):
            seen.append(used())
        with Model.open(TINY, device="cuda", context_length=64) as model:
            model.logits([1, 2, 3])
            model.logits([4])
    (before, free_before), (after, free_after) = seen
    print(f"{count} cycles: process {before / 1e6:.1f} to {after / 1e6:.1f} MB, ", end="")
    print(f"GPU free {free_before / 1e6:.1f} to {free_after / 1e6:.1f} MB")
    if after > 1.02 * before + 1e6 or free_after < free_before - 4e6:
        raise SystemExit("memory grows")


def time_division(build: Path) -> None:
    """Speeds of a model whose last layers the GPU has."""
    import tempfile

    sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
    from shapes import architecture, write_awq_edge

    shape = architecture(SHAPE)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{SHAPE}.awq.gguf"
        write_awq_edge(shape, path)
        for layers in (shape.layers // 4, shape.layers // 2, shape.layers - 1, shape.layers):
            print(f"{layers} of {shape.layers} layers on the GPU", flush=True)
            options = ["--device", "cuda", "--gpu-layers", str(layers)]
            subprocess.run(
                [sys.executable, "-m", "awq_edge.cli.main", "bench", str(path), *options],
                cwd=ROOT,
                check=True,
            )


def main() -> int:
    """Runs what is chosen."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("build", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--minutes", type=float, default=28)
    parser.add_argument("--file", type=Path, action="append", default=[])
    parser.add_argument("--cycles", type=int, default=500)
    arguments = parser.parse_args()
    build = arguments.build.resolve()
    os.environ["AWQ_EDGE_LIBRARY"] = str(build / "libawq_edge.so")
    if str(arguments.results) == "-":  # a step of this program's own
        if arguments.only == "cycles":
            check_cycles(arguments.cycles)
        else:
            time_division(build)
        return 0
    all_steps = steps(build, [file.resolve() for file in arguments.file], arguments.cycles)
    names = [name for name in arguments.only.split(",") if name]
    unknown = set(names) - {step.name for step in all_steps}
    if unknown:
        known = ", ".join(step.name for step in all_steps)
        raise SystemExit(f"There is no step {', '.join(sorted(unknown))}: there are {known}.")
    chosen = [step for step in all_steps if not names or step.name in names]
    results = run_all(chosen, arguments.results, 60 * arguments.minutes)
    return 0 if all(r.ended == "passed" or "not run" in r.ended for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
