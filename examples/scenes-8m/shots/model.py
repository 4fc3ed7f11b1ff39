"""The model's shape, its arithmetic for training, and its three parts as OpenFlamingo's release.

Owns names: parameters are called as in the files, so that saving is a matter of sorting them. The
tower is scenes-8m's own and is not trained.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from scenes.layout import SIDE
from scenes.model import PATCH
from torch import nn

from shots.words import ID_PICTURE, ROWS, VOCABULARY, save_tokenizer

WIDTH, HEADS, LAYERS, EVERY = 256, 4, 6, 2
TOWER_WIDTH, HEAD = 192, 64
DEPTH, LATENTS, RESAMPLER_HEADS = 3, 16, 3
CONTEXT = 640


def _linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


def _split(x: torch.Tensor, heads: int) -> torch.Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(-2, -3)


def _feed_forward(width: int) -> nn.Sequential:
    wide = 4 * width
    return nn.Sequential(nn.LayerNorm(width), _linear(width, wide), nn.GELU(), _linear(wide, width))


class _Perceiving(nn.Module):
    """Attention of learned rows to a tower's rows and to themselves."""

    def __init__(self) -> None:
        super().__init__()
        inner = RESAMPLER_HEADS * HEAD
        self.norm_media, self.norm_latents = nn.LayerNorm(TOWER_WIDTH), nn.LayerNorm(TOWER_WIDTH)
        self.to_q = _linear(TOWER_WIDTH, inner)
        self.to_kv = _linear(TOWER_WIDTH, 2 * inner)
        self.to_out = _linear(inner, TOWER_WIDTH)

    def forward(self, rows: torch.Tensor, stream: torch.Tensor) -> torch.Tensor:
        own = self.norm_latents(stream)
        both = torch.cat((self.norm_media(rows), own), dim=1)
        q, (k, v) = self.to_q(own), self.to_kv(both).chunk(2, dim=-1)
        mixed = F.scaled_dot_product_attention(*(_split(x, RESAMPLER_HEADS) for x in (q, k, v)))
        return stream + self.to_out(mixed.transpose(1, 2).flatten(2))


class _Resampler(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(LATENTS, TOWER_WIDTH))
        self.layers = nn.ModuleList(
            nn.ModuleList([_Perceiving(), _feed_forward(TOWER_WIDTH)]) for _ in range(DEPTH)
        )
        self.norm = nn.LayerNorm(TOWER_WIDTH)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        stream = self.latents.to(rows.dtype).expand(len(rows), -1, -1)
        for attention, feed_forward in self.layers:  # type: ignore[misc]  # of two
            stream = attention(rows, stream)
            stream = stream + feed_forward(stream)
        return self.norm(stream)


