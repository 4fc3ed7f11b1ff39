"""One conversation: the tokens so far, and what the C library keeps of them.

Owns ``Session``: thin and typed over the C library, which holds all of its state but what rows
without a token are. A session serves one thread at a time, and the library says so if two meet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Union

from awq_edge.errors import ContextFullError, FileInvalidError, InvalidArgumentError
from awq_edge.generation import Generation, GenerationConfig, Progress, Prompt
from awq_edge.token_ids import integer, token_ids

if TYPE_CHECKING:
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray

    from awq_edge._native import NativeSampler
    from awq_edge.model import Model

NO_TOKEN = 2**32 - 1  # what a context holds where something else than a token was read


@dataclass(frozen=True)
class Rows:
    """What is read in the place of tokens.

    Attributes:
        embeddings: float32 [rows, numbers], C-contiguous: the stream's, and what taps give to it.
        contents: uint64 [rows]: what each one is, for ``Session.contents``; None: nobody knows.
        columns: Of a picture, row by row, for a model that turns its rows by both; 0: they come one
            after the other, as tokens do.
    """

    embeddings: NDArray[np.float32]
    contents: NDArray[np.uint64] | None = None
    columns: int = 0

    def __len__(self) -> int:
        """How many rows."""
        return len(self.embeddings)


Input = Union[Sequence[int], Rows]
# What stands at each position of a text: ids, or uint64 [tokens] as of ``Session.contents``.
Contents = Union[Sequence[int], "NDArray[np.uint64]"]


class Session:
    """One conversation: the tokens so far and their keys and values.

    A context manager. Serves one thread at a time.
    """

    def __init__(
        self,
        model: Model,
        *,
        context_length: int,
        threads: int,
        prefill_threads: int,
        kv: str,
        device: str,
        gpu_layers: int | str | None,
        attention: str,
    ) -> None:
        """Allocates the cache; ``Model.session`` is the way to get a session."""
        from awq_edge._native import NativeSession

        self.model = model
        self.context_length = context_length
        self.kv = kv
        self._native = NativeSession(
            model.native,
            context_length=context_length,
            threads=threads,
            prefill_threads=prefill_threads,
            kv_type=kv,
            device=device,
            gpu_layers=gpu_layers,
            attention=attention,
        )
        # What rows without a token are, by where they begin. The library knows where rows stand; an
        # entry is made before its rows are read, so that none is ever older than they are.
        self._contents: dict[int, NDArray[np.uint64]] = {}
        # What tokens are that pictures are looked at from, by their positions.
        self._looked_at: dict[int, int] = {}
        self.kernels = self._native.kernels
        self.threads = self._native.threads
        self.prefill_threads = self._native.prefill_threads

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU computes its layers, or some of them."""
        return "cuda" in self.kernels

    # What the context holds is asked of the library each time. A copy here would be wrong once
    # Ctrl-C came between the library's answer and the line that notes it.

    @property
    def closed(self) -> bool:
        """Whether the session was closed."""
        return self._native.closed

    @property
    def tokens(self) -> tuple[int, ...]:
        """Everything in the context."""
        return tuple(self._native.tokens())

    @property
    def contents(self) -> NDArray[np.uint64]:
        """Everything in the context, uint64 [tokens]: ids, and what rows without a token are.

        NO_TOKEN where that is not known. Numbers of rows are 2**32 or more.
        """
        import numpy as np

        held = np.array(self._native.tokens(), np.uint64)
        for begin, rows in self._contents.items():
            part = held[begin : begin + len(rows)]
            np.copyto(part, rows[: len(part)], where=part == NO_TOKEN)
        for position, content in self._looked_at.items():
            held[position : position + 1] = content
        return held

    @property
    def position(self) -> int:
        """How many tokens are in the context."""
        return self._native.position

    def close(self) -> None:
        """Frees the cache, once a call that another thread is in has ended.

        A second call does nothing.
        """
        self._native.close()

    def __enter__(self) -> Session:
        """The session itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the session."""
        self.close()

    @property
    def earliest(self) -> int:
        """The lowest position, apart from 0, that ``truncate`` can go back to.

        0, unless the model has layers with a sliding window and they have dropped what came before.
        """
        return self._native.earliest

    def reusable(self, prompt: Sequence[int] | memoryview) -> int:
        """How many tokens at the beginning of a prompt need not be computed again.

        Never the last one, unless the context is this prompt: its logits are what the next token is
        drawn from.

        Args:
            prompt: Ids; a memoryview of uint32 [tokens] is not copied.
        """
        tokens = prompt if isinstance(prompt, memoryview) else self._ids(prompt)
        return self._native.reusable(tokens) if len(tokens) else 0

    def truncate(self, position: int) -> None:
        """Forgets every token from ``position`` on; see ``earliest``."""
        position = integer(position, "The position")
        held = self.position
        if not 0 <= position <= held:
            raise InvalidArgumentError(
                f"Position {position} is not in the context, which holds {held} tokens."
            )
        self._native.truncate(position)
        self._looked_at = {at: known for at, known in self._looked_at.items() if at < position}

    def evaluate(self, tokens: Sequence[int], *, progress: Progress | None = None) -> None:
        """Appends tokens. The result does not depend on how a text is divided into calls.

        Args:
            tokens: Ids.
            progress: Called with the tokens done and their number; may raise to stop. What was
                read until then stays in the context.
        """
        self._append(self._ids(tokens), None, progress)

    def evaluate_embeddings(
        self,
        embeddings: NDArray[np.float32],
        *,
        progress: Progress | None = None,
        contents: NDArray[np.uint64] | None = None,
        columns: int = 0,
    ) -> None:
        """Appends what is no token of the vocabulary, for example the rows of a picture.

        In ``tokens`` they are NO_TOKEN each, and never the beginning of a prompt of ids.

        Args:
            embeddings: float32 [rows, numbers]: what tokens would have at the entrance of the first
                layer, and behind it what the first layers' outputs take up, where a model does so.
            progress: As for ``evaluate``.
            contents: uint64 [rows]: what each is, as ``contents`` then tells it.
            columns: As of ``Rows``.
        """
        import numpy as np

        numbers = self.model.native.row_size
        rows = np.ascontiguousarray(embeddings, np.float32)
        if rows.ndim != 2 or rows.shape[1] != numbers:
            raise InvalidArgumentError(
                f"The embeddings have the shape {list(rows.shape)}: use [rows, {numbers}]."
            )
        if len(rows):
            Session.evaluate_together([(self, Rows(rows, contents, columns))], {}, {}, progress)

    def look_at(self, rows: NDArray[np.float32] | None, *, content: int | None = None) -> None:
        """Shows a picture to the layers that look at pictures, from the next position on.

        They look at one at a time: the last one that they were shown before a position. The context
        keeps all of them.

        Args:
            rows: float32 [rows, numbers], as ``PictureReader.encoded`` gives it; None: they look at
                none from here on.
            content: What the token at the next position is together with the picture, as
                ``contents`` then tells it; None: nothing is known of the two.

        Raises:
            UnsupportedError: The model has no such layers.
            InvalidArgumentError: The rows are no picture of this model's.
        """
        import numpy as np

        vision = self.model.native.vision()
        if rows is not None and vision is not None and vision.session_bytes:
            rows = np.ascontiguousarray(rows, np.float32)
            wanted = (vision.tokens, vision.embedding_size)
            if rows.shape != wanted:
                raise InvalidArgumentError(
                    f"The picture has the shape {list(rows.shape)}: use {list(wanted)}."
                )
        held = self.position
        self._native.look_at(rows)
        self._looked_at = {at: known for at, known in self._looked_at.items() if at < held}
        if rows is not None:
            self._looked_at[held] = NO_TOKEN if content is None else content

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Appends tokens and gives the logits after each: float32 [tokens, vocabulary].

        Raises:
            FileInvalidError: One is not finite, as in ``sample``: the file is damaged, or values
                have overflowed. The tokens are part of the context all the same.
        """
        import numpy as np

        tokens = self._ids(tokens)
        self._require_room(len(tokens))
        result = np.empty((len(tokens), self.model.info.vocabulary_size), np.float32)
        if len(tokens):
            self._append(tokens, result, None)
        finite = np.isfinite(result)
        if not finite.all():
            token = int(np.argwhere(~finite)[0][1])
            raise FileInvalidError(
                f"The logit of token {token} is not finite: the model file is damaged, check it "
                "with awq-edge inspect --verify."
            )
        return result

    def hidden(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Appends tokens and gives what the output matrix reads after each.

        That is the last layer's stream behind the final norm: what a text's embedding is made of.
        Nothing can be drawn afterwards before another token is evaluated.

        Returns:
            float32 [tokens, hidden]; the same bits on every machine.

        Raises:
            FileInvalidError: A number is not finite, as in ``logits``.
        """
        import numpy as np

        tokens = self._ids(tokens)
        result = np.empty((len(tokens), self.model.info.hidden_size), np.float32)
        if len(tokens):
            Session.evaluate_together([(self, tokens)], {}, {self: result}, None)
        if not np.isfinite(result).all():
            raise FileInvalidError(
                "A hidden state is not finite: the model file is damaged, check it with awq-edge "
                "inspect --verify."
            )
        return result

    def save(self, position: int | None = None, *, begin: int = 0) -> bytearray:
        """The context as bytes, so that its text need not be read again.

        Args:
            position: How many tokens of it, at least 1; None is all of them, with the logits after
                the last one. Below that not less than ``earliest``.
            begin: From which of them on: what is saved can be restored behind the same tokens
                before it.

        Returns:
            Bytes for ``restore`` of any session of this model file, also on another machine, by the
            same release of awq-edge.
        """
        held = self.position
        position = held if position is None else integer(position, "The position")
        begin = integer(begin, "The beginning")
        if not 1 <= position <= held:
            raise InvalidArgumentError(
                f"Position {position} cannot be saved: the context holds {held} tokens, and at "
                "least one is needed."
            )
        if not 0 <= begin < position:
            raise InvalidArgumentError(
                f"Position {begin} cannot begin what is saved up to {position}: use 0 to "
                f"{position - 1}."
            )
        return self._native.save(begin, position)

    def restore(
        self,
        saved: bytes | bytearray | memoryview,
        contents: NDArray[np.uint64] | None = None,
    ) -> None:
        """Takes up a context that ``save`` gave; it goes on to the same bits.

        What was saved from 0 on replaces the context; what was saved from another position on
        continues one that ends there.

        Args:
            saved: The bytes.
            contents: uint64 [tokens]: what ``contents`` was of the saved positions, where some of
                them are no tokens.

        Raises:
            FileInvalidError: The bytes are damaged, or no saved context.
            UnsupportedError: Another release has saved them.
            InvalidArgumentError: They belong to another model file, type of cache or text.
            ContextFullError: They hold more tokens than this session's context.
        """
        known, self._contents = self._contents, {}  # of what may be another context
        try:
            self._native.restore(saved)
        except BaseException:
            self._contents = known  # the context is what it was
            raise
        self._looked_at = {}  # no saved context has any, and none continues one that has
        if contents is not None:
            begin = self.position - len(contents)
            self._contents = {**_before(known, begin), begin: contents}

    def take_over(self, other: Session, position: int) -> None:
        """Makes the first ``position`` tokens of another session's context this one's."""
        self.restore(other.save(position), other.contents[:position])

    @staticmethod
    def evaluate_together(
        batch: Sequence[tuple[Session, Input]],
        logits: Mapping[Session, NDArray[np.float32]],
        hidden: Mapping[Session, NDArray[np.float32]],
        progress: Progress | None,
    ) -> None:
        """``Model.evaluate_together`` for sessions of one model."""
        from awq_edge import _native

        readings = []
        for session, read in batch:
            ids = None if isinstance(read, Rows) else session._ids(read)
            session._require_room(len(read))
            rows, states = logits.get(session), hidden.get(session)
            embeddings, columns = None, 0
            if isinstance(read, Rows):
                embeddings, columns = read.embeddings, read.columns
                session._note(read)
            readings.append(
                _native.Reading(session._native, ids, embeddings, rows, states, columns)
            )
        _native.evaluate_together(readings, progress)

    def sample(
        self, sampler: NativeSampler, draw: int, added: NDArray[np.float32] | None = None
    ) -> int:
        """Draws the token after the context; does not append it.

        Args:
            sampler: How to draw.
            draw: Which random number of the sampler's stream to use, counted from 0: the same one
                gives the same token, however often it is asked for.
            added: float32 [vocabulary], added to the logits behind the repetition penalty; minus
                infinity excludes a token.
        """
        sampler.seek(draw)
        return self._native.sample(sampler, added)

    @property
    def has_logits(self) -> bool:
        """Whether ``sample`` can draw: the last token was read, and nothing forgotten since."""
        try:
            self.last_logits()
        except InvalidArgumentError:
            return False
        return True

    def last_logits(self) -> NDArray[np.float32]:
        """The logits that ``sample`` draws from: float32 [vocabulary].

        Raises:
            InvalidArgumentError: Nothing was read, or the context was truncated since.
        """
        import numpy as np

        row = np.empty(self.model.info.vocabulary_size, np.float32)
        self._native.copy_logits(row)
        return row

    def generate(
        self,
        prompt: Prompt,
        config: GenerationConfig | None = None,
        **settings: Any,
    ) -> Generation:
        """Continues a prompt, which replaces what is in the context; see ``Model.generate``."""
        config = config or GenerationConfig()
        if settings:
            try:
                config = replace(config, **settings)
            except TypeError as error:
                raise InvalidArgumentError(f"GenerationConfig: {error}.") from error
        return Generation(self, prompt, config)

    def _note(self, read: Rows) -> None:
        """Remembers what the rows are that are about to be appended."""
        held = self.position
        self._contents = _before(self._contents, held)
        if read.contents is not None:
            self._contents[held] = read.contents

    def _ids(self, tokens: Sequence[int]) -> list[int]:
        return token_ids(tokens, self.model.info.vocabulary_size)

    def _append(self, tokens: list[int], logits: Any, progress: Progress | None) -> None:
        self._require_room(len(tokens))
        self._native.evaluate(tokens, logits, progress)

    def _require_room(self, count: int) -> None:
        held = self.position
        if held + count > self.context_length:
            raise ContextFullError(
                f"{count} more tokens do not fit: the context of {self.context_length} already "
                f"holds {held}."
            )


def common_length(one: Contents, other: Contents) -> int:
    """How many positions two texts begin with that hold the same."""
    import numpy as np

    count = min(len(one), len(other))
    differing = np.asarray(one[:count], np.uint64) != np.asarray(other[:count], np.uint64)
    return int(differing.argmax()) if differing.any() else count


def _before(
    contents: Mapping[int, NDArray[np.uint64]], position: int
) -> dict[int, NDArray[np.uint64]]:
    """What is known of the rows before a position."""
    return {at: rows[: position - at] for at, rows in contents.items() if at < position}
