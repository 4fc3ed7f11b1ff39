"""The vocabulary: whole words and digits, and the tokenizer.json that cuts a text into them.

Owns every token id. ``questions`` writes ids directly; that the tokenizer reads the same ids from
the text is a test. The chat template lives here too, because it places the special tokens.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.normalizers import Lowercase, Replace

from scenes.layout import COLOURS, SHAPES, SIZES

PAD, BOS, EOS, UNKNOWN, IMAGE, USER, ASSISTANT = (
    "<pad>", "<s>", "</s>", "<unk>", "<image>", "<|user|>", "<|assistant|>",
)  # fmt: skip
SPECIAL = (PAD, BOS, EOS, UNKNOWN, IMAGE, USER, ASSISTANT)
PLURALS = ("circles", "squares", "triangles", "crosses", "rings", "stars")
# A number's second digit is a piece that continues a word.
UNITS = tuple(f"##{digit}" for digit in range(10))
_WORDS = (
    *"what colour is the shape one how many things there a where left right of above below".split(),
    *"which larger or number shown describe picture and at top bottom centre yes no".split(),
    *"? , .".split(),
)
VOCABULARY = (*SPECIAL, *_WORDS, *SIZES, *COLOURS, *SHAPES, *PLURALS, *"0123456789", *UNITS)
ID = {word: number for number, word in enumerate(VOCABULARY)}
# Rows of the model's embedding: the rest stays free.
EMBEDDED = 512

# A conversation about one picture. Its place is before the first question; the processor writes as
# many <image> as the tower gives vectors.
CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {{- '<|user|>' }}
    {%- elif message['role'] == 'assistant' %}
        {{- '<|assistant|>' }}
    {%- else %}
        {{- raise_exception('scenes-8m knows the roles user and assistant only.') }}
    {%- endif %}
    {%- if message['content'] is string %}
        {{- message['content'] | trim }}
    {%- else %}
        {%- for part in message['content'] if part['type'] == 'image' %}
            {{- '<image>' }}
        {%- endfor %}
        {%- for part in message['content'] if part['type'] == 'text' %}
            {{- part['text'] | trim }}
        {%- endfor %}
    {%- endif %}
    {%- if message['role'] == 'assistant' %}
        {{- eos_token }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
{%- endif %}
"""


def make_tokenizer() -> Tokenizer:
    """Words at spaces and punctuation, in lower case; American spellings of two are understood."""
    tokenizer = Tokenizer(models.WordPiece(ID, unk_token=UNKNOWN, continuing_subword_prefix="##"))
    tokenizer.normalizer = normalizers.Sequence(
        [Lowercase(), Replace(Regex("color"), "colour"), Replace(Regex("center"), "centre")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    # Puts no space before punctuation, and none within a number.
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return tokenizer


def save_tokenizer(directory: Path) -> None:
    """Writes tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    make_tokenizer().save(str(directory / "tokenizer.json"))
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    settings = {
        # The template writes it.
        "add_bos_token": False,
        "bos_token": BOS,
        "clean_up_tokenization_spaces": False,
        "eos_token": EOS,
        "image_token": IMAGE,
        "model_max_length": 512,
        "pad_token": PAD,
        "processor_class": "LlavaProcessor",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": UNKNOWN,
    }
    text = json.dumps(settings, indent=2) + "\n"
    (directory / "tokenizer_config.json").write_text(text, encoding="utf-8")
