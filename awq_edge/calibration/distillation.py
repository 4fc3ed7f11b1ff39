"""The packed model against the float one: divergences of predictions, and gradients of them.

Owns one walk forward through the packed model and one back, a layer's weights at a time: only the
states in front of every layer are kept, and what happened inside is computed once more on the way
back. Inputs of matrices are rounded to int8 as on every device, and gradients pass as if they were
not. The float model's last states are computed once, for all blocks. Gradients on a GPU come from
products of shorter floats (TF32), which takes a fraction of the time; the divergence that judges
does not. Refuses to change a weight: whoever gives them hears of the gradients by them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch

from awq_edge import torch_decoder
from awq_edge.architecture import Architecture
from awq_edge.calibration.gradients import repeatable
from awq_edge.calibration.hidden_states import HiddenStates
from awq_edge.float_model import FloatModel
from awq_edge.stages import head_name
from awq_edge.torch_decoder import Layer, Positions

_LOGITS = 1 << 24  # held at once: of so many positions that it is 64 MiB
# Floats in the widest intermediate of blocks that walk back through a layer together: 64 MiB each,
# more for a GPU, which needs many tokens at once to be busy.
_BATCH_FLOATS = {"cpu": 1 << 24, "cuda": 1 << 26}


class Packed(Protocol):
    """The packed model, as the runtime computes with it."""

    def vector(self, name: str) -> torch.Tensor:
        """A plain tensor, by its whole-model name."""
        ...

    def rows(self, name: str, numbers: torch.Tensor) -> torch.Tensor:
        """Some rows of a matrix that stays as it is, float32 [.., k]."""
        ...

    def head(self) -> torch.Tensor:
        """The matrix that makes logits, float32 [v, hidden]."""
        ...

    def layer(self, number: int) -> Mapping[str, torch.Tensor]:
        """A layer's tensors, by their names without ``blk.N.``."""
        ...


# Hears the gradient by a matrix of a layer, "attn_q" and so on, float32 [n, k], which is its to use
# up. The walk back reads a layer's weights before it and never after.
Heard = Callable[[str, torch.Tensor], None]
# Such gradients of several batches, by the matrix.
Sums = dict[str, torch.Tensor]


