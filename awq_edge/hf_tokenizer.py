"""The tokenizer that goes into a model file: one tokenizer.json and what a chat template needs.

Owns the order in which a checkpoint's files count, and that everything which they say ends in that
one JSON: calibration, evaluation and runtime read nothing else. Refuses to talk to the network and
to run code or chat templates of a checkpoint; ``awq_edge.chat`` does the latter.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from awq_edge import chat, tokenizers_library
from awq_edge.architecture import MetadataValue
from awq_edge.checkpoints import Checkpoint, read_json, read_optional_json
from awq_edge.checkpoints.chat_templates import read_chat_templates
from awq_edge.checkpoints.gguf_checkpoint import GgufCheckpoint
from awq_edge.checkpoints.gguf_tokenizer import read_gguf_tokenizer
from awq_edge.checkpoints.json_files import is_whole_number
from awq_edge.checkpoints.post_processor import put_around
from awq_edge.checkpoints.sentencepiece_model import (
    convert_sentencepiece,
    set_spaces,
    steps_of,
)
from awq_edge.checkpoints.special_tokens import (
    SpecialTokens,
    add_tokens,
    check_form,
    hold_ids,
    ids_by_content,
    read_special_tokens,
    special_token,
)
from awq_edge.checkpoints.tiktoken_file import convert_tiktoken, is_tiktoken
from awq_edge.converters.dialogue import Dialogue, dialogue_of
from awq_edge.errors import CheckpointError, UnsupportedError
from awq_edge.tokenizer import Tokenizer

# Classes that put BOS before a text unless told otherwise, if they wrap a SentencePiece model.
_BOS_CLASSES = ("LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer")
# What only transformers knows how to read, class by class.
_FOR_TRANSFORMERS = ("vocab.json", "vocab.txt", "tekken.json")


@dataclasses.dataclass(frozen=True)
class StoredTokenizer:
    """What a model file keeps.

    Attributes:
        json: A whole tokenizer.json; its post-processor puts around a text what the model expects.
        bos_id: The token that begins a text, if there is one.
        add_bos: Whether a prompt begins with it.
        eos_ids: Every token that ends a turn.
        chat_templates: Texts by name.
        special_tokens: Texts by the name that chat templates know them by.
        split_special_tokens: Special tokens that are spelt out in a text are mere text.
    """

    json: str
    bos_id: int | None
    add_bos: bool
    eos_ids: tuple[int, ...]
    chat_templates: dict[str, str]
    special_tokens: dict[str, str]
    split_special_tokens: bool = False

    def to_metadata(self) -> dict[str, MetadataValue]:
        """Keys and values of ``native/format/FORMAT.md``, section 1."""
        metadata: dict[str, MetadataValue] = {"tokenizer.huggingface.json": self.json}
        if self.bos_id is not None:
            metadata["tokenizer.ggml.bos_token_id"] = self.bos_id
        if self.eos_ids:
            metadata["tokenizer.ggml.eos_token_id"] = self.eos_ids[0]
        metadata["tokenizer.ggml.add_bos_token"] = self.add_bos
        if self.eos_ids:
            metadata["awq_edge.tokenizer.eos_token_ids"] = list(self.eos_ids)
        if self.split_special_tokens:
            metadata["awq_edge.tokenizer.split_special_tokens"] = True
        metadata[chat.SPECIAL_TOKENS] = json.dumps(self.special_tokens, ensure_ascii=False)
        others = dict(self.chat_templates)
        default = others.pop("default", None)
        if default is not None:
            metadata[chat.DEFAULT_TEMPLATE] = default
        if others:
            metadata[chat.NAMED_TEMPLATES] = json.dumps(others, ensure_ascii=False)
        return metadata

    @functools.cached_property
    def runtime(self) -> Tokenizer:
        """The tokenizer that a device makes of this."""
        return Tokenizer.from_metadata(self.to_metadata())

    def encode(self, text: str) -> list[int]:
        """Token ids without any special token around them."""
        return self.runtime.encode(text, add_bos=False)


def tokenizer_of(checkpoint: Checkpoint) -> StoredTokenizer | None:
    """The tokenizer of an open checkpoint, beside its weights or in their file.

    Returns:
        None if there is none.

    Raises:
        CheckpointError: Something that counts is broken.
        UnsupportedError: It is of a kind that cannot become a tokenizer.json.
    """
    if isinstance(checkpoint, GgufCheckpoint):
        return _tokenizer_in(checkpoint)
    dialogue = None if checkpoint.vision is None else dialogue_of(checkpoint.vision.config)
    return read_tokenizer(checkpoint.beside, checkpoint.config, checkpoint.extra_tokens, dialogue)


def _tokenizer_in(checkpoint: GgufCheckpoint) -> StoredTokenizer | None:
    place = checkpoint.directory
    read = read_gguf_tokenizer(place, checkpoint.entries.values)
    if read is None:
        return None
    tokenizer = read.json
    check_form(tokenizer, place)
    _load_with_ids(tokenizer, place)
    spelt = {number: content for content, number in ids_by_content(tokenizer).items()}
    bos_id, eos_id = read.named.get("bos_token"), read.named.get("eos_token")
    begins = read.begins and bos_id is not None
    before = [bos_id] if bos_id is not None and begins else []
    behind = [eos_id] if eos_id is not None and read.ends else []
    if before or behind:
        put_around(tokenizer, before, behind, place)
    return StoredTokenizer(
        json=_dumped(tokenizer),
        bos_id=bos_id,
        add_bos=begins,
        eos_ids=read.end_ids,
        chat_templates=read.chat_templates,
        special_tokens={
            name: spelt[number] for name, number in read.named.items() if number in spelt
        },
    )


def read_tokenizer(
    directory: Path,
    config: Mapping[str, Any],
    extra: Sequence[str] = (),
    dialogue: Dialogue | None = None,
) -> StoredTokenizer | None:
    """Reads the tokenizer beside a checkpoint.

    Args:
        directory: The checkpoint.
        config: Its config.json.
        extra: ``Checkpoint.extra_tokens``.
        dialogue: What the model's own program does to it.

    Returns:
        None if there is none.

    Raises:
        CheckpointError: A file that counts is broken, or a token that ends texts has no id.
        UnsupportedError: It is of a kind that cannot become a tokenizer.json.
    """
    settings = {**_settings(directory), **({} if dialogue is None else dialogue.settings)}
    class_name = str(settings.get("tokenizer_class") or config.get("tokenizer_class") or "")
    place, tokenizer, names = _base(directory)
    if tokenizer is None:
        return None
    converted = place.name == "tokenizer.model" and bool(names)
    check_form(tokenizer, place)
    tokenizer["truncation"] = tokenizer["padding"] = None

    tokens = read_special_tokens(directory, settings, class_name, names)
    tokens.extra.extend(special_token(word) for word in extra)
    if dialogue is not None:
        tokens.extra.append(special_token(dialogue.placeholder))
    without_id = add_tokens(tokenizer, tokens)
    if "eos_token" in without_id:
        raise CheckpointError(
            f"The end token {tokens.named['eos_token']['content']!r} that "
            f"{directory / 'tokenizer_config.json'} names has no id in any file of the tokenizer, "
            "so no text would end: name a token of the vocabulary, or add it with its id."
        )
    set_spaces(tokenizer, settings, class_name, converted=converted)
    _set_byte_level_prefix(tokenizer, settings.get("add_prefix_space"), place)
    loaded = _load_with_ids(tokenizer, place)
    ids = ids_by_content(tokenizer)

    rows: Any = config.get("vocab_size")
    for word in extra:
        if is_whole_number(rows) and ids[word] >= rows:
            raise CheckpointError(
                f"The word {word} has the id {ids[word]} by the tokenizer of {directory}, and the "
                f"model's table {rows} rows: the tokenizer, or the table, is another model's."
            )
    generation = read_optional_json(directory / "generation_config.json")
    bos_id = _first(
        [
            _named_id(tokens, "bos_token", ids),
            *_ids(config.get("bos_token_id")),
            *_ids(generation.get("bos_token_id")),
        ]
    )
    candidates = [*(ids[word] for word in extra[:1]), _named_id(tokens, "eos_token", ids)]
    candidates += _ids(generation.get("eos_token_id")) + _ids(config.get("eos_token_id"))
    candidates += [ids.get(word) for word in (() if dialogue is None else dialogue.ends)]
    size = 1 + max(ids.values(), default=-1)
    eos_ids = tuple(dict.fromkeys(id for id in candidates if id is not None and 0 <= id < size))

    before, behind = tokenizers_library.surroundings(loaded, _failure(place))
    is_sentencepiece = (directory / "tokenizer.model").is_file()
    adds_bos = bos_id is not None and _adds_bos(settings, before[:1] == [bos_id], is_sentencepiece)
    wanted = list(before)
    if bos_id is not None and (before[:1] == [bos_id]) != adds_bos:
        wanted = [bos_id, *before] if adds_bos else before[1:]
    # A tokenizer.json says by itself what stands behind a text.
    wanted_behind = behind
    if not behind and place.name != "tokenizer.json" and settings.get("add_eos_token") is True:
        wanted_behind = [id for id in [_named_id(tokens, "eos_token", ids)] if id is not None]
    if (wanted, wanted_behind) != (before, behind):
        put_around(tokenizer, wanted, wanted_behind, place)
    template = None if dialogue is None else dialogue.template(ids)
    return StoredTokenizer(
        json=_dumped(tokenizer),
        bos_id=bos_id,
        add_bos=adds_bos,
        eos_ids=eos_ids,
        chat_templates=(
            read_chat_templates(directory, settings) if template is None else {"default": template}
        ),
        special_tokens={
            name: token["content"]
            for name, token in tokens.named.items()
            if not token.get("optional") or token["content"] in ids
        },
        split_special_tokens=settings.get("split_special_tokens") is True,
    )


# ---- files -----------------------------------------------------------------------------------


def _settings(directory: Path) -> dict[str, Any]:
    path = directory / "tokenizer_config.json"
    return read_json(path) if path.is_file() else {}


def _base(directory: Path) -> tuple[Path, dict[str, Any] | None, dict[str, str]]:
    """The file that counts, its JSON, and what a SentencePiece model calls its special tokens."""
    path = directory / "tokenizer.json"
    if path.is_file():
        tokenizer = read_json(path)
        tokenizer["added_tokens"] = tokenizer.get("added_tokens") or []
        return path, tokenizer, {}
    path = directory / "tokenizer.model"
    if path.is_file():
        if is_tiktoken(path):
            return path, convert_tiktoken(path), {}
        return (path, *convert_sentencepiece(path))
    path = directory / "tiktoken.model"
    if path.is_file():
        return path, convert_tiktoken(path), {}
    for name in _FOR_TRANSFORMERS:
        path = directory / name
        if path.is_file():
            return path, _from_transformers(path), {}
    return path, None, {}


def _from_transformers(path: Path) -> dict[str, Any]:
    """What transformers makes of a vocabulary whose meaning depends on the tokenizer's class."""
    import transformers

    def failure(reason: str) -> CheckpointError:
        return CheckpointError(f"transformers makes no tokenizer of {path}: {reason}.")

    with tokenizers_library.failures_become(failure), _quiet(transformers):
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            path.parent, trust_remote_code=False, local_files_only=True
        )
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UnsupportedError(
            f"The tokenizer of {path} is a program of transformers ({type(tokenizer).__name__}) "
            "and has no form that a device can read."
        )
    converted: dict[str, Any] = json.loads(backend.to_str())
    return converted


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(verbosity)


