"""Activation-aware weight quantisation of one decoder layer: the scale search and the clip search.

Owns both searches, for every model that the torch decoder runs. Refuses to round by itself: every
candidate goes through ``grouped.round_trip``, the quantiser that ships; folding is in
``scales.py``. Method: Lin et al., "AWQ: Activation-aware Weight Quantization" (MLSys 2024). What
differs from its first implementation: statistics in float32, identity always in the grid, plain and
duo scaling both tried, the best few scales compared once more with clipped weights (the joint
search), every fold checked, value-to-output scaled under grouped-query attention too, the lower and
the upper limit of a group chosen apart, and the clip error summed over all calibration tokens (a
quadratic form) instead of a sample of them.

Tried and left out, because novels-45m did not gain (divergence from the float model, 4 bits): a
finer search around the best exponent, the runtime's rounding of activations inside the search, four
times the tokens (``benchmarks/quality.md`` has their figures), free exponents for inputs and
weights, clipped queries and keys.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn.functional as F

from awq_edge import torch_decoder
from awq_edge.quantize import grouped, scales
from awq_edge.quantize.grouped import Quantiser
from awq_edge.quantize.methods import Plan
from awq_edge.quantize.probe import Probe, Weights, rows_of
from awq_edge.quantize.scales import Choice
from awq_edge.quantize.statistics import InputStatistics, output_error
from awq_edge.stages import Origin, Stage, fed_by

# Their error passes through the product of queries and keys, where a group's own error says little.
NEVER_CLIPPED = frozenset(("attn_q", "attn_k", "cross_attn_q"))

_EXPONENTS = tuple(step / 20 for step in range(20))
_CLIP_SHARES = tuple(1 - step / 20 for step in range(10))  # of a group's largest magnitude
# Of its lowest and of its highest value: every pair, then every pair one step around the best.
_COARSE_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6)
_STEPS = (0.0, -0.05, 0.05)
_JOINT = 4  # scales, the best ones without clipping, that are compared with it
_SMALLEST_SCALE = 1e-4
_FEED_FORWARD_TOKENS = 2048

# Limits [n, groups, 2] for a folded weight [n, k] and the mean products of its input.
Clip = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
# The mean square error of the output for rounded weights, or anything in proportion to it.
OutputError = Callable[[Mapping[str, torch.Tensor]], float]
# Choices and scales [k]; identity comes first.
Candidates = Iterator[tuple[Choice, torch.Tensor]]


def search_scales(
    probe: Probe,
    weights: Weights,
    statistics: Mapping[str, InputStatistics],
    quantiser: Quantiser,
    plan: Plan,
    clip: Clip | None = None,
) -> dict[str, Choice]:
    """Finds and folds the scales of a layer's stages.

    Matrices that begin a branch are judged by what the branch gives to the stream, all others by
    their own output.

    Args:
        probe: Blocks to measure on.
        weights: The layer's float weights; changed in place, its function is not.
        statistics: Of the layer's float inputs, by the names of the stages; follow the folds.
        quantiser: What the weights will be rounded with.
        plan: Which scales are tried and what they are compared by.
        clip: Chooses limits for a folded weight and the products of its input; the best scales are
            then compared with clipped weights. None: scales are chosen without.

    Returns:
        What was chosen, by the stage's name.

    Raises:
        UnsupportedError: A fold changed the layer's function.
    """
    inputs, outputs = _recorded(probe, weights)
    choices: dict[str, Choice] = {}
    found: dict[str, torch.Tensor] = {}
    for stage in probe.stages:
        x, seen = inputs[stage.name], statistics[stage.name]
        heads = scales.heads_that_share(probe.architecture, stage)
        if stage.absorber is None or (heads is not None and heads[1] > 1 and not plan.values):
            choices[stage.name], found[stage.name] = (
                Choice("none", 0.0),
                torch.ones(x.shape[-1]).to(x),
            )
            continue
        weight = rows_of(stage, weights)
        candidates = _candidates(seen.mean_absolute(), weight, quantiser.group_size, plan.duo)
        if heads is not None:
            candidates = _shared_among_heads(candidates, *heads)
        if stage.adds:
            error = _own_error(stage.matrices[0], weights, x)
        else:
            error = _branch_error(probe, stage, weights, x, outputs[stage.name])
        rounding = _Rounding(stage, weights, seen, quantiser, clip, error)
        choices[stage.name], found[stage.name] = _best(candidates, rounding.error, clip is not None)
    scales.fold_all(probe, weights, found)
    for name, chosen in found.items():
        statistics[name].divide_by(chosen)
    return choices


@dataclasses.dataclass(frozen=True)
class _Rounding:
    """What rounding a stage's matrices under given scales does to an output."""

    stage: Stage
    weights: Weights
    statistics: InputStatistics
    quantiser: Quantiser
    clip: Clip | None
    output_error: OutputError

    def error(self, scales: torch.Tensor, clipped: bool) -> float:
        """The output's error for scales [k]."""
        return self.output_error(_Rounded(self, scales, clipped))

    def rounded(self, name: str, scales: torch.Tensor, clipped: bool) -> torch.Tensor:
        """A matrix under scales [k], rounded."""
        weight, limits = self.weights[f"{name}.weight"] * scales, None
        if self.clip is not None and clipped and name not in NEVER_CLIPPED:
            limits = self.clip(weight, self.statistics.products_over(scales))
        return self.quantiser.round_trip(weight, limits) / scales


