"""The error of a layer's outputs against the exponent of the scales.

Owns the curve for every matrix group: scales are the activations' mean magnitudes to a power; power
0 is plain rounding. The error is that of the matrices' own outputs over all calibration tokens,
which the second moments of the inputs give exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from awq_edge.analysis.subject import READERS, InputSums, Subject
from awq_edge.quantize import grouped

EXPONENTS = tuple(step / 10 for step in range(11))
_SMALLEST_SCALE = 1e-4


@dataclass(frozen=True)
class ExponentCurve:
    """One input's readers in one layer.

    Attributes:
        layer: Its number.
        readers: The first of the matrices.
        errors: Squared error over squared output, for each of EXPONENTS.
    """

    layer: int
    readers: str
    errors: tuple[float, ...]

    @property
    def best(self) -> float:
        """The exponent of the smallest error."""
        return EXPONENTS[min(range(len(EXPONENTS)), key=self.errors.__getitem__)]


def scales_for(mean_absolute: torch.Tensor, exponent: float) -> torch.Tensor:
    """The scale of each channel, [k]; channels that are always zero keep 1.

    Args:
        mean_absolute: Mean magnitude of each channel, [k].
        exponent: 0 to 1.
    """
    alive = mean_absolute > 0
    if not bool(alive.any()):
        return torch.ones_like(mean_absolute)
    scales = (mean_absolute**exponent).clamp(min=_SMALLEST_SCALE)
    scales = scales / (scales[alive].max() * scales[alive].min()).sqrt()
    return torch.where(alive, scales, 1.0)


def output_error(difference: torch.Tensor, products: torch.Tensor) -> float:
    """Mean squared output for weights [n, k] and second moments of the input [k, k]."""
    return float(((difference @ products) * difference).sum())


def layer_curves(subject: Subject, layer: int, sums: dict[str, InputSums]) -> list[ExponentCurve]:
    """The curves of one layer."""
    settings = subject.settings
    weights = subject.layer(layer)
    curves = []
    for readers, names in READERS.items():
        stacked = torch.cat([weights[f"{name}.weight"] for name in names])
        seen = sums[readers]
        whole = output_error(stacked, seen.products)
        errors = []
        for exponent in EXPONENTS:
            scales = scales_for(seen.mean_absolute, exponent)
            rounded = grouped.round_trip(stacked * scales, settings.bits, settings.group_size)
            error = output_error(rounded / scales - stacked, seen.products)
            errors.append(error / whole if whole > 0 else 0.0)
        curves.append(ExponentCurve(layer, readers, tuple(errors)))
    return curves
