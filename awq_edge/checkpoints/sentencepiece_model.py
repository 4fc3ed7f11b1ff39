"""SentencePiece models (tokenizer.model) as the JSON of a tokenizer.json.

Owns where a space arises: the model's own settings, and the keys ``add_prefix_space`` and
``legacy`` of tokenizer_config.json. Refuses unigram models, which no decoder here is trained with.
The ids are SentencePiece's for a plain text; around special tokens, which SentencePiece does not
know in a text, they are those of transformers.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from awq_edge.checkpoints.files import open_regular, refuse_pointer
from awq_edge.errors import CheckpointError, FileUnreadableError, UnsupportedError

# SentencePiece's own numbers (sentencepiece_model.proto).
_MODEL_BPE = 2
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # kinds of pieces
_SPACE = "▁"  # what SentencePiece writes for a space

_LLAMA_CLASSES = ("LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer")


def read_sentencepiece(path: Path) -> Any | None:
    """The protocol buffer of a model; None if the file is something else.

    Raises:
        FileUnreadableError: The system refuses it.
    """
    from sentencepiece import sentencepiece_model_pb2

    try:
        with open_regular(path) as file:
            content = file.read()
    except OSError as error:
        raise FileUnreadableError(f"Cannot read {path}: {error.strerror}.") from error
    refuse_pointer(path, content[:64])
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # made at import
    try:
        proto.ParseFromString(content)
    except Exception:  # protobuf's DecodeError lies elsewhere in each of its releases
        return None
    return proto if proto.pieces else None


def convert_sentencepiece(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """A BPE model as the JSON of a tokenizer.json, with a space before each part of a text.

    Returns:
        The JSON, and what the model calls its special tokens (``bos_token`` and so on).

    Raises:
        CheckpointError: It is no SentencePiece model, or a damaged one.
        UnsupportedError: It is no BPE model.
    """
    proto = read_sentencepiece(path)
    if proto is None:
        raise CheckpointError(f"{path} is not a SentencePiece model.")
    if proto.trainer_spec.model_type != _MODEL_BPE:
        raise UnsupportedError(
            f"{path} is not a BPE model; only such SentencePiece models are read."
        )
    if not 0 <= proto.trainer_spec.unk_id < len(proto.pieces):
        raise CheckpointError(f"{path} is damaged: it has no piece for unknown characters.")
    rules = proto.normalizer_spec
    tokenizer = bpe_tokenizer(
        [BpePiece(piece.piece, piece.score, piece.type) for piece in proto.pieces],
        BpeRules(
            unknown=proto.pieces[proto.trainer_spec.unk_id].piece,
            byte_fallback=proto.trainer_spec.byte_fallback,
            charsmap=rules.precompiled_charsmap,
            single_blanks=rules.remove_extra_whitespaces,
            blank_before=rules.add_dummy_prefix,
        ),
    )
    trained = proto.trainer_spec
    names = {
        name: proto.pieces[number].piece
        for name, number in (
            ("bos_token", trained.bos_id),
            ("eos_token", trained.eos_id),
            ("unk_token", trained.unk_id),
        )
        if 0 <= number < len(proto.pieces)
    }
    return tokenizer, names


@dataclasses.dataclass(frozen=True)
class BpePiece:
    """One token.

    Attributes:
        text: With SentencePiece's own spaces.
        score: Pairs whose union has the highest one are merged first.
        kind: SentencePiece's type: ``NORMAL``, ``CONTROL`` and so on.
    """

    text: str
    score: float
    kind: int


@dataclasses.dataclass(frozen=True)
class BpeRules:
    """What a model does with a text beside merging.

    Attributes:
        unknown: The token of characters that no token has.
        byte_fallback: Such characters are spelt in bytes instead.
        charsmap: SentencePiece's table of normalisations; empty for none.
        single_blanks: Blanks at the ends go, and several become one.
        blank_before: A blank is put before a text.
    """

    unknown: str
    byte_fallback: bool
    charsmap: bytes
    single_blanks: bool
    blank_before: bool


def bpe_tokenizer(pieces: Sequence[BpePiece], rules: BpeRules) -> dict[str, Any]:
    """A BPE model as the JSON of a tokenizer.json, with a space before each part of a text.

    Args:
        pieces: In order of their ids.
        rules: What else it does.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    vocabulary = {piece.text: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=_merges(pieces, vocabulary),
            unk_token=rules.unknown,
            fuse_unk=True,
            byte_fallback=rules.byte_fallback,
        )
    )
    tokenizer.add_tokens(
        [
            AddedToken(piece.text, normalized=False, special=piece.kind == CONTROL)
            for piece in pieces
            if piece.kind in (CONTROL, USER_DEFINED)
        ]
    )
    steps: list[Any] = []
    if rules.charsmap:
        steps.append(normalizers.Precompiled(rules.charsmap))
    if rules.single_blanks:
        steps += [normalizers.Strip(), normalizers.Replace("  ", " ")]
    if rules.blank_before:
        steps.append(normalizers.Prepend(_SPACE))
    steps.append(normalizers.Replace(" ", _SPACE))
    tokenizer.normalizer = normalizers.Sequence(steps)
    decoding: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if rules.blank_before:
        decoding.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(decoding)
    whole: dict[str, Any] = json.loads(tokenizer.to_str())
    return whole


