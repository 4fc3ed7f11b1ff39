"""How much the model's predictions suffer from every width of every matrix.

Owns the measurement, one walk through the float model and back with a little text. Each matrix is
rounded alone, to one width. Its errors are y = (rounded W - W) x for what it reads; with g the
gradients by its outputs, drawn as in ``gradients.py``, the divergence of the predictions grows by
half the mean of (g y)^2 over tokens: what a matrix's error does to later tokens is in g, and that
errors of several tokens or matrices may add up is not. Refuses to choose widths: ``budget.py``
does. Rounds with compensation as the conversion will, but refines nothing.

Harms add up to the divergence of a file whose matrices have any of these widths, and to what the
runtime's int8 inputs cost besides (``benchmarks/quality.md`` has predicted and measured ones).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from awq_edge import torch_decoder
from awq_edge.calibration import gradients
from awq_edge.float_model import FloatModel
from awq_edge.quantize import gptq, grids
from awq_edge.quantize.probe import Weights
from awq_edge.quantize.statistics import Products
from awq_edge.stages import head_name, read_together
from awq_edge.torch_decoder import Layer

# Text that is walked with: enough to rank matrices by. From blocks of all kinds of text: they lie
# kind by kind.
BLOCKS = 8
TOKENS = 128
_SHARES = (1.0, 0.85, 0.7)
_BITS = 3  # the width that is measured
# Harms of the others in units of its harm: measured on novels-45m, where matrices differ from the
# mean by 6 % (one standard deviation).
_UNITS = {2: 4.5, 3: 1.0, 4: 0.255, 5: 0.06, 6: 0.0145, 8: 0.0009}

Harms = dict[str, dict[int, float]]


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """What was measured: divergences, means over tokens, nats.

    Attributes:
        harms: Of each width of each matrix alone, by its name and its bits.
        inputs: Of rounding all matrices' inputs to int8, with float weights.
    """

    harms: Harms
    inputs: float


def chosen(blocks: torch.Tensor) -> torch.Tensor:
    """What is walked with, of all calibration blocks [b, t]."""
    count = min(len(blocks), BLOCKS)
    numbers = torch.linspace(0, len(blocks) - 1, count).round().long()
    return blocks[numbers, :TOKENS]


def rounded(
    weight: torch.Tensor, hessian: gptq.Hessian | None, group_size: int, name: str = "a matrix"
) -> torch.Tensor:
    """A matrix at the measured width, compensated if the Hessian of its input is known."""
    return torch.cat(list(_rounded_rows(weight, hessian, group_size, name)))


def _rounded_rows(
    weight: torch.Tensor, hessian: gptq.Hessian | None, group_size: int, name: str
) -> Iterator[torch.Tensor]:
    """The same some rows after the other: of a large table all at once would fill the memory."""
    costs = torch.ones(weight.shape[1], device=weight.device)
    if hessian is not None:
        costs = hessian.conditional()

    def choose_grid(part: torch.Tensor, _: slice) -> grids.Grid:
        return grids.best(part, costs, _BITS, group_size, _SHARES, name=name)

    if hessian is None:
        for part in torch.split(weight, gptq.rows_at_once(weight.shape[1], weight.device)):
            yield choose_grid(part, slice(0)).rounded(part).dequantise()
        return
    for quantised in gptq.quantise(weight, hessian, choose_grid, 0):
        yield quantised.dequantise()


@torch.no_grad()
def measure(
    source: FloatModel,
    blocks: torch.Tensor,
    group_size: int,
    device: torch.device,
    damping: float,
) -> Sensitivity:
    """Walks through the model and back.

    Args:
        source: The float model.
        blocks: Calibration tokens, int64 [b, t].
        group_size: Of weights and inputs.
        device: Where to compute.
        damping: Of the Hessians, as in the conversion.
    """
    a = source.architecture
    blocks = chosen(blocks)
    positions = source.positions(blocks.shape[1], device)
    used, places = torch.unique(blocks, return_inverse=True)
    table = source.rows("token_embd.weight", used)
    begun, moved = (
        torch_decoder.embedded(a, source, rows[places]).to(device)
        for rows in (table, rounded(table, None, group_size, "token_embd.weight"))
    )
    states = [begun]  # in front of every layer, and behind the last one
    coarse = begun  # the same with rounded inputs
    for number in range(a.layers):
        weights = source.layer(number, device)
        states.append(Layer(a, number, weights, positions).run(states[-1]))
        coarse = Layer(a, number, weights, positions, _rounding(weights, group_size)).run(coarse)
        del weights  # before the next layer is read
    gradient, of_head, inputs = _end(source, states.pop(), coarse, group_size, damping)
    tokens = blocks.numel()
    harms = {}
    for number in reversed(range(a.layers)):
        weights = source.layer(number, device)
        watched = _Watched(weights, number)
        layer = Layer(a, number, weights, positions, watched.multiply)
        with torch.enable_grad(), gradients.repeatable(device):
            state = states.pop().requires_grad_()
            after = layer.run(state)
        torch.autograd.backward(after, gradient)
        assert state.grad is not None
        gradient = state.grad
        for part in (part for stage in layer.stages for part in read_together(stage)):
            for matrix, harm in watched.harms(part, group_size, damping).items():
                harms[matrix] = harm / tokens
        del weights, watched, layer, after, state  # before the next layer is read
    harms["token_embd.weight"] = _sum(gradient, moved - begun) / tokens
    name = head_name(a)
    harms[name] = harms.get(name, 0.0) + of_head
    by_bits = {
        matrix: {bits: harm * unit for bits, unit in _UNITS.items()}
        for matrix, harm in harms.items()
    }
    return Sensitivity(by_bits, inputs)


def _end(
    source: FloatModel,
    states: torch.Tensor,
    coarse: torch.Tensor,
    group_size: int,
    damping: float,
) -> tuple[torch.Tensor, float, float]:
    """Turns round behind the last layer.

    Args:
        source: The float model.
        states: [b, t, hidden].
        coarse: The same with rounded inputs.
        group_size: Of weights and inputs.
        damping: Of the head's Hessian.

    Returns:
        The gradients by the states, [b, t, hidden], and the divergences that rounding the head and
        rounding inputs cause.
    """
    a, device = source.architecture, states.device
    head = source(head_name(a), device)
    bias = source("output.bias", device) if a.head_bias else None
    with torch.enable_grad():
        states = states.requires_grad_()
        normed = torch_decoder.ended(a, source, states)
    hessian = None
    if not a.tied_head:
        products = Products(head.shape[1], device)
        products.add(normed.detach())
        hessian = gptq.Hessian.of(products.means(), damping)
    parts = _rounded_rows(head, hessian, group_size, head_name(a))
    by_rounded = [torch_decoder.multiply(normed.detach(), part, None) for part in parts]
    of_rounded = torch_decoder.logits_of(a, torch.cat(by_rounded, dim=-1), bias)
    del by_rounded
    inexact = torch_decoder.rounded(torch_decoder.ended(a, source, coarse), group_size)

    def logits(x: torch.Tensor) -> torch.Tensor:
        return torch_decoder.logits_of(a, torch_decoder.multiply(x, head, None), bias)

    generator = torch.Generator(device).manual_seed(0)
    of_head = of_inputs = 0.0
    by_normed = []
    for x, coarsely, other in zip(normed.detach(), of_rounded, inexact):  # a block at a time
        exact = logits(x)
        p = torch.log_softmax(exact, dim=-1)
        of_head += _divergence(p, torch.log_softmax(coarsely, dim=-1))
        of_inputs += _divergence(p, torch.log_softmax(logits(other), dim=-1))
        by_logits = gradients.logit_gradients(p.exp(), generator)
        if a.logit_cap:  # the slope of the cap
            by_logits *= 1 - (exact / a.logit_cap).square()
        by_normed.append(by_logits @ head)
    torch.autograd.backward(normed, torch.stack(by_normed))
    assert states.grad is not None
    return states.grad, of_head / len(normed), of_inputs / len(normed)


class _Watched:
    """Multiplies by a layer's matrices, and keeps what they read and the gradients by theirs."""

    def __init__(self, weights: Weights, layer: int) -> None:
        self._weights = weights
        self._layer = layer
        self._inputs: dict[str, torch.Tensor] = {}
        self._gradients: dict[str, torch.Tensor] = {}

    def multiply(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """As ``torch_decoder.plain_linear`` does."""
        self._inputs[name] = x.detach()

        def keep(gradient: torch.Tensor) -> None:
            self._gradients[name] = gradient.detach()

        product: torch.Tensor = gradients.Product.apply(  # type: ignore[no-untyped-call]  # PyTorch's
            x, self._weights[f"{name}.weight"], self._weights.get(f"{name}.bias"), keep
        )
        return product

    def harms(self, names: tuple[str, ...], group_size: int, damping: float) -> dict[str, float]:
        """Sums over tokens of matrices that read the same input; nothing for experts unread.

        Args:
            names: Of the matrices, "attn_q" and so on; what is found has their whole names.
            group_size: Of weights and inputs.
            damping: Of the Hessian.
        """
        x = self._inputs[names[0]]
        products = Products(x.shape[-1], x.device)
        products.add(x)
        hessian = gptq.Hessian.of(products.means(), damping)
        found = {}
        for name in names:
            weight = self._weights[f"{name}.weight"]
            whole = f"blk.{self._layer}.{name}.weight"
            error = rounded(weight, hessian, group_size, whole) - weight
            gradient = self._gradients.get(name)
            moved = torch_decoder.multiply(x, error, None)
            found[whole] = 0.0 if gradient is None else _sum(gradient, moved)
        return found


def _rounding(weights: Weights, group_size: int) -> torch_decoder.Linear:
    """Multiplies as the runtime does, by float weights."""
    linear = torch_decoder.plain_linear(weights)

    def multiplied(name: str, x: torch.Tensor) -> torch.Tensor:
        return linear(name, torch_decoder.rounded(x, group_size))

    return multiplied


def _sum(gradient: torch.Tensor, moved: torch.Tensor) -> float:
    """The divergence of all tokens together, for gradients and movements [.., n]."""
    return 0.5 * float((gradient * moved).sum(dim=-1).square().sum())


def _divergence(p: torch.Tensor, q: torch.Tensor) -> float:
    """Mean over tokens of the divergence of q from p, for log-probabilities."""
    return float((p.exp() * (p - q)).sum(dim=-1).mean().clamp(min=0))
