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
from collections.abc import Callable, Iterator, Mapping

import torch

from awq_edge import torch_decoder
from awq_edge.architecture import Architecture
from awq_edge.calibration import gradients
from awq_edge.float_model import FloatModel
from awq_edge.quantize import gptq, grids
from awq_edge.quantize.statistics import Products
from awq_edge.stages import head_name, read_together, stages
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
    weight: torch.Tensor, factor: gptq.Factor | None, group_size: int, name: str = "a matrix"
) -> torch.Tensor:
    """A matrix at the measured width, compensated if the products of its inputs are known."""
    return torch.cat(list(_rounded_rows(weight, factor, group_size, name)))


def _rounded_rows(
    weight: torch.Tensor, factor: gptq.Factor | None, group_size: int, name: str
) -> Iterator[torch.Tensor]:
    """The same, some rows after the others: all of a large table at once would fill the memory."""
    k, device = weight.shape[1], weight.device
    costs = torch.ones(k, device=device) if factor is None else factor.conditional()
    for part in torch.split(weight, gptq.rows_at_once(k, device)):
        grid = grids.best(part, costs, _BITS, group_size, _SHARES, name=name)
        if factor is None:
            yield grid.rounded(part).dequantise()
        else:
            yield grid.with_codes(gptq.compensate(part, factor, grid)).dequantise()


@torch.no_grad()
def measure(
    source: FloatModel,
    layers: gradients.Layers,
    blocks: torch.Tensor,
    group_size: int,
    device: torch.device,
    damping: float,
) -> Sensitivity:
    """Walks through the model and back.

    Args:
        source: The float model.
        layers: Reads its layers.
        blocks: Calibration tokens, int64 [b, t].
        group_size: Of weights and inputs.
        device: Where to compute.
        damping: Of means of products, as in the conversion.
    """
    a = source.architecture
    blocks = chosen(blocks)
    positions = source.positions(blocks.shape[1], device)
    used, places = torch.unique(blocks, return_inverse=True)
    table = source.rows("token_embd.weight", used).to(device)
    begun = torch_decoder.embedded(a, source, table[places])
    states = [begun]  # in front of every layer, and behind the last one
    coarse = begun  # the same with rounded inputs
    for number, weights in layers(range(a.layers)):
        states.append(Layer(a, number, weights, positions).run(states[-1]))
        coarse = Layer(a, number, weights, positions, _rounding(weights, group_size)).run(coarse)
        del weights  # before the next layer is read
    gradient, read, inputs = _end(source, states.pop(), coarse, group_size)
    tokens = blocks.numel()
    harms = {}
    for number, weights in layers(reversed(range(a.layers))):
        gradient, watched = _back(a, number, weights, positions, states.pop(), gradient)
        del weights  # what follows reads matrices once more, one at a time
        for part in (part for stage in stages(a, number) for part in read_together(stage)):
            for name, harm in _harms(source, number, part, watched, group_size, damping).items():
                harms[name] = harm / tokens
    moved = rounded(table, None, group_size, "token_embd.weight")[places]
    moved = torch_decoder.embedded(a, source, moved) - begun
    harms["token_embd.weight"] = _sum(gradient, moved) / tokens
    of_head = None
    if not a.tied_head:
        products = Products(read.shape[-1], device)
        products.add(read)
        of_head = gptq.Factor.of(products.means(), damping)
    name = head_name(a)
    harms[name] = harms.get(name, 0.0) + _harm_of_head(source, read, of_head, group_size)
    by_bits = {
        matrix: {bits: harm * unit for bits, unit in _UNITS.items()}
        for matrix, harm in harms.items()
    }
    return Sensitivity(by_bits, inputs)


