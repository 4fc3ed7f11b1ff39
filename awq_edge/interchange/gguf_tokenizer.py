"""A ``tokenizer.json`` as the entries that llama.cpp reads its vocabulary from.

Owns the translation of the two kinds of BPE that decoders use: with SentencePiece's byte fallback,
and byte-level. Refuses tokenizers that llama.cpp would split differently, instead of guessing.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from awq_edge.checkpoints.byte_level import LLAMA3_PATTERN, QWEN2_PATTERN
from awq_edge.errors import UnsupportedError

# Values of llama.cpp's llama_token_type.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6

# A score below every merge, for pieces that no merge makes.
_NEVER_MERGED = -1e9

# How byte-level tokenizers cut a text before they merge, and llama.cpp's names for it.
_SPLITS = {LLAMA3_PATTERN: "llama-bpe", QWEN2_PATTERN: "qwen2"}


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """What a stock GGUF file says about its tokens, in order of their ids."""

    model: str  # "llama": SentencePiece's BPE; "gpt2": byte-level BPE
    pre: str  # llama.cpp's name for the cutting before the merges
    tokens: list[str]
    types: list[int]
    scores: list[float] | None  # llama only
    merges: list[str] | None  # gpt2 only
    add_space_prefix: bool


def translate(tokenizer_json: str, vocabulary_size: int) -> Vocabulary:
    """Reads a whole ``tokenizer.json``.

    Args:
        tokenizer_json: The text of that file.
        vocabulary_size: Rows of the embedding; ids beyond the tokenizer's are filled up as unused.

    Raises:
        UnsupportedError: llama.cpp has no equal tokenizer.
    """
    tokenizer = json.loads(tokenizer_json)
    model = tokenizer["model"]
    if model.get("type") != "BPE":
        raise UnsupportedError(
            f"llama.cpp's files for this architecture hold BPE vocabularies; this tokenizer is "
            f"{model.get('type')!r}."
        )
    pieces = {id: piece for piece, id in model["vocab"].items()}
    added = {entry["id"]: entry for entry in tokenizer.get("added_tokens") or []}
    pieces.update({id: entry["content"] for id, entry in added.items()})
    tokens = [
        pieces.get(id, f"[unused{id}]") for id in range(max(vocabulary_size, 1 + max(pieces)))
    ]
    if len(tokens) > vocabulary_size:
        raise UnsupportedError(
            f"The tokenizer has {len(tokens)} tokens, but the model only {vocabulary_size}."
        )
    # Older tokenizer.json files write a merge as one string, newer ones as a pair.
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    byte_fallback = bool(model.get("byte_fallback"))
    types = [
        _type(id, pieces, added, model.get("unk_token"), byte_fallback) for id in range(len(tokens))
    ]
    if byte_fallback:
        ranks: dict[str, int] = {}
        for rank, (left, right) in enumerate(merges):
            ranks.setdefault(left + right, rank)
        return Vocabulary(
            model="llama",
            pre="default",
            tokens=tokens,
            types=types,
            # llama.cpp merges the pair whose piece has the highest score first.
            scores=[-float(ranks[token]) if token in ranks else _NEVER_MERGED for token in tokens],
            merges=None,
            add_space_prefix=_adds_space(tokenizer),
        )
    return Vocabulary(
        model="gpt2",
        pre=_byte_level_split(tokenizer.get("pre_tokenizer")),
        tokens=tokens,
        types=types,
        scores=None,
        merges=[f"{left} {right}" for left, right in merges],
        add_space_prefix=False,
    )


def _type(
    id: int,
    pieces: Mapping[int, str],
    added: Mapping[int, Mapping[str, Any]],
    unknown: str | None,
    byte_fallback: bool,
) -> int:
    piece = pieces.get(id)
    if piece is None:
        return _UNUSED
    if byte_fallback and (piece == unknown or piece == "<unk>"):
        return _UNKNOWN
    if id in added:
        return _CONTROL if added[id].get("special") else _USER_DEFINED
    if byte_fallback and len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return _BYTE
    return _NORMAL


def _steps(part: Any, key: str) -> list[Mapping[str, Any]]:
    """A normaliser or pre-tokenizer as a list, whether it is a sequence, a single one or null."""
    if part is None:
        return []
    return list(part[key]) if part.get("type") == "Sequence" else [part]


def _adds_space(tokenizer: Mapping[str, Any]) -> bool:
    """Whether a space is put before a text, as SentencePiece models do."""
    for step in _steps(tokenizer.get("normalizer"), "normalizers"):
        if step.get("type") == "Prepend":
            return True
    for step in _steps(tokenizer.get("pre_tokenizer"), "pretokenizers"):
        if step.get("type") == "Metaspace":
            return bool(step.get("prepend_scheme", "always") != "never")
    return False


def _byte_level_split(pre_tokenizer: Any) -> str:
    steps = _steps(pre_tokenizer, "pretokenizers")
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
        return "smollm"
    if kinds == ["Split", "ByteLevel"]:
        pattern = steps[0].get("pattern", {}).get("Regex")
        if pattern in _SPLITS:
            return _SPLITS[pattern]
    raise UnsupportedError(
        f"This tokenizer cuts texts ({', '.join(map(str, kinds))}) in a way that has no name in "
        "llama.cpp, so a GGUF file of it would read texts differently."
    )
