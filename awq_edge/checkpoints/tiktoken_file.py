"""Vocabularies in tiktoken's form as the JSON of a tokenizer.json.

Owns the form: one line for each token, its bytes in base64 and its rank. Refuses to guess how a
text is cut: as transformers, it takes the pattern of Llama 3 and GPT-4, whose files these are.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

from awq_edge.checkpoints.files import open_regular
from awq_edge.errors import CheckpointError

_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LONGEST_TOKEN = 1024  # bytes; every way to divide one is looked at


def is_tiktoken(path: Path) -> bool:
    """Whether a file begins as such a vocabulary does."""
    with open_regular(path) as file:
        return _entry(file.readline(4096)) is not None


def convert_tiktoken(path: Path) -> dict[str, Any]:
    """The JSON of a tokenizer.json.

    Raises:
        CheckpointError: A line is not a token and its rank.
    """
    ranks: dict[bytes, int] = {}
    with open_regular(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            entry = _entry(line)
            if entry is None:
                raise CheckpointError(f"Line {number} of {path} is not a token and its rank.")
            ranks[entry[0]] = entry[1]
    letters = _byte_letters()

    def spelt(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    # A token may arise from any two others: tiktoken merges what has the lowest rank.
    merges: list[list[str]] = []
    for token in sorted(ranks, key=ranks.__getitem__):
        pairs = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        known = [pair for pair in pairs if pair[0] in ranks and pair[1] in ranks]
        known.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges += [[spelt(left), spelt(right)] for left, right in known]
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": _PATTERN},
                    "behavior": "Isolated",
                    "invert": False,
                },
                byte_level,
            ],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {spelt(token): rank for token, rank in ranks.items()},
            "merges": merges,
        },
    }


def _entry(line: bytes) -> tuple[bytes, int] | None:
    """A line's token and rank; None if it is something else."""
    parts = line.split()
    if len(parts) != 2 or not parts[1].isdigit() or len(parts[1]) > 9:
        return None
    try:
        token = base64.b64decode(parts[0], validate=True)
    except binascii.Error:
        return None
    return (token, int(parts[1])) if 0 < len(token) <= _LONGEST_TOKEN else None


def _byte_letters() -> list[str]:
    """How byte-level vocabularies spell each byte: printable ones as they are, others from 256."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in printable}
    others = (byte for byte in range(256) if byte not in letters)
    letters.update({byte: chr(256 + number) for number, byte in enumerate(others)})
    return [letters[byte] for byte in range(256)]
