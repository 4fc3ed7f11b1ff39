"""Small random VILA models: each part saved by its own class into a folder of its own."""

import json

import sentencepiece
import torch
import transformers as tf
from safetensors.torch import save_file
from vision_models import TEXT, TOWER, WORDS

_HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3}
SIGLIP_SETTINGS = {
    "image_processor_type": "SiglipImageProcessor",
    "size": {"height": 26, "width": 26},
    **_HALF,
}
CLIP_SETTINGS = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 26},
    "crop_size": {"height": 26, "width": 26},
    "resample": 3,
}
_HIDDEN, _WIDTH = TEXT["hidden_size"], TOWER["hidden_size"]
# Of each kind of connector: what its tensors are called and their shapes.
_SHAPES = {
    "linear": {"layers.weight": (_HIDDEN, _WIDTH), "layers.bias": (_HIDDEN,)},
    "mlp2x_gelu": {
        "layers.0.weight": (_HIDDEN, _WIDTH),
        "layers.0.bias": (_HIDDEN,),
        "layers.2.weight": (_HIDDEN, _HIDDEN),
        "layers.2.bias": (_HIDDEN,),
    },
    "mlp_downsample": {
        "layers.1.weight": (4 * _WIDTH,),
        "layers.1.bias": (4 * _WIDTH,),
        "layers.2.weight": (_HIDDEN, 4 * _WIDTH),
        "layers.2.bias": (_HIDDEN,),
        "layers.4.weight": (_HIDDEN, _HIDDEN),
        "layers.4.bias": (_HIDDEN,),
    },
}


class Vila:
    """The parts of one, for a test to put together.

    Attributes:
        llm: Of transformers.
        tower: The same.
        projector: Tensors by their names in the file.
    """

    def __init__(self, kind="mlp_downsample", tower="siglip", seed=0, decoder="llama", **text):
        torch.manual_seed(seed)
        self.kind = kind
        self.clip = tower == "clip"
        config = {**TEXT, **text}
        self.second = decoder == "qwen2"
        if self.second:
            self.llm = tf.Qwen2ForCausalLM(tf.Qwen2Config(**config)).eval()
        else:
            self.llm = tf.LlamaForCausalLM(tf.LlamaConfig(**config)).eval()
        of_tower = tf.CLIPVisionConfig if self.clip else tf.SiglipVisionConfig
        made = tf.CLIPVisionModel if self.clip else tf.SiglipVisionModel
        self.tower = made(of_tower(**TOWER)).eval()
        self.projector = {name: torch.empty(shape) for name, shape in _SHAPES[kind].items()}
        tensors = [*self.llm.named_parameters(), *self.tower.named_parameters()]
        with torch.no_grad():
            for name, tensor in [*tensors, *self.projector.items()]:
                tensor.normal_(0, (0.5 if "embed" in name else 0.08) if tensor.dim() > 1 else 0.3)
                if tensor.dim() == 1 and ("norm" in name or name == "layers.1.weight"):
                    tensor.add_(name.endswith("weight"))

    def save(self, directory, tokenizer="sentencepiece", **keys):
        """As a checkpoint; ``keys`` of config.json."""
        self.llm.save_pretrained(directory / "llm")
        self.tower.save_pretrained(directory / "vision_tower")
        folder = directory / "mm_projector"
        folder.mkdir()
        save_file(self.projector, folder / "model.safetensors", metadata={"format": "pt"})
        settings = CLIP_SETTINGS if self.clip else SIGLIP_SETTINGS
        for place, values in (
            (folder / "config.json", {"mm_projector_type": self.kind}),
            (directory / "vision_tower" / "preprocessor_config.json", settings),
            (
                directory / "config.json",
                {
                    "model_type": "llava_llama",
                    "architectures": ["LlavaLlamaModel"],
                    "llm_cfg": {},
                    "vision_tower_cfg": {},
                    "mm_projector_cfg": {},
                    "mm_vision_select_layer": -2,
                    "mm_vision_select_feature": "patch" if self.clip else "cls_patch",
                    "image_aspect_ratio": "dynamic" if self.second else "resize",
                    **keys,
                },
            ),
        ):
            place.write_text(json.dumps(values), encoding="utf-8")
        save = {"sentencepiece": save_sentencepiece, "llama3": save_llama_3, "qwen2": save_qwen2}
        save[tokenizer](directory / "llm")
        return directory

    def rows(self, read):
        """What the decoder reads of pictures, float32 [b, rows, H], for ``normalised`` ones.

        Written from the published arithmetic: each square of 2 x 2 patches side by side, zeros
        beyond the edge, square after square down the first two columns, then down the next two; in
        NVILA along the first two lines, then along the next two.
        """
        p = self.projector
        with torch.no_grad():
            states = self.tower(pixel_values=read, output_hidden_states=True).hidden_states[-2]
            states = states[:, 1:] if self.clip else states
            if self.kind == "linear":
                return states @ p["layers.weight"].T + p["layers.bias"]
            if self.kind == "mlp2x_gelu":
                inner = torch.nn.functional.gelu(
                    states @ p["layers.0.weight"].T + p["layers.0.bias"]
                )
                return inner @ p["layers.2.weight"].T + p["layers.2.bias"]
            side, nothing = int(states.shape[1] ** 0.5), torch.zeros(states.shape[0], _WIDTH)

            def patch(row, column):
                inside = row < side and column < side
                return states[:, row * side + column] if inside else nothing

            corners = [(r, c) for c in range(0, side, 2) for r in range(0, side, 2)]
            squares = [
                torch.cat([patch(r + i, c + j) for i in (0, 1) for j in (0, 1)], dim=1)
                for r, c in (sorted(corners) if self.second else corners)
            ]
            read = torch.nn.functional.layer_norm(
                torch.stack(squares, 1), (4 * _WIDTH,), p["layers.1.weight"], p["layers.1.bias"]
            )
            inner = torch.nn.functional.gelu(read @ p["layers.2.weight"].T + p["layers.2.bias"])
            return inner @ p["layers.4.weight"].T + p["layers.4.bias"]


def save_sentencepiece(directory):
    """A Llama's tokenizer of 128 pieces, which does not know a picture."""
    text = [" ".join(WORDS[n % 5 :] + WORDS[: n % 7]) for n in range(40)]
    template = "A chat between a curious user and an assistant . USER: ASSISTANT: helpful's"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*text, *[template] * 5]),
        model_prefix=str(directory / "tokenizer"),
        model_type="bpe",
        vocab_size=96,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (directory / "tokenizer.vocab").unlink()
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


LLAMA_3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>")


def save_llama_3(directory):
    """A tokenizer of bytes with Llama 3's special tokens, whose own template does not count."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [*LLAMA_3, "<|eot_id|>"]
    tokenizer.add_special_tokens([AddedToken(one, special=True) for one in special])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "bos_token": LLAMA_3[0],
        "eos_token": LLAMA_3[1],
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": "not this one",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def save_qwen2(directory):
    """A tokenizer of bytes, two ends of lines one token, with ChatML's words and template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ĊĊ"]
    vocabulary = {letter: n for n, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("Ċ", "Ċ")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.add_special_tokens([AddedToken(one, special=True) for one in special])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "eos_token": "<|im_end|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": CHATML,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
