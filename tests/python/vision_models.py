"""Small random models that see pictures, of each family, made by transformers' own classes."""

import json

import torch
import transformers as tf

TEXT = dict(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    vocab_size=128,
    max_position_embeddings=256,
)
# Odd: a width that is no multiple of 32, three heads, a picture of which two pixels are cut off.
TOWER = dict(
    hidden_size=48,
    intermediate_size=88,
    num_hidden_layers=3,
    num_attention_heads=3,
    image_size=26,
    patch_size=6,
)
PLACEHOLDER = 100
BEGIN, END = 101, 102  # Gemma 3's words around a picture
_CLIP = dict(image_processor_type="CLIPImageProcessor", size={"shortest_edge": 26}, crop_size=26)
_SIGLIP = dict(image_processor_type="SiglipImageProcessor", size={"height": 26, "width": 26})
_TILES = dict(
    image_processor_type="SmolVLMImageProcessor",
    size={"longest_edge": 52},
    max_image_size={"longest_edge": 26},
)


def _llava(**keys):
    return tf.LlavaForConditionalGeneration(
        tf.LlavaConfig(text_config=tf.LlamaConfig(**TEXT), image_token_id=PLACEHOLDER, **keys)
    )


def _smolvlm(model, config):
    text = tf.LlamaConfig(**TEXT, pad_token_id=0)
    return model(
        config(vision_config=TOWER, text_config=text, image_token_id=PLACEHOLDER, scale_factor=2)
    )


def _gemma3():
    # A window that ends within a picture.
    kinds = ["sliding_attention", "full_attention"]
    text = tf.Gemma3TextConfig(**TEXT, sliding_window=3, layer_types=kinds)
    tower = tf.SiglipVisionConfig(**TOWER, vision_use_head=False)
    return tf.Gemma3ForConditionalGeneration(
        tf.Gemma3Config(
            vision_config=tower,
            text_config=text,
            image_token_id=PLACEHOLDER,
            mm_tokens_per_image=4,
            boi_token_index=BEGIN,
            eoi_token_index=END,
        )
    )


# Of each row: how the model is made, and its preprocessor_config.json.
ROWS = {
    "llava": (lambda: _llava(vision_config=tf.CLIPVisionConfig(**TOWER)), _CLIP),
    "llava_last_layer": (
        lambda: _llava(vision_config=tf.CLIPVisionConfig(**TOWER), vision_feature_layer=-1),
        _CLIP,
    ),
    "llava_siglip": (
        lambda: _llava(
            vision_config=tf.SiglipVisionConfig(**TOWER, vision_use_head=True),
            vision_feature_select_strategy="full",
            multimodal_projector_bias=False,
        ),
        _SIGLIP,
    ),
    "smolvlm": (
        lambda: _smolvlm(tf.SmolVLMForConditionalGeneration, tf.SmolVLMConfig),
        _TILES,
    ),
    "idefics3": (
        lambda: _smolvlm(tf.Idefics3ForConditionalGeneration, tf.Idefics3Config),
        _TILES,
    ),
    "gemma3": (_gemma3, {**_SIGLIP, "image_processor_type": "Gemma3ImageProcessor"}),
}


def _any_resolution(model, config, text, tower, sizes, **keys):
    return model(
        config(
            vision_config=tower,
            text_config=text,
            image_token_index=PLACEHOLDER,
            image_grid_pinpoints=sizes,
            **keys,
        )
    )


NEXT_SIZES = [[26, 52], [52, 26], [52, 52], [78, 26], [26, 78]]
ONEVISION_SIZES = [[h, w] for h in (26, 52, 78, 104) for w in (26, 52, 78, 104)]
_NEXT = {
    "image_processor_type": "LlavaNextImageProcessor",
    "size": {"shortest_edge": 26},
    "crop_size": {"height": 26, "width": 26},
    "image_grid_pinpoints": NEXT_SIZES,
}
# LLaVA 1.6 and OneVision, whose pictures are tiles put together.
ANY_RESOLUTION = {
    "llava_next": (
        lambda: _any_resolution(
            tf.LlavaNextForConditionalGeneration,
            tf.LlavaNextConfig,
            tf.LlamaConfig(**TEXT),
            tf.CLIPVisionConfig(**TOWER),
            NEXT_SIZES,
        ),
        _NEXT,
    ),
    "llava_next_mistral": (
        lambda: _any_resolution(
            tf.LlavaNextForConditionalGeneration,
            tf.LlavaNextConfig,
            tf.MistralConfig(**TEXT, sliding_window=None),
            tf.CLIPVisionConfig(**TOWER),
            NEXT_SIZES,
        ),
        _NEXT,
    ),
    "llava_onevision": (
        lambda: _any_resolution(
            tf.LlavaOnevisionForConditionalGeneration,
            tf.LlavaOnevisionConfig,
            tf.Qwen2Config(**TEXT, tie_word_embeddings=True),
            tf.SiglipVisionConfig(**TOWER, vision_use_head=False),
            ONEVISION_SIZES,
            vision_aspect_ratio="anyres_max_3",
        ),
        {
            "image_processor_type": "LlavaOnevisionImageProcessor",
            "size": {"height": 26, "width": 26},
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "image_grid_pinpoints": ONEVISION_SIZES,
        },
    ),
}


