"""The tokens that files beside a tokenizer.json name or add.

Owns which file counts, in transformers' order, and that every token has the id that a file gives
it. Refuses to know what a tokenizer does with the rest of a text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from awq_edge.checkpoints.json_files import is_whole_number, read_json
from awq_edge.errors import CheckpointError

NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_LARGEST_ID = 2**24  # of a vocabulary in a model file (native/format/FORMAT.md)
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")

# What a class calls its special tokens where tokenizer_config.json leaves them out; only tokens
# that the vocabulary knows.
_ENDOFTEXT = "<|endoftext|>"
_LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_OF_CLASSES: dict[str, dict[str, str]] = {
    "LlamaTokenizer": _LLAMA,
    "CodeLlamaTokenizer": _LLAMA,
    "GPT2Tokenizer": dict.fromkeys(("bos_token", "eos_token", "unk_token"), _ENDOFTEXT),
    "GPTNeoXTokenizer": dict.fromkeys(("bos_token", "eos_token", "unk_token"), _ENDOFTEXT),
    "Qwen2Tokenizer": dict.fromkeys(("eos_token", "unk_token", "pad_token"), _ENDOFTEXT),
    "GemmaTokenizer": {
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
    },
}

Entry = dict[str, Any]  # of the list added_tokens of a tokenizer.json, perhaps without its id


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """What the files say.

    Attributes:
        named: Tokens that have a name, by it.
        extra: Special tokens without a name.
        declared: Tokens with an id, by it.
    """

    named: dict[str, Entry]
    extra: list[Entry]
    declared: dict[int, Entry]


def read_special_tokens(
    directory: Path, settings: Mapping[str, Any], class_name: str, defaults: Mapping[str, str]
) -> SpecialTokens:
    """Reads tokenizer_config.json, special_tokens_map.json and added_tokens.json.

    Where the first has ``added_tokens_decoder``, the other two do not count and may be broken.

    Args:
        directory: The checkpoint.
        settings: Its tokenizer_config.json.
        class_name: The tokenizer's class.
        defaults: Texts of named tokens where neither a file nor the class names them.

    Raises:
        CheckpointError: A file that counts is broken, or has something else in a token's place.
    """
    place = directory / "tokenizer_config.json"
    values = dict(settings)
    extra = values.get("extra_special_tokens") or values.get("additional_special_tokens") or []
    decoder = values.get("added_tokens_decoder")
    from_map: Mapping[str, Any] = {}
    if decoder is None and (directory / "special_tokens_map.json").is_file():
        from_map = read_json(directory / "special_tokens_map.json")
        more = from_map.get("extra_special_tokens") or []
        if not extra:
            extra = more or from_map.get("additional_special_tokens") or []
        elif isinstance(extra, list) and isinstance(more, list):
            extra = [*extra, *more]
        values.update(from_map)

    named: dict[str, Entry] = {}
    for name in (*NAMES, *(key for key in values if key.endswith("_token") and key not in NAMES)):
        token = _entry(values.get(name), place, special=True)
        if token is not None:
            named[name] = token
    if isinstance(extra, Mapping):
        for name, value in extra.items():
            token = _entry(value, place, special=True)
            if token is not None:
                named[name] = token
        extra = []
    if not isinstance(extra, list):
        raise CheckpointError(f"The extra special tokens of {place} are neither list nor table.")
    unnamed = [token for token in (_entry(value, place, special=True) for value in extra) if token]

    declared: dict[int, Entry] = {}
    if decoder is not None:
        if not isinstance(decoder, Mapping):
            raise CheckpointError(f"added_tokens_decoder of {place} is not a table of tokens.")
        for number, value in decoder.items():
            token = _entry(value, place, special=False)
            if token is None:
                raise CheckpointError(f"added_tokens_decoder of {place} has no token {number}.")
            declared[_id(number, place)] = token
    elif (directory / "added_tokens.json").is_file():
        place = directory / "added_tokens.json"
        special = {token["content"] for token in (*named.values(), *unnamed)}
        for content, number in read_json(place).items():
            declared[_id(number, place)] = {
                **_plain(content),
                "normalized": content not in special,
                "special": content in special,
            }

    # An absent name is the class's; one that is null is none.
    for name, content in _OF_CLASSES.get(class_name.removesuffix("Fast"), defaults).items():
        if name not in values:
            named[name] = {**_plain(content), "special": True, "optional": True}
    flags = {token["content"]: token for token in declared.values()}
    for name, token in named.items():
        if token["content"] in flags:
            named[name] = {**flags[token["content"]], "special": True}
    return SpecialTokens(named, unnamed, declared)


def add_tokens(tokenizer: dict[str, Any], tokens: SpecialTokens) -> list[str]:
    """Puts tokens into the list of a tokenizer.json.

    A token that is there keeps its id. One that no file gives an id gets the next free one, as in
    transformers.

    Args:
        tokenizer: The JSON of a tokenizer.json, changed in place.
        tokens: What to put there.

    Returns:
        The names of tokens that had no id before.
    """
    entries: list[Entry] = tokenizer["added_tokens"]
    by_content = {entry["content"]: entry for entry in entries}
    vocabulary = vocabulary_of(tokenizer)
    taken = set(vocabulary.values()) | {entry["id"] for entry in entries}

    def add(token: Entry, number: int) -> None:
        entry = {"id": number, **{key: token[key] for key in ("content", *_FLAGS)}}
        entries.append(entry)
        by_content[token["content"]] = entry
        taken.add(number)

    for number, token in sorted(tokens.declared.items()):
        content = token["content"]
        if content in by_content:
            by_content[content].update({key: token[key] for key in _FLAGS})
        elif content in vocabulary:
            add(token, vocabulary[content])
        elif number not in taken:
            add(token, number)
        else:
            add(token, 1 + max(taken))
    without_id = []
    named = [*tokens.named.items(), *((None, token) for token in tokens.extra)]
    for name, token in named:
        content = token["content"]
        if content in by_content:
            by_content[content]["special"] = True
        elif content in vocabulary:
            add(token, vocabulary[content])
        elif not token.get("optional"):
            add(token, 1 + max(taken, default=-1))
            if name is not None:
                without_id.append(name)
    entries.sort(key=lambda entry: entry["id"])
    return without_id


def hold_ids(tokenizer: dict[str, Any]) -> bool:
    """Puts added tokens into the vocabulary itself, where the package ``tokenizers`` looks first.

    It numbers added tokens by itself, one behind the other, whatever their entries say.

    Returns:
        Whether the vocabulary is a table, so that this can be done.
    """
    vocabulary = tokenizer["model"].get("vocab")
    if not isinstance(vocabulary, dict):
        return False
    for entry in tokenizer["added_tokens"]:
        vocabulary.setdefault(entry["content"], entry["id"])
    return True


def vocabulary_of(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Ids by token, of a model whose vocabulary is a table or a list of tokens and scores."""
    vocabulary = tokenizer["model"].get("vocab")
    if isinstance(vocabulary, dict):
        return vocabulary
    return {entry[0]: number for number, entry in enumerate(vocabulary or [])}


