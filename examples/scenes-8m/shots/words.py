"""The words of captions, four for everything that is said, and the language model's tokenizer.

Owns every token id. OpenFlamingo's own two words are not the language model's: they come behind.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

END_OF_TEXT, UNKNOWN = "<|endoftext|>", "<unk>"
END_OF_SHOT, PICTURE = "<|endofchunk|>", "<image>"

# Of each size, colour and shape in the order of scenes.layout: what it may be called.
SIZES = ("small little tiny mini", "large big huge giant")
COLOURS = (
    "red crimson scarlet ruby",
    "orange amber tangerine apricot",
    "yellow gold lemon saffron",
    "green emerald jade lime",
    "cyan turquoise aqua teal",
    "blue navy azure cobalt",
    "purple violet plum mauve",
    "pink rose magenta coral",
)
SHAPES = (
    "circle disc dot ball",
    "square box block tile",
    "triangle wedge cone delta",
    "cross plus crux mark",
    "ring hoop band loop",
    "star asterisk spark burst",
)
SYNONYMS = 4
CONNECTIVES = ("and", "with", "beside", "near")
PLACES = ("at", "top", "bottom", "left", "right", "centre")
VOCABULARY = (
    END_OF_TEXT,
    UNKNOWN,
    *(word for group in (*SIZES, *COLOURS, *SHAPES) for word in group.split()),
    *CONNECTIVES,
    *PLACES,
)
ID = {word: number for number, word in enumerate(VOCABULARY)}
# As OpenFlamingo numbers its words: the next free ids of the tokenizer.
ID_END_OF_SHOT, ID_PICTURE = len(VOCABULARY), len(VOCABULARY) + 1
ROWS = len(VOCABULARY) + 2


def save_tokenizer(directory: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json of the language model."""
    tokenizer = Tokenizer(models.WordLevel(ID, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    special = [AddedToken(word, special=True) for word in (END_OF_TEXT, UNKNOWN)]
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "unk_token": UNKNOWN,
        "pad_token": END_OF_TEXT,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    text = json.dumps(settings, indent=2) + "\n"
    (directory / "tokenizer_config.json").write_text(text, encoding="utf-8")
