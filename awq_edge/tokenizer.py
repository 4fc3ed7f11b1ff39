"""Text to token ids and back, from the ``tokenizer.json`` that lies in the model file.

Owns the BOS rule, text that arrives token by token, and stop strings. Refuses chat templates
(``chat.py``) and SentencePiece models: the converter turned those into a ``tokenizer.json``.
Importing this module loads nothing heavy; ``tokenizers`` is imported with the first tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from awq_edge.errors import FileInvalidError, InvalidArgumentError, UnsupportedError

# Shown by decoders in the place of bytes that are no complete character.
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# A character has at most four bytes, so at most three tokens end inside it; a few more allow for
# tokens that end one character and begin another. Longer, and the bytes are simply not UTF-8.
_MAX_PENDING_TOKENS = 8


class Tokenizer:
    """Encodes and decodes. May be used from several threads at once."""

    def __init__(
        self,
        tokenizer_json: str,
        *,
        bos_token_id: int | None = None,
        eos_token_ids: Sequence[int] = (),
        add_bos_token: bool = False,
    ) -> None:
        """Reads a whole ``tokenizer.json``.

        Args:
            tokenizer_json: The text of that file.
            bos_token_id: The token that begins a text, if there is one.
            eos_token_ids: Every token that ends a turn.
            add_bos_token: Whether the model expects BOS before a prompt.
        """
        from tokenizers import Tokenizer as HuggingFaceTokenizer

        try:
            self._tokenizer = HuggingFaceTokenizer.from_str(tokenizer_json)
        except Exception as error:  # tokenizers raises nothing narrower
            raise FileInvalidError(
                f"The tokenizer in the file cannot be read by the package 'tokenizers': {error}."
            ) from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.bos_token_id = bos_token_id
        self.eos_token_ids = tuple(eos_token_ids)
        self.add_bos_token = add_bos_token and bos_token_id is not None

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, object]) -> Tokenizer:
        """The tokenizer of a model file.

        Args:
            metadata: The file's entries.

        Raises:
            UnsupportedError: The file has none.
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
        )

    @property
    def vocabulary_size(self) -> int:
        """Tokens that the tokenizer knows; a model's vocabulary may be padded to more."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, *, add_bos: bool | None = None) -> list[int]:
        """Token ids of ``text``; special tokens that are spelt out in it count as such.

        Args:
            text: Any text.
            add_bos: Whether to put BOS first, unless it is there already. None does what the
                model expects.
        """
        try:
            ids = list(self._tokenizer.encode(text, add_special_tokens=False).ids)
        except (TypeError, UnicodeEncodeError) as error:  # which one depends on the release
            raise InvalidArgumentError("The prompt is not a text of valid Unicode.") from error
        wanted = self.add_bos_token if add_bos is None else add_bos
        if wanted and self.bos_token_id is not None and ids[:1] != [self.bos_token_id]:
            ids.insert(0, self.bos_token_id)
        return ids

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids; bytes that form no character show as U+FFFD."""
        try:
            return str(
                self._tokenizer.decode(list(tokens), skip_special_tokens=skip_special_tokens)
            )
        except (OverflowError, TypeError) as error:
            raise InvalidArgumentError(f"Token ids are whole numbers: {error}.") from error

    def token_text(self, token: int | None) -> str:
        """How one token is spelt in the vocabulary; empty for None and for unknown ids."""
        return "" if token is None else self._tokenizer.id_to_token(token) or ""


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

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = ()) -> None:
        """Begins after ``prompt``, whose text is not repeated."""
        self._tokenizer = tokenizer
        # Tokens are decoded behind some whose text is out already, because decoders treat the
        # beginning of a text specially: SentencePiece drops a space there.
        self._tokens = list(prompt)
        self._shown = len(self._tokens)
        self._shown_text = tokenizer.decode(self._tokens)

    def add(self, token: int) -> str:
        """The text that ``token`` completes; often a word, empty inside a character."""
        self._tokens.append(token)
        text = self._tokenizer.decode(self._tokens)
        pending = len(self._tokens) - self._shown
        if text.endswith(_REPLACEMENT) and pending < _MAX_PENDING_TOKENS:
            return ""
        return self._show(text)

    def finish(self) -> str:
        """Whatever is still held back, at the end of the text."""
        return self._show(self._tokenizer.decode(self._tokens))

    def _show(self, text: str) -> str:
        piece = text[len(self._shown_text) :]
        if piece:
            # The tokens of this piece begin at a character, so they can stand alone from now on.
            self._tokens = self._tokens[self._shown :]
            text = self._tokenizer.decode(self._tokens)
        self._shown, self._shown_text = len(self._tokens), text
        return piece


class StopStrings:
    """Watches a text that arrives in pieces for strings that end it."""

    def __init__(self, stops: Sequence[str]) -> None:
        """Watches for each of ``stops``; an empty one is an error."""
        if any(not stop for stop in stops):
            raise InvalidArgumentError("A stop string is empty: leave it out.")
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def add(self, piece: str) -> str:
        """What can be shown now. Text that may turn out to begin a stop string is held back."""
        text = self._held + piece
        places = [place for place in (text.find(stop) for stop in self._stops) if place >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """What was held back and proved harmless."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop``."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
