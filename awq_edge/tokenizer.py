"""Text to token ids and back, from the ``tokenizer.json`` that lies in the model file.

Owns the BOS rule (nobody else puts BOS before a text), text that arrives token by token, and stop
strings. Refuses chat templates (``chat.py``) and SentencePiece models: the converter turned those
into a ``tokenizer.json``. Importing this module loads nothing heavy; ``tokenizers`` is imported
with the first tokenizer.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

from awq_edge import tokenizers_library as library
from awq_edge.errors import FileInvalidError, InvalidArgumentError, UnsupportedError

# Shown by decoders in the place of bytes that are no complete character.
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# A character has at most four bytes, so at most three tokens end inside it; a few more allow for
# tokens that end one character and begin another. Longer, and the bytes are simply not UTF-8.
_MAX_PENDING_TOKENS = 8


class Tokenizer:
    """Encodes and decodes. May be used from several threads at once.

    Attributes:
        bos_token_id: The token that begins a text, if there is one.
        eos_token_ids: Every token that ends a turn.
        before: Ids that stand before every prompt: what the tokenizer's post-processor puts there,
            and BOS as the model expects it.
        behind: Ids that the post-processor puts behind every prompt.
        put_by_json: Whether the post-processor alone puts all of them; in files of older releases,
            BOS is not its own.
        split_special_tokens: Whether special tokens that are spelt out in a text are mere text.
    """

    def __init__(
        self,
        tokenizer_json: str,
        *,
        bos_token_id: int | None = None,
        eos_token_ids: Sequence[int] = (),
        add_bos_token: bool = False,
        split_special_tokens: bool = False,
    ) -> None:
        """Reads a whole ``tokenizer.json``.

        Args:
            tokenizer_json: The text of that file.
            bos_token_id: The token that begins a text, if there is one.
            eos_token_ids: Every token that ends a turn.
            add_bos_token: Whether the model expects BOS before a prompt. This decides about BOS,
                and the tokenizer's post-processor about everything else that it puts around a text.
            split_special_tokens: Read special tokens that are spelt out in a text as mere text.

        Raises:
            FileInvalidError: The package ``tokenizers`` cannot read or use it.
        """
        self._tokenizer = library.load_tokenizer(tokenizer_json, _unreadable)
        if split_special_tokens:
            self._tokenizer.encode_special_tokens = True
        self.bos_token_id = bos_token_id
        self.eos_token_ids = tuple(eos_token_ids)
        self.split_special_tokens = split_special_tokens
        put, behind = library.surroundings(self._tokenizer, _unreadable)
        before = list(put)
        if bos_token_id is not None:
            begins = before[:1] == [bos_token_id]
            if add_bos_token and not begins:
                before = [bos_token_id, *before]
            elif begins and not add_bos_token:
                before = before[1:]
        self.before, self.behind = tuple(before), tuple(behind)
        self.put_by_json = before == put

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, object]) -> Tokenizer:
        """The tokenizer of a model file.

        Args:
            metadata: The file's entries.

        Raises:
            UnsupportedError: The file has none.
            FileInvalidError: It has one that cannot be used.
        """
        text = metadata.get("tokenizer.huggingface.json")
        if not isinstance(text, str):
            raise UnsupportedError(
                "The file holds no tokenizer: pass token ids instead of text, or convert the "
                "model again from a directory with a tokenizer."
            )
        bos = metadata.get("tokenizer.ggml.bos_token_id")
        return cls(
            text,
            bos_token_id=bos if isinstance(bos, int) else None,
            eos_token_ids=eos_token_ids(metadata),
            add_bos_token=bool(metadata.get("tokenizer.ggml.add_bos_token", False)),
            split_special_tokens=metadata.get("awq_edge.tokenizer.split_special_tokens") is True,
        )

    @property
    def add_bos_token(self) -> bool:
        """Whether a prompt begins with BOS."""
        return self.bos_token_id is not None and self.before[:1] == (self.bos_token_id,)

    @property
    def vocabulary_size(self) -> int:
        """Tokens that the tokenizer knows; a model's vocabulary may be padded to more."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, *, add_bos: bool | None = None) -> list[int]:
        """Token ids of ``text``; special tokens that are spelt out in it count as such.

        Args:
            text: Any text.
            add_bos: None puts around the text what the model expects: ``before`` and ``behind``.
                True puts BOS alone before it, False nothing. A text that begins with BOS, spelt
                out, gets no second one.
        """
        try:
            text.encode("utf-8")
        except (AttributeError, UnicodeEncodeError) as error:
            raise InvalidArgumentError("The prompt is not a text of valid Unicode.") from error
        ids = library.encode(self._tokenizer, text, _unusable)
        before, behind = self.before, self.behind
        if add_bos is not None:
            bos = self.bos_token_id
            before, behind = ((bos,) if add_bos and bos is not None else ()), ()
        if before and before[0] == self.bos_token_id and ids[:1] == [before[0]]:
            del ids[0]
        return [*before, *ids, *behind]

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids; bytes that form no character show as U+FFFD."""
        return library.decode(self._tokenizer, tokens, skip_special_tokens, _undecodable)

    def token_id(self, text: str) -> int | None:
        """The id of the token that is spelt like this in the vocabulary; None where none is."""
        found = self._tokenizer.token_to_id(text)
        return None if found is None else int(found)

    def token_text(self, token: int | None) -> str:
        """How one token is spelt in the vocabulary; empty for None and for unknown ids."""
        return "" if token is None else self._tokenizer.id_to_token(token) or ""


def _unreadable(reason: str) -> FileInvalidError:
    return FileInvalidError(
        f"The tokenizer in the file cannot be read by the package 'tokenizers' ({reason}): convert "
        "the model again."
    )


def _unusable(reason: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"The tokenizer in the file cannot read this text ({reason}).")


def _undecodable(reason: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"Token ids are whole numbers of the vocabulary: {reason}.")


def eos_token_ids(metadata: Mapping[str, object]) -> tuple[int, ...]:
    """Every token that ends a turn, by a model file's entries."""
    ids = metadata.get("awq_edge.tokenizer.eos_token_ids", [])
    found = [token for token in ids if isinstance(token, int)] if isinstance(ids, list) else []
    single = metadata.get("tokenizer.ggml.eos_token_id")
    if isinstance(single, int):
        found.append(single)
    return tuple(dict.fromkeys(found))


