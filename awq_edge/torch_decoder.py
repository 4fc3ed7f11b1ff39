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

from awq_edge import torch_router
from awq_edge.architecture import Architecture
from awq_edge.cross_attention import CrossAttention
from awq_edge.stages import (
    Origin,
    Stage,
    fed_by,
    head_name,
    layer_tensor_names,
    positions_name,
    stages,
)
from awq_edge.torch_router import Routes

# Gives the tensor of a name; whole-model names such as "blk.0.attn_q.weight" or, inside a layer,
# names without "blk.0.".
WeightSource = Callable[[str], torch.Tensor]
# Multiplies the input [.., k] by the named matrix ("attn_q") of a layer and adds its bias.
Linear = Callable[[str, torch.Tensor], torch.Tensor]

# One number for all matrices, or one per name of a packed matrix.
ActivationGroups = Union[int, Mapping[str, int], None]

_SMALLEST_ACTIVATION = 2.0**-100  # groups of smaller values count as zero, as in the kernels


@dataclasses.dataclass(frozen=True)
class LookedAt:
    """Pictures that gated blocks attend to, and which position sees which.

    Attributes:
        keys: Of p pictures of m rows, [p, h, m, d], by the layer that a block stands before.
        values: The same.
        seen: The picture that each position sees, int64 [t], or [b, t] where the blocks differ; -1:
            none.
    """

    keys: Mapping[int, torch.Tensor]
    values: Mapping[int, torch.Tensor]
    seen: torch.Tensor

    @classmethod
    def of_rows(cls, cross: CrossAttention, rows: torch.Tensor, seen: torch.Tensor) -> LookedAt:
        """Takes apart what a tower gives, float32 [p, m, ``cross.row_size``]."""
        split = (*rows.shape[:2], len(cross.numbers), 2, cross.heads, cross.head_size)
        parts = rows.view(split).permute(2, 3, 0, 4, 1, 5)  # [blocks, 2, p, h, m, d]
        numbered = dict(zip(cross.numbers, parts))
        return cls(
            {number: part[0].contiguous() for number, part in numbered.items()},
            {number: part[1].contiguous() for number, part in numbered.items()},
            seen,
        )

    def attended(self, number: int, queries: torch.Tensor, *, fp16: bool) -> torch.Tensor:
        """Values [b, h, t, d] for queries of the same shape; zeros where no picture is seen."""
        p, h, m, d = self.keys[number].shape

        def in_one_row(made: torch.Tensor) -> torch.Tensor:
            made = made.half().float() if fp16 else made
            return made.transpose(0, 1).reshape(h, p * m, d).expand(len(queries), -1, -1, -1)

        keys, values = in_one_row(self.keys[number]), in_one_row(self.values[number])
        seen = self.seen.to(queries.device)
        seen = (seen[None] if seen.dim() == 1 else seen)[:, None, :, None]  # [b, 1, t, 1]
        whose = torch.arange(p, device=queries.device).repeat_interleave(m)
        visible = (whose == seen) | (seen < 0)  # a row without any key would be no number
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=visible)
        return torch.where(seen < 0, 0.0, mixed)


