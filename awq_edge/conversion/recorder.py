"""Records finished layers in the work directory, beside a GPU's work on the next one.

Owns that a layer counts as finished only when all of it is in files. Refuses to keep more than one
layer waiting. On a CPU everything happens at once: there is no second processor to wait for.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from awq_edge.calibration.hidden_states import HiddenStates
from awq_edge.conversion.report import LayerReport
from awq_edge.conversion.work_directory import WorkDirectory


class Recorder:
    """Use it as a context: at its end everything is recorded."""

    def __init__(self, work: WorkDirectory, device: torch.device) -> None:
        """Records in ``work`` what was computed on a device."""
        self._work = work
        self._thread = None if device.type == "cpu" else ThreadPoolExecutor(1)
        self._waiting: Future[None] | None = None

    def __enter__(self) -> Recorder:
        """Nothing is waiting yet."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        """Waits; an error in the last recording is raised unless there is one already."""
        if self._thread is not None:
            self._thread.shutdown()
        if kind is None:
            self.wait()

    def wait(self) -> None:
        """Returns when everything is recorded."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.result()

    def record(
        self, report: LayerReport, states: HiddenStates | None, unsettled: Sequence[Future[None]]
    ) -> None:
        """Takes a layer; the one before it has been waited for.

        Args:
            report: On the layer.
            states: Behind it; not closed before the next :meth:`wait`, and written by nobody.
            unsettled: What may not lie in its file yet.
        """
        assert self._waiting is None
        if self._thread is None:
            self._record(report, states, unsettled)
        else:
            self._waiting = self._thread.submit(self._record, report, states, unsettled)

    def _record(
        self, report: LayerReport, states: HiddenStates | None, unsettled: Sequence[Future[None]]
    ) -> None:
        for written in unsettled:
            written.result()
        if states is not None:
            states.keep()
            self._work.states_kept(states)
        self._work.layer_done(report)