def ids_by_content(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Ids by token, added ones included."""
    added = {entry["content"]: entry["id"] for entry in tokenizer["added_tokens"]}
    return {**vocabulary_of(tokenizer), **added}


def check_form(tokenizer: Mapping[str, Any], place: Path) -> None:
    """Refuses a tokenizer.json whose vocabulary or added tokens are no such thing.

    Raises:
        CheckpointError: It says what is wrong.
    """
    model, entries = tokenizer.get("model"), tokenizer.get("added_tokens")
    if not isinstance(model, dict):
        raise CheckpointError(f"{place} is not a tokenizer: it has no table 'model'.")
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        sound = all(is_whole_number(number) for number in vocabulary.values())
    else:
        sound = isinstance(vocabulary, list) and all(
            isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)
            for entry in vocabulary
        )
    if not sound:
        raise CheckpointError(f"{place} is not a tokenizer: its vocabulary is no table of ids.")
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict)
        and isinstance(entry.get("content"), str)
        and is_whole_number(entry.get("id"))
        and 0 <= entry["id"] < _LARGEST_ID
        for entry in entries
    ):
        raise CheckpointError(f"{place} is not a tokenizer: its added tokens are no list of them.")


def special_token(content: str) -> Entry:
    """The entry of a special token, but for its id."""
    return {**_plain(content), "special": True}


def _plain(content: str) -> Entry:
    return {"content": content, **dict.fromkeys(_FLAGS, False)}


def _entry(value: Any, place: Path, *, special: bool) -> Entry | None:
    """A token given as a text or a table; None for anything else in the place of a named one."""
    if isinstance(value, str):
        return {**_plain(value), "special": special} if value else None
    if not isinstance(value, Mapping) or not isinstance(value.get("content"), str):
        return None
    if not value["content"]:
        return None
    flags = {key: value[key] for key in _FLAGS if isinstance(value.get(key), bool)}
    # A table without it is normalised, as the package has it, unless it is special.
    flags.setdefault("normalized", not flags.get("special", False))
    if special:
        flags["special"] = True
    return {**_plain(value["content"]), **flags}


def _id(number: Any, place: Path) -> int:
    if isinstance(number, str) and number.isdecimal() and len(number) < 10:
        number = int(number)
    if not is_whole_number(number) or not 0 <= number < _LARGEST_ID:
        raise CheckpointError(f"{place} gives a token the id {number!r:.40}, which none can have.")
    return int(number)
