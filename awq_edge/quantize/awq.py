"""Activation-aware weight quantisation of one decoder layer: the scale search and the clip search.

Owns the search and the folding, for every model that the torch decoder runs. Refuses to round by
itself: every candidate goes through ``grouped.round_trip``, the quantiser that ships. Method: Lin
et al., "AWQ: Activation-aware Weight Quantization" (MLSys 2024). What differs from its first
implementation: statistics in float32, identity always in the grid, plain and duo scaling both
tried, the best few scales compared once more with clipped weights (the joint search), every fold
checked, value-to-output scaled under grouped-query attention too, the lower and the upper limit of
a group chosen apart, and the clip error summed over all calibration tokens (a quadratic form)
instead of a sample of them.

Off by default, because novels-45m did not gain (divergence from the float model, 4 bits): a finer
search around the best exponent, the runtime's rounding of activations inside the search, and four
times the tokens. They are ``exponents``, ``activations`` and ``tokens`` of ``methods.EXTRAS``.
Tried and left out for the same reason: free exponents for inputs and weights, clipped queries and
keys.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn.functional as F

from awq_edge import torch_decoder
from awq_edge.architecture import Architecture
from awq_edge.errors import InternalError
from awq_edge.quantize import grouped
from awq_edge.quantize.calibration import InputStatistics
from awq_edge.quantize.methods import Plan
from awq_edge.torch_decoder import Positions

# The matrix whose statistics stand for a matrix's input: some share one.
INPUT_OF = {
    "attn_q": "attn_q",
    "attn_k": "attn_q",
    "attn_v": "attn_q",
    "attn_output": "attn_output",
    "ffn_gate": "ffn_gate",
    "ffn_up": "ffn_gate",
    "ffn_down": "ffn_down",
}

# Their error passes through the product of queries and keys, where a group's own error says little.
NEVER_CLIPPED = frozenset(("attn_q", "attn_k"))

_EXPONENTS = tuple(step / 20 for step in range(20))
_FINER = (1 / 40, 1 / 80)  # steps to both sides of the best exponent so far
_CLIP_SHARES = tuple(1 - step / 20 for step in range(10))  # of a group's largest magnitude
# Of its lowest and of its highest value: every pair, then every pair one step around the best.
_COARSE_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6)
_STEPS = (0.0, -0.05, 0.05)
_JOINT = 4  # scales, the best ones without clipping, that are compared with it
_SMALLEST_SCALE = 1e-4
_FEED_FORWARD_TOKENS = 2048
# A fold multiplies and divides in float32: what it changes is rounding, a few units in 2^-23.
_FOLD_TOLERANCE = 1e-4

Weights = dict[str, torch.Tensor]
# Limits [n, groups, 2] for a folded weight [n, k] and the mean products of its input.
Clip = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
# A group's input [.., k] as its matrices see it.
Seen = Callable[[torch.Tensor], torch.Tensor]
# The mean square error of the output for rounded weights and what they see of their input, or
# anything in proportion to it.
OutputError = Callable[[Weights, Seen], float]
# Choices and scales [k] of given exponents; identity comes first and is the plain exponent 0.
Candidates = Callable[[tuple[float, ...]], Iterator[tuple["Choice", torch.Tensor]]]


@dataclasses.dataclass(frozen=True)
class Choice:
    """What the scale search took for one group of matrices."""

    kind: str  # "none", "plain", "duo" or "pivots"
    exponent: float
    sharing: str = ""  # how query heads that share a value head agreed: "max" or "mean"
    gain: float = 0.0  # share of the error without scaling that it removed
    weight_exponent: float = 0.0  # of the weights' magnitudes, for "pivots"


@dataclasses.dataclass(frozen=True)
class Quantiser:
    """Bits and group size of a layer's matrices."""

    bits: int
    group_size: int

    def round_trip(self, weight: torch.Tensor, limits: torch.Tensor | None = None) -> torch.Tensor:
        """The weight after quantisation, float32 [n, k]."""
        return grouped.round_trip(weight, self.bits, self.group_size, limits)


