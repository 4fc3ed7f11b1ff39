"""``awq-edge doctor``: whether this machine is well, and whether a model fits on it."""

# No `from __future__ import annotations` here: on Python 3.9 typer reads annotations as they stand.

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Optional, Union

import typer

from awq_edge import __version__
from awq_edge.cli._options import Context, Json, model_path
from awq_edge.cli._output import Output
from awq_edge.errors import OutOfMemoryError, UnsupportedError

_MARKS = {"ok": "  ok ", "warning": "WARN ", "problem": "STOP "}


def doctor(
    file: Annotated[
        Optional[Path],
        typer.Argument(metavar="[FILE]", parser=model_path, help="A packed model to fit in."),
    ] = None,
    context: Context = None,
    as_json: Json = False,
) -> None:
    """Check this machine: CPU, system, memory, power, heat; and whether FILE fits."""
    from awq_edge import _native
    from awq_edge.device.board import read_board
    from awq_edge.device.doctor import (
        PROBLEM,
        WARNING,
        Finding,
        examine,
        fit,
        gpu_fit,
        judge_fit,
        judge_gpu_fit,
    )
    from awq_edge.device.gpu_sensors import read_gpu_state

    output = Output(as_json=as_json)
    board, kernels = read_board(), _native.kernel_tables()
    gpu: Union[_native.Gpu, str]
    try:
        gpu = _native.gpu()
    except (UnsupportedError, OutOfMemoryError) as error:
        gpu = f"{error}"
    state = read_gpu_state()
    findings = examine(board, kernels, gpu, state)
    result = None
    on_gpu = None
    if file is not None:
        from awq_edge.model import Model

        with Model.open(file) as model:
            result = fit(model, board, context)
            findings.append(judge_fit(result, model.name))
            if not isinstance(gpu, str):
                try:
                    on_gpu = gpu_fit(model, context)
                except (UnsupportedError, OutOfMemoryError) as error:
                    findings.append(Finding(WARNING, "GPU model", f"{error}"))
                else:
                    layers = model.info.layers
                    findings.append(judge_gpu_fit(*on_gpu, gpu, layers, model.name))
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        output.line(f"{_MARKS[finding.level]} {finding.subject:<{width}}  {finding.text}")
        if finding.advice:
            output.line(f"      {'':<{width}}  → {finding.advice}")
    output.json(
        {
            "version": __version__,
            "board": asdict(board),
            "kernels": kernels,
            "gpu": None if isinstance(gpu, str) else asdict(gpu),
            "gpu_state": None if state is None else asdict(state),
            "findings": [asdict(finding) for finding in findings],
            **({} if result is None else {"fit": asdict(result)}),
            **({} if on_gpu is None else {"gpu_fit": [asdict(need) for need in on_gpu]}),
        }
    )
    if any(finding.level == PROBLEM for finding in findings):
        raise typer.Exit(1)
