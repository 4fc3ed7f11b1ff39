"""``awq-edge eval tasks``: problems with answers, through lm-evaluation-harness."""

# No `from __future__ import annotations` here: on Python 3.9 typer reads annotations as they stand.

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Optional

import typer

from awq_edge.cli._evaluated import open_task_model
from awq_edge.cli._groups import Running, grouped
from awq_edge.cli._options import EvaluatedModel, Json, Quiet, listed
from awq_edge.cli._output import Output
from awq_edge.quantities import figure_text


@grouped
def tasks(
    model: EvaluatedModel,
    names: Annotated[
        list[str],
        typer.Option(
            "--tasks",
            metavar="NAME,…",
            help="gsm8k, mbpp and humaneval from --data, or any task of lm-evaluation-harness.",
        ),
    ],
    data: Annotated[
        Optional[Path],
        typer.Option(
            metavar="DIR",
            help="Folder with gsm8k_test.jsonl, mbpp.jsonl, HumanEval.jsonl (or .gz).",
        ),
    ] = None,
    limit: Annotated[
        Optional[int], typer.Option(min=1, help="At most this many problems of each task.")
    ] = None,
    context: Annotated[
        Optional[int],
        typer.Option(
            min=8, help="Tokens of prompt and answer; by default the model's, up to 4096."
        ),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Put prompts into the model's chat template.")
    ] = False,
    *,
    running: Running,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure problems solved. Generated code runs without a network and within limits."""
    from awq_edge.accuracy.tasks import run_tasks

    output = Output(as_json=as_json, quiet=quiet)
    wanted = listed(names)
    opening = open_task_model(model, context=context, running=running)
    with opening as opened, output.progress("Tasks", 1.0) as bar:
        results = run_tasks(
            opened,
            model.name,
            wanted,
            data=data,
            limit=limit,
            chat=chat,
            advance=bar.advance,
        )
    output.table(
        ("task", "metric", "value", "±", "problems"),
        [
            (
                result.task,
                result.metric,
                f"{result.value:.4f}",
                figure_text(result.standard_error, 4),
                result.problems,
            )
            for result in results
        ],
    )
    output.json({"model": str(model), "results": [asdict(result) for result in results]})