@dataclasses.dataclass(frozen=True)
class Probe:
    """A sample of calibration blocks on which outputs are compared."""

    architecture: Architecture
    layer: int
    hidden: torch.Tensor  # float32 [b, t, hidden], the layer's input
    positions: Positions

    def attention(self, weights: Mapping[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """The attention part's output for normed states x."""
        return torch_decoder.attention(
            self.architecture,
            self.layer,
            weights,
            torch_decoder.plain_linear(weights),
            x,
            self.positions,
        )


def search_scales(
    probe: Probe,
    weights: Weights,
    statistics: Mapping[str, InputStatistics],
    quantiser: Quantiser,
    plan: Plan,
    clip: Clip | None = None,
) -> dict[str, Choice]:
    """Finds and folds the scales of a layer's four groups of matrices.

    Args:
        probe: Blocks to measure on.
        weights: The layer's float weights; changed in place, its function is not.
        statistics: Of the layer's float inputs, by the names in ``INPUT_OF``.
        quantiser: What the weights will be rounded with.
        plan: Which scales are tried and what they are compared by.
        clip: Chooses limits for a folded weight and the products of its input; the best scales are
            then compared with clipped weights. None: scales are chosen without.

    Returns:
        What was chosen, by the group's name.

    Raises:
        InternalError: A fold changed the layer's function.
    """
    a = probe.architecture
    inputs, attention_output, feed_forward_output = _record_inputs(probe, weights)
    # The feed-forward has no context, so tokens apart from each other tell more than neighbours.
    stride = max(1, len(feed_forward_output) // (plan.tokens * _FEED_FORWARD_TOKENS))
    choices: dict[str, Choice] = {}

    def candidates(names: tuple[str, ...]) -> Candidates:
        magnitudes = statistics[INPUT_OF[names[0]]].mean_absolute()
        weight = _stacked(weights, names)
        return lambda exponents: _candidates(
            magnitudes, weight, quantiser.group_size, exponents, plan.duo
        )

    def best(
        tried: Candidates, names: tuple[str, ...], output_error: OutputError
    ) -> tuple[Choice, torch.Tensor]:
        def error(scales: torch.Tensor, clipped: bool) -> float:
            def seen(x: torch.Tensor) -> torch.Tensor:
                if not plan.activations:
                    return x
                return torch_decoder.rounded(x / scales, quantiser.group_size) * scales

            together: Weights = {}
            for name in names:
                weight, limits = weights[f"{name}.weight"] * scales, None
                if clip is not None and clipped and name not in NEVER_CLIPPED:
                    limits = clip(weight, statistics[INPUT_OF[name]].products_over(scales))
                together[f"{name}.weight"] = quantiser.round_trip(weight, limits) / scales
            return output_error(together, seen)

        return _best(tried, error, joint=clip is not None, finer=plan.exponents)

    def own_error(name: str) -> OutputError:
        """Of a matrix's own output."""
        x, weight = inputs[name], weights[f"{name}.weight"]
        if plan.activations:
            target = torch_decoder.multiply(x, weight, None)

            def error(rounded: Weights, seen: Seen) -> float:
                output = torch_decoder.multiply(seen(x), rounded[f"{name}.weight"], None)
                return float((output - target).square().sum())

            return error
        products = _products(x)
        return lambda rounded, _: _quadratic(rounded[f"{name}.weight"] - weight, products)

    # attn_norm -> q, k, v, measured after attention.
    names: tuple[str, ...] = ("attn_q", "attn_k", "attn_v")

    def attention_error(rounded: Weights, seen: Seen) -> float:
        output = probe.attention({**weights, **rounded}, seen(inputs["attn_q"]))
        return float((output - attention_output).square().mean())

    choices["qkv"], qkv_scales = best(candidates(names), names, attention_error)

    # v -> output: one scale per channel of a key-value head.
    names, repeats = ("attn_output",), a.heads // a.kv_heads
    unshared = candidates(names)

    def shared(exponents: tuple[float, ...]) -> Iterator[tuple[Choice, torch.Tensor]]:
        return _shared_among_heads(unshared(exponents), a.kv_heads, repeats, a.head_size)

    if repeats == 1 or plan.values:
        choices["output"], output_scales = best(shared, names, own_error("attn_output"))
    else:
        choices["output"] = Choice("none", 0.0)
        output_scales = torch.ones_like(inputs["attn_output"][0])

    # ffn_norm -> gate, up, measured after the feed-forward.
    names = ("ffn_gate", "ffn_up")

    x, target = inputs["ffn_gate"][::stride], feed_forward_output[::stride]

    def feed_forward_error(rounded: Weights, seen: Seen) -> float:
        linear = torch_decoder.plain_linear({**weights, **rounded})
        return float((torch_decoder.feed_forward(linear, seen(x)) - target).square().mean())

    choices["gate_up"], gate_scales = best(candidates(names), names, feed_forward_error)

    # up -> down.
    names = ("ffn_down",)
    choices["down"], down_scales = best(candidates(names), names, own_error("ffn_down"))

    fold_all(
        probe,
        weights,
        {"qkv": qkv_scales, "output": output_scales, "gate_up": gate_scales, "down": down_scales},
    )
    divisors = {
        "attn_q": qkv_scales,
        "attn_output": output_scales,
        "ffn_gate": gate_scales,
        "ffn_down": down_scales,
    }
    for name, scales in divisors.items():
        statistics[name].divide_by(scales)
    return choices


def fold_all(probe: Probe, weights: Weights, scales: Mapping[str, torch.Tensor]) -> None:
    """Folds the scales of a layer's four groups, and checks after each that nothing changed.

    Args:
        probe: Its first block is what the outputs are compared on.
        weights: The layer's float weights; changed in place.
        scales: By "qkv", "output", "gate_up" and "down"; those of "output" are equal for query
            heads that share a value head.

    Raises:
        InternalError: A fold changed the layer's function.
    """
    factors = output_factors(probe.architecture, scales)
    output, down = scales["output"], scales["down"]
    folds: list[tuple[str, Callable[[], None]]] = [
        (
            "qkv",
            lambda: fold_norm(weights, "attn_norm", ("attn_q", "attn_k", "attn_v"), scales["qkv"]),
        ),
        ("output", lambda: fold_rows(weights, "attn_v", factors["attn_v"], "attn_output", output)),
        (
            "gate_up",
            lambda: fold_norm(weights, "ffn_norm", ("ffn_gate", "ffn_up"), scales["gate_up"]),
        ),
        ("down", lambda: fold_rows(weights, "ffn_up", factors["ffn_up"], "ffn_down", down)),
    ]
    check = dataclasses.replace(probe, hidden=probe.hidden[:1])
    before = layer_output(check, weights)
    for name, fold in folds:
        fold()
        check_fold(check, weights, before, name)


def output_factors(
    architecture: Architecture, scales: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """What :func:`fold_all` divided the outputs of matrices by, [n] each, by "attn_v" and so on."""
    a, output = architecture, scales["output"]
    by_head = output.reshape(a.kv_heads, a.heads // a.kv_heads, a.head_size)[:, 0]
    return {"attn_v": by_head.reshape(-1), "ffn_up": scales["down"]}


def fold_norm(weights: Weights, norm: str, linears: tuple[str, ...], scales: torch.Tensor) -> None:
    """Divides a norm's outputs by ``scales`` [k] and multiplies its readers' columns by them."""
    weights[f"{norm}.weight"] = weights[f"{norm}.weight"] / scales
    for name in linears:
        weights[f"{name}.weight"] = weights[f"{name}.weight"] * scales


def fold_rows(
    weights: Weights,
    previous: str,
    previous_scales: torch.Tensor,
    linear: str,
    scales: torch.Tensor,
) -> None:
    """Divides a matrix's outputs by ``previous_scales`` and multiplies the reader's columns.

    Legal because nothing but a multiplication by other values lies between the two.
    """
    weights[f"{previous}.weight"] = weights[f"{previous}.weight"] / previous_scales[:, None]
    if f"{previous}.bias" in weights:
        weights[f"{previous}.bias"] = weights[f"{previous}.bias"] / previous_scales
    weights[f"{linear}.weight"] = weights[f"{linear}.weight"] * scales


def layer_output(probe: Probe, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What the layer adds to the residual stream, [b, t, hidden]."""
    linear = torch_decoder.plain_linear(weights)
    return layer_change(probe, weights, linear)


def layer_change(
    probe: Probe, weights: Mapping[str, torch.Tensor], linear: torch_decoder.Linear
) -> torch.Tensor:
    """As :func:`layer_output`, with the multiplication given."""
    after = torch_decoder.decoder_layer(
        probe.architecture, probe.layer, weights, linear, probe.hidden, probe.positions
    )
    return after - probe.hidden


def check_fold(
    probe: Probe, weights: Mapping[str, torch.Tensor], before: torch.Tensor, group: str
) -> None:
    """Refuses to go on after a fold that changed the layer's float output."""
    difference = float((layer_output(probe, weights) - before).abs().max())
    if not difference <= _FOLD_TOLERANCE * float(before.abs().max()):
        raise InternalError(
            f"Folding the scales of the group {group} changed the output of layer {probe.layer} "
            f"by {difference:g} where it reaches {float(before.abs().max()):g}."
        )


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


def record_inputs(probe: Probe, weights: Weights) -> dict[str, torch.Tensor]:
    """What each matrix reads in the float layer, by the names in ``INPUT_OF``."""
    return _record_inputs(probe, weights)[0]


def _record_inputs(
    probe: Probe, weights: Weights
) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """What each matrix reads in the float layer, and the outputs of its two parts."""
    plain = torch_decoder.plain_linear(weights)
    inputs: dict[str, torch.Tensor] = {}

    def recording(name: str, x: torch.Tensor) -> torch.Tensor:
        inputs[name] = x
        return plain(name, x)

    epsilon = probe.architecture.norm_epsilon
    x = torch_decoder.rms_norm(probe.hidden, weights["attn_norm.weight"], epsilon)
    attention_output = torch_decoder.attention(
        probe.architecture, probe.layer, weights, recording, x, probe.positions
    )
    x = torch_decoder.rms_norm(probe.hidden + attention_output, weights["ffn_norm.weight"], epsilon)
    feed_forward_output = torch_decoder.feed_forward(recording, x)
    flat = {name: x.reshape(-1, x.shape[-1]) for name, x in inputs.items() if name != "attn_q"}
    flat["attn_q"] = inputs["attn_q"]
    return flat, attention_output, feed_forward_output.reshape(-1, feed_forward_output.shape[-1])


def _products(x: torch.Tensor) -> torch.Tensor:
    """Sums of x_i * x_j over tokens, [k, k] for x [tokens, k]."""
    return torch_decoder.multiply(x.T, x.T, None)


def _quadratic(difference: torch.Tensor, products: torch.Tensor) -> float:
    """The squared error of an output, summed over tokens, for a difference of weights [n, k]."""
    return float((torch_decoder.multiply(difference, products, None) * difference).sum())


def _stacked(weights: Weights, names: tuple[str, ...]) -> torch.Tensor:
    """The rows of several matrices that read the same input."""
    return torch.cat([weights[f"{name}.weight"] for name in names])


def _candidates(
    magnitudes: torch.Tensor,
    weight: torch.Tensor,
    group_size: int,
    exponents: tuple[float, ...],
    duo: bool,
) -> Iterator[tuple[Choice, torch.Tensor]]:
    """Scales to try, [k] each; identity is the plain exponent 0.

    Inputs that never were anything but zero keep scale 1 and have no say in the others'.

    Args:
        magnitudes: Mean magnitude of each input, [k].
        weight: The rows that read it, [n, k].
        group_size: Inputs per group.
        exponents: Of the magnitudes, in the order of the candidates.
        duo: Whether scales that weigh the weights' magnitudes too are tried beside plain ones.
    """
    if 0.0 in exponents:
        yield Choice("none", 0.0), torch.ones_like(magnitudes)
    alive = magnitudes > 0
    if not bool(alive.any()):
        return
    x = torch.where(alive, magnitudes / magnitudes[alive].mean(), 1.0)
    # Mean share of its group's largest magnitude that a column's weights have.
    k = weight.shape[1]
    largest = grouped.group_maxima(weight, group_size).repeat_interleave(group_size, dim=1)[:, :k]
    w = (weight.abs() / (largest + 1e-6)).mean(dim=0)
    for exponent in exponents:
        plain = x**exponent
        for kind in ("plain", "duo") if duo else ("plain",):
            if kind == "plain" and exponent == 0.0:
                continue  # identity again
            scales = plain / (w ** (1 - exponent) + 1e-4) if kind == "duo" else plain
            scales = scales.clamp(min=_SMALLEST_SCALE)
            scales = scales / (scales[alive].max() * scales[alive].min()).sqrt()
            yield Choice(kind, exponent), torch.where(alive, scales, 1.0)


def _shared_among_heads(
    candidates: Iterator[tuple[Choice, torch.Tensor]], kv_heads: int, repeats: int, head_size: int
) -> Iterator[tuple[Choice, torch.Tensor]]:
    """Makes scales equal for query heads that share a value head; both ways of agreeing are tried.

    A row of the value matrix feeds ``repeats`` columns of the output matrix and can be divided by
    one number only.
    """
    for choice, scales in candidates:
        if repeats == 1 or choice.kind == "none":
            yield choice, scales
            continue
        by_head = scales.reshape(kv_heads, repeats, head_size)
        largest = by_head.amax(dim=1, keepdim=True)
        mean = by_head.log().mean(dim=1, keepdim=True).exp()
        for sharing, shared in (("max", largest), ("mean", mean)):
            normalised = shared / (shared.max() * shared.min()).sqrt()
            spread = normalised.expand_as(by_head).reshape(-1)
            yield dataclasses.replace(choice, sharing=sharing), spread


def _best(
    candidates: Candidates,
    output_error: Callable[[torch.Tensor, bool], float],
    joint: bool,
    finer: bool,
) -> tuple[Choice, torch.Tensor]:
    """The candidate of the smallest mean square error of the output; the first one on a tie.

    Args:
        candidates: Choices and scales [k] for given exponents; the very first is identity.
        output_error: The mean square error of the output for given scales, of clipped weights or
            not, or anything in proportion to it.
        joint: Whether the first and the best few are compared again with clipped weights.
        finer: Whether exponents around the best one are tried in the end.
    """
    numbers = itertools.count()

    def measured(scales: torch.Tensor, clipped: bool) -> float:
        error = output_error(scales, clipped)
        return error if math.isfinite(error) else math.inf

    def tried(
        exponents: tuple[float, ...], clipped: bool
    ) -> list[tuple[float, int, Choice, torch.Tensor]]:
        return [
            (measured(scales, clipped), next(numbers), choice, scales)
            for choice, scales in candidates(exponents)
        ]

    found = tried(_EXPONENTS, False)
    first = found[0]
    found.sort(key=lambda entry: entry[:2])
    if joint and len(found) > 1:
        again = found[:_JOINT] + [entry for entry in found[_JOINT:] if entry[1] == 0]
        found = [(measured(entry[3], True), *entry[1:]) for entry in again]
        first = next(entry for entry in found if entry[1] == 0)
        found.sort(key=lambda entry: entry[:2])
    for step in _FINER if finer else ():
        middle = found[0][2].exponent
        around = tuple(exponent for exponent in (middle - step, middle + step) if exponent > 0)
        found += tried(around, joint)
        found.sort(key=lambda entry: entry[:2])
    error, _, choice, scales = found[0]
    gain = 1 - error / first[0] if first[0] > 0 else 0.0
    return dataclasses.replace(choice, gain=gain), scales