class _Rounded(Mapping[str, torch.Tensor]):
    """A stage's matrices under scales, each rounded when it is asked for: all may be too many."""

    def __init__(self, rounding: _Rounding, scales: torch.Tensor, clipped: bool) -> None:
        self._rounding, self._scales, self._clipped = rounding, scales, clipped
        self._names = [f"{name}.weight" for name in rounding.stage.matrices]

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._rounding.rounded(name[: -len(".weight")], self._scales, self._clipped)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _recorded(
    probe: Probe, weights: Weights
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What the stages of the float layer read, and what its branches give, by their first stage."""
    inputs: dict[str, torch.Tensor] = {}
    outputs: dict[str, torch.Tensor] = {}
    for step in probe.layer(weights).steps(probe.hidden):
        inputs[step.stage.name] = step.x
        if step.stage.origin is Origin.STREAM:
            first = step.stage.name
        if step.stage.adds:
            outputs[first] = outputs[first] + step.output if first in outputs else step.output
    return inputs, outputs


def _branch_error(
    probe: Probe, first: Stage, weights: Weights, x: torch.Tensor, target: torch.Tensor
) -> OutputError:
    """Of what a branch gives to the stream, for the input of its first stage."""
    ends = fed_by(probe.architecture, probe.number, first)
    if all(end.origin is Origin.ACTIVATION for end in ends):
        # Without context, tokens apart from each other tell more than neighbours.
        x, target = x.flatten(0, 1), target.flatten(0, 1)
        stride = max(1, len(x) // _FEED_FORWARD_TOKENS)
        x, target = x[::stride], target[::stride]
    routed = probe.layer(weights).routes(first, x)

    def error(rounded: Mapping[str, torch.Tensor]) -> float:
        # The first map is only read.
        together: Mapping[str, torch.Tensor] = ChainMap(rounded, weights)  # type: ignore[arg-type]
        output = probe.layer(together).branch(first, x, routed)
        return float((output - target).square().mean())

    return error


def _own_error(name: str, weights: Weights, x: torch.Tensor) -> OutputError:
    """Of a matrix's own output, summed over tokens."""
    weight, x = weights[f"{name}.weight"], x.flatten(0, -2)
    products = torch_decoder.multiply(x.T, x.T, None)  # sums of x_i * x_j, [k, k]

    def error(rounded: Mapping[str, torch.Tensor]) -> float:
        return output_error(rounded[f"{name}.weight"] - weight, products)

    return error


def plain_scales(magnitudes: torch.Tensor, exponent: float) -> torch.Tensor:
    """Mean magnitudes of inputs to a power, around 1, [k]; 1 for inputs that are always zero."""
    alive = magnitudes > 0
    if not bool(alive.any()):
        return torch.ones_like(magnitudes)
    return _centred(_relative(magnitudes, alive) ** exponent, alive)


def clip_limits(
    weight: torch.Tensor, products: torch.Tensor, quantiser: Quantiser, apart: bool = True
) -> torch.Tensor:
    """The best limits of each row and group, [n, groups, 2]: lowest and highest value.

    Minimises the mean square of the group's share of the output, sum over i of x_i * (w - w')_i.

    Args:
        weight: float32 [n, k], scales folded in.
        products: Means of x_i * x_j within each group, [groups, g, g], of the folded inputs.
        quantiser: What the weights will be rounded with.
        apart: Whether the two limits are chosen apart; otherwise they are +- one number.
    """
    g = quantiser.group_size
    whole = grouped.group_ranges(weight, g)
    if not apart:
        whole = whole.abs().amax(dim=2, keepdim=True) * torch.tensor([-1.0, 1.0]).to(whole)
    padding = (0, -weight.shape[1] % g)
    best = torch.ones_like(whole)  # shares of the whole range
    smallest = torch.full_like(whole[..., 0], torch.inf)

    def try_shares(shares: torch.Tensor) -> None:
        nonlocal best, smallest
        difference = F.pad(quantiser.round_trip(weight, whole * shares) - weight, padding)
        difference = difference.reshape(len(weight), -1, g).transpose(0, 1)  # [groups, n, g]
        error = ((difference @ products) * difference).sum(dim=2).T
        better = error < smallest
        smallest = torch.where(better, error, smallest)
        best = torch.where(better.unsqueeze(2), shares, best)

    if not apart:
        for share in _CLIP_SHARES:
            try_shares(torch.full_like(whole, share))
        return whole * best
    for pair in itertools.product(_COARSE_SHARES, repeat=2):
        try_shares(torch.tensor(pair).to(whole).expand_as(whole))
    middle = best
    for steps in itertools.product(_STEPS, repeat=2):
        if any(steps):
            try_shares((middle + torch.tensor(steps).to(whole)).clamp(max=1.0))
    return whole * best


def _candidates(
    magnitudes: torch.Tensor,
    weight: torch.Tensor,
    group_size: int,
    duo: bool,
) -> Iterator[tuple[Choice, torch.Tensor]]:
    """Scales to try, [k] each; identity comes first.

    Inputs that never were anything but zero keep scale 1 and have no say in the others'.

    Args:
        magnitudes: Mean magnitude of each input, [k].
        weight: The rows that read it, [n, k].
        group_size: Inputs per group.
        duo: Whether scales that weigh the weights' magnitudes too are tried beside plain ones.
    """
    yield Choice("none", 0.0), torch.ones_like(magnitudes)
    alive = magnitudes > 0
    if not bool(alive.any()):
        return
    x = _relative(magnitudes, alive)
    # Mean share of its group's largest magnitude that a column's weights have.
    k = weight.shape[1]
    largest = grouped.group_maxima(weight, group_size).repeat_interleave(group_size, dim=1)[:, :k]
    w = (weight.abs() / (largest + 1e-6)).mean(dim=0)
    for exponent in _EXPONENTS:
        plain = x**exponent
        for kind in ("plain", "duo") if duo else ("plain",):
            if kind == "plain" and exponent == 0.0:
                continue  # identity again
            scales = plain / (w ** (1 - exponent) + 1e-4) if kind == "duo" else plain
            yield Choice(kind, exponent), _centred(scales, alive)


def _relative(magnitudes: torch.Tensor, alive: torch.Tensor) -> torch.Tensor:
    """Magnitudes over their mean, [k]; 1 for inputs that are not alive."""
    return torch.where(alive, magnitudes / magnitudes[alive].mean(), 1.0)


def _centred(scales: torch.Tensor, alive: torch.Tensor) -> torch.Tensor:
    """Scales around 1, [k]; 1 for inputs that are not alive."""
    scales = scales.clamp(min=_SMALLEST_SCALE)
    scales = scales / (scales[alive].max() * scales[alive].min()).sqrt()
    return torch.where(alive, scales, 1.0)


def _shared_among_heads(
    candidates: Iterator[tuple[Choice, torch.Tensor]], kv_heads: int, repeats: int, head_size: int
) -> Iterator[tuple[Choice, torch.Tensor]]:
    """Makes scales equal for query heads that share a value head; both ways of agreeing are tried.

    A row of the value matrix feeds ``repeats`` columns of the output matrix and can be divided by
    one number only.
    """
    for choice, unshared in candidates:
        if repeats == 1 or choice.kind == "none":
            yield choice, unshared
            continue
        by_head = unshared.reshape(kv_heads, repeats, head_size)
        largest = by_head.amax(dim=1, keepdim=True)
        mean = by_head.log().mean(dim=1, keepdim=True).exp()
        for sharing, shared in (("max", largest), ("mean", mean)):
            normalised = shared / (shared.max() * shared.min()).sqrt()
            spread = normalised.expand_as(by_head).reshape(-1)
            yield dataclasses.replace(choice, sharing=sharing), spread


def _best(
    candidates: Candidates, output_error: Callable[[torch.Tensor, bool], float], joint: bool
) -> tuple[Choice, torch.Tensor]:
    """The candidate of the smallest mean square error of the output; the first one on a tie.

    Args:
        candidates: Choices and scales [k]; the very first is identity.
        output_error: The mean square error of the output for given scales, of clipped weights or
            not, or anything in proportion to it.
        joint: Whether the first and the best few are compared again with clipped weights.
    """

    def measured(scales: torch.Tensor, clipped: bool) -> float:
        error = output_error(scales, clipped)
        return error if math.isfinite(error) else math.inf

    found = [
        (measured(scales, False), number, choice, scales)
        for number, (choice, scales) in enumerate(candidates)
    ]
    if joint and len(found) > 1:
        again = sorted(found, key=lambda entry: entry[:2])
        again = again[:_JOINT] + [entry for entry in again[_JOINT:] if entry[1] == 0]
        found = [(measured(entry[3], True), *entry[1:]) for entry in again]
    unscaled = next(error for error, number, *_ in found if number == 0)
    error, _, choice, scales = min(found, key=lambda entry: entry[:2])
    gain = 1 - error / unscaled if unscaled > 0 else 0.0
    return dataclasses.replace(choice, gain=gain), scales
