"""Codes and scales that move along gradients: what ``--effort high`` does to a rounded matrix.

Owns how a gradient by a matrix's weights moves it; zero-points stay. A weight is its scale times
whole numbers, so the gradient by the scale's logarithm is the sum of gradient times weight over the
group: the learned steps of Esser et al., "Learned Step Size Quantization" (ICLR 2020), as Chen et
al., "EfficientQAT" (2024), train them. A code is the nearest to a place on its grid, and gradients
reach the place as if nothing were rounded, as in Cheng et al., "AutoRound" (2023): what is learned
of a weight adds up there until it is worth a step. Refuses to know where gradients come from.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F

from awq_edge.quantize import grouped
from awq_edge.quantize.grids import to_half

# Of a whole step: the share that a scale changes by, and the part of a code that a place moves by.
# Places begin in the middle: at this rate what gradients disagree about hardly ever adds up to the
# half that turns a code, in some hundred steps, and what most of them agree about does.
_SCALE_RATE = 0.002
_PLACE_RATE = 0.01
_FARTHEST = 1.49  # of a place from where it began: codes change by one
# Of the running means of gradients and of their squares, what stays with every step. Squares are
# forgotten early: there are few steps.
_MEANS_KEEP = 0.9
_SQUARES_KEEP = 0.95


class _Steps:
    """Directions of steps by Adam (Kingma and Ba, ICLR 2015), for one tensor of numbers."""

    def __init__(self, like: torch.Tensor) -> None:
        self._means = torch.zeros_like(like)
        self._squares = torch.zeros_like(like)
        self._count = 0

    def direction(self, slopes: torch.Tensor) -> torch.Tensor:
        """Where a whole step goes, about 1 in size, for gradients; these are used up."""
        self._count += 1
        self._means.lerp_(slopes, 1 - _MEANS_KEEP)
        self._squares.lerp_(slopes.square_(), 1 - _SQUARES_KEEP)
        size = (self._squares / (1 - _SQUARES_KEEP**self._count)).sqrt_()
        # What no gradient ever reached stays.
        size = size.mul_(1 - _MEANS_KEEP**self._count).clamp_(min=torch.finfo().tiny)
        return torch.div(self._means, size, out=size)


@dataclasses.dataclass
class LearnedMatrix:
    """A matrix while it learns.

    Attributes:
        begun: As it was before.
        scales: Before they are rounded to fp16, float32 [n, groups].
        offsets: Of places from the codes that they began with, float32 [n, k].
    """

    begun: grouped.Quantised
    scales: torch.Tensor
    offsets: torch.Tensor

    def __post_init__(self) -> None:
        """Knows no gradients yet."""
        self._by_scale, self._by_place = _Steps(self.scales), _Steps(self.offsets)

    @classmethod
    def beginning(cls, begun: grouped.Quantised) -> LearnedMatrix:
        """A matrix that no gradient has moved."""
        scales = begun.scales.float()
        offsets = torch.zeros(begun.codes.shape, device=begun.codes.device)
        return cls(begun, scales, offsets)

    def rounded(self) -> grouped.Quantised:
        """As a file holds it."""
        codes = (self.begun.codes + self.offsets).round_().to(torch.uint8)
        return dataclasses.replace(self.begun, codes=codes, scales=self.scales.half())

    def move(self, gradient: torch.Tensor, weights: torch.Tensor, rate: float) -> None:
        """Takes a step; scales by factors: none changes its sign.

        Args:
            gradient: By the weights, float32 [n, k]; used up.
            weights: What :meth:`rounded` has, float32 [n, k].
            rate: Share of a whole step.
        """
        k, group_size = gradient.shape[1], self.begun.group_size
        by_scale = slopes(gradient, weights, group_size)
        by_place = gradient.mul_(to_half(self.scales).repeat_interleave(group_size, 1)[:, :k])
        self.scales *= self._by_scale.direction(by_scale).mul_(-rate * _SCALE_RATE).exp_()
        self.offsets.sub_(self._by_place.direction(by_place), alpha=rate * _PLACE_RATE)
        codes = self.begun.codes.float()
        torch.maximum(self.offsets, -codes.clamp(max=_FARTHEST), out=self.offsets)
        above = codes.neg_().add_((1 << self.begun.bits) - 1).clamp_(max=_FARTHEST)
        torch.minimum(self.offsets, above, out=self.offsets)


def slopes(gradient: torch.Tensor, weights: torch.Tensor, group_size: int) -> torch.Tensor:
    """Gradients by the logarithms of scales, [n, groups].

    Args:
        gradient: By the weights, float32 [n, k].
        weights: float32 [n, k].
        group_size: Inputs per group; the last group may be short.
    """
    n, k = gradient.shape
    products = F.pad(gradient * weights, (0, -k % group_size))
    return products.reshape(n, -1, group_size).sum(dim=2)
