"""``awq-edge selftest``: every kernel that this CPU and its GPU can run, bit for bit."""

# No `from __future__ import annotations` here: on Python 3.9 typer reads annotations as they stand.

import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from awq_edge.cli._options import Json, Quiet
from awq_edge.cli._output import Output
from awq_edge.errors import BoardError, OutOfMemoryError, UnsupportedError
from awq_edge.quantities import duration_text

if TYPE_CHECKING:
    from awq_edge._native import SelftestResult


def selftest(
    device: Annotated[
        str,
        typer.Option(
            metavar="DEVICE",
            help="What is tested: cpu, cuda (an NVIDIA GPU), or auto, the CPU and the GPU that is "
            "there.",
        ),
    ] = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run every kernel on this CPU and its GPU and compare its bits with the reference.

    On a board, the files of the installation are compared with what was installed first.
    """
    from awq_edge import _native
    from awq_edge.device.release import is_release

    _native.device_number(device)  # refuses what is none
    output = Output(as_json=as_json, quiet=quiet)
    files = _compare_installation(sys.prefix, output) if is_release(sys.prefix) else None
    started = time.monotonic()
    passed = True
    tables = _native.kernel_tables()
    results: list[SelftestResult] = []
    if device != "cuda":
        results = _run_tables(tables, output)
        passed = _tell_tables(tables, results, output)
    kernels: Optional[list[SelftestResult]] = None
    if device != "cpu":
        try:
            kernels = _run_gpu()
        except (UnsupportedError, OutOfMemoryError) as error:
            if device == "cuda":
                raise
            output.status(f"No GPU was tested: {error}")
    if kernels is not None:
        passed = _tell_gpu(kernels, output) and passed
    seconds = time.monotonic() - started
    uses = tables[0] if kernels is None else f"the GPU, or {tables[0]} by --device cpu"
    output.status(f"Self-test took {duration_text(seconds)}; a session here uses {uses}.")
    output.json(
        {
            "passed": passed,
            "installed_files": files,
            "kernels": tables,
            "seconds": seconds,
            "results": [asdict(result) for result in results],
            "gpu": None if kernels is None else [asdict(result) for result in kernels],
        }
    )
    if not passed:
        output.warning(
            "this machine computes wrong results: check its power supply and memory, install "
            "awq-edge again, and report it if that does not help."
        )
        raise typer.Exit(1)


def _run_tables(tables: list[str], output: Output) -> "list[SelftestResult]":
    from awq_edge import _native

    results: list[SelftestResult] = []
    with output.progress("Self-test", len(tables)) as bar:

        def report(result: "SelftestResult") -> None:
            if results and results[-1].kernels != result.kernels:
                bar.advance()
            results.append(result)

        _native.selftest(report)
    return results


def _tell_tables(tables: list[str], results: "list[SelftestResult]", output: Output) -> bool:
    """One line for each table, and one for each operation that is wrong; whether all is well."""
    wrong = [result for result in results if result.differing]
    # Nothing compared is nothing found right.
    untested = [
        table
        for table in tables
        if not sum(result.cases for result in results if result.kernels == table)
    ]
    # The reference is compared with recorded results, everything else with the reference.
    for table in [tables[-1], *tables[:-1]]:
        own = [result for result in results if result.kernels == table]
        cases = sum(result.cases for result in own)
        bad = sum(result.differing for result in own)
        verdict = "the same bits" if not bad else f"{bad} of them DIFFER"
        if table in untested:
            verdict = "NOTHING was compared"
        output.line(f"{table}: {len(own)} operations, {cases} cases, {verdict}")
    for result in wrong:
        output.line(f"  {result.kernels}, {result.operation}: {result.differing} cases differ")
    return bool(tables) and not wrong and not untested


def _run_gpu() -> "list[SelftestResult]":
    from awq_edge import _native

    results: list[SelftestResult] = []
    _native.gpu_selftest(results.append)
    return results


def _tell_gpu(results: "list[SelftestResult]", output: Output) -> bool:
    """One line for each kernel; whether all is well."""
    for result in results:
        # Prompts on tensor cores have bits of their own, and a bound.
        right = "within its bound" if "tensor" in result.operation else "the same bits"
        verdict = f"{result.differing} of them DIFFER" if result.differing else right
        if not result.cases:
            verdict = "NOTHING was compared"
        output.line(f"{result.kernels}, {result.operation}: {result.cases} cases, {verdict}")
    return bool(results) and all(r.cases and not r.differing for r in results)


def _compare_installation(release: str, output: Output) -> int:
    """Every file of a board's installation; gives their number."""
    from awq_edge.device import release as installed

    try:
        listed = installed.read_list(release)
        installed.compare_contents(release, listed)
    except installed.Damaged as error:
        raise BoardError(installed.sentence(release, str(error))) from error
    count = len(listed.files) + len(listed.models)
    output.line(f"installation: {count} files, as they were installed")
    return count
