"""The error of a layer's outputs against the exponent of the scales.

Owns the curve for every matrix group: scales are the activations' mean magnitudes to a power; power
0 is plain rounding. The error is that of the matrices' own outputs over all calibration tokens,
which the second moments of the inputs give exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from awq_edge.analysis.subject import Subject
from awq_edge.quantize import grouped
from awq_edge.quantize.awq import plain_scales
from awq_edge.quantize.statistics import InputStatistics, output_error
from awq_edge.stages import stages

EXPONENTS = tuple(step / 10 for step in range(11))


@dataclass(frozen=True)
class ExponentCurve:
    """One stage of one layer.

    Attributes:
        layer: Its number.
        matrices: The stage's, which read one input.
        errors: Squared error over squared output, for each of EXPONENTS.
    """

    layer: int
    matrices: tuple[str, ...]
    errors: tuple[float, ...]

    @property
    def best(self) -> float:
        """The exponent of the smallest error."""
        return EXPONENTS[min(range(len(EXPONENTS)), key=self.errors.__getitem__)]


def layer_curves(
    subject: Subject, layer: int, statistics: dict[str, InputStatistics]
) -> list[ExponentCurve]:
    """The curves of one layer."""
    settings = subject.settings
    weights = subject.layer(layer)
    curves = []
    for stage in stages(subject.architecture, layer):
        stacked = torch.cat([weights[f"{name}.weight"] for name in stage.matrices])
        seen = statistics[stage.name]
        products = seen.mean_products()[0]
        whole = output_error(stacked, products)
        errors = []
        for exponent in EXPONENTS:
            scales = plain_scales(seen.mean_absolute(), exponent)
            rounded = grouped.round_trip(stacked * scales, settings.bits, settings.group_size)
            error = output_error(rounded / scales - stacked, products)
            errors.append(error / whole if whole > 0 else 0.0)
        curves.append(ExponentCurve(layer, stage.matrices, tuple(errors)))
    return curves
