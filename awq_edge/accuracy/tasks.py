"""Runs tasks of lm-evaluation-harness on a model and collects their figures.

Owns which tasks come from local files and which from the harness, and the shape of the results.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from awq_edge.accuracy import local_tasks
from awq_edge.accuracy.task_models import TaskModel
from awq_edge.errors import FileUnreadableError, InvalidArgumentError


@dataclass(frozen=True)
class TaskResult:
    """One figure of one task.

    Attributes:
        task: Its name.
        metric: What was measured.
        value: The mean over the problems.
        standard_error: Of ``value``; None where the harness gives none.
        problems: How many were scored.
    """

    task: str
    metric: str
    value: float
    standard_error: float | None
    problems: int


def run_tasks(
    model: TaskModel,
    name: str,
    tasks: Sequence[str],
    *,
    data: Path | None = None,
    limit: int | None = None,
    chat: bool = False,
    advance: Callable[[float], None] = lambda share: None,
) -> list[TaskResult]:
    """Measures a model.

    Args:
        model: An open model.
        name: What to call it.
        tasks: Names of ours or of the harness; the latter download their data.
        data: The folder of the files of our tasks.
        limit: At most this many problems of each task.
        chat: Put the prompts into the model's chat template.
        advance: Called after each request with its share of all.

    Raises:
        InvalidArgumentError: There is no such task, or ours lack their folder.
        FileUnreadableError: The data of one of the harness's tasks cannot be downloaded.
    """
    # Our own progress is enough; tqdm reads this when it is imported.
    os.environ.setdefault("TQDM_DISABLE", "1")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    from lm_eval import evaluator
    from lm_eval.tasks import TaskManager

    from awq_edge.accuracy.harness_model import HarnessModel

    ours = [task for task in tasks if task in local_tasks.NAMES]
    if ours and data is None:
        raise InvalidArgumentError(f"The task {ours[0]} needs --data, the folder of its file.")
    theirs = [task for task in tasks if task not in ours]
    # Reading the list of all tasks takes seconds: only if one of them is asked for.
    manager = TaskManager(include_defaults=bool(theirs))
    for task in theirs:
        if task not in manager.all_tasks:
            raise InvalidArgumentError(
                f"There is no task {task!r}: {', '.join(local_tasks.NAMES)} come from files, "
                "'lm_eval ls tasks' lists the others."
            )
    objects = [
        local_tasks.make_task(task, data) if data is not None and task in ours else task
        for task in tasks
    ]
    # The harness notes the commit of the directory that it runs in, and git complains without one.
    evaluator.get_git_commit_hash = lambda: None
    try:
        found = evaluator.simple_evaluate(
            model=HarnessModel(model, name, advance),
            tasks=objects,
            task_manager=manager,
            limit=limit,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
            log_samples=False,
        )
    except ConnectionError as error:
        raise FileUnreadableError(
            f"The data of {', '.join(theirs)} cannot be downloaded: {str(error).splitlines()[0]}."
        ) from error
    return [
        result
        for task in found["results"]
        for result in _figures(task, found["results"][task], found["n-samples"].get(task, {}))
    ]


def _figures(task: str, entries: dict[str, Any], counts: dict[str, Any]) -> list[TaskResult]:
    """The figures of one task; the harness writes them as "metric,filter"."""
    results = []
    for key, value in entries.items():
        metric, _, filtered = key.partition(",")
        if not filtered or metric.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        error = entries.get(f"{metric}_stderr,{filtered}")
        results.append(
            TaskResult(
                task=task,
                metric=metric if filtered == "none" else f"{metric} ({filtered})",
                value=float(value),
                standard_error=_finite(error),
                problems=int(counts.get("effective", 0)),
            )
        )
    return results


def _finite(error: Any) -> float | None:
    """The harness writes "N/A" for metrics without an error, and NaN for a single problem."""
    return float(error) if isinstance(error, (int, float)) and math.isfinite(error) else None
