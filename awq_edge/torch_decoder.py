"""The decoder in PyTorch: calibration runs it layer by layer, tests compare the runtime with it.

Owns the mathematics of every supported model, driven by the Architecture record alone. Refuses
model families and loading: weights are handed in, by the names of ``native/format/FORMAT.md``.

Shapes: b blocks (independent sequences), t positions, h heads, d head size.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Union

import torch
import torch.nn.functional as F

from awq_edge.architecture import Architecture

# Gives the tensor of a name; whole-model names such as "blk.0.attn_q.weight" or, inside a layer,
# names without "blk.0.".
WeightSource = Callable[[str], torch.Tensor]
# Multiplies the input [.., k] by the named matrix ("attn_q") of a layer and adds its bias.
Linear = Callable[[str, torch.Tensor], torch.Tensor]

# One number for all matrices, or one per name of a packed matrix.
ActivationGroups = Union[int, Mapping[str, int], None]

# The packed matrices of a layer.
LINEARS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")

_SMALLEST_ACTIVATION = 2.0**-100  # groups of smaller values count as zero, as in the kernels


@dataclasses.dataclass(frozen=True)
class Positions:
    """Cosines and sines of the rotary embedding, [t, d / 2], for positions 0 … t - 1."""

    cosines: torch.Tensor
    sines: torch.Tensor

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


def layer_tensor_names(architecture: Architecture) -> list[str]:
    """Every tensor of one layer, without "blk.N."."""
    names = ["attn_norm.weight", "ffn_norm.weight"]
    names += [f"{name}.weight" for name in LINEARS]
    if architecture.qk_norm:
        names += ["attn_q_norm.weight", "attn_k_norm.weight"]
    if architecture.qkv_bias:
        names += ["attn_q.bias", "attn_k.bias", "attn_v.bias"]
    if architecture.output_bias:
        names += ["attn_output.bias"]
    if architecture.feed_forward_bias:
        names += ["ffn_gate.bias", "ffn_up.bias", "ffn_down.bias"]
    return names


def tensor_shape(architecture: Architecture, name: str) -> tuple[int, ...]:
    """The shape of the tensor of a name (``blk.N.`` included or not)."""
    a = architecture
    queries, keys = a.heads * a.head_size, a.kv_heads * a.head_size
    matrices = {
        "token_embd": (a.vocabulary_size, a.hidden_size),
        "output": (a.vocabulary_size, a.hidden_size),
        "attn_q": (queries, a.hidden_size),
        "attn_k": (keys, a.hidden_size),
        "attn_v": (keys, a.hidden_size),
        "attn_output": (a.hidden_size, queries),
        "ffn_gate": (a.feed_forward_size, a.hidden_size),
        "ffn_up": (a.feed_forward_size, a.hidden_size),
        "ffn_down": (a.hidden_size, a.feed_forward_size),
    }
    stem, _, kind = name.rpartition(".")
    stem = stem.split(".")[-1]
    if stem in matrices:
        return matrices[stem] if kind == "weight" else matrices[stem][:1]
    return (a.head_size,) if stem in ("attn_q_norm", "attn_k_norm") else (a.hidden_size,)


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
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
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


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Divides x [.., n] by its root mean square and multiplies by weight [n]."""
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + epsilon) * weight


def rotate(x: torch.Tensor, positions: Positions) -> torch.Tensor:
    """Turns dimension i of each head [b, h, t, d] with dimension i + d / 2."""
    first, second = x.chunk(2, dim=-1)
    cosines, sines = positions.cosines, positions.sines
    return torch.cat((first * cosines - second * sines, second * cosines + first * sines), dim=-1)


def attention(
    architecture: Architecture,
    layer: int,
    weights: Mapping[str, torch.Tensor],
    linear: Linear,
    x: torch.Tensor,
    positions: Positions,
    *,
    kv_fp16: bool = False,
) -> torch.Tensor:
    """The attention part of a layer without norm and residual, [b, t, hidden] to the same.

    Args:
        architecture: The decoder.
        layer: Which one, for its sliding window.
        weights: Norm vectors of the layer, by name.
        linear: Multiplies by the layer's matrices.
        x: The normed hidden states, float32 [b, t, hidden].
        positions: Rotations for t positions.
        kv_fp16: Round keys and values to fp16, as the runtime's cache does.
    """
    a = architecture
    b, t, _ = x.shape

    def heads(name: str, count: int) -> torch.Tensor:
        projected = linear(name, x).view(b, t, count, a.head_size)
        if a.qk_norm and name != "attn_v":
            projected = rms_norm(projected, weights[f"{name}_norm.weight"], a.norm_epsilon)
        return projected.transpose(1, 2)  # [b, h, t, d]

    queries = rotate(heads("attn_q", a.heads), positions)
    keys = rotate(heads("attn_k", a.kv_heads), positions)
    values = heads("attn_v", a.kv_heads)
    if kv_fp16:
        keys, values = keys.half().float(), values.half().float()
    repeats = a.heads // a.kv_heads  # query heads that share one key-value head
    keys = keys.repeat_interleave(repeats, dim=1)
    values = values.repeat_interleave(repeats, dim=1)
    window = a.sliding_windows[layer]
    if window and window < t:
        distance = torch.arange(t, device=x.device)[:, None] - torch.arange(t, device=x.device)
        visible = (distance >= 0) & (distance < window)
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=visible)
    else:
        mixed = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
    return linear("attn_output", mixed.transpose(1, 2).reshape(b, t, a.heads * a.head_size))


def feed_forward(linear: Linear, x: torch.Tensor) -> torch.Tensor:
    """The gated feed-forward without norm and residual, [.., hidden] to the same."""
    return linear("ffn_down", F.silu(linear("ffn_gate", x)) * linear("ffn_up", x))


def decoder_layer(
    architecture: Architecture,
    layer: int,
    weights: Mapping[str, torch.Tensor],
    linear: Linear,
    hidden: torch.Tensor,
    positions: Positions,
    *,
    kv_fp16: bool = False,
) -> torch.Tensor:
    """One whole layer, hidden states [b, t, hidden] to the next ones."""
    epsilon = architecture.norm_epsilon
    x = rms_norm(hidden, weights["attn_norm.weight"], epsilon)
    hidden = hidden + attention(architecture, layer, weights, linear, x, positions, kv_fp16=kv_fp16)
    x = rms_norm(hidden, weights["ffn_norm.weight"], epsilon)
    return hidden + feed_forward(linear, x)


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

    hidden = weights("token_embd.weight")[tokens].float()
    positions = Positions.first(tokens.shape[1], weights("rope.inverse_frequencies"))
    for index in range(architecture.layers):
        prefix = f"blk.{index}."
        layer = {name: weights(prefix + name) for name in layer_tensor_names(architecture)}
        linear = multiply_by(prefix, layer)
        hidden = decoder_layer(
            architecture, index, layer, linear, hidden, positions, kv_fp16=kv_fp16
        )
    hidden = rms_norm(hidden, weights("output_norm.weight"), architecture.norm_epsilon)
    head = "token_embd" if architecture.tied_head else "output"
    return multiply_by("", {f"{head}.weight": weights(f"{head}.weight")})(head, hidden)
