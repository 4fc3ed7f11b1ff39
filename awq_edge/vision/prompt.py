"""Where pictures stand in a text, and what stands around them.

Owns the record that a model file carries as ``awq_edge.vision.prompt``, the text that a picture
becomes, and that a placeholder which a user typed stays the text it is. Refuses pixels.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from awq_edge.errors import FileInvalidError, InvalidArgumentError
from awq_edge.vision.arrangement import row_count

if TYPE_CHECKING:
    from awq_edge.tokenizer import Tokenizer
    from awq_edge.vision.tilings import Tiled

METADATA_KEY = "awq_edge.vision.prompt"
# plain: a picture's rows and nothing else; paragraph: Gemma 3's, between two words on a line of
# their own; rows_and_columns: SmolVLM's and Idefics3's words; any_resolution: LLaVA 1.6's rows, as
# ``arrangement.py`` puts them; squares: a row for every square of a picture; single: one token that
# the text behind it looks at a picture from: OpenFlamingo; around: the same with a word before it
# and behind it, and one between two pictures: Idefics 1; lines: NVILA's, the word ``end`` behind
# each tile's rows, and of a picture that is alone a line of the text for each tile.
LINES = "lines"
WHOLE_FIRST = "whole_first"
LAYOUTS = (
    "plain",
    "paragraph",
    "rows_and_columns",
    "any_resolution",
    "squares",
    "single",
    "around",
    LINES,
    WHOLE_FIRST,
)
_TYPES = {"int": int, "str": str, "bool": bool}
_AROUND, _WHOLE = "<fake_token_around_image>", "<global-img>"
_MOST_ROWS = {"rows_and_columns": 6, WHOLE_FIRST: 8}  # beyond, the words have no token


def tile_word(row: int, column: int) -> str:
    """What stands in front of a tile's rows; both numbers from 1."""
    return f"<row_{row}_col_{column}>"