def set_spaces(
    tokenizer: dict[str, Any], settings: Mapping[str, Any], class_name: str, *, converted: bool
) -> None:
    """Makes a space arise where tokenizer_config.json says, in a tokenizer.json's own parts.

    Where it says nothing, a tokenizer.json stays as it is; a model that was converted is what the
    class makes of it, and transformers' classes for Llama put one space before the whole text.

    Args:
        tokenizer: The JSON of a tokenizer.json, complete with its added tokens; changed in place.
        settings: tokenizer_config.json.
        class_name: The tokenizer's class.
        converted: Whether the JSON was converted from a SentencePiece model here.
    """
    prefix, legacy = settings.get("add_prefix_space"), settings.get("legacy")
    is_llama = class_name in _LLAMA_CLASSES
    if converted:  # a prefix before their own text would hide them
        for entry in tokenizer["added_tokens"]:
            entry["normalized"] = False
    if not (is_llama or converted) or not _puts_spaces(tokenizer):
        return
    if prefix is False:
        _never(tokenizer)
    elif legacy is False or (legacy is None and is_llama and converted):
        _once(tokenizer)
    elif legacy is True:
        _metaspaces(tokenizer, "always")


def _puts_spaces(tokenizer: Mapping[str, Any]) -> bool:
    return any(step.get("type") == "Prepend" for step in steps_of(tokenizer, "normalizer")) or any(
        step.get("type") == "Metaspace" for step in steps_of(tokenizer, "pre_tokenizer")
    )


def _never(tokenizer: dict[str, Any]) -> None:
    """No space before a text, nor one less when it is decoded."""
    steps = [step for step in steps_of(tokenizer, "normalizer") if step.get("type") != "Prepend"]
    tokenizer["normalizer"] = {"type": "Sequence", "normalizers": steps}
    _metaspaces(tokenizer, "never")
    decoder = tokenizer.get("decoder")
    if isinstance(decoder, dict) and decoder.get("type") == "Sequence":
        decoder["decoders"] = [step for step in decoder["decoders"] if step.get("type") != "Strip"]


def _once(tokenizer: dict[str, Any]) -> None:
    """A space before the whole text alone, and none behind a special token.

    A normaliser sees each part between special tokens by itself, so the special tokens are found
    in the normalised text, which is whole; blanks are replaced later, lest a token that strips them
    around itself miss them. ``Metaspace`` with "first" would do, but for a text that begins with
    a blank: it puts no other one there, and SentencePiece does.
    """
    steps = steps_of(tokenizer, "normalizer")
    kinds = [step.get("type") for step in steps]
    if "Prepend" not in kinds:
        _metaspaces(tokenizer, "first")
        return
    blank = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    if "Strip" in kinds:  # no text begins with a blank
        kept = [step for step in steps if step.get("type") != "Prepend" and step != blank]
        tokenizer["normalizer"] = {"type": "Sequence", "normalizers": kept}
        _pre_tokenize(tokenizer, "first")
        return
    entries = tokenizer["added_tokens"]
    for entry in entries:
        entry["normalized"] = True
    kept = [step for step in steps if step != blank]
    if entries:
        names = "|".join(re.escape(entry["content"]) for entry in entries)
        # \A: the beginning of the text, where ^ is that of each line.
        unwanted = {"Regex": rf"\A{_SPACE}(?={names})"}
        kept.append({"type": "Replace", "pattern": unwanted, "content": ""})
    tokenizer["normalizer"] = {"type": "Sequence", "normalizers": kept}
    _pre_tokenize(tokenizer, "never")


def _pre_tokenize(tokenizer: dict[str, Any], scheme: str) -> None:
    """Blanks become SentencePiece's spaces before merging."""
    step = {
        "type": "Metaspace",
        "replacement": _SPACE,
        "prepend_scheme": scheme,
        "split": False,
    }
    others = steps_of(tokenizer, "pre_tokenizer")
    tokenizer["pre_tokenizer"] = (
        {"type": "Sequence", "pretokenizers": [step, *others]} if others else step
    )


def _metaspaces(tokenizer: dict[str, Any], scheme: str) -> None:
    for step in steps_of(tokenizer, "pre_tokenizer"):
        if step.get("type") == "Metaspace":
            step["prepend_scheme"] = scheme
            step.pop("add_prefix_space", None)  # an older name of the same


def steps_of(tokenizer: Mapping[str, Any], part: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre_tokenizer, whether a sequence, a single one or none."""
    value = tokenizer.get(part)
    if not isinstance(value, dict):
        return []
    if value.get("type") != "Sequence":
        return [value]
    inner = value.get("normalizers" if part == "normalizer" else "pretokenizers")
    return [step for step in inner if isinstance(step, dict)] if isinstance(inner, list) else []


def _merges(pieces: Sequence[BpePiece], vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """The pairs whose union is a piece, best score first: SentencePiece merges in that order.

    Control, unknown and byte pieces are no text, so they neither join nor arise. Pieces that a user
    defined have the score 0 and all others less: they arise first, as in SentencePiece.
    """
    kinds = (NORMAL, USER_DEFINED)
    text = {piece.text for piece in pieces if piece.kind in kinds}
    merges: list[tuple[str, str]] = []
    for piece in sorted(pieces, key=lambda piece: -piece.score):
        if piece.kind not in kinds:
            continue
        whole = piece.text
        splits = [(whole[:cut], whole[cut:]) for cut in range(1, len(whole))]
        known = [pair for pair in splits if pair[0] in text and pair[1] in text]
        merges += sorted(known, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    return merges