@dataclasses.dataclass(frozen=True)
class Positions:
    """What attention knows of positions 0 … t - 1.

    Attributes:
        cosines: Of the rotary embedding, [tables, t, d / 2]; None without one.
        sines: The same.
        slopes: By which each head's scores fall with the distance, [h]; None: they do not.
        ends: Before which position each one sees, int64 [b, t]; None: before the next one.
        visible: Which positions each one sees, bool [t, t], of towers; None: all.
        looked_at: Pictures, in a decoder that looks at them; None: nobody sees any.
    """

    cosines: torch.Tensor | None = None
    sines: torch.Tensor | None = None
    slopes: torch.Tensor | None = None
    ends: torch.Tensor | None = None
    visible: torch.Tensor | None = None
    looked_at: LookedAt | None = None

    @classmethod
    def of(
        cls,
        architecture: Architecture,
        count: int,
        weights: WeightSource,
        device: torch.device | None = None,
        turns: torch.Tensor | None = None,
    ) -> Positions:
        """The first ``count`` positions of a model, on a device.

        ``turns``: the three numbers of each, int64 [3, count]; None: its own.
        """
        name = positions_name(architecture)
        if name is None:
            return cls()
        vector = weights(name).to(device)
        if architecture.position == "alibi":
            return cls(slopes=vector)
        tables = vector.reshape(-1, architecture.head_size // 2)
        numbers = torch.arange(count, device=tables.device).float()
        angles = torch.stack([torch.outer(numbers, table) for table in tables])
        if turns is not None and architecture.rope_sections:
            axis = torch.tensor(architecture.turned_by, device=tables.device)
            angles = turns.to(tables.device).float()[axis].T * tables[:, None]
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
    if product is None or not x.numel():  # no rows: of an expert that none reached
        return F.linear(x, weight, bias)
    return product(x.contiguous(), weight.contiguous(), bias, "none", [], "")


def rounded(x: torch.Tensor, group_size: int) -> torch.Tensor:
    """Rounds x [.., k] to int8 codes per row and group of inputs, and back to float32.

    The rule of the kernels: scale amax / 127, codes rounded half to even.
    """
    k = x.shape[-1]
    if not x.numel():  # of an expert that no row reached
        return x
    groups = F.pad(x, (0, -k % group_size)).reshape(*x.shape[:-1], -1, group_size)
    largest = groups.abs().amax(dim=-1, keepdim=True)
    zero = largest < _SMALLEST_ACTIVATION
    scale = torch.where(zero, 0.0, largest / 127.0)
    inverse = torch.where(zero, 0.0, 127.0 / largest)
    return (torch.round(groups * inverse) * scale).reshape(*x.shape[:-1], -1)[..., :k]


def normalise(
    architecture: Architecture, tensors: Mapping[str, torch.Tensor], norm: str, x: torch.Tensor
) -> torch.Tensor:
    """A norm of the model over the last dimension of x.

    Divides by the root mean square; or subtracts the mean and divides by the standard deviation.
    Then multiplies by a weight and adds a bias, if there is one.

    Args:
        architecture: The decoder.
        tensors: What holds the norm's weight and bias: [n] each, or [h * n] for one of each head.
        norm: Its name, "attn_norm" and so on.
        x: float32 [.., n], or [.., h, n].
    """
    weight, bias = tensors[f"{norm}.weight"], tensors.get(f"{norm}.bias")
    if len(weight) != x.shape[-1]:
        weight = weight.view(x.shape[-2:])
        bias = None if bias is None else bias.view(x.shape[-2:])
    if architecture.norm == "layer":
        normed = F.layer_norm(x, x.shape[-1:], eps=architecture.norm_epsilon) * weight
    else:
        mean = x.square().mean(dim=-1, keepdim=True)
        normed = x * torch.rsqrt(mean + architecture.norm_epsilon) * weight
    return normed if bias is None else normed + bias


def embedded(architecture: Architecture, weights: WeightSource, rows: torch.Tensor) -> torch.Tensor:
    """The stream in front of the first layer.

    Args:
        architecture: The decoder.
        weights: Gives tensors by whole-model names.
        rows: Of the embedding, for the tokens of positions 0 … t - 1, float32 [b, t, hidden].
    """
    a = architecture
    if a.position == "learned":
        table = weights("position_embd.weight").view(a.context_length, a.hidden_size)
        rows = rows + table[: rows.shape[1]].to(rows.device)
    if a.embedding_norm:
        rows = normalise(
            a, _tensors_of(a, weights, "token_embd_norm", rows), "token_embd_norm", rows
        )
    return rows


def ended(architecture: Architecture, weights: WeightSource, x: torch.Tensor) -> torch.Tensor:
    """What the head reads of the stream behind the last layer, [.., hidden]."""
    a = architecture
    if not a.final_norm:
        return x
    return normalise(a, _tensors_of(a, weights, "output_norm", x), "output_norm", x)


def _tensors_of(
    architecture: Architecture, weights: WeightSource, norm: str, like: torch.Tensor
) -> dict[str, torch.Tensor]:
    names = [f"{norm}.weight", *([f"{norm}.bias"] if architecture.norm_bias else [])]
    return {name: weights(name).to(like.device) for name in names}


def capped(x: torch.Tensor, cap: float) -> torch.Tensor:
    """Keeps x within a cap: c * tanh(x / c); a cap of 0 is none."""
    return cap * torch.tanh(x / cap) if cap else x


def activate(architecture: Architecture, x: torch.Tensor) -> torch.Tensor:
    """The activation of the feed-forward."""
    return activated(architecture.activation, x)


def activated(name: str, x: torch.Tensor) -> torch.Tensor:
    """An activation by the word that records have for it."""
    if name == "silu":
        return F.silu(x)
    if name == "relu":
        return F.relu(x)
    if name == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if name == "gelu_tanh" else "none")


