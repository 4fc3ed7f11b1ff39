"""Targets that make up for what the layers before got wrong.

Owns the float stream: hidden states as the float model has them, for every second calibration
block, beside those that the rounded matrices give. A matrix W reads x where the float model has f,
and adds W x to states that have drifted from the float model's by r. The target of its rounding is
therefore W + D H^-1 with D the mean of (W (f - x) + r) x^T and H that of x x^T: the least squares
solution, which corrects an error where it can still be corrected. Half of D is taken: it is known
from the calibration tokens alone, and all of it measured worse than half. (Correcting the input's
error is the asymmetric calibration of GPTAQ; the drift of the stream is ours.)

A norm with weights w that lies between W x and the stream multiplies each token by a factor s of
its own. Tokens then count by s * s in both sums, as they do in the stream, and r is divided by w s.

A mixture of experts is corrected where it begins, each expert with the sums over the tokens that it
reads. What its second matrix adds is not: the float states take up the whole branch at once, while
all float experts are there.

Refuses to round: it gives targets to whoever does. The float stream's blocks lie behind the others
in the same ``HiddenStates``, so that an interrupted conversion finds them again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import torch

from awq_edge import torch_decoder
from awq_edge.calibration.distributed import Processes
from awq_edge.calibration.layer_states import LayerStates
from awq_edge.quantize.gptq import Hessian
from awq_edge.stages import Stage, fed_by

_SHARE = 0.5  # of the correction
_EVERY = 2  # blocks: half of the tokens tell as much of the correction as all of them
# A norm's weights that are smaller than this share of their root mean square are not divided by:
# where the norm lets little through, the drift is made up for elsewhere. On novels-gemma3 a
# divergence of 0.0152, with 0.1 and 1.0 of 0.0154, without the drift of 0.0158, and 0.0166 where
# tokens count alike too.
_SMALL = 0.3
_ROWS = 1024  # of a matrix, corrected at once: bounds the memory

Key = TypeVar("Key")


def _inverse(weight: torch.Tensor) -> torch.Tensor:
    """1 / w, bounded where w is small."""
    squares = weight.square()
    return weight / (squares + _SMALL * _SMALL * squares.mean())


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

    def __init__(self, states: LayerStates, blocks: FloatBlocks, processes: Processes) -> None:
        """Takes a layer; a stage's matrices are float ones until its targets have been asked for.

        Args:
            states: The layer and its states, float ones behind the others.
            blocks: Which blocks have float states.
            processes: Those that share the blocks.
        """
        self._states = states
        self._blocks = blocks
        self._processes = processes
        self._segment = -1
        # Tokens that other experts were chosen for than in the float stream, and all.
        self.turned = [0, 0]
        # The segment's sums: "tokens"; "lost", of lost output and input, [n, k], for matrices that
        # add to the stream; "missing", of missing and actual input, [k, k], for all others.
        self._open: dict[str, torch.Tensor] = {}
        self._closed: dict[str, dict[int, torch.Tensor]] = {}  # the same, by segment too

    def take(
        self,
        stage: Stage,
        segment: int,
        batch: slice,
        x: torch.Tensor,
        behind: torch.Tensor | None,
        expert: int | None = None,
    ) -> None:
        """Takes what a stage's matrices read, and moves the float stream on.

        Args:
            stage: Which one.
            segment: Whose sums the batch belongs to; a segment's batches follow each other.
            batch: Blocks.
            x: float32 [b, t, k], what the matrices read for them.
            behind: float32 [b, t, 1], what a norm behind the stage multiplies its output by; None
                if there is none. The Hessian of ``targets`` is of inputs times it then.
            expert: Whose matrices these are, where the stage begins a branch of experts: they read
                some of the rows, and the Hessian is of these times their importance.
        """
        inside, at = self._blocks.of(batch)
        if at.start == at.stop:
            return
        if stage.expert is not None:
            return
        if segment != self._segment:
            self._close()
            self._segment = segment
        states = self._states
        drift = None
        if stage.adds:
            # How far the states that it adds to are from the float ones.
            drift = states.stream(stage, at) - states.stream(stage, batch)[inside]
            if stage.post_norm is not None:
                # Of the output, times what the norm multiplies its tokens by.
                drift *= _inverse(states.layer.weights[f"{stage.post_norm}.weight"])
        exact = states.read(stage, at) if expert else self._advance(stage, at)
        if expert == 0:
            self._compare_routes(batch, inside, at, x.shape[:2])
        if expert is not None:
            behind = states.importance(batch, expert, x.shape)
        x = x[inside].flatten(0, 1)
        missing = exact.flatten(0, 1) - x
        if behind is not None:
            shares = behind[inside].flatten(0, 1)
            missing, x = missing * shares, x * shares
            if expert is not None:
                reached = shares.squeeze(1) > 0
                missing, x = missing[reached], x[reached]
        if stage.adds:
            weight = states.layer.weights[f"{stage.matrices[0]}.weight"]
            lost = torch_decoder.multiply(missing, weight, None)
            if drift is not None:
                lost += drift.flatten(0, 1)
            self._add(self._open, "lost", torch_decoder.multiply(lost.T, x.T, None))
        else:
            self._add(self._open, "missing", torch_decoder.multiply(missing.T, x.T, None))
        tokens = torch.full((1,), len(x), dtype=torch.float64, device=x.device)
        self._add(self._open, "tokens", tokens)

    def targets(self, stage: Stage, hessian: Hessian) -> Mapping[str, torch.Tensor]:
        """What a stage's matrices, by "attn_q.weight" and so on, are to be rounded to.

        Each is computed when it is asked for, and is a float one until then.

        Args:
            stage: Which one.
            hessian: Of its matrices' input.
        """
        weights = self._states.layer.weights
        names = [f"{name}.weight" for name in stage.matrices]
        if stage.expert is not None:
            return {name: weights[name] for name in names}
        self._close()
        self._segment = -1
        device = hessian.order.device
        none = torch.zeros(1, dtype=torch.float64, device=device)
        tokens = float(self._processes.total(self._closed.pop("tokens", {}), none).clamp(min=1))
        k = hessian.size
        like = weights[names[0]] if stage.adds else torch.empty(k, k, device=device)
        sums = self._closed.pop("lost" if stage.adds else "missing", {})
        mean = self._processes.total(sums, like).div_(tokens)
        del sums

        def corrected(name: str) -> torch.Tensor:
            weight = weights[name]
            target = torch.empty_like(weight)
            for first in range(0, len(weight), _ROWS):
                rows = slice(first, first + _ROWS)
                lost = mean[rows] if stage.adds else weight[rows] @ mean
                target[rows] = weight[rows] + _SHARE * hessian.solve(lost)
            return target

        return _Computed(names, corrected)

    def _compare_routes(
        self, batch: slice, inside: slice, at: slice, shape: tuple[int, ...]
    ) -> None:
        """Counts the tokens whose experts are others than in the float stream."""
        ours, exact = self._states.routed(batch), self._states.routed(at)
        assert ours is not None and exact is not None
        chosen = ours.chosen().view(*shape, -1)[inside].flatten(0, 1)
        self.turned[0] += int((chosen != exact.chosen()).any(dim=1).sum())
        self.turned[1] += len(chosen)

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

    def _advance(self, stage: Stage, at: slice) -> torch.Tensor:
        """Walks on with float states, as far as the stage's float matrices reach.

        Args:
            stage: Which one.
            at: Where the blocks' float states lie.

        Returns:
            What its matrices read, [b, t, k].
        """
        states = self._states
        x = states.read(stage, at)
        if stage.routers:
            states.add_branch(stage, at, x)
            return x
        for end in fed_by(states.layer.architecture, states.layer.number, stage):
            states.make(end, at, x)
        if stage.adds:
            states.add(stage, at, x)
        return x


class _Computed(Mapping[str, torch.Tensor]):
    """Tensors that are computed when they are asked for."""

    def __init__(self, names: list[str], compute: Callable[[str], torch.Tensor]) -> None:
        self._names, self._compute = names, compute

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._compute(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