@dataclasses.dataclass(frozen=True)
class PromptRules:
    """How a family writes pictures into a text.

    Attributes:
        token: Id of the token that stands for one row of a picture.
        layout: One of ``LAYOUTS``.
        placeholder: How the token is spelt; empty: the file has no tokenizer.
        begin: The word in front of a picture's rows, which in a prompt and in a chat template is
            the picture's place; empty: the placeholder is.
        end: The word behind them; of lines tokenised by itself.
        most_tiles: Of how many tiles any_resolution keeps the rows; 0: of all.
        square: Pixels on a side of what becomes a row, where pictures have any size.
        ends: Id of the token behind which nobody looks at a picture until the next one; -1: there
            is none.
        apart: Whether each text between pictures is tokenised by itself, as a text begins; only the
            first has a BOS.
    """

    token: int
    layout: str
    placeholder: str = ""
    begin: str = ""
    end: str = ""
    most_tiles: int = 0
    square: int = 0
    ends: int = -1
    apart: bool = False

    @property
    def place(self) -> str:
        """How a prompt says where a picture stands."""
        return self.begin or self.placeholder

    @property
    def in_front(self) -> str:
        """What stands in a text for a picture that a user has put nowhere."""
        if self.layout in ("single", "around", LINES, WHOLE_FIRST):
            return self.place
        return f"{self.place}\n"

    @property
    def words(self) -> tuple[str, ...]:
        """What stands for pictures and nothing else."""
        return tuple(word for word in (self.placeholder, self.begin) if word)

    @classmethod
    def from_json(cls, text: object) -> PromptRules:
        """Reads the entry of a model file.

        Raises:
            FileInvalidError: It is no such record.
        """
        fields = dataclasses.fields(cls)
        try:
            values = json.loads(text) if isinstance(text, str) else None
        except (ValueError, RecursionError):
            values = None
        known = {field.name: _TYPES[str(field.type)] for field in fields}
        if (
            not isinstance(values, dict)
            or not {"token", "layout"} <= set(values) <= set(known)
            or any(type(value) is not known[name] for name, value in values.items())
            or values["layout"] not in LAYOUTS
            or min(values["token"], values.get("most_tiles", 0), values.get("ends", 0)) < 0
            or (values["layout"] == "squares") != (values.get("square", 0) > 0)
        ):
            raise FileInvalidError(
                f"The file's entry {METADATA_KEY} cannot be used: convert the model again with "
                "this release."
            )
        return cls(**values)

    def runs(self, tiled: Tiled, rows: int) -> list[int]:
        """How many rows of a picture stand side by side in a prompt, one number for each run.

        Args:
            tiled: The picture.
            rows: Of the decoder's, for each tile.
        """
        if self.layout == "any_resolution":
            return [row_count(tiled, math.isqrt(rows), self.most_tiles)]
        if self.layout == "squares":
            _, height, width, _ = tiled.tiles.shape
            return [height // self.square * (width // self.square)]
        return [rows] * len(tiled.tiles)

    def texts(self, shown: Sequence[Tiled], rows: int) -> list[str]:
        """What all pictures of a prompt become; ``rows`` as for :meth:`runs`."""
        if self.layout == LINES:
            behind = "\n" if len(shown) == 1 else ""
            return [f"{self.placeholder * rows}{behind}" * len(one.tiles) for one in shown]
        written = [self.text(tiled, rows) for tiled in shown]
        if self.layout == WHOLE_FIRST and len(written) > 1:
            return [f"<image: {number}>{text}" for number, text in enumerate(written)]
        return written

    def ended(self, ids: Sequence[int], end: Sequence[int], rows: int) -> list[int]:
        """A prompt's ids with those of ``end`` behind every ``rows`` of the placeholder's."""
        result: list[int] = []
        seen = 0
        for token in ids:
            result.append(token)
            seen += token == self.token
            if token == self.token and seen % rows == 0:
                result += end
        return result

    def text(self, tiled: Tiled, rows: int) -> str:
        """What stands in a text in the place of a picture; arguments as for :meth:`runs`."""
        one = self.placeholder * rows
        if self.layout in ("any_resolution", "squares"):
            return self.placeholder * sum(self.runs(tiled, rows))
        if self.layout in ("plain", "single"):
            return one * len(tiled.tiles)
        if self.layout == "paragraph":
            return f"\n\n{self.begin}{one}{self.end}\n\n"
        if self.layout == "around":
            return f"{_AROUND}{one * len(tiled.tiles)}{_AROUND}"
        most = _MOST_ROWS[self.layout]
        if max(tiled.rows, tiled.columns) > most:
            raise InvalidArgumentError(
                f"The picture becomes {tiled.rows} rows of {tiled.columns} tiles, and the model "
                f"has words for {most} of each: make it less long, or use the detail low."
            )
        written = []
        if self.layout == WHOLE_FIRST:
            for row in range(1, tiled.rows + 1):
                for column in range(1, tiled.columns + 1):
                    written.append(f"{tile_word(row, column)}{one}")
            return "".join((f"<|global_image|>{one}", *written))
        for row in range(1, tiled.rows + 1):
            for column in range(1, tiled.columns + 1):
                written.append(f"{_AROUND}{tile_word(row, column)}{one}")
            written.append("\n")
        between = "\n" if tiled.rows else ""
        return "".join((*written, between, _AROUND, _WHOLE, one, _AROUND))


@dataclasses.dataclass(frozen=True)
class Marked:
    """A text in which what a user typed cannot be taken for a picture's place.

    Each of the family's words that a user typed is a mark that nobody can guess until the text is
    cut.

    Attributes:
        rules: The family's.
        marks: Of each of its words.
    """

    rules: PromptRules
    marks: tuple[str, ...]

    @classmethod
    def new(cls, rules: PromptRules) -> Marked:
        """With marks of its own."""
        key = secrets.token_hex(8)
        return cls(rules, tuple(f"\ue000{key}{n}\ue001" for n in range(len(rules.words))))

    def hidden(self, typed: str) -> str:
        """A user's text, the family's words in it marked."""
        for word, mark in zip(self.rules.words, self.marks):
            typed = typed.replace(word, mark)
        return typed

    def hidden_in(self, value: Any) -> Any:
        """Every text in a value of JSON marked like that, the names of fields excepted."""
        if isinstance(value, str):
            return self.hidden(value)
        if isinstance(value, Mapping):
            return {name: self.hidden_in(entry) for name, entry in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.hidden_in(entry) for entry in value]
        return value

    def tokens(
        self, tokenizer: Tokenizer, text: str, pictures: Sequence[str], *, add_bos: bool | None
    ) -> list[int]:
        """Ids of a text with pictures.

        Args:
            tokenizer: The model's.
            text: With the family's place for each picture, and marks.
            pictures: What each of them becomes, :meth:`PromptRules.text`.
            add_bos: As for ``Tokenizer.encode``.

        Raises:
            InvalidArgumentError: There are more places than pictures, or fewer.
        """
        place = self.rules.place
        pieces = text.split(place) if place else [text]
        if len(pieces) - 1 != len(pictures):
            raise InvalidArgumentError(
                f"The text has {len(pieces) - 1} places for pictures, and {len(pictures)} pictures "
                "are given: their numbers must be the same."
            )
        if not self.rules.apart:
            return self._read(tokenizer, pieces, pictures, add_bos)
        begins = tokenizer.add_bos_token if add_bos is None else add_bos
        result = self._read(tokenizer, pieces[:1], (), begins)
        for shown, piece in zip(pictures, pieces[1:]):
            result += tokenizer.encode(shown, add_bos=False)
            result += self._read(tokenizer, [piece], (), False)
        return result

    def _read(
        self,
        tokenizer: Tokenizer,
        pieces: Sequence[str],
        pictures: Sequence[str],
        add_bos: bool | None,
    ) -> list[int]:
        """Ids of texts with a picture between each two."""
        words = self.rules.words
        # What stands for one of the words, in turn: the word, and whether the user typed it.
        written: list[str] = []
        turn: list[tuple[str, bool]] = []
        marked = dict(zip(self.marks, words))
        for number, piece in enumerate(pieces):
            for part in _cut(piece, self.marks):
                written.append(marked.get(part, part))
                turn += [(marked[part], True)] if part in marked else []
            if number < len(pictures):
                follows = bool(number) and not piece and self.rules.layout == "around"
                # Two pictures without a text between share a word.
                shown = pictures[number][len(_AROUND) if follows else 0 :]
                written.append(shown)
                turn += [(part, False) for part in _cut(shown, words) if part in words]
        ids = tokenizer.encode("".join(written), add_bos=add_bos)
        spelt = {word: tokenizer.encode(word, add_bos=False) for word in words}
        known = {one[0]: word for word, one in spelt.items() if len(one) == 1}
        turn = [(word, typed) for word, typed in turn if len(spelt[word]) == 1]
        if [known[token] for token in ids if token in known] != [word for word, _ in turn]:
            raise InvalidArgumentError(
                f"The tokenizer makes {sum(token in known for token in ids)} places of a text that "
                f"has {len(turn)} of {' and '.join(words)}: the text cannot be read with pictures."
            )
        typed = iter(typed for _, typed in turn)
        result: list[int] = []
        for token in ids:
            if token in known and next(typed):
                result += _plain(tokenizer, known[token])
            else:
                result.append(token)
        return result


def _cut(text: str, words: Sequence[str]) -> list[str]:
    """A text in parts, each of which is one of the words or has none."""
    if not words:
        return [text]
    return re.split(f"({'|'.join(re.escape(word) for word in words)})", text)


def _plain(tokenizer: Tokenizer, word: str) -> list[int]:
    """Ids of a word as mere text: a tokenizer finds no token in what is cut in two."""
    parts = (word[:1], word[1:])
    return [token for part in parts for token in tokenizer.encode(part, add_bos=False)]
