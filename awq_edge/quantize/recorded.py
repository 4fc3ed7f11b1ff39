"""Many small steps as one: on a GPU, starting them takes longer than doing them.

Owns the recording of steps on tensors of fixed shapes as a CUDA graph, and its replay with other
tensors of these shapes. Anywhere but on a GPU the steps simply run. Refuses to know what they do.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

Tensors = tuple[torch.Tensor, ...]
# Steps on tensors that they read, and on others that they change in place; the float is fixed.
Steps = Callable[[Tensors, Tensors, float], None]
# Shapes whose recordings are kept, with copies of all of their tensors.
_RECORDINGS = 16


def run(steps: Steps, given: Tensors, changed: Tensors, value: float) -> None:
    """Does ``steps(given, changed, value)``.

    Args:
        steps: They allocate nothing that outlives them, and no number leaves the GPU in them.
        given: What they read.
        changed: What they change, all of it on one device.
        value: A number.
    """
    if changed[0].device.type != "cuda":
        steps(given, changed, value)
        return
    shapes = tuple(tuple(tensor.shape) for tensor in (*given, *changed))
    recording = _recording(steps, shapes, len(given), value, changed[0].device)
    recording.replay(given, changed)


class _Recording:
    """Steps on tensors of its own."""

    def __init__(
        self,
        steps: Steps,
        shapes: tuple[tuple[int, ...], ...],
        readable: int,
        value: float,
        device: torch.device,
    ) -> None:
        """Records the steps; the first ``readable`` shapes are those of the tensors they read."""
        with torch.inference_mode(mode=False):  # replays may come from inside and from outside
            tensors = tuple(torch.ones(shape, device=device) for shape in shapes)
            self._given, self._changed = tensors[:readable], tensors[readable:]
            steps(self._given, self._changed, value)  # loads what must not be loaded in recording
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                steps(self._given, self._changed, value)

    def replay(self, given: Tensors, changed: Tensors) -> None:
        """Does the steps on other tensors of the same shapes."""
        for own, tensor in zip((*self._given, *self._changed), (*given, *changed)):
            own.copy_(tensor)
        self._graph.replay()
        for own, tensor in zip(self._changed, changed):
            tensor.copy_(own)


@functools.lru_cache(maxsize=_RECORDINGS)
def _recording(
    steps: Steps,
    shapes: tuple[tuple[int, ...], ...],
    readable: int,
    value: float,
    device: torch.device,
) -> _Recording:
    return _Recording(steps, shapes, readable, value, device)
