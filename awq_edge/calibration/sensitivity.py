"""How much the model's predictions suffer from every width of every matrix.

Owns the measurement, one walk through the float model with a few blocks of text: each layer is
rounded alone, its disturbed states go along to the end, and the divergence of the last predictions
is shared out among the layer's matrices by what each does to the layer's output. Refuses to choose
widths: ``budget.py`` does. Rounds with compensation as the conversion will, but refines nothing.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping

import torch

from awq_edge import torch_decoder
from awq_edge.float_model import FloatModel
from awq_edge.quantize import gptq, grids
from awq_edge.quantize.probe import Probe, Weights
from awq_edge.quantize.statistics import Products
from awq_edge.stages import head_name
from awq_edge.torch_decoder import Positions

# Text that is walked with: enough to rank matrices by.
BLOCKS = 4
TOKENS = 256
_SHARES = (1.0, 0.85, 0.7)
_LAYER_BITS = 3  # a layer's own divergence is measured at this width

Harms = dict[str, dict[int, float]]


def rounded(
    weight: torch.Tensor, hessian: gptq.Hessian | None, bits: int, group_size: int
) -> torch.Tensor:
    """A matrix at a width, compensated if the Hessian of its input is known."""
    if hessian is None:
        costs = torch.ones(weight.shape[1], device=weight.device)
        return grids.best(weight, costs, bits, group_size, _SHARES).rounded(weight).dequantise()
    costs = hessian.conditional()

    def choose_grid(part: torch.Tensor, _: slice) -> grids.Grid:
        return grids.best(part, costs, bits, group_size, _SHARES)

    parts = gptq.quantise(weight, hessian, choose_grid, 0)
    return torch.cat([quantised.dequantise() for quantised in parts])


@torch.inference_mode()
def measure(
    source: FloatModel,
    blocks: torch.Tensor,
    groups: Mapping[int, int],
    device: torch.device,
    damping: float,
) -> Harms:
    """The divergence (mean over tokens, nats) that each width of each matrix causes alone.

    Args:
        source: The float model.
        blocks: Calibration tokens, int64 [b, t].
        groups: The widths to measure, with their group sizes.
        device: Where to compute.
        damping: Of the Hessians, as in the conversion.

    Returns:
        By the matrix's name and its bits.
    """
    a = source.architecture
    blocks = blocks[:BLOCKS, :TOKENS]
    positions = Positions.of(a, blocks.shape[1], source, device)
    used, places = torch.unique(blocks, return_inverse=True)
    table = source.rows("token_embd.weight", used)

    def begun(rows: torch.Tensor) -> torch.Tensor:
        return torch_decoder.embedded(a, source, rows[places])

    exact = begun(table)
    states = [exact.to(device)]  # the float model's, then every disturbed one
    local: Harms = {}  # harm inside its layer, in any unit that the layer's matrices share
    local["token_embd.weight"] = {
        bits: float((begun(rounded(table, None, bits, group)) - exact).square().sum())
        for bits, group in groups.items()
    }
    states.append(begun(rounded(table, None, 4, groups.get(4, 128))).to(device))
    reference = [float((states[1] - states[0]).square().sum())]
    for layer in range(a.layers):
        weights = source.layer(layer, device)
        probe = Probe(a, layer, states[0], positions)
        harms, disturbed = _layer_harms(probe, weights, groups, damping)
        local.update({f"blk.{layer}.{name}.weight": harm for name, harm in harms.items()})
        reference.append(sum(harm[_LAYER_BITS] for harm in harms.values()))
        states = [probe.layer(weights).run(state) for state in states]
        states.append(disturbed)
    ends = [torch_decoder.ended(a, source, state).flatten(0, 1) for state in states]
    return _shared_out(source, local, reference, ends, groups, damping)


def _layer_harms(
    probe: Probe, weights: Weights, groups: Mapping[int, int], damping: float
) -> tuple[Harms, torch.Tensor]:
    """Each matrix's harm to the layer's output, and the output with all of them rounded."""
    inputs = probe.inputs(weights)
    exact = probe.change(weights)
    size = (probe.hidden + exact).square().sum(dim=-1, keepdim=True)
    together: Weights = ChainMap({}, weights)
    harms: Harms = {}
    for stage in probe.stages:
        x = inputs.pop(stage.name)
        products = Products(x.shape[-1], x.device)
        products.add(x)
        hessian = gptq.Hessian.of(products.means(), damping)
        for name in stage.matrices:
            harms[name] = {}
            for bits, group_size in {_LAYER_BITS: groups.get(_LAYER_BITS, 128), **groups}.items():
                alone = rounded(weights[f"{name}.weight"], hessian, bits, group_size)
                change = probe.change(ChainMap({f"{name}.weight": alone}, weights))
                harms[name][bits] = float(((change - exact).square() / size).sum())
                if bits == _LAYER_BITS:
                    together[f"{name}.weight"] = alone
    return harms, probe.hidden + probe.change(together)


def _shared_out(
    source: FloatModel,
    local: Harms,
    reference: list[float],
    ends: list[torch.Tensor],
    groups: Mapping[int, int],
    damping: float,
) -> Harms:
    """Turns harms inside layers into divergences of the model's predictions."""
    a, device = source.architecture, ends[0].device
    tied, name = a.tied_head, head_name(a)
    head = source(name).to(device)
    bias = source("output.bias").to(device) if a.head_bias else None

    def log_probabilities(x: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        product = torch_decoder.multiply(x, head, None)
        return torch.log_softmax(torch_decoder.logits_of(a, product, bias), dim=-1)

    exact = log_probabilities(ends[0], head)
    disturbed = [_divergence(exact, log_probabilities(end, head)) for end in ends[1:]]
    harms: Harms = {}
    for matrix, by_bits in local.items():
        place = 0 if matrix == "token_embd.weight" else 1 + int(matrix.split(".")[1])
        unit = disturbed[place] / reference[place] if reference[place] > 0 else 0.0
        harms[matrix] = {bits: harm * unit for bits, harm in by_bits.items() if bits in groups}
    products = Products(head.shape[1], head.device)
    products.add(ends[0])
    hessian = None if tied else gptq.Hessian.of(products.means(), damping)
    for bits, group_size in groups.items():
        disturbed_head = rounded(head, hessian, bits, group_size)
        harms.setdefault(name, {}).setdefault(bits, 0.0)
        harms[name][bits] += _divergence(exact, log_probabilities(ends[0], disturbed_head))
    return harms


def _divergence(p: torch.Tensor, q: torch.Tensor) -> float:
    """Mean over tokens of the divergence of q from p, for log-probabilities."""
    return float((p.exp() * (p - q)).sum(dim=-1).mean().clamp(min=0))
