"""``awq-edge selftest``: every kernel that this CPU can run, bit for bit."""

# No `from __future__ import annotations` here: on Python 3.9 typer reads annotations as they stand.

import sys
import time
from dataclasses import asdict

import typer

from awq_edge.cli._options import Json, Quiet
from awq_edge.cli._output import Output
from awq_edge.errors import BoardError
from awq_edge.quantities import duration_text


def selftest(as_json: Json = False, quiet: Quiet = False) -> None:
    """Run every kernel on this CPU and compare its bits with the reference.

    On a board, the files of the installation are compared with what was installed first.
    """
    from awq_edge import _native
    from awq_edge.device.release import is_release

    output = Output(as_json=as_json, quiet=quiet)
    files = _compare_installation(sys.prefix, output) if is_release(sys.prefix) else None
    tables = _native.kernel_tables()
    results: list[_native.SelftestResult] = []
    started = time.monotonic()
    with output.progress("Self-test", len(tables)) as bar:

        def report(result: _native.SelftestResult) -> None:
            if results and results[-1].kernels != result.kernels:
                bar.advance()
            results.append(result)

        _native.selftest(report)
    seconds = time.monotonic() - started
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
    passed = bool(tables) and not wrong and not untested
    output.status(f"Self-test took {duration_text(seconds)}; a session here uses {tables[0]}.")
    output.json(
        {
            "passed": passed,
            "installed_files": files,
            "kernels": tables,
            "seconds": seconds,
            "results": [asdict(result) for result in results],
        }
    )
    if not passed:
        output.warning(
            "this machine computes wrong results: check its power supply and memory, install "
            "awq-edge again, and report it if that does not help."
        )
        raise typer.Exit(1)


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
