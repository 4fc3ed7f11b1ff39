"""The group quantiser: the only one, for the search and for what is shipped.

Owns how a float becomes a code: w = scale * (code - zero-point), unsigned codes, one fp16 scale and
one integer zero-point per row and group of inputs. Packs nothing: ``awq_edge.layouts`` does.

A group's range always holds zero, so the zero-point is a code and a group of one sign keeps its
values. The scale is rounded to fp16 first; zero-point and codes are chosen for the rounded scale.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from awq_edge.errors import UnsupportedError

# Below the smallest normal fp16 number the scale is rounded up, never down or to zero: a range that
# is a little too wide costs a fraction of a step, one that is too narrow would clip, or divide by
# 0.
_SMALLEST_NORMAL_HALF = 2.0**-14
_SMALLEST_HALF = 2.0**-24
_LARGEST_HALF = 65504.0


@dataclasses.dataclass(frozen=True)
class Quantised:
    """One matrix, ready to be packed."""

    codes: torch.Tensor  # uint8 [n, k]
    scales: torch.Tensor  # float16 [n, groups]
    zeros: torch.Tensor  # uint8 [n, groups]
    bits: int
    group_size: int

    def dequantise(self) -> torch.Tensor:
        """The weights, float32 [n, k]: exactly what the runtime computes with."""
        n, k = self.codes.shape
        weights = _in_groups(self.codes.float(), self.group_size)
        weights.sub_(self.zeros.float().unsqueeze(2)).mul_(self.scales.float().unsqueeze(2))
        return weights.reshape(n, -1)[:, :k].contiguous()

    def rows(self, first: int, end: int) -> Quantised:
        """Some rows of the matrix."""
        return dataclasses.replace(
            self,
            codes=self.codes[first:end],
            scales=self.scales[first:end],
            zeros=self.zeros[first:end],
        )

    def take(self, numbers: torch.Tensor) -> Quantised:
        """The matrix of the rows with these numbers, in their order."""
        return dataclasses.replace(
            self,
            codes=self.codes[numbers],
            scales=self.scales[numbers],
            zeros=self.zeros[numbers],
        )

    def on_cpu(self) -> Quantised:
        """The same in the CPU's memory."""
        return dataclasses.replace(
            self, codes=self.codes.cpu(), scales=self.scales.cpu(), zeros=self.zeros.cpu()
        )


@dataclasses.dataclass(frozen=True)
class Quantiser:
    """Bits and group size of a matrix."""

    bits: int
    group_size: int

    def round_trip(self, weight: torch.Tensor, limits: torch.Tensor | None = None) -> torch.Tensor:
        """The weight after quantisation, float32 [n, k]."""
        return round_trip(weight, self.bits, self.group_size, limits)


def joined(parts: Sequence[Quantised]) -> Quantised:
    """One matrix of the rows of all parts."""
    return dataclasses.replace(
        parts[0],
        codes=torch.cat([part.codes for part in parts]),
        scales=torch.cat([part.scales for part in parts]),
        zeros=torch.cat([part.zeros for part in parts]),
    )


def quantise(
    weight: torch.Tensor,
    bits: int,
    group_size: int,
    limits: torch.Tensor | None = None,
    name: str = "a matrix",
) -> Quantised:
    """Quantises one matrix, rounding to nearest.

    Args:
        weight: float32 [n, k].
        bits: 2, 3, 4, 5, 6 or 8.
        group_size: Inputs per group; the last group of a row may be short.
        limits: float32 [n, groups, 2] or None: the lowest and the highest value of each group,
            between which weights are clamped first.
        name: For the error text.

    Raises:
        UnsupportedError: A group's range is too large for an fp16 scale.
    """
    codes, scales, zeros = _quantise_groups(_clamped(weight, group_size, limits), bits)
    if not bool(torch.isfinite(scales).all()):
        raise UnsupportedError(
            f"The weights of {name} reach {weight.abs().max().item():g}, too large for the fp16 "
            f"scales of {bits}-bit groups; the checkpoint is probably damaged."
        )
    n, k = weight.shape
    return Quantised(
        codes=codes.reshape(n, -1)[:, :k].to(torch.uint8),
        scales=scales.squeeze(2).half(),
        zeros=zeros.squeeze(2).to(torch.uint8),
        bits=bits,
        group_size=group_size,
    )


def round_trip(
    weight: torch.Tensor, bits: int, group_size: int, limits: torch.Tensor | None = None
) -> torch.Tensor:
    """The weights after quantisation, float32 [n, k]; bit for bit ``quantise(…).dequantise()``.

    Takes the same arguments. Where :func:`quantise` would refuse, the result is not finite.
    """
    n, k = weight.shape
    codes, scales, zeros = _quantise_groups(_clamped(weight, group_size, limits), bits)
    return ((codes - zeros) * scales).reshape(n, -1)[:, :k]


def group_maxima(weight: torch.Tensor, group_size: int) -> torch.Tensor:
    """The largest magnitude of each group, [n, groups] for weight [n, k]."""
    return _in_groups(weight, group_size).abs().amax(dim=2)


def group_ranges(weight: torch.Tensor, group_size: int) -> torch.Tensor:
    """The range of each group, which always holds zero: [n, groups, 2] for weight [n, k]."""
    groups = _in_groups(weight, group_size)
    return torch.stack([groups.amin(dim=2).clamp_(max=0.0), groups.amax(dim=2).clamp_(min=0.0)], 2)


def _in_groups(values: torch.Tensor, group_size: int) -> torch.Tensor:
    """[n, k] -> [n, groups, group_size]; a short last group is filled up with zeros.

    Every group's range holds zero anyway, so the filling changes neither scale nor zero-point.
    """
    n, k = values.shape
    missing = -k % group_size
    if missing:
        values = torch.nn.functional.pad(values, (0, missing))
    return values.reshape(n, -1, group_size)


def _clamped(weight: torch.Tensor, group_size: int, limits: torch.Tensor | None) -> torch.Tensor:
    """The weights by groups, [n, groups, group_size], clamped between limits [n, groups, 2]."""
    groups = _in_groups(weight, group_size)
    if limits is None:
        return groups
    return torch.minimum(torch.maximum(groups, limits[..., :1]), limits[..., 1:])


def _quantise_groups(
    groups: torch.Tensor, bits: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes [n, groups, g], rounded scales and zero-points [n, groups, 1], all as float32.

    All arithmetic is float32 on integers below 256 and on fp16 values, so ``codes - zeros`` is
    exact.
    """
    largest_code = float((1 << bits) - 1)
    low = groups.amin(dim=2, keepdim=True).clamp_(max=0.0)
    high = groups.amax(dim=2, keepdim=True).clamp_(min=0.0)
    exact = (high - low) / largest_code
    rounded = exact.half().float()
    rounded_up = torch.ceil(exact / _SMALLEST_HALF) * _SMALLEST_HALF
    scales = torch.where(exact < _SMALLEST_NORMAL_HALF, rounded_up, rounded)
    # An empty range has scale 0; dividing by 1 there gives code 0 and zero-point 0.
    divisors = torch.where(scales == 0.0, 1.0, scales)
    zeros = torch.round(-low / divisors).clamp_(0.0, largest_code)
    codes = torch.round(groups / divisors).add_(zeros).clamp_(0.0, largest_code)
    return codes, scales, zeros
