"""Small random models whose decoders look at pictures, made by transformers' own classes."""

import json

import torch
import transformers as tf
from vision_models import PLACEHOLDER, WORDS

SIDE = 26
# Odd: a width that is no multiple of 32, three heads, a picture of which two pixels are cut off.
_TOWER = dict(
    embed_dim=48,
    image_size=SIDE,
    intermediate_size=88,
    patch_size=6,
    num_hidden_layers=3,
    num_attention_heads=3,
)
_SIZES = dict(
    vocab_size=PLACEHOLDER - 2,
    additional_vocab_size=5,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=4,
    num_attention_heads=4,
    cross_layer_interval=2,
    max_position_embeddings=256,
    eos_token_id=2,
)
_PERCEIVER = dict(
    resampler_n_latents=5,
    resampler_depth=2,
    resampler_n_heads=2,
    resampler_head_dim=20,
)
# What config.json says of each row, beside all sizes.
ROWS = {
    "a resampler": dict(use_resampler=True),
    "the tower's own rows": dict(use_resampler=False),
    "norms of queries and keys, gates of their own": dict(
        use_resampler=True,
        qk_layer_norms=True,
        alpha_type="vector",
        perceiver_config=dict(qk_layer_norms_perceiver=True),
    ),
    "a block before every layer, one table": dict(
        use_resampler=True, cross_layer_interval=1, tie_word_embeddings=True
    ),
}


def make(row, seed=0):
    """The model of a row with weights that all matter: gates and norms far from doing nothing."""
    torch.manual_seed(seed)
    keys = {**_SIZES, **ROWS[row]}
    perceiver = {**_PERCEIVER, **keys.pop("perceiver_config", {})}
    config = tf.IdeficsConfig(vision_config=_TOWER, perceiver_config=perceiver, **keys)
    model = tf.IdeficsForVisionText2Text(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "alpha" in name:
                parameter.normal_(0, 1.0)
            elif parameter.dim() > 1:
                parameter.normal_(0, 0.08 if "embed" not in name else 0.5)
            else:
                parameter.normal_(0, 0.3)
                if ("norm" in name or ".ln." in name) and name.endswith("weight"):
                    parameter.add_(1.0)
    return model


def save(row, directory, seed=0):
    """Saves a row's model as a checkpoint with its processor's settings; gives the model."""
    model = make(row, seed)
    model.save_pretrained(directory)
    settings = dict(image_processor_type="IdeficsImageProcessor", image_size=SIDE)
    (directory / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return model


def save_tokenizer(directory):
    """A tokenizer of some words with those around a picture; ``PLACEHOLDER`` is the picture's."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    special = ["<unk>", "<s>", "</s>"]
    pieces = [*special, *WORDS, *"<>image_"]
    pieces += [f"word{number}" for number in range(PLACEHOLDER - 1 - len(pieces))]
    around = ["<fake_token_around_image>", "<image>"]
    vocabulary = {piece: number for number, piece in enumerate([*pieces, *around])}
    tokenizer = Tokenizer(
        models.WordPiece(vocabulary, unk_token="<unk>", continuing_subword_prefix="")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    added = [AddedToken(one, special=True) for one in [*special, *around]]
    tokenizer.add_special_tokens(added)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "TokenizersBackend"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def seen_pictures(tokens, end=2):
    """Which picture each token of a text sees, -1: none, as the processor of Idefics has it."""
    found, count, ended = [], -1, False
    for token in tokens:
        if token == PLACEHOLDER:
            count, ended = count + 1, False
        found.append(-1 if ended else count)
        ended = ended or token == end
    return found
