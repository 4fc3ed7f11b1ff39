"""How much a few salient channels matter: kept in fp16, everything else rounded.

Owns the choice of channels, by activation, by weight or at random, and the mixed weights. What the
paper concludes from it: the channels that matter are those with large activations, not those with
large weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from awq_edge.analysis.subject import Subject
from awq_edge.quantize import grouped
from awq_edge.stages import stages

SHARES = (0.001, 0.01, 0.03)
RULES = ("activation", "weight", "random")


@dataclass(frozen=True)
class SalientResult:
    """One row: which channels stayed, and what came out.

    Attributes:
        rule: "activation", "weight", "random"; "none" for plain rounding.
        share: Of the channels of every matrix.
        perplexity: Of the judged text.
    """

    rule: str
    share: float
    perplexity: float


def chosen_channels(
    rule: str,
    share: float,
    weight: torch.Tensor,
    mean_absolute: torch.Tensor,
    generator: torch.Generator,
) -> torch.Tensor:
    """Input channels to keep, at least one.

    Args:
        rule: One of RULES.
        share: Of all channels.
        weight: float32 [n, k].
        mean_absolute: Mean magnitude of each channel of the matrix's input, [k].
        generator: For the random choice.
    """
    k = weight.shape[1]
    count = max(1, round(share * k))
    if rule == "random":
        return torch.randperm(k, generator=generator)[:count]
    importance = mean_absolute if rule == "activation" else weight.norm(dim=0)
    return importance.topk(count).indices


def measure_salient(
    subject: Subject,
    magnitudes: dict[int, dict[str, torch.Tensor]],
    advance: Callable[[], None] = lambda: None,
) -> list[SalientResult]:
    """Perplexity with plain rounding, then for every rule and share.

    Args:
        subject: The model.
        magnitudes: Mean magnitudes of what the stages of every layer read, by their names.
        advance: Called after each measurement.
    """
    settings = subject.settings
    rounded = dict(subject.weights)
    matrices = [
        (f"blk.{layer}.{name}.weight", stage.name, layer)
        for layer in range(subject.architecture.layers)
        for stage in stages(subject.architecture, layer)
        for name in stage.matrices
    ]
    for name, _, _ in matrices:
        weight = subject.weights[name]
        rounded[name] = grouped.round_trip(weight, settings.bits, settings.group_size)
    results = [SalientResult("none", 0.0, subject.perplexity(rounded).value)]
    advance()
    for rule in RULES:
        for share in SHARES:
            generator = torch.Generator().manual_seed(settings.seed)
            mixed = dict(rounded)
            for name, stage, layer in matrices:
                weight = subject.weights[name]
                kept = chosen_channels(rule, share, weight, magnitudes[layer][stage], generator)
                mixed[name] = rounded[name].clone()
                mixed[name][:, kept] = weight[:, kept].half().float()
            results.append(SalientResult(rule, share, subject.perplexity(mixed).value))
            advance()
    return results
