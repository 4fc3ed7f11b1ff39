"""Which rows go to which experts, and with which shares: a router's choice in PyTorch.

Owns the rules of ``native/ARITHMETIC.md``, section 10, in float32: softmax over all, the largest
few, sparsemixer. Refuses to multiply by an expert's matrices: ``torch_decoder.py`` does.
"""

from __future__ import annotations

import dataclasses

import torch

from awq_edge.architecture import Architecture


@dataclasses.dataclass(frozen=True)
class Routes:
    """Where n rows go.

    Attributes:
        shares: float32 [n, experts + 1]: what each expert's output is multiplied by, 0 where it was
            not chosen; the last column is the shared expert's.
        reached: bool [n, experts]: which rows an expert's matrices read. Those that chose it, and
            while a model is calibrated perhaps more, whose share is 0.
        odds: float32 [n, experts]: the router's softmax.
    """

    shares: torch.Tensor
    reached: torch.Tensor
    odds: torch.Tensor

    def rows(self, expert: int) -> torch.Tensor | None:
        """Numbers of the rows that an expert reads, int64 [m]; None: all, of the shared one."""
        if expert == self.reached.shape[1]:
            return None
        return self.reached[:, expert].nonzero().squeeze(1)

    def share(self, expert: int) -> torch.Tensor:
        """What an expert's outputs for :meth:`rows` are multiplied by, [m, 1]."""
        rows, shares = self.rows(expert), self.shares[:, expert, None]
        return shares if rows is None else shares[rows]

    def importance(self, expert: int) -> torch.Tensor:
        """What an error of an expert's outputs for :meth:`rows` is multiplied by, [m, 1].

        The share; of a row that did not choose the expert, the probability that it had.
        """
        rows, shares = self.rows(expert), self.share(expert)
        return shares if rows is None else torch.maximum(shares, self.odds[rows, expert, None])

    def weighed(self, expert: int, x: torch.Tensor) -> torch.Tensor:
        """The rows of x [.., k] that an expert reads times their importance, [m, k]."""
        x, rows = x.flatten(0, -2), self.rows(expert)
        return (x if rows is None else x[rows]) * self.importance(expert)

    def chosen(self) -> torch.Tensor:
        """Bool [n, experts]: who was chosen."""
        return self.shares[:, :-1] > 0


def shares_of(architecture: Architecture, logits: torch.Tensor) -> torch.Tensor:
    """The shares of experts, 0 of those that are not chosen, for a router's logits [n, experts].

    Of equal ones the first is chosen. sparsemixer after Liu et al., "GRIN: Gradient-Informed MoE"
    (2024), as Phi-3.5-MoE uses it without training.
    """
    a = architecture
    if a.routing == "sparsemixer":
        return _sparsely_chosen(a, logits)
    probabilities = torch.softmax(logits, dim=-1)
    order = torch.sort(probabilities.detach(), dim=-1, descending=True, stable=True).indices
    largest = order[:, : a.experts_per_token]
    chosen = probabilities.gather(1, largest)
    if a.routing == "softmax_renormalised":
        chosen = chosen / chosen.sum(dim=-1, keepdim=True)
    return torch.zeros_like(logits).scatter(1, largest, chosen)


def _sparsely_chosen(architecture: Architecture, logits: torch.Tensor) -> torch.Tensor:
    """Two experts, each with its share among those whose logit comes near its own."""
    shares = torch.zeros_like(logits)
    left = torch.ones_like(logits, dtype=torch.bool)
    for _ in range(architecture.experts_per_token):
        open_logits = logits.masked_fill(~left, -torch.inf)
        # argmax may give any of equal ones.
        most = open_logits.amax(dim=-1, keepdim=True)
        best = (open_logits == most).int().argmax(dim=-1, keepdim=True)
        distance = (most - logits) / torch.maximum(logits.abs(), most)
        kept = left & ~(distance > 2 * architecture.router_epsilon)
        weights = torch.softmax(logits.masked_fill(~kept, -torch.inf), dim=-1)
        shares = shares.scatter(1, best, weights.gather(1, best))
        left = left.scatter(1, best, False)
    return shares


def routes(
    architecture: Architecture,
    logits: torch.Tensor,
    shared_logits: torch.Tensor | None,
    floors: torch.Tensor | None = None,
) -> Routes:
    """Where rows go.

    Args:
        architecture: The decoder.
        logits: Of the router, float32 [n, experts].
        shared_logits: Of the shared expert's router, [n]; None: its share is 1.
        floors: Probabilities [experts] from which on an expert reads a row that did not choose it;
            None: it reads no such row.
    """
    shares = shares_of(architecture, logits)
    reached = shares.detach() > 0
    odds = torch.softmax(logits.detach(), dim=-1)
    if floors is not None:
        reached |= odds >= floors
    last = torch.ones_like(shares[:, 0]) if shared_logits is None else shared_logits.sigmoid()
    return Routes(torch.cat((shares, last.unsqueeze(1)), dim=1), reached, odds)


def floors_of(logits: torch.Tensor, reached: torch.Tensor, rows: int) -> torch.Tensor:
    """From which probability on experts read rows, so that each of them reads enough.

    Args:
        logits: Of a sample's rows, float32 [n, experts].
        reached: Which rows chose an expert, bool [n, experts].
        rows: Of the sample, that are enough.

    Returns:
        float32 [experts]; infinity where enough rows chose the expert, or where its probability is
        0 for all.
    """
    probabilities = torch.softmax(logits, dim=-1)
    rows = min(rows, len(logits))
    floors = probabilities.topk(rows, dim=0).values[-1]
    # Where so many rows have a probability at all; otherwise the smallest that one has.
    positive = torch.where(probabilities > 0, probabilities, torch.inf).amin(dim=0)
    floors = torch.where(floors > 0, floors, positive)
    return torch.where(reached.sum(dim=0) < rows, floors, torch.inf)