class IncrementalDecoder:
    """Turns tokens that arrive one by one into text, and never cuts a character in two."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int] = (),
        *,
        special_tokens: bool = False,
    ) -> None:
        """Begins after ``prompt``, whose text is not repeated.

        Args:
            tokenizer: The model's.
            prompt: What the tokens follow.
            special_tokens: Whether they are spelt out.
        """
        self._decode = functools.partial(tokenizer.decode, skip_special_tokens=not special_tokens)
        # Tokens are decoded behind some whose text is out already, because decoders treat the
        # beginning of a text specially: SentencePiece drops a space there.
        self._tokens = list(prompt)
        self._shown = len(self._tokens)
        self._shown_text = self._decode(self._tokens)

    def add(self, token: int) -> str:
        """The text that ``token`` completes; often a word, empty inside a character."""
        self._tokens.append(token)
        text = self._decode(self._tokens)
        pending = len(self._tokens) - self._shown
        if text.endswith(_REPLACEMENT) and pending < _MAX_PENDING_TOKENS:
            return ""
        return self._show(text)

    def finish(self) -> str:
        """Whatever is still held back, at the end of the text."""
        return self._show(self._decode(self._tokens))

    def _show(self, text: str) -> str:
        piece = text[len(self._shown_text) :]
        if piece:
            # The tokens of this piece begin at a character, so they can stand alone from now on.
            self._tokens = self._tokens[self._shown :]
            text = self._decode(self._tokens)
        self._shown, self._shown_text = len(self._tokens), text
        return piece


class StopStrings:
    """Watches a text that arrives in pieces for strings that end it.

    Attributes:
        found: Whether one was there.
        string: Which one; None so far.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Watches for each of ``stops``; an empty one is an error."""
        if any(not stop for stop in stops):
            raise InvalidArgumentError("A stop string is empty: leave it out.")
        self._stops = tuple(stops)
        self._held = ""
        self.found = False
        self.string: str | None = None

    def add(self, piece: str) -> str:
        """What can be shown now. Text that may turn out to begin a stop string is held back."""
        text = self._held + piece
        places = [(text.find(stop), stop) for stop in self._stops if stop in text]
        if places:
            place, self.string = min(places)
            self.found, self._held = True, ""
            return text[:place]
        held = max((overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """What was held back and proved harmless."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop``."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
