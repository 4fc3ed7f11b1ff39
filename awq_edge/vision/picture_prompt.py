"""A prompt of text and pictures: its ids, and which of them are rows of which picture.

Owns how such a prompt is read into a session, and how much of it a session holds already. Refuses
to encode before anything of it is needed: a prompt that does not fit costs no encoding.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from awq_edge.errors import InvalidArgumentError
from awq_edge.session import NO_TOKEN, Rows, common_length
from awq_edge.vision.prompt import LINES, Marked
from awq_edge.vision.reader import PictureReader, PreparedPicture, Progress

if TYPE_CHECKING:
    from awq_edge.session import Session
    from awq_edge.tokenizer import Tokenizer


Contents = npt.NDArray[np.uint64]
# So that no number of a row is a token's id.
_ROW = np.uint64(1 << 63)


@dataclasses.dataclass(frozen=True)
class Span:
    """Rows of a picture, side by side in a prompt; or the token from which it is looked at.

    Attributes:
        begin: Where the first one stands.
        end: Behind the last one.
        picture: Whose they are.
        first_row: Which row of the picture's the first one is.
        columns: Rows of a line of the picture, where they turn by both; 0: they do not.
    """

    begin: int
    end: int
    picture: PreparedPicture
    first_row: int
    columns: int = 0

    def rows(
        self, encoded: npt.NDArray[np.float32], begin: int, end: int, contents: Contents
    ) -> Rows:
        """What a session reads at the positions from ``begin`` to before ``end`` within.

        Args:
            encoded: float32 [rows of the picture, hidden].
            begin: The first one.
            end: Behind the last one.
            contents: Of the whole prompt.
        """
        first = self.first_row + begin - self.begin
        return Rows(encoded[first : first + end - begin], contents[begin:end], self.columns)


class PicturePrompt:
    """Text and pictures, ready to be read.

    Attributes:
        tokens: Ids; the placeholder's where rows of a picture stand.
        spans: These, in order.
        ends: From where on no picture is looked at, until the next one; in order.
        contents: uint64 [tokens]: ids, and for every row of a picture a number that follows from
            the picture's content and from nothing else, as ``Session.contents`` has them.
    """

    def __init__(
        self,
        reader: PictureReader,
        tokens: Sequence[int],
        pictures: Sequence[PreparedPicture],
    ) -> None:
        """Finds the places of the pictures.

        Raises:
            InvalidArgumentError: There are more or fewer than the pictures have rows.
        """
        self._reader = reader
        self.tokens = list(tokens)
        places = np.flatnonzero(np.array(self.tokens, dtype=np.int64) == reader.rules.token)
        runs = [reader.rules.runs(picture.tiled, reader.rows) for picture in pictures]
        needed = sum(sum(of_picture) for of_picture in runs)
        if len(places) != needed:
            raise InvalidArgumentError(
                f"The prompt has {len(places)} places for rows of pictures, and the "
                f"{len(pictures)} pictures have {needed} rows: their numbers must be the same."
            )
        self.contents: Contents = np.array(self.tokens, dtype=np.uint64)
        spans = []
        done = 0
        for picture, of_picture in zip(pictures, runs):
            first_row = 0
            numbers = _row_contents(picture.key, sum(of_picture))
            for count in of_picture:
                begin = int(places[done])
                columns = reader.columns(picture)
                spans.append(Span(begin, begin + count, picture, first_row, columns))
                self.contents[begin : begin + count] = numbers[first_row : first_row + count]
                done += count
                first_row += count
        self.ends: tuple[int, ...] = ()
        if reader.looked_at and reader.rules.ends >= 0:
            behind = np.flatnonzero(np.array(self.tokens, dtype=np.int64) == reader.rules.ends) + 1
            self.ends = tuple(behind.tolist())
        self.spans = tuple(spans)

    @classmethod
    def of_text(
        cls,
        reader: PictureReader,
        tokenizer: Tokenizer,
        text: str,
        marked: Marked,
        pictures: Sequence[PreparedPicture],
        *,
        add_bos: bool | None,
    ) -> PicturePrompt:
        """The prompt of a text with a placeholder for each picture."""
        written = reader.rules.texts([picture.tiled for picture in pictures], reader.rows)
        ids = marked.tokens(tokenizer, text, written, add_bos=add_bos)
        if reader.rules.layout == LINES:
            end = tokenizer.encode(reader.rules.end, add_bos=False)
            ids = reader.rules.ended(ids, end, reader.rows)
        return cls(reader, ids, pictures)

    @property
    def held(self) -> list[int]:
        """The ids as a session holds them."""
        ids = np.array(self.tokens, dtype=np.uint32)
        for span in () if self._reader.looked_at else self.spans:
            ids[span.begin : span.end] = NO_TOKEN
        return [int(one) for one in ids]

    def part(self, position: int) -> tuple[int, Span | None]:
        """What stands at a position: the end of it, and whose rows; None: text.

        Args:
            position: Within the prompt.
        """
        for span in self.spans:
            if position < span.begin:
                return span.begin, None
            if position < span.end:
                return span.end, span
        return len(self.tokens), None

    def reusable(self, session: Session, drawn: Sequence[int] = ()) -> int:
        """How much at the beginning of a text with this prompt a session need not read again.

        Never the last token, unless the session holds exactly this text; and of a tile all rows or
        none.

        Args:
            session: Any of the model's.
            drawn: Ids that follow the prompt.
        """
        held = session.contents
        wanted = np.concatenate([self.contents, np.array(drawn, dtype=np.uint64)])
        shared = common_length(held, wanted)
        if shared == len(wanted) and (shared < len(held) or not session.has_logits):
            shared -= 1  # its logits are what the next token is drawn from
        if shared < len(self.tokens):
            _, span = self.part(shared)
            shared = shared if span is None else span.begin
        return shared if shared == len(held) or shared >= session.earliest else 0

    def read(self, session: Session, begin: int, progress: Progress | None = None) -> None:
        """Makes a session read the prompt from a position on.

        Args:
            session: One that holds the prompt up to there.
            begin: The position.
            progress: Called with the tokens read so far and their number; may raise to stop.
        """
        total, first = len(self.tokens) - begin, begin
        if self._reader.looked_at:
            self._read_looking(session, begin, progress)
            return

        def report(done: int, _total: int) -> None:
            if progress is not None:
                progress(begin - first + done, total)

        while begin < len(self.tokens):
            end, span = self.part(begin)
            if span is None:
                session.evaluate(self.tokens[begin:end], progress=report)
            else:
                rows = span.rows(self._reader.encoded(span.picture), begin, end, self.contents)
                session.evaluate_embeddings(
                    rows.embeddings, progress=report, contents=rows.contents, columns=rows.columns
                )
            begin = end

    def _read_looking(self, session: Session, begin: int, progress: Progress | None) -> None:
        """The same where layers look at pictures, each from its token on."""
        total, first = len(self.tokens) - begin, begin

        def report(done: int, _total: int) -> None:
            if progress is not None:
                progress(begin - first + done, total)

        # Where two meet, the picture counts.
        turns: dict[int, PreparedPicture | None] = dict.fromkeys(self.ends)
        turns.update((span.begin, span.picture) for span in self.spans)
        for at in sorted((*turns, len(self.tokens))):
            if begin < at:
                session.evaluate(self.tokens[begin:at], progress=report)
            if begin <= at < len(self.tokens):
                picture = turns[at]
                if picture is None:
                    session.look_at(None)
                else:
                    rows = self._reader.encoded(picture)
                    session.look_at(rows, content=int(self.contents[at]))
            begin = max(begin, at)


def _row_contents(key: bytes, count: int) -> Contents:
    """A number for each row of a picture, from 63 bits of what its key gives."""
    numbers = np.frombuffer(hashlib.shake_128(key).digest(8 * count), dtype="<u8")
    return numbers.astype(np.uint64) | _ROW
