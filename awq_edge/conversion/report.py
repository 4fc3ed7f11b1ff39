"""What a conversion tells: while it goes on, and in the end.

Owns the records; refuses to print them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from awq_edge.architecture import Architecture
from awq_edge.quantize.probe import Weights
from awq_edge.quantize.scales import Choice


@dataclasses.dataclass(frozen=True)
class ExpertsReport:
    """How a layer's experts fared on the calibration text.

    Attributes:
        least_share: Of a sample's choices, the least used expert's.
        topped_up: How many experts too few tokens chose: they were calibrated on those of their
            highest probabilities too.
        unreached: How many no token could reach: they are rounded to nearest, unscaled.
        turned: Share of tokens for which others were chosen than in the float model; None if the
            method does not know the float model's states.
    """

    least_share: float
    topped_up: int
    unreached: int
    turned: float | None = None


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """How one layer fared: errors relative to what the layer adds to the residual stream."""

    layer: int
    error_rtn: float | None  # None without calibration
    error: float | None
    choices: dict[str, Choice]
    experts: ExpertsReport | None = None  # with calibration


@dataclasses.dataclass(frozen=True)
class Report:
    """What came out."""

    path: Path
    architecture: Architecture
    file_bytes: int
    linear_bits_per_weight: float  # the decoder's matrices, with their headers and padding
    file_bits_per_weight: float  # the whole file over every weight of the model
    decode_bytes: int  # weights read for one token
    layers: list[LayerReport]
    texts: dict[str, int] = dataclasses.field(default_factory=dict)  # blocks of each
    # Divergence from the float model, nats, on texts that were not calibrated on, by their kind.
    held_out: dict[str, float] = dataclasses.field(default_factory=dict)
    # What the chosen widths were expected to give, where some were chosen in this run.
    predicted: float | None = None
    # Divergence on blocks put aside after every round of learning; the first is before any.
    rounds: list[float] = dataclasses.field(default_factory=list)
    vision_bytes: int = 0  # of the tower's and the connector's matrices; 0: there are none

    def cache_bytes(self, positions: int) -> int:
        """Keys and values of a context, in fp16."""
        a = self.architecture
        return 2 * 2 * a.layers * a.kv_heads * a.head_size * positions


@dataclasses.dataclass(frozen=True)
class Events:
    """What a caller may want to hear while the work goes on."""

    message: Callable[[str], None] = lambda text: None
    note: Callable[[str], None] = lambda text: None  # what is being done, until the next one
    layer_done: Callable[[LayerReport, int], None] = lambda report, layers: None
    # How many steps of learning are done, of how many, and the divergence of the last one's blocks.
    step_done: Callable[[int, int, float], None] = lambda done, steps, divergence: None
    # A layer's weights with their scales folded in, before anything is rounded.
    layer_scaled: Callable[[int, Weights], None] = lambda layer, weights: None
