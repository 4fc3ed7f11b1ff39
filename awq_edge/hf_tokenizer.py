"""The tokenizer that goes into a model file: a tokenizer.json, a chat template and special tokens.

Owns reading them from a checkpoint's directory, and the conversion of SentencePiece models
(tokenizer.model) into a tokenizer.json. Refuses to talk to the network and to run chat templates:
``awq_edge.chat`` does the latter, on the device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from awq_edge.architecture import MetadataValue
from awq_edge.checkpoints import read_json
from awq_edge.errors import CheckpointError, FileUnreadableError, UnsupportedError

# SentencePiece's own numbers (sentencepiece_model.proto).
_MODEL_BPE = 2
_PIECE_NORMAL, _PIECE_CONTROL, _PIECE_USER_DEFINED = 1, 3, 4
_SPACE = "▁"  # what SentencePiece writes for a space

# Classes that put BOS before a text unless told otherwise, if they wrap a SentencePiece model.
_BOS_CLASSES = ("LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer")


@dataclasses.dataclass(frozen=True)
class StoredTokenizer:
    """What a model file keeps. The runtime encodes without special tokens and adds BOS itself."""

    json: str
    chat_template: str | None
    bos_id: int | None
    eos_id: int | None
    add_bos: bool
    eos_ids: tuple[int, ...]  # every token that ends a turn

    def to_metadata(self) -> dict[str, MetadataValue]:
        """Keys and values of ``native/format/FORMAT.md``, section 1."""
        metadata: dict[str, MetadataValue] = {"tokenizer.huggingface.json": self.json}
        if self.chat_template is not None:
            metadata["tokenizer.chat_template"] = self.chat_template
        if self.bos_id is not None:
            metadata["tokenizer.ggml.bos_token_id"] = self.bos_id
        if self.eos_id is not None:
            metadata["tokenizer.ggml.eos_token_id"] = self.eos_id
        metadata["tokenizer.ggml.add_bos_token"] = self.add_bos
        if self.eos_ids:
            metadata["awq_edge.tokenizer.eos_token_ids"] = list(self.eos_ids)
        return metadata

    def encode(self, text: str) -> list[int]:
        """Token ids without any special token."""
        from tokenizers import Tokenizer

        ids: list[int] = Tokenizer.from_str(self.json).encode(text, add_special_tokens=False).ids
        return ids


def read_tokenizer(directory: Path, config: Mapping[str, Any]) -> StoredTokenizer | None:
    """Reads the tokenizer beside a checkpoint.

    Args:
        directory: The checkpoint.
        config: Its config.json.

    Returns:
        None if there is neither tokenizer.json nor tokenizer.model.
    """
    from tokenizers import Tokenizer

    sentencepiece_model = directory / "tokenizer.model"
    if (directory / "tokenizer.json").is_file():
        text = _read_text(directory / "tokenizer.json")
    elif sentencepiece_model.is_file():
        text = convert_sentencepiece(sentencepiece_model)
    else:
        return None
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the tokenizers package raises nothing narrower
        raise CheckpointError(
            f"{directory / 'tokenizer.json'} is not a tokenizer that this release of the package "
            f"tokenizers can read: {error}."
        ) from error

    settings = _optional_json(directory / "tokenizer_config.json")
    generation = _optional_json(directory / "generation_config.json")
    bos_id = _first(
        [
            _token_id(tokenizer, settings.get("bos_token")),
            *_ids(config.get("bos_token_id")),
            *_ids(generation.get("bos_token_id")),
        ]
    )
    if bos_id is None and not (directory / "tokenizer.json").is_file():
        bos_id = tokenizer.token_to_id("<s>")
    candidates = [_token_id(tokenizer, settings.get("eos_token"))]
    candidates += _ids(generation.get("eos_token_id")) + _ids(config.get("eos_token_id"))
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    eos_ids = tuple(dict.fromkeys(id for id in candidates if id is not None and 0 <= id < size))
    return StoredTokenizer(
        json=text,
        chat_template=_chat_template(directory, settings),
        bos_id=bos_id,
        eos_id=eos_ids[0] if eos_ids else None,
        add_bos=bos_id is not None
        and _adds_bos(tokenizer, settings, bos_id, sentencepiece_model.is_file()),
        eos_ids=eos_ids,
    )


def convert_sentencepiece(path: Path) -> str:
    """A SentencePiece BPE model (tokenizer.model) as the text of a tokenizer.json."""
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # made at import
    try:
        proto.ParseFromString(path.read_bytes())
    except OSError as error:
        raise FileUnreadableError(f"Cannot read {path}: {error.strerror}.") from error
    except Exception as error:  # protobuf's DecodeError lies elsewhere in each of its releases
        raise CheckpointError(f"{path} is not a SentencePiece model.") from error
    if proto.trainer_spec.model_type != _MODEL_BPE:
        raise UnsupportedError(
            f"{path} is not a BPE model; only such SentencePiece models are read."
        )

    vocabulary = {piece.piece: number for number, piece in enumerate(proto.pieces)}
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=_merges(proto.pieces, vocabulary),
            unk_token=proto.pieces[proto.trainer_spec.unk_id].piece,
            fuse_unk=True,
            byte_fallback=proto.trainer_spec.byte_fallback,
        )
    )
    tokenizer.add_tokens(
        [
            AddedToken(piece.piece, normalized=False, special=piece.type == _PIECE_CONTROL)
            for piece in proto.pieces
            if piece.type in (_PIECE_CONTROL, _PIECE_USER_DEFINED)
        ]
    )
    rules = proto.normalizer_spec
    steps: list[Any] = []
    if rules.precompiled_charsmap:
        steps.append(normalizers.Precompiled(rules.precompiled_charsmap))
    if rules.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace("  ", " ")]
    if rules.add_dummy_prefix:
        steps.append(normalizers.Prepend(_SPACE))
    steps.append(normalizers.Replace(" ", _SPACE))
    tokenizer.normalizer = normalizers.Sequence(steps)
    decoding: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if rules.add_dummy_prefix:
        decoding.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(decoding)
    text: str = tokenizer.to_str()
    return text


def _merges(pieces: Any, vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """The pairs whose union is a piece, best score first: SentencePiece merges in that order.

    Control, unknown and byte pieces are no text, so they neither join nor arise.
    """
    text = {piece.piece for piece in pieces if piece.type in (_PIECE_NORMAL, _PIECE_USER_DEFINED)}
    merges: list[tuple[str, str]] = []
    for piece in sorted(pieces, key=lambda piece: -piece.score):
        if piece.type != _PIECE_NORMAL:
            continue
        whole = piece.piece
        splits = [(whole[:cut], whole[cut:]) for cut in range(1, len(whole))]
        known = [pair for pair in splits if pair[0] in text and pair[1] in text]
        merges += sorted(known, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    return merges


def _adds_bos(
    tokenizer: Any, settings: Mapping[str, Any], bos_id: int, is_sentencepiece: bool
) -> bool:
    """Whether a prompt begins with BOS, as settings, tokenizer or class say, in this order."""
    stated = settings.get("add_bos_token")
    if isinstance(stated, bool):
        return stated
    with_special = tokenizer.encode("a").ids
    if with_special[:1] == [bos_id]:
        return True
    kind = settings.get("tokenizer_class", "LlamaTokenizer")
    return is_sentencepiece and kind in _BOS_CLASSES


def _chat_template(directory: Path, settings: Mapping[str, Any]) -> str | None:
    if (directory / "chat_template.jinja").is_file():
        return _read_text(directory / "chat_template.jinja")
    template = _optional_json(directory / "chat_template.json").get("chat_template")
    if template is None:
        template = settings.get("chat_template")
    if isinstance(template, list):  # several named ones
        template = next(
            (entry.get("template") for entry in template if entry.get("name") == "default"), None
        )
    return template if isinstance(template, str) else None


def _token_id(tokenizer: Any, token: Any) -> int | None:
    """The id of a token given as a string or as a table with its content."""
    if isinstance(token, Mapping):
        token = token.get("content")
    number: int | None = tokenizer.token_to_id(token) if isinstance(token, str) else None
    return number


def _ids(value: Any) -> list[int | None]:
    """Token ids from a number, a list of numbers or nothing."""
    values = value if isinstance(value, list) else [value]
    return [number for number in values if isinstance(number, int)]


def _first(values: list[int | None]) -> int | None:
    return next((value for value in values if value is not None), None)


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise FileUnreadableError(f"Cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text.") from error
