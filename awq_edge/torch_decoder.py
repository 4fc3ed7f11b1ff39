"""The decoder in PyTorch: calibration runs it layer by layer, tests compare the runtime with it.

Owns the mathematics of every supported model, driven by the Architecture record and the stages of a
layer (``stages.py``) alone: an operation for every origin of an input, and the walk through a
layer. Refuses model families and loading: weights are handed in, by the names of
``native/format/FORMAT.md``.

Shapes: b blocks (independent sequences), t positions, h heads, d head size.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Union

import torch
import torch.nn.functional as F

from awq_edge.architecture import Architecture
from awq_edge.stages import Origin, Stage, fed_by, head_name, layer_tensor_names, stages

# Gives the tensor of a name; whole-model names such as "blk.0.attn_q.weight" or, inside a layer,
# names without "blk.0.".
WeightSource = Callable[[str], torch.Tensor]
# Multiplies the input [.., k] by the named matrix ("attn_q") of a layer and adds its bias.
Linear = Callable[[str, torch.Tensor], torch.Tensor]

# One number for all matrices, or one per name of a packed matrix.
ActivationGroups = Union[int, Mapping[str, int], None]

_SMALLEST_ACTIVATION = 2.0**-100  # groups of smaller values count as zero, as in the kernels


@dataclasses.dataclass(frozen=True)
class Positions:
    """Cosines and sines of the rotary embedding, [t, d / 2], for positions 0 … t - 1."""

    cosines: torch.Tensor
    sines: torch.Tensor

    @classmethod
    def of(cls, architecture: Architecture, count: int, device: torch.device) -> Positions:
        """The first ``count`` positions of a float model, on a device."""
        frequencies = torch.from_numpy(architecture.inverse_frequencies())
        return cls.first(count, frequencies.to(device))

    @classmethod
    def first(cls, count: int, inverse_frequencies: torch.Tensor) -> Positions:
        """The first ``count`` positions.

        Args:
            count: t.
            inverse_frequencies: float32 [d / 2], radians per position.
        """
        numbers = torch.arange(count, device=inverse_frequencies.device).float()
        angles = torch.outer(numbers, inverse_frequencies)
        return cls(angles.cos(), angles.sin())


def plain_linear(weights: Mapping[str, torch.Tensor]) -> Linear:
    """Multiplies by the float weights of one layer."""

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return multiply(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    return linear


@functools.cache
def _onednn() -> Callable[..., torch.Tensor] | None:
    """OneDNN's product of plain tensors, where this PyTorch has it.

    Equally exact as PyTorch's default one, and up to 1.7 times as fast on a CPU not Intel's.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]  # PyTorch's
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def multiply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Multiplies x [.., k] by weight [n, k] transposed and adds bias [n]."""
    product = _onednn() if x.device.type == "cpu" else None
    if product is None:
        return F.linear(x, weight, bias)
    return product(x.contiguous(), weight.contiguous(), bias, "none", [], "")


def rounded(x: torch.Tensor, group_size: int) -> torch.Tensor:
    """Rounds x [.., k] to int8 codes per row and group of inputs, and back to float32.

    The rule of the kernels: scale amax / 127, codes rounded half to even.
    """
    k = x.shape[-1]
    groups = F.pad(x, (0, -k % group_size)).reshape(*x.shape[:-1], -1, group_size)
    largest = groups.abs().amax(dim=-1, keepdim=True)
    zero = largest < _SMALLEST_ACTIVATION
    scale = torch.where(zero, 0.0, largest / 127.0)
    inverse = torch.where(zero, 0.0, 127.0 / largest)
    return (torch.round(groups * inverse) * scale).reshape(*x.shape[:-1], -1)[..., :k]


def normalise(
    architecture: Architecture, tensors: Mapping[str, torch.Tensor], norm: str, x: torch.Tensor
) -> torch.Tensor:
    """A norm of the model: divides x [.., n] by its root mean square, multiplies by a weight [n].

    Args:
        architecture: The decoder.
        tensors: What holds the norm's weight.
        norm: Its name, "attn_norm" and so on.
        x: float32 [.., n].
    """
    mean = x.square().mean(dim=-1, keepdim=True)
    return x * torch.rsqrt(mean + architecture.norm_epsilon) * tensors[f"{norm}.weight"]


def activate(architecture: Architecture, x: torch.Tensor) -> torch.Tensor:
    """The activation of the feed-forward."""
    if architecture.activation == "silu":
        return F.silu(x)
    if architecture.activation == "relu":
        return F.relu(x)
    approximate = "tanh" if architecture.activation == "gelu_tanh" else "none"
    return F.gelu(x, approximate=approximate)


def rotate(x: torch.Tensor, positions: Positions) -> torch.Tensor:
    """Turns dimension i of each head [b, h, t, d] with dimension i + d / 2."""
    first, second = x.chunk(2, dim=-1)
    cosines, sines = positions.cosines, positions.sines
    return torch.cat((first * cosines - second * sines, second * cosines + first * sines), dim=-1)


@dataclasses.dataclass(frozen=True)
class Step:
    """A stage on the way through a layer."""

    layer: Layer
    stage: Stage
    x: torch.Tensor  # what its matrices read, [b, t, k]
    stream: torch.Tensor  # what its output is added to if it adds, [b, t, hidden]

    @functools.cached_property
    def output(self) -> torch.Tensor:
        """What a stage that adds gives to the stream, [b, t, hidden]."""
        return self.layer.output(self.stage, self.x)

    def stream_after(self) -> torch.Tensor:
        """The stream behind the stage, [b, t, hidden]."""
        return self.stream + self.output if self.stage.adds else self.stream


class Layer:
    """One layer that can be run: its stages, its tensors, and who multiplies by its matrices."""

    def __init__(
        self,
        architecture: Architecture,
        number: int,
        weights: Mapping[str, torch.Tensor],
        positions: Positions,
        linear: Linear | None = None,
        *,
        kv_fp16: bool = False,
    ) -> None:
        """Takes the layer.

        Args:
            architecture: The decoder.
            number: Which layer.
            weights: Its tensors, by their names without "blk.N.".
            positions: Of the t positions that will be read.
            linear: Multiplies by the layer's matrices; None: by ``weights``, as these stand then.
            kv_fp16: Round keys and values to fp16, as the runtime's cache does.
        """
        self.architecture = architecture
        self.number = number
        self.weights = weights
        self.stages = stages(architecture, number)
        self._positions = positions
        self._linear = plain_linear(weights) if linear is None else linear
        self._kv_fp16 = kv_fp16

    def run(self, hidden: torch.Tensor) -> torch.Tensor:
        """The whole layer, hidden states [b, t, hidden] to the next ones."""
        for step in self.steps(hidden):
            last = step
        return last.stream_after()

    def steps(self, hidden: torch.Tensor) -> Iterator[Step]:
        """Walks the layer, for hidden states [b, t, hidden].

        What the last stage adds is computed only if its step is asked for it.
        """
        stream = begun = hidden
        step: Step | None = None
        for stage in self.stages:
            if step is not None:
                stream = step.stream_after()
            begins = stage.origin is Origin.STREAM
            x = self.input(stage, stream if begins else begun)
            begun = x if begins else begun
            step = Step(self, stage, x, stream)
            yield step

    def input(self, stage: Stage, source: torch.Tensor) -> torch.Tensor:
        """What the matrices of a stage read.

        Args:
            stage: Which one.
            source: The stream, [.., hidden], if it begins a branch; otherwise what the stage that
                begins its branch read, [.., k].
        """
        if stage.origin is Origin.STREAM:
            if stage.norm is None:
                return source
            return normalise(self.architecture, self.weights, stage.norm, source)
        products = (self._linear(name, source) for name in stage.made_of)
        if stage.origin is Origin.ATTENTION:
            return self._attention(stage, products)
        return activate(self.architecture, next(products)) * next(products)

    def output(self, stage: Stage, x: torch.Tensor) -> torch.Tensor:
        """What a stage that adds gives to the stream, [.., hidden], for its input [.., k]."""
        (name,) = stage.matrices
        return self._linear(name, x)

    def branch(self, first: Stage, x: torch.Tensor) -> torch.Tensor:
        """What a whole branch gives to the stream, for what its first stage reads."""
        ends = fed_by(self.architecture, self.number, first)
        return functools.reduce(torch.add, (self.output(end, self.input(end, x)) for end in ends))

    def _attention(self, stage: Stage, products: Iterator[torch.Tensor]) -> torch.Tensor:
        """Mixes queries, keys and values [b, t, heads * d] to [b, t, heads * d]."""
        a = self.architecture

        def heads(name: str, count: int) -> torch.Tensor:
            projected = next(products)
            projected = projected.view(*projected.shape[:2], count, a.head_size)
            if a.qk_norm and name != stage.made_of[2]:
                projected = normalise(a, self.weights, f"{name}_norm", projected)
            return projected.transpose(1, 2)  # [b, h, t, d]

        query, key, value = stage.made_of
        queries = rotate(heads(query, a.heads), self._positions)
        keys = rotate(heads(key, a.kv_heads), self._positions)
        values = heads(value, a.kv_heads)
        if self._kv_fp16:
            keys, values = keys.half().float(), values.half().float()
        repeats = a.heads // a.kv_heads  # query heads that share one key-value head
        keys = keys.repeat_interleave(repeats, dim=1)
        values = values.repeat_interleave(repeats, dim=1)
        b, _, t, _ = queries.shape
        if stage.window and stage.window < t:
            numbers = torch.arange(t, device=queries.device)
            distance = numbers[:, None] - numbers
            visible = (distance >= 0) & (distance < stage.window)
            mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=visible)
        else:
            mixed = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return mixed.transpose(1, 2).reshape(b, t, a.heads * a.head_size)


@torch.inference_mode()
def logits(
    weights: WeightSource,
    architecture: Architecture,
    tokens: torch.Tensor,
    activation_group_size: ActivationGroups = None,
    kv_fp16: bool = False,
) -> torch.Tensor:
    """Logits of every position, float32 [b, t, vocabulary]; one layer's weights at a time.

    Args:
        weights: Gives a tensor by its name in the model file. ``rope.inverse_frequencies`` too.
        architecture: The decoder.
        tokens: int64 [b, t], each row a sequence of its own.
        activation_group_size: Round the input of every matrix to int8 per token and group of this
            many, or of the number given for the matrix's name; None keeps floats.
        kv_fp16: Round keys and values to fp16.
    """

    def multiply_by(prefix: str, tensors: Mapping[str, torch.Tensor]) -> Linear:
        plain = plain_linear(tensors)

        def linear(name: str, x: torch.Tensor) -> torch.Tensor:
            group_size = (
                activation_group_size[f"{prefix}{name}.weight"]
                if isinstance(activation_group_size, Mapping)
                else activation_group_size
            )
            return plain(name, x if group_size is None else rounded(x, group_size))

        return linear

    a = architecture
    hidden = weights("token_embd.weight")[tokens].float()
    positions = Positions.first(tokens.shape[1], weights("rope.inverse_frequencies"))
    for number in range(a.layers):
        prefix = f"blk.{number}."
        tensors = {name: weights(prefix + name) for name in layer_tensor_names(a, number)}
        linear = multiply_by(prefix, tensors)
        hidden = Layer(a, number, tensors, positions, linear, kv_fp16=kv_fp16).run(hidden)
    norm = {"output_norm.weight": weights("output_norm.weight")}
    hidden = normalise(a, norm, "output_norm", hidden)
    head = head_name(a)
    return multiply_by("", {head: weights(head)})(head[: -len(".weight")], hidden)
