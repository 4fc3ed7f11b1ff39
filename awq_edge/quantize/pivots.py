"""The scale search for matrices that are rounded with error compensation.

Owns the choice of one scale per input, folded by ``scales.py``. What an error of an input's weights
costs is not how large the input is, but what is left of it when the later inputs make up for the
error: the pivots of the Hessian's factor say that, and no output is computed.

A scale also decides how well the runtime can round the input itself, to int8 with one step for a
token's group: an input that is far larger than its neighbours takes their digits, unless it is
divided by more than they are. Nothing makes up for that error. It is why scales by an input's size
are tried too, as in Xiao et al., "SmoothQuant" (ICML 2023).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping

import torch

from awq_edge.quantize import gptq, grouped, scales
from awq_edge.quantize.grouped import Quantiser
from awq_edge.quantize.probe import Probe, Weights, rows_of
from awq_edge.quantize.scales import Choice
from awq_edge.quantize.statistics import Products

_COST_EXPONENTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
_WEIGHT_EXPONENTS = (0.0, 0.25, 0.5, 0.75)
_SIZE_EXPONENTS = (0.0, 0.25, 0.5)
_ROWS = 512  # looked at together; a sample of so many is enough to compare scales
# Weights are compared rounded to nearest, several times worse than compensation, searched grids and
# corrections leave them; inputs are as they will be. On novels-opt, whose norms leave a few large
# inputs, 4 bits have a divergence of 0.0140 nats without the inputs' error, 0.0131 with a factor of
# 1, 0.0119 with 10, 0.0120 with 40; 8 bits 0.0047, 0.0014, 0.0014 (0, 1, 10).
_INPUT_ERRORS = 10.0
_LARGEST_INPUT = 127  # of int8, as the runtime rounds


def search_and_fold(
    probe: Probe, weights: Weights, quantisers: Mapping[str, Quantiser], damping: float
) -> tuple[dict[str, Choice], dict[str, torch.Tensor]]:
    """Finds and folds the scales of a layer's stages.

    Args:
        probe: Blocks whose float inputs stand for all.
        weights: The layer's float weights; changed in place, its function is not.
        quantisers: What each matrix will be rounded with, by its name.
        damping: Of the Hessians, as when it is rounded.

    Returns:
        What was chosen, by the stage's name, and what matrices' outputs were divided by, by theirs.

    Raises:
        UnsupportedError: A fold changed the layer's function.
    """
    inputs = probe.inputs(weights)
    choices: dict[str, Choice] = {}
    found: dict[str, torch.Tensor] = {}
    for stage in probe.stages:
        x = inputs.pop(stage.name)
        if stage.absorber is None or not len(x):  # nothing absorbs scales, or no row tells any
            choices[stage.name] = Choice("none", 0.0)
            found[stage.name] = torch.ones(x.shape[-1], device=x.device)
            continue
        choices[stage.name], found[stage.name] = search(
            rows_of(stage, weights),
            x.reshape(-1, x.shape[-1]),
            _costs(x, damping),
            quantisers[stage.matrices[0]],
            scales.heads_that_share(probe.architecture, stage),
        )
    scales.fold_all(probe, weights, found)
    return choices, scales.divided_rows(probe, found)


def _costs(x: torch.Tensor, damping: float) -> torch.Tensor:
    """What a square error of each input costs, [k], for inputs [.., k]."""
    products = Products(x.shape[-1], x.device)
    products.add(x)
    return gptq.conditional(products.means(), damping)


def _relative_sizes(weight: torch.Tensor, group_size: int) -> torch.Tensor:
    """Means over rows of each weight's share of its group's largest one, [k]."""
    n, k = weight.shape
    total = torch.zeros(k, device=weight.device)
    for first in range(0, n, _ROWS):
        rows = weight[first : first + _ROWS]
        largest = grouped.group_maxima(rows, group_size) + 1e-6
        largest = largest.repeat_interleave(group_size, dim=1)[:, :k]
        total += (rows.abs() / largest).sum(dim=0)
    return total / n


def _some(rows: torch.Tensor) -> torch.Tensor:
    """At most ``_ROWS`` of them, evenly spaced."""
    last = len(rows) - 1
    chosen = torch.linspace(0, last, min(last + 1, _ROWS), device=rows.device).round().long()
    return rows[chosen]


def _input_errors(x: torch.Tensor, group_size: int) -> torch.Tensor:
    """The mean square error of each input once it is rounded to int8, [k], for inputs [t, k].

    A step's twelfth, squared, as of any number that is rounded; nothing for zeros, which are exact.
    """
    steps = grouped.group_maxima(x, group_size) / _LARGEST_INPUT
    squares = (steps.square() / 12).repeat_interleave(group_size, dim=1)[:, : x.shape[1]]
    return torch.where(x != 0, squares, 0.0).mean(dim=0)


def _sizes(x: torch.Tensor) -> torch.Tensor:
    """How large each input is, [k], for inputs [t, k]: between its usual size and its largest."""
    tiny = torch.finfo(x.dtype).tiny
    sizes = (x / x.abs().max().clamp(min=tiny)).pow(4).mean(dim=0).pow(0.25)
    return (sizes / sizes.mean().clamp(min=tiny)).clamp(min=1e-4)


def search(
    weight: torch.Tensor,
    inputs: torch.Tensor,
    costs: torch.Tensor,
    quantiser: Quantiser,
    heads: tuple[int, int, int] | None = None,
) -> tuple[Choice, torch.Tensor]:
    """The scales [k] of the smallest error, identity if none is better.

    Args:
        weight: The rows that read the input, float32 [n, k].
        inputs: What they read, float32 [t, k].
        costs: What an error of each float input costs once the later ones have made up for it, [k].
        quantiser: Bits and groups.
        heads: As ``scales.heads_that_share`` gives them.
    """
    shares = _relative_sizes(weight, quantiser.group_size)
    alive = shares > 0
    shares = shares.clamp(min=1e-4)
    inputs = _some(inputs)
    sizes = _sizes(inputs)
    pivots = (costs / costs.mean()).sqrt()
    sample = _some(weight)
    weighed = sample.square().sum(dim=0)  # what an error of each input does to the outputs
    best = Choice("none", 0.0)
    best_scales = torch.ones_like(pivots)
    smallest = unscaled = torch.inf
    for exponents in itertools.product(_COST_EXPONENTS, _WEIGHT_EXPONENTS, _SIZE_EXPONENTS):
        of_cost, of_weight, of_size = exponents
        found = pivots**of_cost * sizes**of_size / shares**of_weight
        if heads is not None:
            by_head = found.reshape(heads)
            by_head = by_head.log().mean(dim=1, keepdim=True).exp().expand_as(by_head)
            found = by_head.reshape(-1)
        found = torch.where(alive, found, 1.0)
        found = found / (found.max() * found.min()).sqrt()
        error = (quantiser.round_trip(sample * found) / found - sample).square()
        of_inputs = _input_errors(inputs / found, quantiser.group_size) * found.square()
        total = float((error.sum(dim=0) * costs + _INPUT_ERRORS * of_inputs * weighed).sum())
        if not any(exponents):
            smallest = unscaled = total
        elif total < smallest:
            smallest, best_scales = total, found
            best = Choice("pivots", of_cost, weight_exponent=of_weight, size_exponent=of_size)
    gain = 1 - smallest / unscaled if unscaled > 0 else 0.0
    return dataclasses.replace(best, gain=gain), best_scales
