"""Calibration shared out among processes, with the same result as one process gives.

Owns which process calibrates on which blocks and in what order sums are added. The blocks are cut
into ``SEGMENTS`` runs whatever the number of processes; a sum is taken inside every segment first
and then over segments in order, so nothing depends on who computed what. Everything but these sums
is computed by every process alike. Refuses to start processes: ``torchrun`` does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist

from awq_edge.calibration.hidden_states import HiddenStates
from awq_edge.errors import InvalidArgumentError
from awq_edge.quantize.halves import Half
from awq_edge.quantize.statistics import Products

# The most processes that have something to do.
SEGMENTS = 8


@dataclasses.dataclass(frozen=True)
class Processes:
    """This process among all."""

    rank: int = 0
    count: int = 1

    def segments(self, blocks: int) -> list[tuple[int, slice]]:
        """This process's segments and their blocks; empty segments are left out."""
        bounds = [blocks * segment // SEGMENTS for segment in range(SEGMENTS + 1)]
        return [
            (segment, slice(first, last))
            for segment, (first, last) in enumerate(zip(bounds, bounds[1:]))
            if self.owner(segment) == self.rank and last > first
        ]

    def owner(self, segment: int) -> int:
        """The rank that has a segment; every rank's segments lie together."""
        return segment * self.count // SEGMENTS

    def total(self, parts: dict[int, torch.Tensor], like: torch.Tensor) -> torch.Tensor:
        """Adds the parts of all segments in order, for every process.

        Args:
            parts: This process's, by segment; a segment without blocks has none.
            like: A tensor of the shape, type and device of a part.
        """
        total = torch.zeros_like(like)
        for segment in range(SEGMENTS):
            part = parts.get(segment)
            if self.count > 1:
                part = torch.zeros_like(like) if part is None else part.contiguous()
                dist.broadcast(part, self.owner(segment))
            if part is not None:
                total += part
        return total

    def agreed(self, answer: bool, device: torch.device) -> bool:
        """What the first process answers, for every process."""
        if self.count == 1:
            return answer
        told = torch.tensor([float(answer)], device=device)
        dist.broadcast(told, 0)
        return bool(told.item())

    def means(self, parts: Iterable[tuple[int, Products]], empty: Products) -> Half:
        """Means of products over the tokens of all segments.

        Args:
            parts: This process's segments in order; each is let go of as early as possible.
            empty: Products without tokens; used up.
        """
        if self.count == 1:
            for _, part in parts:
                empty.join(part)
                del part  # before the next one is made: it may be as large as the layer
            return empty.means()
        mine = dict(parts)
        device = empty.strips[0].device
        tokens = {
            segment: torch.tensor([part.tokens], dtype=torch.float64, device=device)
            for segment, part in mine.items()
        }
        none = torch.zeros(1, dtype=torch.float64, device=device)
        empty.tokens = int(self.total(tokens, none))
        empty.strips = [
            self.total({segment: part.strips[number] for segment, part in mine.items()}, strip)
            for number, strip in enumerate(empty.strips)
        ]
        return empty.means()

    def blocks(self, blocks: int) -> slice:
        """All blocks of this process's segments."""
        mine = [part for _, part in self.segments(blocks)]
        return slice(mine[0].start, mine[-1].stop) if mine else slice(0, 0)

    def gathered(self, local: HiddenStates, chosen: list[int], blocks: int) -> torch.Tensor:
        """Some blocks of all processes, for every process.

        Args:
            local: This process's blocks, [b, …].
            chosen: Numbers of blocks, counted over all processes.
            blocks: How many there are over all processes.
        """
        first = self.blocks(blocks).start
        parts = []
        for number in chosen:
            owner = next(
                rank
                for rank in range(self.count)
                for part in [Processes(rank, self.count).blocks(blocks)]
                if part.start <= number < part.stop
            )
            if owner == self.rank:
                part = local.read(slice(number - first, number - first + 1)).contiguous()
            else:
                part = torch.empty(1, *local.shape[1:], device=local.device)
            if self.count > 1:
                dist.broadcast(part, owner)
            parts.append(part)
        return torch.cat(parts)


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """Meets the other processes that ``torchrun`` started, if it did."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count <= 1:
        yield Processes()
        return
    if count > SEGMENTS:
        raise InvalidArgumentError(
            f"Calibration can be split over at most {SEGMENTS} processes, not {count}."
        )
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), count)
    finally:
        dist.destroy_process_group()
