"""The calibration texts that ship: eight kinds, so that a model is not bent to one of them.

Owns which kinds there are, how many blocks each of them gives, and what is held out of each to
judge by. GPTQ fits what it is shown: calibrated on novels alone, SmolLM2's error on encyclopaedic
text was more than twice that of a calibration on such text (``benchmarks/quality.md``). Refuses to
run a model. ``benchmarks/calibration_texts.py`` says where the texts come from and writes them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import lzma
import re
from pathlib import Path
from typing import Any

import torch

from awq_edge import chat
from awq_edge.calibration.text import blocks_of, drawn
from awq_edge.errors import AwqEdgeError, FileUnreadableError
from awq_edge.hf_tokenizer import StoredTokenizer

_FOLDER = Path(__file__).with_name("texts")
# Parts of the blocks, of those that measured best on SmolLM2; what a short text cannot give is
# taken from the others in turn.
SHARES = {
    "prose": 56,
    "encyclopaedia": 46,
    "documents": 16,
    "code": 18,
    "arithmetic": 6,
    "dialogues": 7,
    "records": 6,
    "languages": 5,
}
# Times that a block of a short text may count: it weighs more then, and tells nothing new.
_REPEATS = 2
_SPEAKER = re.compile(r"^(SYSTEM|USER|ASSISTANT): ", re.MULTILINE)


def read_kinds() -> dict[str, str]:
    """Every text by its kind."""
    try:
        return {
            kind: lzma.decompress((_FOLDER / f"{kind}.txt.xz").read_bytes()).decode("utf-8")
            for kind in SHARES
        }
    except OSError as error:
        raise FileUnreadableError(
            f"Cannot read the calibration texts in {_FOLDER}: {error.strerror}."
        ) from error


def digest(texts: dict[str, str]) -> str:
    """SHA-256 of all of them, in hexadecimal."""
    return hashlib.sha256("\x00".join(texts.values()).encode("utf-8")).hexdigest()


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What was drawn from the texts.

    Attributes:
        blocks: To calibrate on, kind by kind, int64 [blocks, tokens].
        counts: How many of them are of each kind.
        held_out: To judge by, int64 [1, tokens], of each kind that has two blocks.
    """

    blocks: torch.Tensor
    counts: dict[str, int]
    held_out: dict[str, torch.Tensor]


def kinds_blocks(
    tokenizer: StoredTokenizer, texts: dict[str, str], samples: int, length: int, seed: int
) -> Drawn:
    """Blocks to calibrate on, kind by kind, and a block of each kind to judge by.

    Args:
        tokenizer: The model's; dialogues are written in its chat format if it has one.
        texts: As :func:`read_kinds` gives them.
        samples: Blocks wanted.
        length: Tokens of a block.
        seed: Chooses the blocks where a text has more.

    Raises:
        InvalidArgumentError: A block has no room for text.
    """
    available: dict[str, torch.Tensor] = {}
    held_out: dict[str, torch.Tensor] = {}
    for kind, text in texts.items():
        if kind == "dialogues":
            text = in_chat_form(tokenizer, text)
        blocks = blocks_of(tokenizer, text, length)
        if len(blocks) > 1:
            held_out[kind], blocks = blocks[-1:], blocks[:-1]
        if len(blocks):
            available[kind] = blocks
    counts = shared_out(
        samples, {kind: _REPEATS * len(blocks) for kind, blocks in available.items()}
    )
    # Repeated ones lie side by side, so that each is among the blocks that are walked in floats.
    chosen = [
        drawn(available[kind].repeat_interleave(_times(count, available[kind]), 0), count, seed)
        for kind, count in counts.items()
    ]
    return Drawn(torch.cat(chosen), counts, held_out)


def _times(count: int, blocks: torch.Tensor) -> int:
    return _REPEATS if count > len(blocks) else 1


def shared_out(samples: int, available: dict[str, int]) -> dict[str, int]:
    """How many blocks each kind gives, by its share and what there is of it."""
    counts = dict.fromkeys(available, 0)
    left = min(samples, sum(available.values()))
    while left:
        open_kinds = [kind for kind in counts if counts[kind] < available[kind]]
        whole = sum(SHARES[kind] for kind in open_kinds)
        claims = {kind: left * SHARES[kind] / whole for kind in open_kinds}
        parts = {kind: min(int(claims[kind]), available[kind] - counts[kind]) for kind in claims}
        if not any(parts.values()):  # less than one for each
            parts = dict.fromkeys(sorted(claims, key=lambda kind: -claims[kind])[:left], 1)
        for kind, part in parts.items():
            counts[kind] += part
        left -= sum(parts.values())
    return counts


def in_chat_form(tokenizer: StoredTokenizer, text: str) -> str:
    """Dialogues as the model's own chat template writes them; as they are if it has none."""
    template = tokenizer.chat_templates.get("default")
    if template is None:
        return text
    written = []
    for dialogue in re.split(r"\n\n(?=(?:SYSTEM|USER): )", text):
        parts = _SPEAKER.split(dialogue)[1:]
        messages = [
            {"role": role.lower(), "content": content.strip()}
            for role, content in zip(parts[::2], parts[1::2])
        ]
        if messages[0]["role"] == "system" and not _knows_system(tokenizer, template):
            del messages[0]
        try:
            written.append(_rendered(tokenizer, template, messages))
        except AwqEdgeError:  # a template for something else than conversations
            return text
    return "\n".join(written)


def _rendered(tokenizer: StoredTokenizer, template: str, messages: list[dict[str, str]]) -> str:
    variables: dict[str, Any] = dict(tokenizer.special_tokens)
    return chat.render_chat(template, messages, add_generation_prompt=False, **variables)


def _knows_system(tokenizer: StoredTokenizer, template: str) -> bool:
    messages = [{"role": role, "content": role} for role in ("system", "user", "assistant")]
    try:
        return "system" in _rendered(tokenizer, template, messages)
    except AwqEdgeError:
        return False