def rotate(x: torch.Tensor, positions: Positions, table: int = 0) -> torch.Tensor:
    """Turns dimension i of each head [b, h, t, d] with dimension i + d / 2, where heads turn."""
    if positions.cosines is None or positions.sines is None:
        return x
    first, second = x.chunk(2, dim=-1)
    cosines, sines = positions.cosines[table], positions.sines[table]
    return torch.cat((first * cosines - second * sines, second * cosines + first * sines), dim=-1)


@dataclasses.dataclass(frozen=True)
class Step:
    """A stage on the way through a layer."""

    layer: Layer
    stage: Stage
    x: torch.Tensor  # what its matrices read, [b, t, k], or [n, k] of the rows sent to an expert
    stream: torch.Tensor  # what its output is added to if it adds, [b, t, hidden]
    routed: Routes | None = None  # where rows go, in a branch of experts

    @functools.cached_property
    def output(self) -> torch.Tensor:
        """What a stage that adds gives to the stream, [b, t, hidden]."""
        given = self.layer.output(self.stage, self.x, self.routed)
        return given.view(self.stream.shape)

    def stream_after(self) -> torch.Tensor:
        """The stream behind the stage, [b, t, hidden]."""
        if not self.stage.adds:
            return self.stream
        return self.layer.taken_up(self.stage, self.stream, self.output)


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
        floors: torch.Tensor | None = None,
    ) -> None:
        """Takes the layer.

        Args:
            architecture: The decoder.
            number: Which layer.
            weights: Its tensors, by their names without "blk.N.".
            positions: Of the t positions that will be read.
            linear: Multiplies by the layer's matrices; None: by ``weights``, as these stand then.
            kv_fp16: Round keys and values to fp16, as the runtime's cache does.
            floors: Probabilities [experts] from which on experts read rows that did not choose
                them, whose outputs count nothing: while a layer is calibrated.
        """
        self.architecture = architecture
        self.number = number
        self.weights = weights
        self.stages = stages(architecture, number)
        self._cross = None
        if architecture.has_cross(number) and architecture.cross is not None:
            self._cross = architecture.cross.form(architecture.hidden_size)
        self._positions = positions
        self._linear = plain_linear(weights) if linear is None else linear
        self._kv_fp16 = kv_fp16
        self._floors = floors

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
        routed: Routes | None = None
        step: Step | None = None
        for stage in self.stages:
            if step is not None:
                stream = step.stream_after()
            begins = stage.origin is Origin.STREAM
            source = hidden if stage.beside else stream
            x = self.input(stage, source if begins else begun, routed)
            if begins:
                begun, routed = x, self.routes(stage, x)
            step = Step(self, stage, x, stream, routed)
            yield step

    def routes(self, first: Stage, x: torch.Tensor) -> Routes | None:
        """Where the rows of x [.., k] go, which a branch's first stage reads; None: everywhere."""
        if not first.routers:
            return None
        x = x.flatten(0, -2)
        logits = self._router_logits("ffn_router", x)
        shared = None
        if self.architecture.shared_router:
            shared = self._router_logits("shared_router", x).squeeze(1)
        return torch_router.routes(self.architecture, logits, shared, self._floors)

    def router_logits(self, x: torch.Tensor) -> torch.Tensor:
        """Of the experts, [n, experts], for what the first stage of their branch reads, [.., k]."""
        return self._router_logits("ffn_router", x.flatten(0, -2))

    def _router_logits(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weights[f"{name}.weight"].view(-1, x.shape[-1]))

    def input(
        self, stage: Stage, source: torch.Tensor, routed: Routes | None = None
    ) -> torch.Tensor:
        """What the matrices of a stage read.

        Args:
            stage: Which one.
            source: The stream, [.., hidden], if it begins a branch; otherwise what the stage that
                begins its branch read, [.., k].
            routed: Where the rows of ``source`` go, if the stage is an expert's; it gives those
                that the expert reads, [n, k].
        """
        if stage.origin is Origin.STREAM:
            if stage.norm is None:
                return source
            return normalise(self._form(stage), self.weights, stage.norm, source)
        if stage.expert is not None and routed is not None:
            source, rows = source.flatten(0, -2), routed.rows(stage.expert)
            source = source if rows is None else source[rows]
        products = (self._linear(name, source) for name in stage.made_of)
        if stage.origin is Origin.ATTENTION:
            return self._attention(stage, products)
        if stage.origin is Origin.PICTURES:
            return self._looked_at(next(products))
        form = self._form(stage)
        activated = activate(form, next(products))
        if form.feed_forward == "gated":
            return activated * next(products)
        if form.activation_scales:
            return activated * self.weights["ffn_act.scales"]
        return activated

    def output(self, stage: Stage, x: torch.Tensor, routed: Routes | None = None) -> torch.Tensor:
        """What a stage that adds gives to the stream, for its input.

        Args:
            stage: Which one.
            x: What it reads, [.., k]; of an expert the rows that it reads.
            routed: Where all rows go, if the stage is an expert's.

        Returns:
            [.., hidden]; of an expert for all rows, [n, hidden].
        """
        (name,) = stage.matrices
        output = self._linear(name, x)
        if stage.expert is not None and routed is not None:
            rows, output = routed.rows(stage.expert), output * routed.share(stage.expert)
            if rows is None:
                return output
            whole = output.new_zeros(len(routed.shares), output.shape[-1])
            return whole.index_copy(0, rows, output)
        if stage.post_norm is None:
            return output
        return normalise(self.architecture, self.weights, stage.post_norm, output)

    def factor_behind(
        self, stage: Stage, x: torch.Tensor, routed: Routes | None = None
    ) -> torch.Tensor | None:
        """What the output of each token is multiplied by behind a stage, a norm's weight apart.

        By a norm, or by the share of an expert.

        An error of the output reaches the stream with this factor, as far as it leaves the size of
        the output as it is.

        Args:
            stage: Any; nothing is behind one that does not add.
            x: What its matrices read, [.., k].
            routed: Where all rows go, if the stage is an expert's.

        Returns:
            float32 [.., 1]; None if nothing lies between the stage's output and the stream.
        """
        if stage.expert is not None and routed is not None:
            return routed.importance(stage.expert)
        if not stage.adds or stage.post_norm is None:
            return None
        (name,) = stage.matrices
        output = self._linear(name, x)
        if self.architecture.norm == "layer":
            output = output - output.mean(dim=-1, keepdim=True)
        mean = output.square().mean(dim=-1, keepdim=True)
        return torch.rsqrt(mean + self.architecture.norm_epsilon)

    def taken_up(self, stage: Stage, stream: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """The stream behind a stage that adds, for the one in front of it and what it gives."""
        total = stream + output
        if stage.sum_norm is None:
            return total
        return normalise(self.architecture, self.weights, stage.sum_norm, total)

    def branch(self, first: Stage, x: torch.Tensor, routed: Routes | None = None) -> torch.Tensor:
        """What a whole branch gives to the stream, for what its first stage reads.

        Args:
            first: Its first stage.
            x: [.., k].
            routed: Where the rows of x go; None: where the layer's router sends them.
        """
        ends = fed_by(self.architecture, self.number, first)
        routed = self.routes(first, x) if routed is None else routed
        outputs = (self.output(end, self.input(end, x, routed), routed) for end in ends)
        total = functools.reduce(torch.add, outputs)
        return total.view(*x.shape[:-1], total.shape[-1])

    def _form(self, stage: Stage) -> Architecture:
        """The decoder's, or that of its gated blocks."""
        if not stage.cross:
            return self.architecture
        assert self._cross is not None
        return self._cross

    def _looked_at(self, queries: torch.Tensor) -> torch.Tensor:
        """What the positions of queries [b, t, heads * d] see of pictures, of the same shape."""
        form, pictures = self._cross, self._positions.looked_at
        assert form is not None
        if pictures is None:
            return torch.zeros_like(queries)
        split = queries.view(*queries.shape[:2], form.heads, form.head_size)
        if "cross_attn_q_norm.weight" in self.weights:
            split = normalise(form, self.weights, "cross_attn_q_norm", split)
        mixed = pictures.attended(self.number, split.transpose(1, 2), fp16=self._kv_fp16)
        return mixed.transpose(1, 2).reshape(queries.shape)

    def _attention(self, stage: Stage, products: Iterator[torch.Tensor]) -> torch.Tensor:
        """Mixes queries, keys and values [b, t, heads * d] to [b, t, heads * d]."""
        a = self.architecture
        table = a.rope_tables[self.number]

        def heads(name: str, count: int) -> torch.Tensor:
            projected = next(products)
            split = (*projected.shape[:2], count, a.head_size)
            normed = a.qk_norm and name != stage.made_of[2]
            if normed and a.qk_norm_kind == "width":
                projected = normalise(a, self.weights, f"{name}_norm", projected)
            projected = projected.view(split)
            if normed and a.qk_norm_kind != "width":
                projected = normalise(a, self.weights, f"{name}_norm", projected)
            if a.qkv_clamp:
                projected = projected.clamp(-a.qkv_clamp, a.qkv_clamp)
            return projected.transpose(1, 2)  # [b, h, t, d]

        query, key, value = stage.made_of
        queries = rotate(heads(query, a.heads), self._positions, table)
        keys = rotate(heads(key, a.kv_heads), self._positions, table)
        values = heads(value, a.kv_heads)
        if self._kv_fp16:
            keys, values = keys.half().float(), values.half().float()
        repeats = a.heads // a.kv_heads  # query heads that share one key-value head
        keys = keys.repeat_interleave(repeats, dim=1)
        values = values.repeat_interleave(repeats, dim=1)
        b, _, t, _ = queries.shape
        mixed = self._mix(queries, keys, values, stage.window if stage.window < t else 0)
        return mixed.transpose(1, 2).reshape(b, t, a.heads * a.head_size)

    def _mix(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, window: int
    ) -> torch.Tensor:
        """Values [b, h, t, d] weighed by how well their keys answer each query.

        Args:
            queries: [b, h, t, d].
            keys: The same.
            values: The same.
            window: Positions that a query sees, its own included; 0: all before it.
        """
        a, slopes, ends = self.architecture, self._positions.slopes, self._positions.ends
        if self._positions.visible is not None:
            visible = self._positions.visible
            return F.scaled_dot_product_attention(queries, keys, values, attn_mask=visible)
        if not window and slopes is None and not a.score_cap and ends is None:
            return F.scaled_dot_product_attention(queries, keys, values, is_causal=a.causal)
        numbers = torch.arange(queries.shape[2], device=queries.device)
        distance = numbers[:, None] - numbers
        visible = distance >= 0 if ends is None else numbers < ends[:, None, :, None]
        if window:
            visible = visible & (distance < window)
        if slopes is None and not a.score_cap:
            return F.scaled_dot_product_attention(queries, keys, values, attn_mask=visible)
        if slopes is None:
            scores = capped(queries @ keys.transpose(2, 3) * a.head_size**-0.5, a.score_cap)
            weights = torch.softmax(scores.masked_fill(~visible, -torch.inf), dim=-1)
            return weights @ values
        biases = (-slopes[:, None, None] * distance).masked_fill(~visible, -torch.inf)
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=biases)


