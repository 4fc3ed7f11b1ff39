"""Small random nanoVLMs as their program saves them, and its arithmetic in plain torch.

Written from shared facts about the released program (tensor names, order of operations), with
nothing of ``awq_edge`` and no class of transformers.
"""

import json
import math

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

TILE, LONGEST = 26, 78
WORDS = {
    "image_token": "<|image|>",
    "global_image_token": "<|global_image|>",
    **{f"r{r}c{c}": f"<row_{r}_col_{c}>" for r in (1, 2, 3) for c in (1, 2, 3)},
}
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_OWN = 256 + len(SPECIAL)
TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONFIG = {
    "vit_hidden_dim": 48,
    "vit_inter_dim": 88,
    "vit_patch_size": 6,
    "vit_img_size": TILE,
    "vit_n_heads": 3,
    "vit_dropout": 0.0,
    "vit_n_blocks": 3,
    "vit_ln_eps": 1e-6,
    "vit_cls_flag": False,
    "vit_model_type": "google/siglip2-base-patch16-512",
    "lm_hidden_dim": 64,
    "lm_inter_dim": 96,
    "lm_rms_eps": 1e-5,
    "lm_re_base": 100000,
    "lm_max_position_embeddings": 512,
    "lm_base_vocab_size": _OWN,
    "extra_token_amount": len(WORDS),
    "lm_vocab_size": _OWN + len(WORDS),
    "lm_n_heads": 4,
    "lm_n_kv_heads": 2,
    "lm_dropout": 0.0,
    "lm_n_blocks": 2,
    "lm_attn_scaling": 1.0,
    "lm_max_length": 512,
    "lm_use_tokens": False,
    "lm_tie_weights": True,
    "lm_model_type": "HuggingFaceTB/SmolLM2-360M-Instruct",
    "lm_tokenizer": "HuggingFaceTB/SmolLM2-360M-Instruct",
    "lm_chat_template": TEMPLATE,
    "mp_pixel_shuffle_factor": 2,
    "mp_image_token_length": 4,
    "max_img_size": LONGEST,
    "resize_to_max_side_len": True,
    "vlm_extra_tokens": WORDS,
}


