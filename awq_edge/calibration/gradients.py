"""What an error of every output costs the predictions: second moments of the loss's gradients.

Owns one walk forward and one backward through the float model, a layer's weights at a time. The
loss is the divergence of the disturbed predictions from the float ones; its second derivative, the
Fisher information, is the mean of g g^T over gradients g that start from the logits with covariance
diag(p) - p p^T. They start as normal deviates of this covariance, not from tokens drawn by p: few
tokens then tell as much as many, for a likely token's gradient is not zero mostly and large rarely.
These means for a matrix's outputs, here called moments, are the outputs' side of its
Kronecker-factored Fisher information. Refuses to round: ``coupling.py`` does, with what is measured
here.

The states in front of every layer are kept until the way back has come by (``HiddenStates``: in
files, on a GPU in its memory); then their places hold gradients.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from awq_edge import torch_decoder
from awq_edge.calibration.distributed import Processes
from awq_edge.calibration.hidden_states import HiddenStates
from awq_edge.float_model import FloatModel
from awq_edge.quantize import coupling
from awq_edge.stages import coupled_matrices, head_name, tensor_shape
from awq_edge.torch_decoder import Layer, Positions

# Blocks of the calibration text that are walked with: four times as many change the divergence on
# novels-45m by 1 %. No more than there are segments: none then has two blocks of one half, and the
# order of sums does not depend on the number of processes.
BLOCKS = 8
_LOGITS = 1 << 24  # held at once: of so many positions that it is 64 MiB

# Numbers of layers; gives each with its weights on the device.
Layers = Callable[[Iterable[int]], Iterator[tuple[int, Mapping[str, torch.Tensor]]]]


def chosen(blocks: int) -> list[int]:
    """Which of so many calibration blocks are walked with."""
    return sorted(set(torch.linspace(0, blocks - 1, min(blocks, BLOCKS)).round().long().tolist()))


class Gradients:
    """The walk through one model with this process's share of the blocks."""

    def __init__(
        self,
        source: FloatModel,
        layers: Layers,
        states: Sequence[HiddenStates],
        segments: Mapping[int, Sequence[int]],
        processes: Processes,
        note: Callable[[str], None],
    ) -> None:
        """Takes everything but the tokens.

        Args:
            source: The float model.
            layers: Reads its layers.
            states: Places [b, t, hidden] in front of every layer and behind the last one.
            segments: Which of the blocks belong to a segment's sums.
            processes: Those that share the blocks.
            note: Hears how far the walk is.
        """
        self._source = source
        self._architecture = source.architecture
        self._layers = layers
        self._states = states
        self._segments = segments
        self._processes = processes
        self._note = note
        self._device = states[0].device

    def measure(
        self, tokens: torch.Tensor, numbers: Sequence[int], halves: Sequence[int]
    ) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
        """Walks there and back.

        Args:
            tokens: int64 [b, t].
            numbers: Of these blocks among all calibration blocks, [b].
            halves: Which half of the tokens, 0 or 1, each block belongs to, [b].

        Yields:
            Layers, the last one first, with their moments, float32 [runs, outputs, outputs] as in
            ``coupling.py``, by "attn_q" and so on.
        """
        a = self._architecture
        positions = self._source.positions(tokens.shape[1], self._device)
        with torch.no_grad():
            self._forward(tokens, positions)
            self._turn(numbers)
        for layer, weights in self._layers(reversed(range(a.layers))):
            self._note(f"gradients, back at layer {layer + 1}/{a.layers}")
            moments = self._backward(layer, weights, positions, halves)
            del weights  # before the next layer is read
            yield layer, moments
            del moments
            self._states[layer + 1].discard()
        self._states[0].discard()

    def _forward(self, tokens: torch.Tensor, positions: Positions) -> None:
        a = self._architecture
        rows = self._source.rows("token_embd.weight", tokens)
        self._states[0].write(slice(0, len(tokens)), torch_decoder.embedded(a, self._source, rows))
        for number, weights in self._layers(range(a.layers)):
            self._note(f"gradients, layer {number + 1}/{a.layers}")
            layer = Layer(a, number, weights, positions)
            for at in self._blocks():
                self._states[number + 1].write(at, layer.run(self._states[number].read(at)))
            del weights, layer  # before the next layer is read

    def _blocks(self) -> list[slice]:
        return [slice(block, block + 1) for block in range(self._states[0].shape[0])]

    def _turn(self, numbers: Sequence[int]) -> None:
        """Makes of the states behind the last layer the gradients by them."""
        a = self._architecture
        head = self._source(head_name(a), self._device)
        bias = self._source("output.bias", self._device) if a.head_bias else None
        rows = max(1, _LOGITS // len(head))
        last = self._states[-1]
        for at, number in zip(self._blocks(), numbers):
            with torch.enable_grad():
                states = last.read(at).requires_grad_()
                normed = torch_decoder.ended(a, self._source, states)
            # The block's own deviates, whoever has the block.
            generator = torch.Generator(self._device).manual_seed(number)
            by_normed = []
            for some in torch.split(normed.detach(), rows, dim=1):
                logits = torch_decoder.logits_of(a, torch_decoder.multiply(some, head, None), bias)
                by_logits = logit_gradients(torch.softmax(logits, dim=-1), generator)
                if a.logit_cap:  # the slope of the cap
                    by_logits *= 1 - (logits / a.logit_cap).square()
                by_normed.append(by_logits @ head)
            torch.autograd.backward(normed, torch.cat(by_normed, dim=1))
            assert states.grad is not None
            last.write(at, states.grad)

    def _backward(
        self,
        layer: int,
        weights: Mapping[str, torch.Tensor],
        positions: Positions,
        halves: Sequence[int],
    ) -> dict[str, torch.Tensor]:
        """Makes of the states in front of a layer the gradients by them; gives its moments."""
        # Of both halves, by segment and matrix.
        sums: tuple[dict[int, dict[str, torch.Tensor]], ...] = ({}, {})
        inside: dict[str, torch.Tensor] = {}  # the block's

        def watched(name: str, x: torch.Tensor) -> torch.Tensor:
            def add(gradient: torch.Tensor) -> None:
                if name in coupled:
                    inside[name] = _products(gradient)

            product: torch.Tensor = Product.apply(  # type: ignore[no-untyped-call]  # PyTorch's
                x, weights, name, add
            )
            return product

        coupled = coupled_matrices(self._architecture, layer)
        walked = Layer(self._architecture, layer, weights, positions, watched)
        for segment, blocks in self._segments.items():
            # One process adds up as it goes: several segments at once would take too much room.
            key = 0 if self._processes.count == 1 else segment
            for block in blocks:
                inside, at = {}, slice(block, block + 1)
                with torch.enable_grad(), repeatable(self._device):
                    states = self._states[layer].read(at).requires_grad_()
                    after = walked.run(states)
                torch.autograd.backward(after, self._states[layer + 1].read(at))
                assert states.grad is not None
                self._states[layer].write(at, states.grad)
                so_far = sums[halves[block]].setdefault(key, {})
                for name, part in inside.items():
                    so_far[name] = so_far[name] + part if name in so_far else part
        return {name: self._trusted(name, sums) for name in coupled}

    def _trusted(
        self, name: str, sums: tuple[dict[int, dict[str, torch.Tensor]], ...]
    ) -> torch.Tensor:
        """A matrix's moments over all processes, with as much of the coupling as tokens confirm."""
        n = tensor_shape(self._architecture, f"{name}.weight")[0]
        count, length = coupling.runs(n)
        none = torch.zeros(count, length, length, device=self._device)
        halves = [
            self._processes.total({segment: part.pop(name) for segment, part in half.items()}, none)
            for half in sums
        ]
        return shrunk(*halves)


def repeatable(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Keeps a GPU from attention whose way back adds up in any order."""
    if device.type == "cpu":
        return contextlib.nullcontext()
    return sdpa_kernel(SDPBackend.MATH)


def logit_gradients(p: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Normal deviates [.., v] of covariance diag(p) - p p^T for probabilities p [.., v]."""
    deviates = torch.randn(p.shape, generator=generator, device=p.device).mul_(p.sqrt())
    return deviates.sub_(p * deviates.sum(dim=-1, keepdim=True))


def shrunk(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The moments of two halves of the tokens together, what they disagree about taken back.

    What lies beside the diagonal is signal and noise; two halves share the signal alone. If their
    correlation there is r, the share of the signal in their sum is 2 r / (1 + r) (Spearman and
    Brown), and this factor takes the sum nearest to what more tokens would give.

    Args:
        first: Moments [runs, outputs, outputs].
        second: Of other tokens.
    """
    both = first + second
    diagonal = torch.diag_embed(both.diagonal(dim1=1, dim2=2))
    r = torch.stack([_correlation(*run) for run in zip(first, second)])
    r = r.clamp(min=0.0, max=1.0)  # below zero there is nothing but noise
    share = (2 * r / (1 + r)).to(both.dtype).view(-1, 1, 1)
    return diagonal + share * (both - diagonal)


def _correlation(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Of what lies beside two matrices' diagonals, in float64: squares of moments may be huge."""
    a, b = (half.double().fill_diagonal_(0).flatten() for half in (first, second))
    size = a.norm() * b.norm()
    return torch.where(size > 0, a @ b / size, 0.0)


class Product(torch.autograd.Function):
    """``torch_decoder.plain_linear`` with a way back, which it has not on every device.

    Weights are asked for on both ways: those of a mixture of experts are not all in memory.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weights: Mapping[str, torch.Tensor],
        name: str,
        heard: Callable[[torch.Tensor], None],
    ) -> torch.Tensor:
        """Multiplies by the named matrix; ``heard`` will be told the gradient by the product."""
        ctx.weights, ctx.name, ctx.heard = weights, name, heard
        return torch_decoder.plain_linear(weights)(name, x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        """The gradient by x; the weight needs none."""
        ctx.heard(gradient)
        return gradient @ ctx.weights[f"{ctx.name}.weight"], None, None, None


def _products(gradient: torch.Tensor) -> torch.Tensor:
    """Sums of g_i * g_j within runs of outputs, [runs, outputs, outputs], for [.., n]."""
    by_output = coupling.in_runs(gradient.detach().flatten(0, -2).T)
    return torch.stack([torch_decoder.multiply(run, run, None) for run in by_output])
