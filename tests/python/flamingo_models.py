"""Small random OpenFlamingos as they are released, and their arithmetic in plain torch.

The tower and, where there is one, the language model are transformers' own classes; what is
between them is written from the paper's and the program's description, with the names of the
release. Nothing here is shared with the package.
"""

import dataclasses
import json
import math

import torch
import torch.nn.functional as F
import transformers as tf
from safetensors.torch import save_file
from vision_models import WORDS

SIDE, WIDTH, TOWER_WIDTH = 26, 64, 48
WORD_COUNT = 150  # of the language model's tokenizer
END_OF_SHOT, PICTURE = WORD_COUNT, WORD_COUNT + 1
ROWS_OF_TABLE = WORD_COUNT + 3  # with the word for padding
HEAD = 64
DEPTH, LATENTS = 2, 5
_TOWER = dict(
    hidden_size=TOWER_WIDTH,
    intermediate_size=88,
    num_hidden_layers=3,
    num_attention_heads=3,
    image_size=SIDE,
    patch_size=6,
)
_MPT = dict(d_model=WIDTH, n_heads=4, n_layers=4, max_seq_len=256, expansion_ratio=4)
_SHARED = dict(
    hidden_size=WIDTH,
    intermediate_size=96,
    num_hidden_layers=4,
    num_attention_heads=4,
    max_position_embeddings=256,
)


def _mpt():
    config = tf.MptConfig(**_MPT, vocab_size=160)
    return tf.MptForCausalLM(config)


def _neox():
    config = tf.GPTNeoXConfig(
        **_SHARED, vocab_size=160, rotary_pct=1.0, use_parallel_residual=False
    )
    return tf.GPTNeoXForCausalLM(config)


def _llama():
    return tf.LlamaForCausalLM(tf.LlamaConfig(**_SHARED, vocab_size=WORD_COUNT))


def _opt():
    config = tf.OPTConfig(
        hidden_size=WIDTH,
        ffn_dim=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=256,
        vocab_size=160,
        word_embed_proj_dim=WIDTH,
    )
    return tf.OPTForCausalLM(config)


class FirstMpt(torch.nn.Module):
    """MPT-1B: norms over the whole width of queries and keys, ALiBi, no biases anywhere."""

    def __init__(self, heads=4, layers=4):
        super().__init__()
        self.heads = heads
        self.tensors = torch.nn.ParameterDict()
        shapes = {"wte.weight": (160, WIDTH), "ln_f.weight": (WIDTH,)}
        for n in range(layers):
            block = f"blocks.{n}."
            for norm in ("ln_1", "ln_2", "attn.q_ln", "attn.k_ln"):
                shapes[f"{block}{norm}.weight"] = (WIDTH,)
            shapes[f"{block}attn.Wqkv.weight"] = (3 * WIDTH, WIDTH)
            shapes[f"{block}attn.out_proj.weight"] = (WIDTH, WIDTH)
            shapes[f"{block}mlp.mlp_up.weight"] = (2 * WIDTH, WIDTH)
            shapes[f"{block}mlp.mlp_down.weight"] = (WIDTH, 2 * WIDTH)
        for name, shape in shapes.items():
            self.tensors[name.replace(".", "/")] = torch.nn.Parameter(torch.zeros(shape))
        self.layers = torch.nn.ModuleList(torch.nn.Identity() for _ in range(layers))

    def named_parameters(self, *args, **kwargs):
        for name, value in self.tensors.items():
            yield f"transformer.{name.replace('/', '.')}", value

    def state_dict(self):
        return {name: value.detach() for name, value in self.named_parameters()}

    def save_pretrained(self, directory):
        keys = dict(
            model_type="mosaic_gpt",
            d_model=WIDTH,
            n_heads=self.heads,
            n_layers=len(self.layers),
            mlp_ratio=2,
            max_seq_len=256,
            vocab_size=160,
            alibi=True,
            alibi_bias_max=8,
            attn_qk_ln=True,
            attn_clip_qkv=None,
            no_bias=True,
            low_precision_layernorm=True,
        )
        (directory / "config.json").write_text(json.dumps(keys))
        save_file(
            {k: v.contiguous() for k, v in self.state_dict().items()},
            directory / "model.safetensors",
        )

    def forward(self, tokens):
        w = dict(self.named_parameters())
        x = w["transformer.wte.weight"][tokens]
        t, d = tokens.shape[1], WIDTH // self.heads
        slopes = 2.0 ** (-8.0 * (torch.arange(self.heads) + 1) / self.heads)
        distance = torch.arange(t)[:, None] - torch.arange(t)
        bias = -slopes[:, None, None] * distance
        bias = bias.masked_fill(distance < 0, -math.inf)

        def norm(name, value):
            return F.layer_norm(value, (WIDTH,), w[f"transformer.{name}.weight"])

        for n, entry in enumerate(self.layers):
            x = entry(x)
            block = f"blocks.{n}"
            fused = norm(f"{block}.ln_1", x) @ w[f"transformer.{block}.attn.Wqkv.weight"].T
            q, k, v = fused.chunk(3, dim=-1)
            q, k = norm(f"{block}.attn.q_ln", q), norm(f"{block}.attn.k_ln", k)
            q, k, v = (one.unflatten(-1, (self.heads, d)).transpose(1, 2) for one in (q, k, v))
            weights = torch.softmax(q @ k.transpose(2, 3) / d**0.5 + bias, dim=-1)
            mixed = (weights @ v).transpose(1, 2).flatten(2)
            x = x + mixed @ w[f"transformer.{block}.attn.out_proj.weight"].T
            inner = norm(f"{block}.ln_2", x) @ w[f"transformer.{block}.mlp.mlp_up.weight"].T
            x = x + F.gelu(inner) @ w[f"transformer.{block}.mlp.mlp_down.weight"].T
        return norm("ln_f", x) @ w["transformer.wte.weight"].T