def ends_of_pictures(where: torch.Tensor) -> torch.Tensor:
    """Before which position each one sees where rows of a picture see each other.

    Args:
        where: Rows of pictures stand, bool [b, t]; those side by side are of one picture.

    Returns:
        int64 [b, t]: the end of its picture, and of a token the position behind its own.
    """
    t = where.shape[1]
    numbers = torch.arange(1, t + 1, device=where.device).expand(where.shape)
    last = where & ~F.pad(where, (0, 1))[:, 1:]
    ends = numbers.masked_fill(~last & where, t)
    return ends.flip(1).cummin(dim=1).values.flip(1)


def logits_of(
    architecture: Architecture, product: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Logits, for the head matrix's product [.., vocabulary] and the head's bias [vocabulary]."""
    return capped(product if bias is None else product + bias, architecture.logit_cap)


@torch.inference_mode()
def logits(
    weights: WeightSource,
    architecture: Architecture,
    tokens: torch.Tensor,
    activation_group_size: ActivationGroups = None,
    kv_fp16: bool = False,
    pictures: tuple[torch.Tensor, torch.Tensor] | None = None,
    *,
    both_ways: bool = False,
    turns: torch.Tensor | None = None,
    looked_at: LookedAt | None = None,
) -> torch.Tensor:
    """Logits of every position, float32 [b, t, vocabulary]; one layer's weights at a time.

    Args:
        weights: Gives a tensor by its name in the model file.
        architecture: The decoder.
        tokens: int64 [b, t], each row a sequence of its own.
        activation_group_size: Round the input of every matrix to int8 per token and group of this
            many, or of the number given for the matrix's name; None keeps floats.
        kv_fp16: Round keys and values to fp16.
        pictures: Where rows of pictures stand instead of tokens', bool [b, t], and these rows in
            order, float32 [n, hidden], or more: a layer's output takes up one ``hidden`` after the
            other of what follows.
        both_ways: Rows of a picture, those side by side, see each other.
        turns: The three numbers of every position, int64 [3, t]; None: its own.
        looked_at: Pictures that gated blocks attend to.
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
    if pictures is not None:
        tokens = tokens.masked_fill(pictures[0], 0)  # a placeholder may lie behind the vocabulary
    rows = weights("token_embd.weight")[tokens].float()
    if pictures is not None:
        rows[pictures[0]] = pictures[1][:, : a.hidden_size]
    hidden = embedded(a, weights, rows)
    positions = Positions.of(a, tokens.shape[1], weights, hidden.device, turns)
    if pictures is not None and both_ways:
        positions = dataclasses.replace(positions, ends=ends_of_pictures(pictures[0]))
    positions = dataclasses.replace(positions, looked_at=looked_at)
    for number in range(a.layers):
        prefix = f"blk.{number}."
        tensors = {name: weights(prefix + name) for name in layer_tensor_names(a, number)}
        linear = multiply_by(prefix, tensors)
        hidden = Layer(a, number, tensors, positions, linear, kv_fp16=kv_fp16).run(hidden)
        first = (1 + number) * a.hidden_size
        if pictures is not None and first < pictures[1].shape[1]:
            hidden[pictures[0]] += pictures[1][:, first : first + a.hidden_size]
    hidden = ended(a, weights, hidden)
    head = head_name(a)
    product = multiply_by("", {head: weights(head)})(head[: -len(".weight")], hidden)
    return logits_of(a, product, weights("output.bias") if a.head_bias else None)