def _end(
    source: FloatModel, states: torch.Tensor, coarse: torch.Tensor, group_size: int
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Turns round behind the last layer.

    Args:
        source: The float model.
        states: [b, t, hidden].
        coarse: The same with rounded inputs.
        group_size: Of inputs.

    Returns:
        The gradients by the states, [b, t, hidden], what the head reads, [b, t, hidden], and the
        divergence that rounding inputs causes.
    """
    a, device = source.architecture, states.device
    head, logits_of = _head(source, device)

    def logits(x: torch.Tensor) -> torch.Tensor:
        return logits_of(torch_decoder.multiply(x, head, None))

    with torch.enable_grad():
        states = states.requires_grad_()
        normed = torch_decoder.ended(a, source, states)
    inexact = torch_decoder.rounded(torch_decoder.ended(a, source, coarse), group_size)
    generator = torch.Generator(device).manual_seed(0)
    of_inputs = 0.0
    by_normed = []
    for x, other in zip(normed.detach(), inexact):  # a block at a time
        exact = logits(x)
        p = torch.log_softmax(exact, dim=-1)
        of_inputs += _divergence(p, torch.log_softmax(logits(other), dim=-1))
        by_logits = gradients.logit_gradients(p.exp(), generator)
        if a.logit_cap:  # the slope of the cap
            by_logits *= 1 - (exact / a.logit_cap).square()
        by_normed.append(by_logits @ head)
    torch.autograd.backward(normed, torch.stack(by_normed))
    assert states.grad is not None
    return states.grad, normed.detach(), of_inputs / len(normed)


def _harm_of_head(
    source: FloatModel, read: torch.Tensor, factor: gptq.Factor | None, group_size: int
) -> float:
    """The divergence that rounding the head causes, for what it reads [b, t, hidden]."""
    head, logits_of = _head(source, read.device)
    parts = _rounded_rows(head, factor, group_size, head_name(source.architecture))
    by_rounded = [torch_decoder.multiply(read, part, None) for part in parts]
    of_rounded = logits_of(torch.cat(by_rounded, dim=-1))
    del by_rounded
    found = 0.0
    for x, coarsely in zip(read, of_rounded):  # a block at a time
        p = torch.log_softmax(logits_of(torch_decoder.multiply(x, head, None)), dim=-1)
        found += _divergence(p, torch.log_softmax(coarsely, dim=-1))
    return found / len(read)


def _head(
    source: FloatModel, device: torch.device
) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
    """The head's matrix, and what makes logits of products by it, [.., v] both."""
    a = source.architecture
    head = source(head_name(a), device)
    bias = source("output.bias", device) if a.head_bias else None
    return head, lambda products: torch_decoder.logits_of(a, products, bias)


@dataclasses.dataclass(frozen=True)
class _Watched:
    """What a layer's matrices read, and the gradients by what they give, by "attn_q" and so on."""

    inputs: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    gradients: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)


def _back(
    a: Architecture,
    number: int,
    weights: Mapping[str, torch.Tensor],
    positions: torch_decoder.Positions,
    states: torch.Tensor,
    gradient: torch.Tensor,
) -> tuple[torch.Tensor, _Watched]:
    """The gradient by the states in front of a layer, for that by those behind it.

    Nothing that was made on the way stays in memory but what is watched.
    """
    watched = _Watched()

    def multiplied(name: str, x: torch.Tensor) -> torch.Tensor:
        watched.inputs[name] = x.detach()

        def keep(by_product: torch.Tensor) -> None:
            watched.gradients[name] = by_product.detach()

        product: torch.Tensor = gradients.Product.apply(  # type: ignore[no-untyped-call]  # PyTorch's
            x, weights, name, keep
        )
        return product

    with torch.enable_grad(), gradients.repeatable(states.device):
        states = states.requires_grad_()
        after = Layer(a, number, weights, positions, multiplied).run(states)
    torch.autograd.backward(after, gradient)
    assert states.grad is not None
    return states.grad, watched


def _harms(
    source: FloatModel,
    layer: int,
    names: tuple[str, ...],
    watched: _Watched,
    group_size: int,
    damping: float,
) -> dict[str, float]:
    """Sums over tokens of matrices that read the same input; nothing for experts unread.

    Args:
        source: The float model.
        layer: Whose matrices.
        names: "attn_q" and so on; what is found has their whole names.
        watched: What they read and the gradients by their outputs.
        group_size: Of weights and inputs.
        damping: Of the means of products.
    """
    x = watched.inputs[names[0]]
    products = Products(x.shape[-1], x.device)
    products.add(x)
    factor = gptq.Factor.of(products.means(), damping)
    found = {}
    for name in names:
        whole = f"blk.{layer}.{name}.weight"
        weight = source(whole, x.device)
        error = rounded(weight, factor, group_size, whole).sub_(weight)
        gradient = watched.gradients.get(name)
        moved = torch_decoder.multiply(x, error, None)
        found[whole] = 0.0 if gradient is None else _sum(gradient, moved)
    return found


def _rounding(weights: Mapping[str, torch.Tensor], group_size: int) -> torch_decoder.Linear:
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
