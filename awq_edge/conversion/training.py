"""``--effort high``: codes and scales of the whole decoder learn what the float model predicts.

Owns the rounds: which blocks are walked with and which judge, what is kept of a round, and that the
best one is taken, be it what ``auto`` gave. Begins when every layer is packed. Refuses zero-points,
vectors, embedding and head: they stay.

A round begins without any memory of gradients: what is kept of the one before is all that it knows,
so an interrupted conversion goes on as if it had not been.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping

import torch

from awq_edge import layouts, model_file
from awq_edge.architecture import Architecture
from awq_edge.calibration.distillation import Distillation, float_states
from awq_edge.calibration.hidden_states import HiddenStates
from awq_edge.conversion.packing import packed_blocks
from awq_edge.conversion.report import Events
from awq_edge.conversion.student import Student
from awq_edge.conversion.work_directory import WorkDirectory
from awq_edge.errors import InvalidArgumentError, UnsupportedError
from awq_edge.float_model import FloatModel
from awq_edge.quantize.grouped import Quantiser

# How many times as many blocks are learned from as ``auto`` is calibrated on: what codes learn from
# little text is that text.
TIMES = 4
ROUNDS = 4
STEPS = 45  # of a round
_TOKENS = 8192  # of a step
_WARM_UP = 10  # steps until the rate is whole; from then on it falls to nothing at the end
_HELD_OUT = 10  # one block of so many judges


class Training:
    """The rounds of one conversion, given everything but the tokens."""

    def __init__(
        self,
        source: FloatModel,
        widths: Mapping[str, Quantiser],
        seed: int,
        device: torch.device,
        work: WorkDirectory,
        events: Events,
    ) -> None:
        """Takes a model whose layers are all packed in ``work``."""
        self._source = source
        self._architecture = source.architecture
        self._widths = widths
        self._seed = seed
        self._device = device
        self._work = work
        self._events = events
        self._student = Student(source, widths, device, work)

    def run(self, blocks: torch.Tensor) -> None:
        """Walks the rounds that are not done yet.

        Args:
            blocks: Calibration tokens, int64 [b, t].
        """
        work, events = self._work, self._events
        judging, learning = divided(blocks)
        if len(work.rounds) > ROUNDS:
            return
        events.message("Learning from the float model's predictions …")
        positions = self._source.positions(blocks.shape[1], self._device)
        shape = (*blocks.shape, self._architecture.hidden_size)
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode(mode=False))
            stack.enter_context(torch.no_grad())
            exact = HiddenStates(work.folder / "exact", shape, self._device)
            stack.callback(exact.discard)
            float_states(self._source, blocks, positions, exact, events.note)
            group_sizes = {name: q.group_size for name, q in self._widths.items()}
            compared = Distillation(
                self._source, self._student, group_sizes, blocks, positions, exact
            )
            if not work.rounds:
                self._student.begin(0)
                work.round_done(_comparable(compared.divergence(judging)))
            for number in range(len(work.rounds), ROUNDS + 1):
                self._student.begin(number - 1)
                self._learn(number, compared, learning)
                self._student.store(number)
                work.round_done(_comparable(compared.divergence(judging)))

    def _learn(self, number: int, compared: Distillation, learning: list[int]) -> None:
        """Takes the steps of a round with blocks of these numbers."""
        generator = torch.Generator().manual_seed(self._seed + number)
        order: list[int] = []
        at_once = min(max(1, _TOKENS // compared.length), len(learning))
        for step in range(STEPS):
            while len(order) < at_once:
                order += torch.randperm(len(learning), generator=generator).tolist()
            some, order = order[:at_once], order[at_once:]
            done = (number - 1) * STEPS + step
            self._student.step(min(1.0, (done + 1) / _WARM_UP) * (1 - done / (ROUNDS * STEPS)))
            divergence = compared.learn([learning[at] for at in some], self._student.heard)
            self._events.step_done(done + 1, ROUNDS * STEPS, divergence)

    def sources(
        self, tensors: Iterable[tuple[str, model_file.TensorSource]]
    ) -> Iterator[tuple[str, model_file.TensorSource]]:
        """The model file's tensors, of the best round where they are learned."""
        best = self._work.best_round
        for name, source in tensors:
            if best and name in self._student.names:
                yield name, self._streamed(name, best)
            else:
                yield name, source

    def _streamed(self, name: str, number: int) -> model_file.Streamed:
        """A matrix as a round left it, packed when its place in the file is reached."""
        n, k = self._source.shape(name)
        layout = layouts.Layout(n, k, self._widths[name].bits, self._widths[name].group_size)

        def pieces() -> Iterator[bytes]:
            yield layouts.header(layout)
            yield packed_blocks(self._student.quantised(name, number))

        return model_file.Streamed(layout.total_bytes, pieces)


def check_learnable(architecture: Architecture, blocks: torch.Tensor) -> None:
    """Refuses a decoder that cannot learn, or text that is too short, before any work."""
    if architecture.experts:
        raise UnsupportedError(
            "--effort high does not reach models with experts yet: too few tokens reach each "
            "of them; leave it out."
        )
    if not divided(blocks)[1]:
        raise InvalidArgumentError(
            "--effort high needs at least two different blocks of calibration text, one of them to "
            "judge by; give more text, or leave the option out."
        )


def _comparable(divergence: float) -> float:
    """A divergence that can be compared: of states that are no numbers any more it is infinite."""
    return math.inf if math.isnan(divergence) else divergence


def divided(blocks: torch.Tensor) -> tuple[list[int], list[int]]:
    """Which of calibration blocks [b, t] judge, and which are learned from: none equal to those."""
    count = max(1, len(blocks) // _HELD_OUT)
    judging = torch.linspace(0, len(blocks) - 1, count + 2)[1:-1].round().long().tolist()
    alike = (blocks[:, None] == blocks[judging][None]).all(dim=2).any(dim=1)
    return judging, torch.nonzero(~alike).flatten().tolist()
