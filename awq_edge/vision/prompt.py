"""Where pictures stand in a text, and what stands around them.

Owns the record that a model file carries as ``awq_edge.vision.prompt``, the text that a picture
becomes, and that a placeholder which a user typed stays the text it is. Refuses pixels.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING

from awq_edge.errors import FileInvalidError, InvalidArgumentError

if TYPE_CHECKING:
    from awq_edge.tokenizer import Tokenizer
    from awq_edge.vision.tilings import Tiled

METADATA_KEY = "awq_edge.vision.prompt"
# plain: a picture's rows and nothing else; rows_and_columns: SmolVLM's and Idefics3's words.
LAYOUTS = ("plain", "rows_and_columns")
_AROUND, _WHOLE = "<fake_token_around_image>", "<global-img>"
_MOST_ROWS = 6  # beyond, the words have no token


@dataclasses.dataclass(frozen=True)
class PromptRules:
    """How a family writes pictures into a text.

    Attributes:
        token: Id of the token that stands for one row of a picture.
        layout: One of ``LAYOUTS``.
        placeholder: How the token is spelt; empty: the file has no tokenizer.
    """

    token: int
    layout: str
    placeholder: str = ""

    @classmethod
    def from_json(cls, text: object) -> PromptRules:
        """Reads the entry of a model file.

        Raises:
            FileInvalidError: It is no such record.
        """
        try:
            values = json.loads(text) if isinstance(text, str) else None
        except (ValueError, RecursionError):
            values = None
        known = {"token": int, "layout": str, "placeholder": str}
        if (
            not isinstance(values, dict)
            or not {"token", "layout"} <= set(values) <= set(known)
            or any(type(value) is not known[name] for name, value in values.items())
            or values["layout"] not in LAYOUTS
            or values["token"] < 0
        ):
            raise FileInvalidError(
                f"The file's entry {METADATA_KEY} cannot be used: convert the model again with "
                "this release."
            )
        return cls(**values)

    def text(self, tiled: Tiled, rows: int) -> str:
        """What stands in a text in the place of a picture.

        Args:
            tiled: The picture.
            rows: Of the decoder's, for each tile.
        """
        one = self.placeholder * rows
        if self.layout == "plain":
            return one * len(tiled.tiles)
        if max(tiled.rows, tiled.columns) > _MOST_ROWS:
            raise InvalidArgumentError(
                f"The picture becomes {tiled.rows} rows of {tiled.columns} tiles, and the model "
                f"has words for {_MOST_ROWS} of each: make it less long, or use the detail low."
            )
        written = []
        for row in range(1, tiled.rows + 1):
            for column in range(1, tiled.columns + 1):
                written.append(f"{_AROUND}<row_{row}_col_{column}>{one}")
            written.append("\n")
        between = "\n" if tiled.rows else ""
        return "".join((*written, between, _AROUND, _WHOLE, one, _AROUND))


@dataclasses.dataclass(frozen=True)
class Marked:
    """A text in which what a user typed cannot be taken for a picture's place.

    Each placeholder of the user's own is a mark that nobody can guess until the text is cut.
    """

    rules: PromptRules
    mark: str

    @classmethod
    def new(cls, rules: PromptRules) -> Marked:
        """With a mark of its own."""
        return cls(rules, f"\ue000{secrets.token_hex(8)}\ue001")

    def hidden(self, typed: str) -> str:
        """A user's text, its placeholders marked."""
        if not self.rules.placeholder:
            return typed
        return typed.replace(self.rules.placeholder, self.mark)

    def tokens(
        self, tokenizer: Tokenizer, text: str, pictures: Sequence[str], *, add_bos: bool | None
    ) -> list[int]:
        """Ids of a text with pictures.

        Args:
            tokenizer: The model's.
            text: With a placeholder for each picture, and marks.
            pictures: What each of them becomes, :meth:`PromptRules.text`.
            add_bos: As for ``Tokenizer.encode``.

        Raises:
            InvalidArgumentError: There are more placeholders than pictures, or fewer.
        """
        placeholder = self.rules.placeholder
        pieces = text.split(placeholder) if placeholder else [text]
        if len(pieces) - 1 != len(pictures):
            raise InvalidArgumentError(
                f"The text has {len(pieces) - 1} places for pictures, and {len(pictures)} pictures "
                "are given: their numbers must be the same."
            )
        written, typed = [], []  # whether each placeholder in turn was typed by the user
        for number, piece in enumerate(pieces):
            parts = piece.split(self.mark)
            written.append(placeholder.join(parts))
            typed += [True] * (len(parts) - 1)
            if number < len(pictures):
                written.append(pictures[number])
                typed += [False] * pictures[number].count(placeholder)
        ids = tokenizer.encode("".join(written), add_bos=add_bos)
        if ids.count(self.rules.token) != len(typed):
            raise InvalidArgumentError(
                f"The tokenizer makes {ids.count(self.rules.token)} places of a text that has "
                f"{len(typed)} of {placeholder!r}: the text cannot be read with pictures."
            )
        if not any(typed):
            return ids
        # A tokenizer finds no token in what is cut in two.
        plain = [
            token
            for part in (placeholder[:1], placeholder[1:])
            for token in tokenizer.encode(part, add_bos=False)
        ]
        turn = iter(typed)
        return [
            one
            for token in ids
            for one in (plain if token == self.rules.token and next(turn) else [token])
        ]
