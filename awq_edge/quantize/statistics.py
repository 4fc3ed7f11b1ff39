"""What is known of a matrix's input: running statistics over the tokens that it reads.

Owns the sums. Keeps no activation: every statistic is a sum over tokens, so that the order and the
size of batches do not matter. Refuses to know where tokens come from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F

from awq_edge import torch_decoder
from awq_edge.quantize.halves import STRIP_ROWS, Half, parts_of

# Of the sums over a segment's tokens, which lie beside those over all segments before: all of them
# up to 8,000 inputs. More inputs are read several times.
_SHARE_BYTES = 1 << 28


class InputStatistics:
    """Sums over every token that one or more matrices of a layer read as their input."""

    def __init__(self, k: int, group_size: int, device: torch.device) -> None:
        """Starts with no tokens.

        Args:
            k: Width of the input.
            group_size: Inputs per group; the last group may be short.
            device: Where the sums are kept.
        """
        groups = -(-k // group_size)
        self._k = k
        self._group_size = group_size
        self._tokens = 0
        self._absolute = torch.zeros(k, device=device)
        self._products = torch.zeros(groups, group_size, group_size, device=device)

    def update(self, x: torch.Tensor) -> None:
        """Adds tokens, float32 [.., k]."""
        x = x.reshape(-1, self._k)
        if not len(x):  # of an expert that no token of a batch reached
            return
        self._tokens += len(x)
        self._absolute += x.abs().sum(dim=0)
        groups = F.pad(x, (0, -self._k % self._group_size))
        groups = groups.reshape(len(x), -1, self._group_size).transpose(0, 1)
        self._products += groups.transpose(1, 2) @ groups

    @property
    def tokens(self) -> int:
        """How many were added."""
        return self._tokens

    def divide_by(self, scales: torch.Tensor) -> None:
        """Makes the statistics those of inputs divided by ``scales`` [k]."""
        self._absolute /= scales
        self._products /= self._pairs(scales)

    def merged(
        self,
        parts: Mapping[int, InputStatistics],
        total: Callable[[dict[int, torch.Tensor], torch.Tensor], torch.Tensor],
    ) -> InputStatistics:
        """The statistics of all parts, by segment; this one is empty and keeps what it is of."""
        whole = InputStatistics(self._k, self._group_size, self._absolute.device)
        whole._absolute = total({s: part._absolute for s, part in parts.items()}, self._absolute)
        whole._products = total({s: part._products for s, part in parts.items()}, self._products)
        counts = {
            s: torch.tensor([part._tokens], dtype=torch.float64, device=self._absolute.device)
            for s, part in parts.items()
        }
        whole._tokens = int(total(counts, whole._absolute.new_zeros(1, dtype=torch.float64)))
        return whole

    def mean_absolute(self) -> torch.Tensor:
        """The mean magnitude of each input, [k]."""
        return self._absolute / max(self._tokens, 1)

    def mean_products(self) -> torch.Tensor:
        """Means of x_i * x_j within each group, [groups, g, g]; zero beyond a short last group."""
        return self._products / max(self._tokens, 1)

    def products_over(self, scales: torch.Tensor) -> torch.Tensor:
        """:meth:`mean_products` of inputs divided by ``scales`` [k]."""
        return self.mean_products() / self._pairs(scales)

    def _pairs(self, scales: torch.Tensor) -> torch.Tensor:
        """scales_i * scales_j within each group, [groups, g, g]; 1 beyond a short last group."""
        padded = F.pad(scales, (0, -self._k % self._group_size), value=1.0)
        by_group = padded.reshape(-1, self._group_size)
        return by_group.unsqueeze(2) * by_group.unsqueeze(1)


def output_error(difference: torch.Tensor, products: torch.Tensor) -> float:
    """The squared error of a matrix's output for a difference of weights [n, k].

    Summed over outputs, and over tokens as far as ``products`` [k, k], of what it reads, are.
    """
    return float((torch_decoder.multiply(difference, products, None) * difference).sum())


def shares_of(k: int) -> list[list[slice]]:
    """Strips of products of k inputs, in shares that are summed at once while others wait."""
    shares: list[list[slice]] = [[]]
    size = 0
    for part in parts_of(k, STRIP_ROWS):
        size += 8 * (part.stop - part.start) * part.stop
        if shares[-1] and size > _SHARE_BYTES:
            shares.append([])
            size = 0
        shares[-1].append(part)
    return shares


class Products:
    """Sums of x_i * x_j over every token that a matrix reads, in float64.

    The lower triangle alone, in strips of rows: half of what would be the largest tensor of all.
    """

    def __init__(self, k: int, device: torch.device, parts: Sequence[slice] | None = None) -> None:
        """Starts with no tokens.

        Args:
            k: Width of the input.
            device: Where the sums are kept.
            parts: Strips of rows to sum, if not all: a share of ``shares_of``.
        """
        self.strips = [
            torch.zeros(part.stop - part.start, part.stop, dtype=torch.float64, device=device)
            for part in (parts_of(k, STRIP_ROWS) if parts is None else parts)
        ]
        self.tokens = 0

    def add(self, x: torch.Tensor) -> None:
        """Adds tokens, float32 [.., k]."""
        x = x.reshape(-1, x.shape[-1])
        columns = x.T.contiguous()
        for strip in self.strips:
            rows, end = strip.shape
            strip += torch_decoder.multiply(columns[end - rows : end], columns[:end], None)
        self.tokens += len(x)

    def join(self, other: Products) -> None:
        """Adds the sums over other tokens."""
        for strip, part in zip(self.strips, other.strips):
            strip += part
        self.tokens += other.tokens

    def means(self) -> Half:
        """Over the tokens so far, float64 [k, k]; the sums are used up."""
        strips, self.strips = self.strips, []
        return Half([strip.div_(max(self.tokens, 1)) for strip in strips])
