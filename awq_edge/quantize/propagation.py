"""Targets that make up for what the layers before got wrong.

Owns the float stream: hidden states as the float model has them, for every second calibration
block, beside those that the rounded matrices give. A matrix W reads x where the float model has f,
and adds W x to states that have drifted from the float model's by r. The target of its rounding is
therefore W + D H^-1 with D the mean of (W (f - x) + r) x^T and H that of x x^T: the least squares
solution, which corrects an error where it can still be corrected. Half of D is taken: it is known
from the calibration tokens alone, and all of it measured worse than half. (Correcting the input's
error is the asymmetric calibration of GPTAQ; the drift of the stream is ours.)

Refuses to round: it gives targets to whoever does. The float stream's blocks lie behind the others
in the same ``HiddenStates``, so that an interrupted conversion finds them again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TypeVar

import torch

from awq_edge import torch_decoder
from awq_edge.architecture import Architecture
from awq_edge.quantize.distributed import Processes
from awq_edge.quantize.gptq import Hessian
from awq_edge.quantize.hidden_states import HiddenStates
from awq_edge.torch_decoder import Linear, Positions

_SHARE = 0.5  # of the correction
_EVERY = 2  # blocks: half of the tokens tell as much of the correction as all of them
_ROWS = 1024  # of a matrix, corrected at once: bounds the memory

Key = TypeVar("Key")


@dataclasses.dataclass(frozen=True)
class States:
    """Hidden states of one layer, float ones behind the others."""

    before: HiddenStates  # [b, t, hidden], the layer's input
    mixed: HiddenStates  # [b, t, heads * head size], what the output matrix reads
    gated: HiddenStates  # [b, t, feed-forward], what the down matrix reads
    after: HiddenStates  # [b, t, hidden], between the layer's parts, in the end its output


class FloatBlocks:
    """Which blocks have float states, and where these lie."""

    def __init__(self, mine: slice) -> None:
        """Takes the numbers of this process's blocks, counted over all processes."""
        self._first = mine.start
        self.behind = mine.stop - mine.start  # float states lie behind so many others
        self.count = self._before(mine.stop) - self._before(mine.start)

    def of(self, batch: slice) -> tuple[slice, slice]:
        """Those of a batch of blocks: which ones of the batch, and where their float states lie."""
        first, end = (self._before(self._first + at) for at in (batch.start, batch.stop))
        begin = self.behind - self._before(self._first)
        inside = slice(-(self._first + batch.start) % _EVERY, None, _EVERY)
        return inside, slice(begin + first, begin + end)

    @staticmethod
    def _before(number: int) -> int:
        """How many blocks before a number have float states."""
        return -(-number // _EVERY)


class Propagation:
    """The float stream through one layer, and the corrections of its matrices."""

    def __init__(
        self,
        architecture: Architecture,
        layer: int,
        weights: Mapping[str, torch.Tensor],
        positions: Positions,
        blocks: FloatBlocks,
        states: States,
        processes: Processes,
    ) -> None:
        """Takes the layer; a stage's matrices are float ones until its targets have been asked for.

        Args:
            architecture: The decoder.
            layer: Which one.
            weights: Its tensors; what is replaced in them is used from then on.
            positions: Rotations.
            blocks: Which blocks have float states.
            states: Where the layer's states lie.
            processes: Those that share the blocks.
        """
        self._architecture = architecture
        self._layer = layer
        self._weights = weights
        self._positions = positions
        self._blocks = blocks
        self._states = states
        self._processes = processes
        self._linear = torch_decoder.plain_linear(weights)
        self._segment = -1
        # The segment's sums: "tokens"; "lost", of lost output and input, [n, k], for matrices that
        # add to the stream; "missing", of missing and actual input, [k, k], for all others.
        self._open: dict[str, torch.Tensor] = {}
        self._closed: dict[str, dict[int, torch.Tensor]] = {}  # the same, by segment too

    def take(self, names: tuple[str, ...], segment: int, batch: slice, x: torch.Tensor) -> None:
        """Takes what a stage's matrices read, and moves the float stream on.

        Args:
            names: The matrices.
            segment: Whose sums the batch belongs to; a segment's batches follow each other.
            batch: Blocks.
            x: float32 [b, t, k], what the matrices read for them.
        """
        inside, at = self._blocks.of(batch)
        if at.start == at.stop:
            return
        if segment != self._segment:
            self._close()
            self._segment = segment
        drift = self._drift(names[0], at, batch, inside)
        exact = self._advance(names[0], at)
        x = x[inside].flatten(0, 1)
        missing = exact.flatten(0, 1) - x
        if drift is None:
            self._add(self._open, "missing", torch_decoder.multiply(missing.T, x.T, None))
        else:
            (name,) = names
            lost = torch_decoder.multiply(missing, self._weights[f"{name}.weight"], None)
            lost += drift.flatten(0, 1)
            self._add(self._open, "lost", torch_decoder.multiply(lost.T, x.T, None))
        tokens = torch.full((1,), len(x), dtype=torch.float64, device=x.device)
        self._add(self._open, "tokens", tokens)

    def targets(
        self, weights: Mapping[str, torch.Tensor], hessian: Hessian
    ) -> dict[str, torch.Tensor]:
        """What a stage's matrices, by "attn_q.weight" and so on, are to be rounded to.

        Args:
            weights: The float matrices.
            hessian: Of their input.
        """
        self._close()
        self._segment = -1
        device = hessian.matrix.device
        none = torch.zeros(1, dtype=torch.float64, device=device)
        tokens = float(self._processes.total(self._closed.pop("tokens", {}), none).clamp(min=1))
        drifts = self._adds_to_stream(next(iter(weights))[: -len(".weight")])
        like = next(iter(weights.values())) if drifts else hessian.matrix
        sums = self._closed.pop("lost" if drifts else "missing", {})
        mean = self._processes.total(sums, like).div_(tokens)
        del sums
        corrected = {}
        for name, weight in weights.items():
            target = torch.empty_like(weight)
            for first in range(0, len(weight), _ROWS):
                rows = slice(first, first + _ROWS)
                lost = mean[rows] if drifts else weight[rows] @ mean
                target[rows] = weight[rows] + _SHARE * hessian.solve(lost)
            corrected[name] = target
        return corrected

    @staticmethod
    def _adds_to_stream(name: str) -> bool:
        return name in ("attn_output", "ffn_down")

    def _close(self) -> None:
        """Adds the segment's sums to those of its process, or keeps them for all processes."""
        key = 0 if self._processes.count == 1 else self._segment
        for name, part in self._open.items():
            self._add(self._closed.setdefault(name, {}), key, part)
        self._open = {}

    @staticmethod
    def _add(sums: dict[Key, torch.Tensor], key: Key, part: torch.Tensor) -> None:
        """Adds in place: these sums are as large as the matrices."""
        if key in sums:
            sums[key] += part
        else:
            sums[key] = part

    def _drift(self, name: str, at: slice, batch: slice, inside: slice) -> torch.Tensor | None:
        """How far the states that a matrix adds to are from the float ones; None if it does not."""
        if not self._adds_to_stream(name):
            return None
        states = self._states.before if name == "attn_output" else self._states.after
        return states.read(at) - states.read(batch)[inside]

    def _advance(self, name: str, at: slice) -> torch.Tensor:
        """Walks a part of the layer with float states.

        Args:
            name: The first matrix of the stage.
            at: Where the blocks' float states lie.

        Returns:
            What the matrix reads, [b, t, k].
        """
        a, states = self._architecture, self._states
        if name == "attn_q":
            x = self._norm("attn_norm", states.before.read(at))
            mixed = torch_decoder.attention(
                a, self._layer, self._weights, self._without("attn_output"), x, self._positions
            )
            states.mixed.write(at, mixed)
            return x
        if name == "attn_output":
            mixed = states.mixed.read(at)
            states.after.write(at, states.before.read(at) + self._linear(name, mixed))
            return mixed
        if name == "ffn_gate":
            x = self._norm("ffn_norm", states.after.read(at))
            states.gated.write(at, torch_decoder.feed_forward(self._without("ffn_down"), x))
            return x
        gated = states.gated.read(at)
        states.after.write(at, states.after.read(at) + self._linear(name, gated))
        return gated

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        epsilon = self._architecture.norm_epsilon
        return torch_decoder.rms_norm(x, self._weights[f"{name}.weight"], epsilon)

    def _without(self, last: str) -> Linear:
        """The layer's multiplication, but the named matrix hands its input on."""
        return lambda name, x: x if name == last else self._linear(name, x)
