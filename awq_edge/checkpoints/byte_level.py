"""How byte-level tokenizers cut a text before they merge, by llama.cpp's names for it.

Owns the table of names and the parts of a tokenizer.json that they stand for. The patterns are data
of published tokenizer.json files (Llama 3, Qwen2, Mistral Nemo, GPT-4o's as in Phi-4-mini, Bloom).
Refuses names whose cutting is nowhere written in this form.
"""

from __future__ import annotations

import dataclasses
from typing import Any

_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
LLAMA3_PATTERN = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}"
)
QWEN2_PATTERN = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}"
)
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_TAIL}"
)
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+{_CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_TAIL}"
)
_BLOOM = " ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+"

Step = dict[str, Any]


def _byte_level(use_regex: bool) -> Step:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _split(pattern: str) -> list[Step]:
    cut = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    return [cut, _byte_level(False)]


_GPT2 = [_byte_level(True)]
_DIGITS = [{"type": "Digits", "individual_digits": True}, _byte_level(True)]
_FALCON = [
    {"type": "Punctuation", "behavior": "Contiguous"},
    _byte_level(True),
    {"type": "Digits", "individual_digits": False},
    {
        "type": "Split",
        "pattern": {"Regex": "[0-9][0-9][0-9]"},
        "behavior": "Isolated",
        "invert": False,
    },
]


@dataclasses.dataclass(frozen=True)
class Cutting:
    """How texts are cut.

    Attributes:
        steps: Pre-tokenizers of a tokenizer.json.
        composed: Texts are normalised to NFC before.
        whole_first: A cut piece that is a token is not merged (``ignore_merges``).
        begins: A prompt begins with BOS where the file does not say.
    """

    steps: list[Step]
    composed: bool = False
    whole_first: bool = False
    begins: bool = False

    def pre_tokenizer(self) -> Step:
        """The entry of a tokenizer.json."""
        if len(self.steps) == 1:
            return self.steps[0]
        return {"type": "Sequence", "pretokenizers": self.steps}


CUTTINGS: dict[str, Cutting] = {
    **dict.fromkeys(("gpt-2", "phi-2", "gigachat", "exaone4"), Cutting(_GPT2)),
    **dict.fromkeys(("olmo", "mpt"), Cutting(_GPT2, composed=True)),
    **dict.fromkeys(
        ("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b"),
        Cutting(_DIGITS),
    ),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "lfm2"),
        Cutting(_split(LLAMA3_PATTERN), whole_first=True, begins=True),
    ),
    **dict.fromkeys(("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), Cutting(_split(LLAMA3_PATTERN))),
    **dict.fromkeys(
        ("qwen2", "deepseek-r1-qwen", "megrez"), Cutting(_split(QWEN2_PATTERN), composed=True)
    ),
    **dict.fromkeys(("stablelm2", "hunyuan"), Cutting(_split(QWEN2_PATTERN))),
    "tekken": Cutting(_split(_TEKKEN), whole_first=True, begins=True),
    **dict.fromkeys(("gpt-4o", "llama4"), Cutting(_split(_GPT4O))),
    "falcon": Cutting(_FALCON),
    **dict.fromkeys(("bloom", "poro-chat", "gpt3-finnish"), Cutting(_split(_BLOOM))),
}