# ---- the JSON --------------------------------------------------------------------------------


def _set_byte_level_prefix(tokenizer: dict[str, Any], wanted: Any, place: Path) -> None:
    """Whether a text begins as if a blank stood before it, where settings contradict the JSON.

    Some classes obey and cut texts by their own rules then, others keep those of the JSON; which
    one counts follows from the model's type too, by a table that only transformers has.
    """
    steps = [s for s in steps_of(tokenizer, "pre_tokenizer") if s.get("type") == "ByteLevel"]
    if isinstance(wanted, bool) and any(step.get("add_prefix_space") != wanted for step in steps):
        tokenizer["pre_tokenizer"] = _from_transformers(place)["pre_tokenizer"]


def _adds_bos(settings: Mapping[str, Any], is_put: bool, is_sentencepiece: bool) -> bool:
    """Whether a prompt begins with BOS, as settings, tokenizer or class say, in this order."""
    stated = settings.get("add_bos_token")
    if isinstance(stated, bool):
        return stated
    kind = settings.get("tokenizer_class", "LlamaTokenizer")
    return is_put or (is_sentencepiece and kind in _BOS_CLASSES)


def _load_with_ids(tokenizer: dict[str, Any], place: Path) -> Any:
    """The tokenizer, once the package gives every added token the id that stands in the JSON."""
    loaded = tokenizers_library.load_tokenizer(_dumped(tokenizer), _failure(place))
    wrong = _misplaced(tokenizer, loaded)
    if wrong is not None and hold_ids(tokenizer):
        loaded = tokenizers_library.load_tokenizer(_dumped(tokenizer), _failure(place))
        wrong = _misplaced(tokenizer, loaded)
    if wrong is not None:
        raise CheckpointError(
            f"The token {wrong['content']!r} of {place.parent} cannot have the id {wrong['id']}: "
            "another token has it, or ids before it are missing."
        )
    return loaded


def _misplaced(tokenizer: Mapping[str, Any], loaded: Any) -> Any | None:
    entries = tokenizer["added_tokens"]
    return next((e for e in entries if loaded.token_to_id(e["content"]) != e["id"]), None)


def _dumped(tokenizer: Mapping[str, Any]) -> str:
    return json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":"))


def _failure(place: Path) -> Callable[[str], CheckpointError]:
    def make(reason: str) -> CheckpointError:
        return CheckpointError(
            f"{place} is not a tokenizer that this release of the package tokenizers can use: "
            f"{reason}."
        )

    return make


# ---- ids -------------------------------------------------------------------------------------


def _named_id(tokens: SpecialTokens, name: str, ids: Mapping[str, int]) -> int | None:
    token = tokens.named.get(name)
    return None if token is None else ids.get(token["content"])


def _ids(value: Any) -> list[int | None]:
    """Token ids from a number, a list of numbers or nothing."""
    values = value if isinstance(value, list) else [value]
    return [number for number in values if is_whole_number(number)]


def _first(values: list[int | None]) -> int | None:
    return next((value for value in values if value is not None), None)
