"""A prompt of text and pictures: its ids, and which of them are rows of which picture.

Owns how such a prompt is read into a session, and how much of it a session holds already. Refuses
to encode before anything of it is needed: a prompt that does not fit costs no encoding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from awq_edge.errors import InvalidArgumentError
from awq_edge.vision.prompt import Marked
from awq_edge.vision.reader import PictureReader, PreparedPicture, Progress

if TYPE_CHECKING:
    from awq_edge.session import Session
    from awq_edge.tokenizer import Tokenizer

NO_TOKEN = 2**32 - 1  # what a session holds in the place of a picture's rows


@dataclasses.dataclass(frozen=True)
class Span:
    """Rows of a picture, side by side in a prompt.

    Attributes:
        begin: Where the first one stands.
        end: Behind the last one.
        picture: Whose they are.
        first_row: Which row of the picture's the first one is.
    """

    begin: int
    end: int
    picture: PreparedPicture
    first_row: int

    @property
    def key(self) -> tuple[bytes, int, int]:
        """Stands for what the rows are."""
        return (self.picture.key, self.first_row, self.end - self.begin)


class PicturePrompt:
    """Text and pictures, ready to be read.

    Attributes:
        tokens: Ids; the placeholder's where rows of a picture stand.
        spans: These, in order.
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
        spans = []
        done = 0
        for picture, of_picture in zip(pictures, runs):
            first_row = 0
            for count in of_picture:
                begin = int(places[done])
                spans.append(Span(begin, begin + count, picture, first_row))
                done += count
                first_row += count
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
        written = [reader.rules.text(picture.tiled, reader.rows) for picture in pictures]
        ids = marked.tokens(tokenizer, text, written, add_bos=add_bos)
        return cls(reader, ids, pictures)

    @property
    def held(self) -> list[int]:
        """The ids as a session holds them."""
        ids = np.array(self.tokens, dtype=np.uint32)
        for span in self.spans:
            ids[span.begin : span.end] = NO_TOKEN
        return [int(one) for one in ids]

    def reusable(self, session: Session, context: Sequence[int] | memoryview) -> int:
        """How much at the beginning of a text with this prompt a session need not read again.

        Never the last token, unless the session holds exactly this text.

        Args:
            session: Any of the model's.
            context: The ids as a session holds them, of the prompt and what follows.
        """
        held = np.array(session.tokens, dtype=np.uint32)
        wanted = np.asarray(context, dtype=np.uint32)
        most = min(len(held), len(wanted))
        differing = np.flatnonzero(held[:most] != wanted[:most])
        shared = int(differing[0]) if len(differing) else most
        for span in self.spans:
            if span.begin >= shared:
                break
            if span.end > shared or session.picture_at(span.begin) != span.key:
                shared = span.begin
                break
        if shared == len(wanted) and shared < len(held):
            shared -= 1  # its logits are what the next token is drawn from
            if self._reader.whole and self.spans and shared < self.spans[-1].end:
                shared = self.spans[-1].begin  # rows that see each other are read together
        return shared if shared == len(held) or shared >= session.earliest else 0

    def read(self, session: Session, begin: int, progress: Progress | None = None) -> None:
        """Makes a session read the prompt from a position on.

        Args:
            session: One that holds the prompt up to there.
            begin: The position.
            progress: Called with the tokens read so far and their number; may raise to stop.
        """
        total, first = len(self.tokens) - begin, begin

        def report(done: int, _total: int) -> None:
            if progress is not None:
                progress(begin - first + done, total)

        for span in (*self.spans, None):
            text_end = len(self.tokens) if span is None else span.begin
            if begin < text_end:
                session.evaluate(self.tokens[begin:text_end], progress=report)
                begin = text_end
            if span is not None and begin < span.end:
                rows = self._reader.encoded(span.picture)
                from_row = span.first_row + begin - span.begin
                until = span.first_row + span.end - span.begin
                session.evaluate_embeddings(
                    rows[from_row:until], progress=report, key=span.key, begin=span.begin
                )
                begin = span.end
