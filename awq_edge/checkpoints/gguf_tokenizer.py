"""The vocabulary of a GGUF file as the JSON of a tokenizer.json.

Owns the two kinds that decoders have: SentencePiece's BPE with scores and types, and byte-level BPE
with merges and a name for how texts are cut. ``awq_edge/interchange/gguf_tokenizer.py`` goes the
other way. Refuses what llama.cpp keeps of neither kind: unigram and WordPiece models, and cuttings
without a table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from awq_edge.checkpoints.byte_level import CUTTINGS
from awq_edge.checkpoints.json_files import is_whole_number
from awq_edge.checkpoints.sentencepiece_model import (
    CONTROL,
    NORMAL,
    USER_DEFINED,
    BpePiece,
    BpeRules,
    bpe_tokenizer,
    set_spaces,
)
from awq_edge.errors import CheckpointError, UnsupportedError

_KEY = "tokenizer.ggml."
_TEMPLATE = "tokenizer.chat_template"
_UNKNOWN, _BYTE = 2, 6
# Tokens that end a turn where the file names none but the end of a text; llama.cpp knows more of
# them, of families that no converter knows.
_ENDS_OF_TURNS = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|user|>",
)
# <|user|> ends a turn of GLM; elsewhere it begins one, and a model never writes it.
_NAMED = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",  # spelt so in the format
    "pad_token": "padding_token_id",
    "cls_token": "cls_token_id",
    "mask_token": "mask_token_id",
}


@dataclasses.dataclass(frozen=True)
class GgufTokenizer:
    """What a file says of its tokens.

    Attributes:
        json: A tokenizer.json without anything around a text.
        named: Ids of the tokens that have a name, such as ``bos_token``.
        end_ids: Every token that ends a text or a turn.
        begins: Whether a prompt begins with BOS.
        ends: Whether it ends with EOS.
        chat_templates: Texts by name; the one without a name is "default".
    """

    json: dict[str, Any]
    named: dict[str, int]
    end_ids: tuple[int, ...]
    begins: bool
    ends: bool
    chat_templates: dict[str, str]


def read_gguf_tokenizer(path: Path, entries: Mapping[str, Any]) -> GgufTokenizer | None:
    """The tokenizer of a file; None if it has none.

    Args:
        path: The file, for errors.
        entries: All of them.

    Raises:
        CheckpointError: Its lists do not belong together.
        UnsupportedError: It is of a kind that cannot become a tokenizer.json.
    """
    model = entries.get(f"{_KEY}model")
    if model in (None, "no_vocab", "none"):
        return None
    tokens = entries.get(f"{_KEY}tokens")
    if not isinstance(tokens, list) or not tokens:
        raise CheckpointError(f"{path} names a tokenizer {model!r:.40}, but holds no tokens.")
    types = _numbers(path, entries, "token_type", len(tokens), NORMAL)
    if model == "llama":
        json, begins = _sentencepiece(path, entries, tokens, types), True
        defaults = {"bos_token": 1, "eos_token": 2, "unk_token": 0}
    elif model == "gpt2":
        json, begins = _byte_level(path, entries, tokens, types)
        defaults = {}
    else:
        raise UnsupportedError(
            f"The tokenizer of {path} is of the kind {model!r:.40}; SentencePiece's BPE (llama) "
            "and byte-level BPE (gpt2) are read."
        )
    named = {name: _id(path, entries, key, len(tokens)) for name, key in _NAMED.items()}
    known = {**defaults, **{name: number for name, number in named.items() if number is not None}}
    return GgufTokenizer(
        json=json,
        named=known,
        end_ids=_end_ids(path, entries, tokens, types, known),
        begins=_flag(entries, "add_bos_token", begins),
        ends=_flag(entries, "add_eos_token", False),
        chat_templates=_templates(entries),
    )


def _sentencepiece(
    path: Path, entries: Mapping[str, Any], tokens: list[str], types: list[int]
) -> dict[str, Any]:
    scores = entries.get(f"{_KEY}scores")
    if not isinstance(scores, np.ndarray) or len(scores) != len(tokens):
        raise CheckpointError(f"{path} has not one score for each of its {len(tokens)} tokens.")
    unknown = _id(path, entries, "unknown_token_id", len(tokens))
    if unknown is None:
        unknown = types.index(_UNKNOWN) if _UNKNOWN in types else 0
    charsmap = entries.get(f"{_KEY}precompiled_charsmap")
    tokenizer = bpe_tokenizer(
        [BpePiece(*piece) for piece in zip(tokens, scores.tolist(), types)],
        BpeRules(
            unknown=tokens[unknown],
            byte_fallback=_BYTE in types,
            charsmap=charsmap.tobytes() if isinstance(charsmap, np.ndarray) else b"",
            single_blanks=_flag(entries, "remove_extra_whitespaces", False),
            blank_before=_flag(entries, "add_space_prefix", True),
        ),
    )
    if entries.get("general.architecture") == "phi3":
        # Its tokenizer_config.json says so, for which this format has no entry.
        for entry in tokenizer["added_tokens"]:
            entry["rstrip"] = entry["content"] not in ("<unk>", "<s>", "<|endoftext|>")
    set_spaces(tokenizer, {}, "LlamaTokenizer", converted=True)
    return tokenizer


def _byte_level(
    path: Path, entries: Mapping[str, Any], tokens: list[str], types: list[int]
) -> tuple[dict[str, Any], bool]:
    """The JSON, and whether a prompt begins with BOS where the file does not say."""
    name = entries.get(f"{_KEY}pre")
    cutting = CUTTINGS.get(name) if isinstance(name, str) else None
    if cutting is None:
        said = "does not say" if name in (None, "default") else f"says by the name {name!r:.40}"
        raise UnsupportedError(
            f"{path} {said} how its tokenizer cuts texts before it merges; use the original "
            "checkpoint, or a file with one of the known names."
        )
    merges = entries.get(f"{_KEY}merges")
    if not isinstance(merges, list):
        raise CheckpointError(f"{path} holds a byte-level vocabulary without merges.")
    pairs = [_pair(path, merge) for merge in merges]
    vocabulary: dict[str, int] = {}
    added = []
    for number, (token, kind) in enumerate(zip(tokens, types)):
        if kind in (CONTROL, USER_DEFINED, _UNKNOWN):
            added.append(
                {
                    "id": number,
                    "content": token,
                    **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
                    "special": kind != USER_DEFINED,
                }
            )
        if kind in (NORMAL, CONTROL, USER_DEFINED, _UNKNOWN):
            vocabulary.setdefault(token, number)
    missing = next(
        (part for pair in pairs for part in (*pair, "".join(pair)) if part not in vocabulary), None
    )
    if missing is not None:
        raise CheckpointError(f"A merge of {path} speaks of {missing!r:.60}, which is no token.")
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if cutting.composed else None,
        "pre_tokenizer": cutting.pre_tokenizer(),
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": cutting.whole_first,
            "vocab": vocabulary,
            "merges": pairs,
        },
    }
    return tokenizer, cutting.begins


def _pair(path: Path, merge: str) -> list[str]:
    left, blank, right = merge[1:].partition(" ")
    if not blank or not right:
        raise CheckpointError(f"The merge {merge!r:.60} of {path} is no pair of tokens.")
    return [merge[:1] + left, right]


def _end_ids(
    path: Path,
    entries: Mapping[str, Any],
    tokens: list[str],
    types: list[int],
    named: Mapping[str, int],
) -> tuple[int, ...]:
    ends: list[int | None] = [named.get("eos_token")]
    ends += [_id(path, entries, f"{key}_token_id", len(tokens)) for key in ("eot", "eom")]
    glm = entries.get("general.architecture") in ("chatglm", "glm4")
    for number, (token, kind) in enumerate(zip(tokens, types)):
        if kind in (CONTROL, USER_DEFINED) and token in _ENDS_OF_TURNS:
            if token != "<|user|>" or glm:
                ends.append(number)
    return tuple(dict.fromkeys(number for number in ends if number is not None))


def _templates(entries: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    if isinstance(entries.get(_TEMPLATE), str):
        found["default"] = entries[_TEMPLATE]
    for key, text in entries.items():
        if key.startswith(f"{_TEMPLATE}.") and isinstance(text, str):
            found[key[len(_TEMPLATE) + 1 :]] = text
    return found


def _numbers(
    path: Path, entries: Mapping[str, Any], key: str, count: int, default: int
) -> list[int]:
    values = entries.get(f"{_KEY}{key}")
    if values is None:
        return [default] * count
    if not isinstance(values, np.ndarray) or len(values) != count:
        raise CheckpointError(f"{path} has not one {key} for each of its {count} tokens.")
    return [int(value) for value in values]


def _id(path: Path, entries: Mapping[str, Any], key: str, count: int) -> int | None:
    value = entries.get(f"{_KEY}{key}")
    if value is None:
        return None
    if not is_whole_number(value) or not 0 <= value < count:
        raise CheckpointError(
            f"{path} gives the id {value!r:.40} as {key}, but has {count} tokens."
        )
    return int(value)


def _flag(entries: Mapping[str, Any], key: str, default: bool) -> bool:
    value = entries.get(f"{_KEY}{key}")
    return value if isinstance(value, bool) else default