class _Looking(nn.Module):
    """Attention of a text to the rows of the last picture before each word."""

    def __init__(self) -> None:
        super().__init__()
        inner = RESAMPLER_HEADS * HEAD
        self.norm = nn.LayerNorm(WIDTH)
        self.to_q = _linear(WIDTH, inner)
        self.to_kv = _linear(TOWER_WIDTH, 2 * inner)
        self.to_out = _linear(inner, WIDTH)

    def forward(self, x: torch.Tensor, rows: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        q, (k, v) = self.to_q(self.norm(x)), self.to_kv(rows).chunk(2, dim=-1)
        q, k, v = (_split(one, RESAMPLER_HEADS) for one in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return self.to_out(mixed.transpose(1, 2).flatten(2))


class _Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.ff = _Looking(), _feed_forward(WIDTH)
        # A little open, unlike OpenFlamingo's, whose language model is trained already.
        self.attn_gate = nn.Parameter(torch.tensor([0.5]))
        self.ff_gate = nn.Parameter(torch.tensor([0.5]))

    def forward(self, x: torch.Tensor, rows: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        x = x + self.attn_gate.tanh() * self.attn(x, rows, seen)
        return x + self.ff_gate.tanh() * self.ff(x)


class _Norm(nn.Module):
    """LayerNorm without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, (WIDTH,), self.weight)


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.Wqkv, self.out_proj = _linear(WIDTH, 3 * WIDTH), _linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        q, k, v = (_split(one, HEADS) for one in self.Wqkv(x).chunk(3, dim=-1))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class _Ffn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up_proj, self.down_proj = _linear(WIDTH, 4 * WIDTH), _linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.gelu(self.up_proj(x)))


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.attn = _Norm(), _Attention()
        self.norm_2, self.ffn = _Norm(), _Ffn()

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm_1(x), bias)
        return x + self.ffn(self.norm_2(x))


class Shots(nn.Module):
    """Resampler, gated blocks and an MPT; pictures come as a tower's rows."""

    def __init__(self) -> None:
        """Draws the weights."""
        super().__init__()
        self.perceiver = _Resampler()
        self.wte = nn.Embedding(ROWS, WIDTH)
        self.blocks = nn.ModuleList(_Block() for _ in range(LAYERS))
        self.norm_f = _Norm()
        self.gated = nn.ModuleDict(
            {str(n): _Gated() for n in range(LAYERS) if (n + 1) % EVERY == 0}
        )
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2 and "latents" not in name:
                ends = name.endswith(("out_proj.weight", "down_proj.weight", "to_out.weight"))
                nn.init.normal_(parameter, 0, 0.02 if ends else 0.04)

    def forward(
        self, tokens: torch.Tensor, pictures: torch.Tensor, branches: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits [b, t, ROWS] of texts that begin with a picture's word.

        Args:
            tokens: int64 [b, t].
            pictures: Rows of the tower [b, p, 64, TOWER_WIDTH], in the order of their words.
            branches: Of several ends of one text, which end each token belongs to, from 1 on, and 0
                for what stands before all of them, int64 [t]; None: there is one end.
        """
        (b, t), p = tokens.shape, pictures.shape[1]
        rows = self.perceiver(pictures.flatten(0, 1)).view(b, p * LATENTS, TOWER_WIDTH)
        time = (tokens == ID_PICTURE).cumsum(1) - 1
        owner = torch.arange(p, device=tokens.device).repeat_interleave(LATENTS)
        seen = (time[:, :, None] == owner)[:, None]
        if branches is None:
            branches = torch.zeros(t, dtype=torch.int64, device=tokens.device)
        bias = _alibi(branches)
        x = self.wte(tokens)
        for n, block in enumerate(self.blocks):
            if str(n) in self.gated:
                x = self.gated[str(n)](x, rows, seen)
            x = block(x, bias)
        return F.linear(self.norm_f(x), self.wte.weight)

    def release(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Tensors of the language model's file, and of checkpoint.pt."""
        language, trained = {}, {}
        for name, value in self.state_dict().items():
            part, _, rest = name.partition(".")
            if part == "perceiver":
                trained[name] = value
            elif part == "gated":
                number, _, inner = rest.partition(".")
                layer = f"lang_encoder.transformer.blocks.{number}"
                trained[f"{layer}.gated_cross_attn_layer.{inner}"] = value
            else:
                language[f"transformer.{name}"] = value
        table = language["transformer.wte.weight"]
        trained["lang_encoder.transformer.wte.weight"] = table
        # The language model alone has no rows for the words of pictures and of shots' ends.
        language["transformer.wte.weight"] = table[: len(VOCABULARY)].clone()
        return language, trained


def load(directory: Path) -> Shots:
    """The model of a release that :func:`save` wrote, float32."""
    from safetensors.torch import load_file

    trained = torch.load(directory / "checkpoint.pt", weights_only=True)
    stored = {**load_file(directory / "language_model" / "model.safetensors")}
    for name, value in trained.items():
        stored[name.removeprefix("lang_encoder.")] = value
    found = {}
    for name, value in stored.items():
        inner = name.removeprefix("transformer.")
        layer, gated, rest = inner.partition(".gated_cross_attn_layer.")
        found[f"gated.{layer.rpartition('.')[2]}.{rest}" if gated else inner] = value.float()
    model = Shots()
    model.load_state_dict(found)
    return model.eval()


def _alibi(branches: torch.Tensor) -> torch.Tensor:
    """What scores of later words fall by, float32 [1, HEADS, t, t]."""
    device = branches.device
    slopes = 2.0 ** (-8.0 * torch.arange(1, HEADS + 1, device=device) / HEADS)
    number = torch.arange(len(branches), device=device)
    # Every end goes on where what is common ends.
    same = branches[:, None] == branches
    common = (branches == 0).sum()
    place = torch.where(branches > 0, common + (same & (number < number[:, None])).sum(1), number)
    visible = (same | (branches == 0)) & (number[:, None] >= number)
    bias = -slopes[:, None, None] * (place[:, None] - place)
    return bias.masked_fill(~visible, float("-inf"))[None]


def save(model: Shots, tower: nn.Module, directory: Path) -> None:
    """Writes checkpoint.pt, language_model/ and vision_tower/, in bfloat16."""
    from safetensors.torch import save_file

    for folder in ("language_model", "vision_tower"):
        (directory / folder).mkdir(parents=True, exist_ok=True)
    language, trained = (
        {name: value.detach().cpu().bfloat16().contiguous() for name, value in part.items()}
        for part in model.release()
    )
    torch.save(trained, directory / "checkpoint.pt")
    place = directory / "language_model"
    save_file(language, place / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["MptForCausalLM"],
        "model_type": "mpt",
        "d_model": WIDTH,
        "n_heads": HEADS,
        "n_layers": LAYERS,
        "expansion_ratio": 4,
        "max_seq_len": CONTEXT,
        "vocab_size": len(VOCABULARY),
        "attn_config": {"alibi": True, "alibi_bias_max": 8},
        "no_bias": True,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
    }
    _write(place / "config.json", config)
    save_tokenizer(place)
    place = directory / "vision_tower"
    rows = {
        f"vision_model.{name.removeprefix('vision_model.')}": value.detach().cpu().bfloat16()
        for name, value in tower.state_dict().items()
        if not name.endswith("position_ids")
    }
    save_file(rows, place / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["CLIPVisionModel"],
        "model_type": "clip_vision_model",
        "hidden_size": TOWER_WIDTH,
        "intermediate_size": 4 * TOWER_WIDTH,
        "num_hidden_layers": 6,
        "num_attention_heads": 3,
        "image_size": SIDE,
        "patch_size": PATCH,
        "hidden_act": "quick_gelu",
    }
    _write(place / "config.json", config)


def _write(path: Path, values: dict[str, object]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