@contextlib.contextmanager
def _shorter_floats(device: torch.device) -> Iterator[None]:
    """Lets a GPU multiply floats of 10 bits behind the point."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = device.type == "cuda"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def float_states(
    source: FloatModel,
    blocks: torch.Tensor,
    positions: Positions,
    places: HiddenStates,
    note: Callable[[str], None],
) -> None:
    """Computes what the float head reads.

    Args:
        source: The float model.
        blocks: Tokens, int64 [b, t].
        positions: Of the t positions.
        places: For [b, t, hidden]; in the end they hold it.
        note: Hears how far it is.
    """
    a = source.architecture
    each = [slice(block, block + 1) for block in range(len(blocks))]
    rows = source.rows("token_embd.weight", blocks)
    for at in each:
        places.write(at, torch_decoder.embedded(a, source, rows[at].to(places.device)))
    del rows
    for number in range(a.layers):
        note(f"float model, layer {number + 1}/{a.layers}")
        layer = Layer(a, number, source.layer(number, places.device), positions)
        for at in each:
            places.write(at, layer.run(places.read(at)))
        del layer  # before the next one is read
    for at in each:
        places.write(at, torch_decoder.ended(a, source, places.read(at)))


class Distillation:
    """Blocks of tokens on which the two models are compared."""

    def __init__(
        self,
        source: FloatModel,
        packed: Packed,
        group_sizes: Mapping[str, int],
        blocks: torch.Tensor,
        positions: Positions,
        exact: HiddenStates,
    ) -> None:
        """Takes both models.

        Args:
            source: The float one.
            packed: The packed one; asked anew for a layer each time.
            group_sizes: In which inputs of matrices are rounded, by whole-model names.
            blocks: Tokens, int64 [b, t].
            positions: Of the t positions.
            exact: What :func:`float_states` left for these blocks.
        """
        self._architecture: Architecture = source.architecture
        self._packed = packed
        self._group_sizes = group_sizes
        self._blocks = blocks
        self._positions = positions
        self._exact = exact
        self._device = exact.device
        name = head_name(self._architecture)
        self._exact_head = source(name, self._device)
        self._head = packed.head()
        self._head_group = group_sizes[name]
        bias = self._architecture.head_bias
        self._exact_bias = source("output.bias", self._device) if bias else None
        self._bias = packed.vector("output.bias") if bias else None

    @property
    def length(self) -> int:
        """Tokens of a block."""
        return self._blocks.shape[1]

    @torch.no_grad()
    def divergence(self, numbers: list[int]) -> float:
        """The mean over all tokens of some blocks, nats."""
        states = self._embedded(numbers)
        for number in range(self._architecture.layers):
            layer = self._layer(number, None)
            # A block at a time: as many may be compared as there are.
            states = torch.cat([layer.run(block[None]) for block in states])
            del layer
        total = 0.0
        for at, block in zip(numbers, states):
            normed = self._ended(block[None])
            total += self._compared(normed, at, None)
        return total / (len(numbers) * self._blocks.shape[1])

    def learn(self, numbers: list[int], heard: Callable[[int, str, torch.Tensor], None]) -> float:
        """Walks forward and back with some blocks.

        Args:
            numbers: Of the blocks.
            heard: Told of a layer's number, a matrix, and the gradient of the mean divergence by
                it, float32 [n, k], layer after layer from the last one on.

        Returns:
            The mean divergence over tokens, nats.
        """
        with _shorter_floats(self._device):
            return self._learn(numbers, heard)

    def _learn(self, numbers: list[int], heard: Callable[[int, str, torch.Tensor], None]) -> float:
        a = self._architecture
        widest = max(a.feed_forward_size, a.hidden_size, a.heads * a.head_size)
        together = max(1, _BATCH_FLOATS[self._device.type] // (self._blocks.shape[1] * widest))
        with torch.no_grad():
            states = [self._embedded(numbers)]
            for number in range(a.layers):
                layer = self._layer(number, None)
                parts = torch.split(states[-1], together)
                states.append(torch.cat([layer.run(part) for part in parts]))
                del layer
        total, gradient = self._turned(states.pop(), numbers)
        for number in reversed(range(a.layers)):
            sums: Sums = {}

            def add(name: str, by_weight: torch.Tensor, sums: Sums = sums) -> None:
                sums[name] = sums[name].add_(by_weight) if name in sums else by_weight

            layer = self._layer(number, add)
            gradients = []
            for before, behind in zip(
                torch.split(states.pop(), together), torch.split(gradient, together)
            ):
                with torch.enable_grad(), repeatable(self._device):
                    state = before.requires_grad_()
                    after = layer.run(state)
                torch.autograd.backward(after, behind)
                assert state.grad is not None
                gradients.append(state.grad)
                del after, state
            gradient = torch.cat(gradients)
            del layer  # before the next one is read
            for name in list(sums):
                heard(number, name, sums.pop(name))
        return total

    def _embedded(self, numbers: list[int]) -> torch.Tensor:
        rows = self._packed.rows("token_embd.weight", self._blocks[numbers])
        return torch_decoder.embedded(self._architecture, self._packed.vector, rows)

    def _ended(self, states: torch.Tensor) -> torch.Tensor:
        return torch_decoder.ended(self._architecture, self._packed.vector, states)

    def _layer(self, number: int, heard: Heard | None) -> Layer:
        weights = self._packed.layer(number)
        linear = _Rounding(weights, self._group_sizes, f"blk.{number}.", heard)
        return Layer(self._architecture, number, weights, self._positions, linear.multiply)

    def _turned(self, states: torch.Tensor, numbers: list[int]) -> tuple[float, torch.Tensor]:
        """The mean divergence, and the gradients by states behind the last layer [b, t, hidden]."""
        total = 0.0
        gradients = []
        for at, block in zip(numbers, states):
            with torch.enable_grad():
                state = block[None].detach().requires_grad_()
                normed = self._ended(state)
            by_normed: list[torch.Tensor] = []
            with torch.no_grad():
                total += self._compared(normed.detach(), at, by_normed)
            torch.autograd.backward(normed, torch.cat(by_normed)[None])
            assert state.grad is not None
            gradients.append(state.grad)
        tokens = len(numbers) * self._blocks.shape[1]
        return total / tokens, torch.cat(gradients).div_(tokens)

    def _compared(
        self, normed: torch.Tensor, block: int, by_normed: list[torch.Tensor] | None
    ) -> float:
        """The divergence of a block's predictions, summed over tokens.

        Args:
            normed: What the packed head reads, [1, t, hidden].
            block: Its number.
            by_normed: Takes the gradients by it, [rows, hidden] after [rows, hidden].
        """
        a = self._architecture
        exact = self._exact.read(slice(block, block + 1))[0]
        rounded = torch_decoder.rounded(normed[0], self._head_group)
        rows = max(1, _LOGITS // len(self._head))
        total = 0.0
        for x, y in zip(torch.split(exact, rows), torch.split(rounded, rows)):
            product = torch_decoder.multiply(x, self._exact_head, None)
            p = torch_decoder.logits_of(a, product, self._exact_bias).log_softmax(dim=-1)
            logits = torch_decoder.multiply(y, self._head, None)
            logits = torch_decoder.logits_of(a, logits, self._bias)
            q = logits.log_softmax(dim=-1)
            exact_odds = p.exp()
            total += float((exact_odds * (p - q)).sum(dtype=torch.float64))
            if by_normed is not None:
                by_logits = q.exp_().sub_(exact_odds)
                if a.logit_cap:  # the slope of the cap
                    by_logits *= 1 - (logits / a.logit_cap).square()
                by_normed.append(by_logits @ self._head)
        return total


class _Rounding:
    """Multiplies as the runtime does, and tells gradients."""

    def __init__(
        self,
        weights: Mapping[str, torch.Tensor],
        group_sizes: Mapping[str, int],
        prefix: str,
        heard: Heard | None,
    ) -> None:
        self._weights, self._group_sizes, self._prefix = weights, group_sizes, prefix
        self._heard = heard
        self._last: tuple[torch.Tensor, int, torch.Tensor] | None = None

    def multiply(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """As ``torch_decoder.plain_linear`` does, for inputs rounded to int8."""
        group_size = self._group_sizes[f"{self._prefix}{name}.weight"]
        # Queries, keys and values read the same.
        if self._last is None or self._last[0] is not x or self._last[1] != group_size:
            self._last = x, group_size, torch_decoder.rounded(x.detach(), group_size)
        weight, bias = self._weights[f"{name}.weight"], self._weights.get(f"{name}.bias")
        if self._heard is None:
            return torch_decoder.multiply(self._last[2], weight, bias)
        heard = self._heard
        product: torch.Tensor = _Product.apply(  # type: ignore[no-untyped-call]  # PyTorch's
            x, self._last[2], weight, bias, lambda gradient: heard(name, gradient)
        )
        return product


class _Product(torch.autograd.Function):
    """``torch_decoder.multiply`` of rounded inputs with a way back through both."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        rounded: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        heard: Callable[[torch.Tensor], None],
    ) -> torch.Tensor:
        """Multiplies ``rounded``; ``heard`` will be told the gradient by the weight."""
        ctx.rounded, ctx.weight, ctx.heard = rounded, weight, heard
        return torch_decoder.multiply(rounded, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        """The gradient by x, as if it were not rounded."""
        by_output = gradient.flatten(0, -2)
        ctx.heard(torch_decoder.multiply(by_output.T, ctx.rounded.flatten(0, -2).T, None))
        by_x = torch_decoder.multiply(gradient, ctx.weight.T, None)
        return by_x, None, None, None, None