class NanoVlm:
    """One, its tensors by the names of its file.

    Attributes:
        config: Its config.json.
        tensors: Of a tied head the file holds one name of two, as its program leaves them there.
    """

    def __init__(self, seed=0, **keys):
        self.config = c = {**CONFIG, **keys}
        generator = torch.Generator().manual_seed(seed)
        tower, text = c["vit_hidden_dim"], c["lm_hidden_dim"]
        head = text // c["lm_n_heads"]
        patches = (c["vit_img_size"] // c["vit_patch_size"]) ** 2
        shapes = {
            "vision_encoder.patch_embedding.conv.weight": (tower, 3, *(c["vit_patch_size"],) * 2),
            "vision_encoder.patch_embedding.conv.bias": (tower,),
            "vision_encoder.patch_embedding.position_embedding": (1, patches, tower),
            "MP.proj.weight": (text, tower * c["mp_pixel_shuffle_factor"] ** 2),
            "decoder.norm.weight": (text,),
            "decoder.head.weight": (c["lm_vocab_size"], text),
            "decoder.rotary_embd.inv_freq": (head // 2,),
        }
        for n in range(c["vit_n_blocks"]):
            block = f"vision_encoder.blocks.{n}"
            for name, (rows, columns) in {
                "attn.qkv_proj": (3 * tower, tower),
                "attn.out_proj": (tower, tower),
                "mlp.fc1": (c["vit_inter_dim"], tower),
                "mlp.fc2": (tower, c["vit_inter_dim"]),
            }.items():
                shapes[f"{block}.{name}.weight"], shapes[f"{block}.{name}.bias"] = (
                    (rows, columns),
                    (rows,),
                )
            for norm in ("ln1", "ln2"):
                shapes[f"{block}.{norm}.weight"] = shapes[f"{block}.{norm}.bias"] = (tower,)
        shapes["vision_encoder.layer_norm.weight"] = (tower,)
        shapes["vision_encoder.layer_norm.bias"] = (tower,)
        for n in range(c["lm_n_blocks"]):
            block, kv = f"decoder.blocks.{n}", head * c["lm_n_kv_heads"]
            for name, shape in {
                "attn.q_proj": (text, text),
                "attn.k_proj": (kv, text),
                "attn.v_proj": (kv, text),
                "attn.out_proj": (text, text),
                "mlp.gate_proj": (c["lm_inter_dim"], text),
                "mlp.up_proj": (c["lm_inter_dim"], text),
                "mlp.down_proj": (text, c["lm_inter_dim"]),
                "norm1": (text,),
                "norm2": (text,),
            }.items():
                shapes[f"{block}.{name}.weight"] = shape
        if not c["lm_tie_weights"]:
            shapes["decoder.token_embedding.weight"] = shapes["decoder.head.weight"]
        self.tensors = {}
        for name, shape in shapes.items():
            large = 0.5 if "embedding" in name or "head" in name else 0.08
            values = torch.randn(shape, generator=generator) * (large if len(shape) > 1 else 0.3)
            norm = any(part in name for part in (".ln", "norm"))
            self.tensors[name] = values + (norm and name.endswith("weight"))

    def save(self, directory, tokenizer=True):
        """As its program does; the tokenizer is put beside it."""
        directory.mkdir(exist_ok=True)
        (directory / "config.json").write_text(json.dumps(self.config), encoding="utf-8")
        save_file(self.tensors, directory / "model.safetensors")
        if tokenizer:
            save_tokenizer(directory)
        return directory

    def rows(self, read):
        """What the decoder reads of tiles, float32 [b, rows, H].

        Args:
            read: Their bytes over 255, float32 [b, 3, s, s].
        """
        c, t = self.config, self.tensors
        tower, heads = c["vit_hidden_dim"], c["vit_n_heads"]
        first = "vision_encoder.patch_embedding"
        patch = c["vit_patch_size"]
        x = F.conv2d(read, t[f"{first}.conv.weight"], t[f"{first}.conv.bias"], stride=patch)
        x = x.flatten(2).transpose(1, 2) + t[f"{first}.position_embedding"]

        def norm(name, x):
            return F.layer_norm(
                x,
                (tower,),
                t[f"vision_encoder.{name}.weight"],
                t[f"vision_encoder.{name}.bias"],
                c["vit_ln_eps"],
            )

        def linear(name, x):
            return F.linear(x, t[f"vision_encoder.{name}.weight"], t[f"vision_encoder.{name}.bias"])

        for n in range(c["vit_n_blocks"]):
            block = f"blocks.{n}"
            parts = linear(f"{block}.attn.qkv_proj", norm(f"{block}.ln1", x)).split(tower, dim=2)
            q, k, v = (p.unflatten(2, (heads, -1)).transpose(1, 2) for p in parts)
            seen = (q @ k.transpose(2, 3) / math.sqrt(tower // heads)).softmax(3) @ v
            x = x + linear(f"{block}.attn.out_proj", seen.transpose(1, 2).flatten(2))
            inner = linear(f"{block}.mlp.fc1", norm(f"{block}.ln2", x))
            x = x + linear(f"{block}.mlp.fc2", F.gelu(inner, approximate="tanh"))
        x = norm("layer_norm", x)
        factor, side = c["mp_pixel_shuffle_factor"], c["vit_img_size"] // patch
        squares = [
            torch.cat(
                [x[:, (r + i) * side + col + j] for i in range(factor) for j in range(factor)],
                dim=1,
            )
            for r in range(0, side, factor)
            for col in range(0, side, factor)
        ]
        return F.linear(torch.stack(squares, 1), t["MP.proj.weight"])

    def embedding(self):
        """The table of tokens [vocabulary, H]."""
        return self.tensors.get(
            "decoder.token_embedding.weight", self.tensors["decoder.head.weight"]
        )

    def logits(self, x):
        """Of rows of one text, float32 [n, H]: [n, vocabulary]."""
        c, t = self.config, self.tensors
        heads, kv = c["lm_n_heads"], c["lm_n_kv_heads"]
        head = c["lm_hidden_dim"] // heads
        frequencies = 1.0 / c["lm_re_base"] ** (torch.arange(0, head, 2).float() / head)
        angles = torch.arange(len(x)).float()[:, None] * frequencies
        cosines, sines = (torch.cat((f(angles), f(angles)), 1) for f in (torch.cos, torch.sin))

        def norm(name, x):
            mean = x.pow(2).mean(1, keepdim=True)
            return x * (mean + c["lm_rms_eps"]).rsqrt() * t[f"decoder.{name}.weight"]

        def turned(x):
            first, second = x.chunk(2, dim=2)
            half = torch.cat((-second, first), dim=2)
            return x * cosines[:, None] + half * sines[:, None]

        hidden = torch.ones(len(x), len(x)).triu(1).bool()
        for n in range(c["lm_n_blocks"]):
            block = f"blocks.{n}"

            def linear(name, x, block=block):
                return x @ t[f"decoder.{block}.{name}.weight"].T

            read = norm(f"{block}.norm1", x)
            q = turned(linear("attn.q_proj", read).unflatten(1, (heads, head)))
            k = turned(linear("attn.k_proj", read).unflatten(1, (kv, head)))
            v = linear("attn.v_proj", read).unflatten(1, (kv, head))
            k, v = (one.repeat_interleave(heads // kv, dim=1) for one in (k, v))
            scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(head)
            weights = scores.masked_fill(hidden, -math.inf).softmax(2)
            seen = torch.einsum("hqk,khd->qhd", weights, v).flatten(1)
            x = x + linear("attn.out_proj", seen)
            read = norm(f"{block}.norm2", x)
            inner = F.silu(linear("mlp.gate_proj", read)) * linear("mlp.up_proj", read)
            x = x + linear("mlp.down_proj", inner)
        return norm("norm", x) @ t["decoder.head.weight"].T


def save_tokenizer(directory):
    """A tokenizer of bytes with SmolLM2's special tokens, which knows no picture."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: n for n, piece in enumerate([*SPECIAL, *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(one, special=True) for one in SPECIAL])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "bos_token": SPECIAL[1],
        "eos_token": SPECIAL[2],
        "additional_special_tokens": list(SPECIAL[1:]),
        "tokenizer_class": "GPT2Tokenizer",
        "chat_template": "not this one",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
