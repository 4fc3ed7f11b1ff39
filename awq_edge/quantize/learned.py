"""Scales that move along gradients: what ``--effort high`` does to a rounded matrix.

Owns how a gradient by a matrix's weights moves its scales; codes and zero-points stay. A weight is
its scale times whole numbers, so the gradient by the scale's logarithm is the sum of gradient times
weight over the group: the learned steps of Esser et al., "Learned Step Size Quantization" (ICLR
2020), as Chen et al., "EfficientQAT" (2024), train them in their last stage. Refuses to know where
gradients come from.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F

from awq_edge.quantize.grids import to_half

_RATE = 0.003  # of a whole step: the share that a scale changes by
# Of the running means of gradients and of their squares, what stays with every step. Squares are
# forgotten early: there are few steps.
_MEANS_KEEP = 0.9
_SQUARES_KEEP = 0.95


@dataclasses.dataclass
class LearnedScales:
    """The scales of a matrix, and what is known of the gradients by their logarithms.

    Attributes:
        exact: Before they are rounded to fp16, float32 [n, groups].
        means: Running means of gradients, [n, groups].
        squares: Of their squares.
        steps: How many gradients the two are of.
    """

    exact: torch.Tensor
    means: torch.Tensor
    squares: torch.Tensor
    steps: int = 0

    @classmethod
    def beginning(cls, exact: torch.Tensor) -> LearnedScales:
        """Scales float32 [n, groups] that no gradient has moved; the tensor is theirs."""
        return cls(exact, torch.zeros_like(exact), torch.zeros_like(exact))

    @property
    def rounded(self) -> torch.Tensor:
        """As the file holds them: fp16 numbers as float32, [n, groups]."""
        return to_half(self.exact)

    def move(self, slopes: torch.Tensor, rate: float) -> None:
        """Takes a step of Adam (Kingma and Ba, ICLR 2015), by factors: no scale changes its sign.

        Args:
            slopes: The gradient by the scales' logarithms, [n, groups]; used up.
            rate: Share of a whole step.
        """
        self.steps += 1
        self.means.lerp_(slopes, 1 - _MEANS_KEEP)
        self.squares.lerp_(slopes.square_(), 1 - _SQUARES_KEEP)
        size = (self.squares / (1 - _SQUARES_KEEP**self.steps)).sqrt_()
        # Scales of groups that no gradient ever reached stay.
        size = size.mul_(1 - _MEANS_KEEP**self.steps).clamp_(min=torch.finfo().tiny)
        self.exact *= (self.means / size).mul_(-rate * _RATE).exp_()


def slopes(gradient: torch.Tensor, weights: torch.Tensor, group_size: int) -> torch.Tensor:
    """Gradients by the logarithms of scales, [n, groups].

    Args:
        gradient: By the weights, float32 [n, k]; used up.
        weights: float32 [n, k].
        group_size: Inputs per group; the last group may be short.
    """
    n, k = gradient.shape
    products = F.pad(gradient.mul_(weights), (0, -k % group_size))
    return products.reshape(n, -1, group_size).sum(dim=2)
