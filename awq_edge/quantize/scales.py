"""Scales of a layer's inputs: what a search chose, and how they are folded into the layer.

Owns the legality of a fold: an input is divided by its scales through what may absorb them
(``stages.py``), every matrix that reads it is multiplied by them, and the layer's function stays as
it was, which is checked. Refuses to choose scales: ``awq.py`` and ``pivots.py`` do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch

from awq_edge.architecture import Architecture
from awq_edge.errors import UnsupportedError
from awq_edge.quantize.probe import Probe, Weights
from awq_edge.stages import Origin, Stage, fed_by
from awq_edge.torch_router import Routes

# A fold multiplies and divides in float32: what it changes is rounding, a few units in 2^-23.
_TOLERANCE = 1e-4
_STREAM_ROUNDINGS = 8  # units in the last place of the largest value in the residual stream


@dataclasses.dataclass(frozen=True)
class Choice:
    """What a scale search took for one stage."""

    kind: str  # "none", "plain", "duo" or "pivots"
    exponent: float
    sharing: str = ""  # how query heads that share a value head agreed: "max" or "mean"
    gain: float = 0.0  # share of the error without scaling that it removed
    weight_exponent: float = 0.0  # of the weights' magnitudes, for "pivots"
    size_exponent: float = 0.0  # of the inputs' magnitudes, for "pivots"


def heads_that_share(architecture: Architecture, stage: Stage) -> tuple[int, int, int] | None:
    """Where inputs must share scales: key-value heads, query heads for each, and a head's size.

    One row of values reaches every query head that shares the value head, and can be divided by
    one number only. None where every input has a scale of its own.
    """
    a = architecture
    if stage.origin is not Origin.ATTENTION:
        return None
    return a.kv_heads, a.heads // a.kv_heads, a.head_size


def absorbed(architecture: Architecture, stage: Stage, scales: torch.Tensor) -> torch.Tensor:
    """What the absorber's outputs are divided by, [n], for a stage's scales [k]."""
    heads = heads_that_share(architecture, stage)
    return scales if heads is None else scales.reshape(heads)[:, 0].reshape(-1)


def divided_rows(probe: Probe, scales: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What :func:`fold_all` divides matrices' outputs by, [n] each, by "attn_v" and so on."""
    return {
        stage.absorber: absorbed(probe.architecture, stage, scales[stage.name])
        for stage in probe.stages
        if stage.absorber in stage.made_of
    }


def fold(architecture: Architecture, stage: Stage, weights: Weights, scales: torch.Tensor) -> None:
    """Divides a stage's input by ``scales`` [k] and multiplies its readers' columns by them."""
    factors = absorbed(architecture, stage, scales)
    # A norm, the rows of a matrix, or what is multiplied behind an activation.
    for kind in ("weight", "bias", "scales"):
        name = f"{stage.absorber}.{kind}"
        if name in weights:
            divided = factors if weights[name].dim() == 1 else factors[:, None]
            weights[name] = weights[name] / divided
    for name in stage.matrices:
        weights[f"{name}.weight"] = weights[f"{name}.weight"] * scales
    for name in stage.routers:
        rows = weights[f"{name}.weight"].view(-1, len(scales))
        weights[f"{name}.weight"] = (rows * scales).flatten()


def fold_all(probe: Probe, weights: Weights, scales: Mapping[str, torch.Tensor]) -> None:
    """Folds the scales of a layer's stages, and checks after each that nothing changed.

    Args:
        probe: Its first block is what the outputs are compared on.
        weights: The layer's float weights; changed in place.
        scales: [k] each, by the stage's name; equal for heads that share (:func:`heads_that_share`)
            and 1 where nothing absorbs them.

    Raises:
        UnsupportedError: A fold changed the layer's function.
    """
    check = dataclasses.replace(probe, hidden=probe.hidden[:1])
    if any(stage.routers for stage in probe.stages):
        _fold_by_branch(check, weights, scales)
        return
    before = check.change(weights)
    for stage in probe.stages:
        if stage.absorber is not None:
            fold(probe.architecture, stage, weights, scales[stage.name])
            check_fold(check, weights, before, stage.name)


def _fold_by_branch(probe: Probe, weights: Weights, scales: Mapping[str, torch.Tensor]) -> None:
    """Folds a layer with experts, checked where rows keep to the experts that they went to.

    A rounding may turn a router's choice, which changes the layer by more than the fold has.
    """
    begun: dict[str, tuple[torch.Tensor, Routes | None]] = {}  # streams, by a branch's first stage
    for step in probe.layer(weights).steps(probe.hidden):
        if step.stage.origin is Origin.STREAM:
            begun[step.stage.name] = step.stream, step.routed
    for stage in probe.stages:
        if stage.origin is Origin.STREAM:
            first = stage
        if stage.absorber is None:
            continue
        stream, routed = begun[first.name]
        ends = fed_by(probe.architecture, probe.number, first) if stage is first else (stage,)

        def given(
            first: Stage = first,
            ends: tuple[Stage, ...] = ends,
            stream: torch.Tensor = stream,
            routed: Routes | None = routed,
        ) -> list[torch.Tensor]:
            layer = probe.layer(weights)
            x = layer.input(first, stream)
            logits = [layer.router_logits(x)] if first.routers else []
            outputs = [layer.output(end, layer.input(end, x, routed), routed) for end in ends]
            return [*logits, torch.stack(outputs).sum(dim=0)]

        before = given()
        fold(probe.architecture, stage, weights, scales[stage.name])
        for was, now in zip(before, given()):
            largest = float(was.abs().max())
            _refuse_change(probe.number, stage.name, float((now - was).abs().max()), largest, 0.0)


def check_fold(
    probe: Probe, weights: Mapping[str, torch.Tensor], before: torch.Tensor, stage: str
) -> None:
    """Refuses to go on after a fold that changed the layer's float output.

    Raises:
        UnsupportedError: It did by more than rounding explains: values that differ by many orders
            of magnitude, in weights or norms, leave too few digits for the small ones.
    """
    difference = float((probe.change(weights) - before).abs().max())
    largest = float(before.abs().max())
    # What a layer adds is the difference of two streams, each rounded as coarsely as it is large.
    rounding = _STREAM_ROUNDINGS * torch.finfo(torch.float32).eps * float(probe.hidden.abs().max())
    _refuse_change(probe.number, stage, difference, largest, rounding)


def _refuse_change(
    layer: int, stage: str, difference: float, largest: float, rounding: float
) -> None:
    if not difference <= _TOLERANCE * largest + rounding:
        raise UnsupportedError(
            f"Layer {layer} cannot be scaled: multiplying the inputs of {stage} changed its "
            f"output by {difference:g} where it reaches {largest:g}; its weights or norms hold "
            "outliers. --method gptq and rtn scale nothing."
        )