_QWEN_TEXT = dict(
    TEXT,
    bos_token_id=1,
    eos_token_id=2,
    rope_parameters={"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
)
_QWEN_TEXT.pop("head_dim")
_PIXELS = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "size": {"shortest_edge": 12 * 12 * 4, "longest_edge": 12 * 12 * 40},
    "patch_size": 6,
    "merge_size": 2,
}
_QWEN_3_TEXT = dict(
    TEXT,
    bos_token_id=1,
    eos_token_id=2,
    rope_parameters={
        "rope_type": "default",
        "mrope_section": [4, 2, 2],
        "mrope_interleaved": True,
        "rope_theta": 10000.0,
    },
)
# Qwen2-VL, Qwen2.5-VL and Qwen3-VL, whose pictures keep their shape.
ANY_SHAPE = {
    "qwen2_vl": (
        lambda: tf.Qwen2VLForConditionalGeneration(
            tf.Qwen2VLConfig(
                text_config=_QWEN_TEXT,
                vision_config=dict(
                    depth=3, embed_dim=48, hidden_size=64, num_heads=3, mlp_ratio=2, patch_size=6
                ),
                image_token_id=PLACEHOLDER,
            )
        ),
        _PIXELS,
    ),
    "qwen2_5_vl": (
        lambda: tf.Qwen2_5_VLForConditionalGeneration(
            tf.Qwen2_5_VLConfig(
                text_config=_QWEN_TEXT,
                vision_config=dict(
                    depth=3,
                    hidden_size=48,
                    out_hidden_size=64,
                    num_heads=3,
                    intermediate_size=88,
                    patch_size=6,
                    window_size=24,
                    fullatt_block_indexes=[1],
                ),
                image_token_id=PLACEHOLDER,
            )
        ),
        _PIXELS,
    ),
    "qwen3_vl": (
        lambda: tf.Qwen3VLForConditionalGeneration(
            tf.Qwen3VLConfig(
                text_config=_QWEN_3_TEXT,
                vision_config=dict(
                    depth=3,
                    hidden_size=48,
                    out_hidden_size=64,
                    num_heads=3,
                    intermediate_size=88,
                    patch_size=6,
                    num_position_embeddings=25,
                    deepstack_visual_indexes=[0, 2],
                ),
                image_token_id=PLACEHOLDER,
            )
        ),
        _PIXELS,
    ),
}


def make(row, seed=0):
    """The model of a row with weights that all matter: norms far from one, biases far from zero."""
    torch.manual_seed(seed)
    model = {**ROWS, **ANY_RESOLUTION, **ANY_SHAPE}[row][0]().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.08 if "embed" not in name else 0.5)
            else:
                parameter.normal_(0, 0.3)
                if "norm" in name and name.endswith("weight"):
                    parameter.add_(1.0)
    return model


def save(row, directory, seed=0):
    """Saves a row's model as a checkpoint with its processor's settings; gives the model."""
    model = make(row, seed)
    model.save_pretrained(directory)
    settings = json.dumps({**ROWS, **ANY_RESOLUTION, **ANY_SHAPE}[row][1])
    (directory / "preprocessor_config.json").write_text(settings, encoding="utf-8")
    return model


def pictures(count, side=26, seed=0):
    """uint8 [count, side, side, 3]."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, side, side, 3)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


WORDS = "what colour is the thing red green blue ? yes no user assistant".split()
TEMPLATE = (
    "{% for m in messages %}{{ '<u>' if m.role == 'user' else '<a>' }}"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
    "{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}{% endif %}"
    "{{ '</s>' if m.role == 'assistant' }}{% endfor %}{{ '<a>' if add_generation_prompt }}"
)


def save_tokenizer(directory, template=TEMPLATE):
    """A tokenizer of some words whose placeholder is ``PLACEHOLDER``, and a chat template."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    special = ["<unk>", "<s>", "</s>", "<u>", "<a>"]
    pieces = [*special, *WORDS, *"<>image"]
    pieces += [f"word{number}" for number in range(PLACEHOLDER - len(pieces))]
    pictures = ["<image>", "<begin>", "<end>"]
    vocabulary = {piece: number for number, piece in enumerate([*pieces, *pictures])}
    tokenizer = Tokenizer(
        models.WordPiece(vocabulary, unk_token="<unk>", continuing_subword_prefix="")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(one, special=True) for one in [*special, *pictures]])
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    settings = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "TokenizersBackend"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
