"""The scale search for matrices that are rounded with error compensation.

Owns the choice of one scale per input, folded by ``scales.py``. What an
input's error costs is not how large the input is, but what is left of it when the later inputs make
up for the error: the pivots of the Hessian's factor say that, and no output is computed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch

from awq_edge.quantize import gptq, grouped, scales
from awq_edge.quantize.grouped import Quantiser
from awq_edge.quantize.probe import Probe, Weights, rows_of
from awq_edge.quantize.scales import Choice
from awq_edge.quantize.statistics import Products

_COST_EXPONENTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
_WEIGHT_EXPONENTS = (0.0, 0.25, 0.5, 0.75)
_ROWS = 512  # looked at together; a sample of so many is enough to compare scales


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


def search(
    weight: torch.Tensor,
    costs: torch.Tensor,
    quantiser: Quantiser,
    heads: tuple[int, int, int] | None = None,
) -> tuple[Choice, torch.Tensor]:
    """The scales [k] of the smallest error, identity if none is better.

    Args:
        weight: The rows that read the input, float32 [n, k].
        costs: What an error of each float input costs once the later ones have made up for it, [k].
        quantiser: Bits and groups.
        heads: As ``scales.heads_that_share`` gives them.
    """
    n = len(weight)
    size = _relative_sizes(weight, quantiser.group_size)
    alive = size > 0
    x = (costs / costs.mean()).sqrt()
    sample = weight[torch.linspace(0, n - 1, min(n, _ROWS), device=weight.device).round().long()]
    best = Choice("none", 0.0)
    best_scales = torch.ones_like(x)
    smallest = unscaled = torch.inf
    for exponent in _COST_EXPONENTS:
        for share in _WEIGHT_EXPONENTS:
            found = x**exponent / (size.clamp(min=1e-4) ** share)
            if heads is not None:
                by_head = found.reshape(heads)
                by_head = by_head.log().mean(dim=1, keepdim=True).exp().expand_as(by_head)
                found = by_head.reshape(-1)
            found = torch.where(alive, found, 1.0)
            found = found / (found.max() * found.min()).sqrt()
            error = (quantiser.round_trip(sample * found) / found - sample).square()
            total = float((error.sum(dim=0) * costs).sum())
            if exponent == 0.0 and share == 0.0:
                smallest = unscaled = total
            elif total < smallest:
                smallest, best_scales = total, found
                best = Choice("pivots", exponent, weight_exponent=share)
    gain = 1 - smallest / unscaled if unscaled > 0 else 0.0
    return dataclasses.replace(best, gain=gain), best_scales