@dataclasses.dataclass(frozen=True)
class Kind:
    """A language model: how it is made, its layers and table by name, and blocks before every."""

    make: object
    layers: str
    table: str
    every: int


KINDS = {
    "mpt": Kind(_mpt, "transformer.blocks", "transformer.wte", 4),
    "mosaic_gpt": Kind(FirstMpt, "transformer.blocks", "transformer.wte", 1),
    "gpt_neox": Kind(_neox, "gpt_neox.layers", "gpt_neox.embed_in", 2),
    "llama": Kind(_llama, "model.layers", "model.embed_tokens", 2),
    "opt": Kind(_opt, "model.decoder.layers", "model.decoder.embed_tokens", 1),
}


def _far_from_nothing(named):
    with torch.no_grad():
        for name, parameter in named:
            if "gate" in name and "proj" not in name:
                parameter.normal_(0, 1.0)
            elif parameter.dim() > 1:
                parameter.normal_(0, 0.5 if "emb" in name or "wte" in name else 0.08)
            else:
                parameter.normal_(0, 0.3)
                norm = any(word in name for word in ("norm", "ln_", "_ln", "ff.0.", ".1.0."))
                if norm and name.endswith("weight"):
                    parameter.add_(1.0)


class Flamingo:
    """A random model of a kind, with its arithmetic."""

    def __init__(self, kind, seed=0):
        torch.manual_seed(seed)
        self.kind = KINDS[kind]
        self.tower = tf.CLIPVisionModel(tf.CLIPVisionConfig(**_TOWER)).eval()
        self.language = self.kind.make().eval()
        _far_from_nothing(self.tower.named_parameters())
        _far_from_nothing(self.language.named_parameters())
        self.trained = self._trained()
        _far_from_nothing(self.trained.items())
        self._enlarge()

    def _trained(self):
        inner = 2 * HEAD
        shapes = {"perceiver.latents": (LATENTS, TOWER_WIDTH)}
        for n in range(DEPTH):
            layer = f"perceiver.layers.{n}."
            for norm in ("0.norm_media", "0.norm_latents", "1.0"):
                shapes[f"{layer}{norm}.weight"] = shapes[f"{layer}{norm}.bias"] = (TOWER_WIDTH,)
            shapes[f"{layer}0.to_q.weight"] = (inner, TOWER_WIDTH)
            shapes[f"{layer}0.to_kv.weight"] = (2 * inner, TOWER_WIDTH)
            shapes[f"{layer}0.to_out.weight"] = (TOWER_WIDTH, inner)
            shapes[f"{layer}1.1.weight"] = (4 * TOWER_WIDTH, TOWER_WIDTH)
            shapes[f"{layer}1.3.weight"] = (TOWER_WIDTH, 4 * TOWER_WIDTH)
        shapes["perceiver.norm.weight"] = shapes["perceiver.norm.bias"] = (TOWER_WIDTH,)
        for n in self.numbers:
            block = f"lang_encoder.gated_cross_attn_layers.{n}."
            shapes[f"{block}attn_gate"] = shapes[f"{block}ff_gate"] = (1,)
            for norm in ("attn.norm", "ff.0"):
                shapes[f"{block}{norm}.weight"] = shapes[f"{block}{norm}.bias"] = (WIDTH,)
            shapes[f"{block}attn.to_q.weight"] = (inner, WIDTH)
            shapes[f"{block}attn.to_kv.weight"] = (2 * inner, TOWER_WIDTH)
            shapes[f"{block}attn.to_out.weight"] = (WIDTH, inner)
            shapes[f"{block}ff.1.weight"] = (4 * WIDTH, WIDTH)
            shapes[f"{block}ff.3.weight"] = (WIDTH, 4 * WIDTH)
        return {name: torch.zeros(shape) for name, shape in shapes.items()}

    def _enlarge(self):
        """The tables as training leaves them: rows for the two words and padding, no others."""
        name = f"{self.kind.table}.weight"
        self.trained[f"lang_encoder.{name}"] = 0.5 * torch.randn(ROWS_OF_TABLE, WIDTH)

    @property
    def numbers(self):
        return [n for n in range(4) if (n + 1) % self.kind.every == 0]

    def layers(self):
        if isinstance(self.language, FirstMpt):
            return self.language.layers
        return self.language.get_submodule(self.kind.layers)

    # ---- arithmetic ----------------------------------------------------------------------

    def seen(self, pixels):
        """Rows that a picture becomes, [p, LATENTS, TOWER_WIDTH]."""
        w = self.trained
        states = self.tower(pixels, output_hidden_states=True).hidden_states
        x = states[-1][:, 1:]  # as the last layer leaves it: no norm behind, no class token

        def norm(name, value):
            return F.layer_norm(value, value.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

        stream = w["perceiver.latents"].expand(len(x), -1, -1)
        for n in range(DEPTH):
            layer = f"perceiver.layers.{n}."
            own = norm(f"{layer}0.norm_latents", stream)
            both = torch.cat((norm(f"{layer}0.norm_media", x), own), dim=1)
            q = own @ w[f"{layer}0.to_q.weight"].T
            k, v = (both @ w[f"{layer}0.to_kv.weight"].T).chunk(2, dim=-1)
            stream = stream + _mixed(q, k, v, None) @ w[f"{layer}0.to_out.weight"].T
            inner = F.gelu(norm(f"{layer}1.0", stream) @ w[f"{layer}1.1.weight"].T)
            stream = stream + inner @ w[f"{layer}1.3.weight"].T
        return norm("perceiver.norm", stream)

    def block(self, number, x, rows, times):
        """A gated block on a stream [1, t, WIDTH]."""
        name = f"lang_encoder.gated_cross_attn_layers.{number}."
        w = {key[len(name) :]: v for key, v in self.trained.items() if key.startswith(name)}

        def norm(part, value):
            return F.layer_norm(value, (WIDTH,), w[f"{part}.weight"], w[f"{part}.bias"])

        q = norm("attn.norm", x) @ w["attn.to_q.weight"].T
        k, v = (rows.flatten(0, 1)[None] @ w["attn.to_kv.weight"].T).chunk(2, dim=-1)
        which = torch.arange(len(rows)).repeat_interleave(LATENTS) + 1
        mixed = _mixed(q, k, v, times[:, None] == which)
        mixed = torch.where((times > 0)[None, :, None], mixed, 0.0)
        x = x + torch.tanh(w["attn_gate"]) * (mixed @ w["attn.to_out.weight"].T)
        inner = F.gelu(norm("ff.0", x) @ w["ff.1.weight"].T)
        return x + torch.tanh(w["ff_gate"]) * (inner @ w["ff.3.weight"].T)

    @torch.no_grad()
    def logits(self, tokens, pixels):
        """Of a text [t] of ids, with the pictures that its words for them stand for."""
        rows = self.seen(pixels)
        times = (torch.tensor(tokens) == PICTURE).cumsum(0)
        hooks = []
        layers = self.layers()
        for number in self.numbers:

            def before(_module, args, kwargs, number=number):
                x = args[0] if args else kwargs["hidden_states"]
                changed = self.block(number, x, rows, times)
                if args:
                    return (changed, *args[1:]), kwargs
                return args, {**kwargs, "hidden_states": changed}

            hooks.append(layers[number].register_forward_pre_hook(before, with_kwargs=True))
        whole = self._language_with_tables()
        try:
            out = whole(torch.tensor([tokens]))
        finally:
            for hook in hooks:
                hook.remove()
        return out if isinstance(out, torch.Tensor) else out.logits

    def _language_with_tables(self):
        table = self.trained[f"lang_encoder.{self.kind.table}.weight"]
        if isinstance(self.language, FirstMpt):
            self.language.tensors["wte/weight"] = torch.nn.Parameter(table)
            return self.language
        head = self.language.get_output_embeddings().weight.detach()
        tied = self.language.config.tie_word_embeddings
        self.language.get_input_embeddings().weight = torch.nn.Parameter(table)
        if tied:
            head = table
        elif len(head) < len(table):  # rows that nobody trained and no file holds
            head = torch.cat((head, torch.zeros(len(table) - len(head), WIDTH)))
        self.language.get_output_embeddings().weight = torch.nn.Parameter(head[: len(table)])
        return self.language

    # ---- files ---------------------------------------------------------------------------

    def save(self, directory, names="layers"):
        """As a user arranges the release.

        Args:
            directory: Where.
            names: Of blocks: ``layers``, as today's files have them; ``list``, as older ones;
                ``training``, as a training writes them, with everything twice.
        """
        for folder in ("language_model", "vision_tower"):
            (directory / folder).mkdir()
        self.tower.save_pretrained(directory / "vision_tower")
        self.language.save_pretrained(directory / "language_model")
        save_tokenizer(directory / "language_model")
        tensors = {}
        for name, value in self.trained.items():
            inside = name.replace(
                "lang_encoder.gated_cross_attn_layers.", f"lang_encoder.{self.kind.layers}."
            )
            if inside != name:
                number, _, rest = inside[len(f"lang_encoder.{self.kind.layers}.") :].partition(".")
                inside = f"lang_encoder.{self.kind.layers}.{number}.gated_cross_attn_layer.{rest}"
            if names in ("list", "training"):
                tensors[name] = value
            if names in ("layers", "training"):
                tensors[inside] = value
        if names == "training":
            own = self.language.state_dict()
            first = f"{self.kind.layers}.0."
            for name in [name for name in own if name.startswith(first)]:
                rest = name[len(first) :]
                tensors[f"lang_encoder.{first}decoder_layer.{rest}"] = own[name]
                tensors[f"lang_encoder.old_decoder_blocks.0.{rest}"] = own[name]
            tensors["vision_encoder.class_embedding"] = torch.zeros(TOWER_WIDTH)
            wrapped = {f"module.{name}": value for name, value in tensors.items()}
            whole = {"epoch": 3, "model_state_dict": wrapped, "lr_scheduler_state_dict": {"a": 1}}
            torch.save(whole, directory / "checkpoint.pt")
        else:
            torch.save(tensors, directory / "checkpoint.pt")


def _mixed(q, k, v, visible):
    split = (one.unflatten(-1, (-1, HEAD)).transpose(1, 2) for one in (q, k, v))
    q, k, v = split
    scores = q @ k.transpose(2, 3) / HEAD**0.5
    if visible is not None:
        scores = scores.masked_fill(~visible, -1e30)
    return (torch.softmax(scores, dim=-1) @ v).transpose(1, 2).flatten(2)


def save_tokenizer(directory):
    """Words, as the language model knows them: none for pictures."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    special = ["<unk>", "<s>", "</s>"]
    pieces = [*special, *WORDS, *"<>image|", "Output", "a", "of", ".", ":", "endofchunk"]
    pieces += [f"word{number}" for number in range(WORD_COUNT - len(pieces))]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.WordPiece(vocabulary, unk_token="<unk>", continuing_subword_prefix="")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(one, special=True) for one in special])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"eos_token": "</s>", "tokenizer_class": "TokenizersBackend"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
