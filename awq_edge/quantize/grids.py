"""Grids: the scale and the zero-point of every row and group, chosen before any code is.

Owns the search for the grid of the smallest weighted square error. Refuses codes: rounding to
nearest is in ``grouped.py``, rounding with compensation in ``gptq.py``.
"""

from __future__ import annotations

import dataclasses

import torch

from awq_edge.quantize import grouped


@dataclasses.dataclass(frozen=True)
class Grid:
    """Scales and zero-points of a matrix; every scale is an fp16 number."""

    scales: torch.Tensor  # float32 [n, groups]
    zeros: torch.Tensor  # float32 [n, groups], whole numbers
    bits: int
    group_size: int

    @property
    def largest_code(self) -> float:
        """Codes go from 0 to this."""
        return float((1 << self.bits) - 1)

    def transposed(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Scales and zero-points, [groups, n] each."""
        return self.scales.T.contiguous(), self.zeros.T.contiguous()

    def rounded(self, weight: torch.Tensor) -> grouped.Quantised:
        """A weight [n, k] rounded to nearest on the grid."""
        k = weight.shape[1]
        scales, zeros = (
            values.repeat_interleave(self.group_size, dim=1)[:, :k]
            for values in (self.scales, self.zeros)
        )
        divisors = torch.where(scales == 0, torch.inf, scales)
        codes = torch.round(weight / divisors).add_(zeros).clamp_(0.0, self.largest_code)
        return self.with_codes(codes)

    def with_codes(self, codes: torch.Tensor) -> grouped.Quantised:
        """The finished matrix for codes [n, k]."""
        return grouped.Quantised(
            codes=codes.to(torch.uint8),
            scales=self.scales.half(),
            zeros=self.zeros.to(torch.uint8),
            bits=self.bits,
            group_size=self.group_size,
        )


def to_half(scales: torch.Tensor) -> torch.Tensor:
    """Rounds scales to fp16 numbers, held as float32."""
    return scales.half().float()


def spanning(
    weight: torch.Tensor,
    bits: int,
    group_size: int,
    limits: torch.Tensor | None = None,
    name: str = "a matrix",
) -> Grid:
    """The grid that spans every group's range, or what is left of it within limits.

    The one that rounding to nearest uses; takes the arguments of ``grouped.quantise``.
    """
    quantised = grouped.quantise(weight, bits, group_size, limits, name)
    return Grid(quantised.scales.float(), quantised.zeros.float(), bits, group_size)


def best(
    weight: torch.Tensor,
    costs: torch.Tensor,
    bits: int,
    group_size: int,
    shares: tuple[float, ...],
    shifts: tuple[int, ...] = (-1, 0, 1),
    name: str = "a matrix",
) -> Grid:
    """The grid of the smallest error when every weight is rounded to nearest.

    Args:
        weight: float32 [n, k].
        costs: What a square error of each input costs, [k].
        bits: 2, 3, 4, 5, 6 or 8.
        group_size: Inputs per group.
        shares: Parts of the widest grid's scale to try.
        shifts: Offsets from the zero-point that suits the share.
        name: For an error.

    Raises:
        UnsupportedError: A group's range is too large for an fp16 scale.
    """
    n, k = weight.shape
    wide = spanning(weight, bits, group_size, name=name)
    padding = (0, -k % group_size)
    groups = torch.nn.functional.pad(weight, padding).reshape(n, -1, group_size)
    by_group = torch.nn.functional.pad(costs, padding).reshape(-1, group_size)
    low = groups.amin(dim=2).clamp_(max=0.0)
    high = groups.amax(dim=2).clamp_(min=0.0)
    middle = (low + high) / 2
    largest = wide.largest_code
    smallest = torch.full_like(wide.scales, torch.inf)
    scales, zeros = wide.scales, wide.zeros
    for share in shares:
        tried = to_half(wide.scales * share)
        divisors = torch.where(tried == 0, 1.0, tried)
        steps = torch.round(groups / divisors.unsqueeze(2))
        centred = torch.round(largest / 2 - middle / divisors)
        anchored = torch.round(-low / divisors)
        bases = (anchored,) if share == 1.0 else (centred,)
        for base in bases:
            for shift in shifts:
                zero = (base + shift).clamp(0.0, largest)
                value = torch.minimum(
                    torch.maximum(steps, -zero.unsqueeze(2)), (largest - zero).unsqueeze(2)
                )
                value = value.mul_(tried.unsqueeze(2)).sub_(groups).square_()
                error = torch.einsum("ngi,gi->ng", value, by_group)
                better = error < smallest
                smallest = torch.where(better, error, smallest)
                scales = torch.where(better, tried, scales)
                zeros = torch.where(better, zero, zeros)
    return Grid(scales, zeros, bits, group_size)
