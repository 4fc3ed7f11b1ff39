"""Sessions: a context each, read alone or several together, sampled from, saved and restored."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from awq_edge import errors
from awq_edge._native.library import Progress, call, call_with_progress, load, text_at
from awq_edge._native.model import NativeModel
from awq_edge._native.options import session_options
from awq_edge._native.sampler import NativeSampler


class NativeSession:
    """One conversation, also after its model is closed.

    Serves one thread at a time: the library refuses a second one.
    """

    def __init__(
        self,
        model: NativeModel,
        *,
        context_length: int,
        threads: int,
        prefill_threads: int,
        kv_type: str = "fp16",
        device: str = "cpu",
        gpu_layers: int | str | None = None,
        attention: str = "exact",
    ) -> None:
        """Allocates the cache; zero threads let the library choose."""
        ffi, library = load()
        info = model.info()
        self.vocabulary_size, self.hidden_size = info.vocabulary_size, info.hidden_size
        self.row_size = model.row_size
        options = session_options(
            context_length, threads, prefill_threads, kv_type, device, gpu_layers, attention
        )
        pointer = ffi.new("awqe_session**")
        call(library.awqe_session_open, model.pointer, options, pointer)
        # The library's own function: Python code that frees could swallow a Ctrl-C.
        self._pointer = ffi.gc(pointer[0], library.awqe_session_close)
        self.kernels = text_at(ffi, library.awqe_session_kernels(self.pointer))
        self.threads = int(library.awqe_session_threads(self.pointer, False))
        self.prefill_threads = int(library.awqe_session_threads(self.pointer, True))

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._pointer is None

    @property
    def pointer(self) -> Any:
        """The C object, which stays open for as long as somebody holds this."""
        pointer = self._pointer
        if pointer is None:
            raise errors.InvalidArgumentError("The session is closed.")
        return pointer

    def close(self) -> None:
        """Frees the session, once a call that another thread is in has ended."""
        self._pointer = None

    @property
    def position(self) -> int:
        """Tokens in the context; may be asked while another thread evaluates."""
        _, library = load()
        return int(library.awqe_session_position(self.pointer))

    @property
    def earliest(self) -> int:
        """The lowest position, apart from 0, that ``truncate`` can go back to."""
        _, library = load()
        return int(library.awqe_session_earliest(self.pointer))

    def tokens(self) -> array[int]:
        """Everything in the context, uint32."""
        ffi, library = load()
        pointer = self.pointer
        count = int(library.awqe_session_position(pointer))
        tokens = array("I", bytes(4 * count))
        target = ffi.from_buffer("uint32_t[]", tokens, require_writable=True)
        call(library.awqe_session_tokens, pointer, target, count)
        return tokens

    def reusable(self, tokens: Sequence[int] | memoryview) -> int:
        """Tokens at the beginning of a text that need not be evaluated before the next is drawn.

        Args:
            tokens: ids, at least one; a memoryview of uint32 is read in place.
        """
        ffi, library = load()
        ids = _token_array(tokens)
        reusable = ffi.new("uint32_t*")
        call(library.awqe_session_reusable, self.pointer, ids, len(ids), reusable)
        return int(reusable[0])

    def truncate(self, position: int) -> None:
        """Forgets every token from ``position`` on."""
        _, library = load()
        call(library.awqe_session_truncate, self.pointer, position)

    def look_at(self, rows: Any) -> None:
        """What layers look at from here on: float32 [tokens, embedding_size], or None: nothing."""
        ffi, library = load()
        source = ffi.NULL if rows is None else ffi.from_buffer("float[]", rows)
        count = 0 if rows is None else len(rows)
        call(library.awqe_session_look_at, self.pointer, source, count)

    def save(self, begin: int, end: int) -> bytearray:
        """The positions from ``begin`` to before ``end`` of the context, for ``restore``."""
        ffi, library = load()
        pointer, size = self.pointer, ffi.new("uint64_t*")
        call(library.awqe_session_saved_bytes, pointer, begin, end, size)
        saved = bytearray(size[0])
        target = ffi.from_buffer(saved, require_writable=True)
        call(library.awqe_session_save, pointer, begin, end, target, len(saved))
        return saved

    def restore(self, saved: bytes | bytearray | memoryview) -> None:
        """Makes what ``save`` gave the context, or its continuation."""
        ffi, library = load()
        source = ffi.from_buffer(saved)
        call(library.awqe_session_restore, self.pointer, source, len(source))

    def evaluate(
        self,
        tokens: Sequence[int] | memoryview,
        logits: Any = None,
        progress: Progress | None = None,
    ) -> None:
        """``evaluate_together`` of this session alone."""
        evaluate_together([Reading(self, tokens, logits=logits)], progress)

    def sample(self, sampler: NativeSampler, added: Any = None) -> int:
        """Draws the next token from the last logits; does not append it.

        Args:
            sampler: How to draw.
            added: float32 [vocabulary], C-contiguous, added to the logits; minus infinity excludes
                a token. None adds nothing.
        """
        ffi, library = load()
        token = ffi.new("uint32_t*")
        if added is None:
            call(library.awqe_session_sample, self.pointer, sampler.pointer, token)
        else:
            row = ffi.from_buffer("float[]", added)
            call(
                library.awqe_session_sample_adjusted,
                *(self.pointer, sampler.pointer, row, len(row), token),
            )
        return int(token[0])

    def copy_logits(self, target: Any) -> None:
        """Copies what ``sample`` draws from to ``target``, float32 [vocabulary]."""
        ffi, library = load()
        row = ffi.from_buffer("float[]", target, require_writable=True)
        call(library.awqe_session_logits, self.pointer, row, len(row))


@dataclass(frozen=True)
class Reading:
    """What one session reads in a call of ``evaluate_together``.

    Attributes:
        session: whose context grows.
        tokens: ids, each below the size of the vocabulary; None for embeddings.
        embeddings: float32 [rows, row size], C-contiguous, in the place of tokens' embeddings.
        logits: float32 [tokens, vocabulary], C-contiguous, to fill; None fills nothing.
        hidden: float32 [tokens, hidden], C-contiguous, to fill with what the output matrix reads
            after each token; None fills nothing.
        columns: of the picture whose rows the embeddings are; 0: they come one after the other.
    """

    session: NativeSession
    tokens: Sequence[int] | memoryview | None
    embeddings: Any = None
    logits: Any = None
    hidden: Any = None
    columns: int = 0


def evaluate_together(readings: Sequence[Reading], progress: Progress | None = None) -> None:
    """Appends to the contexts of several sessions together; keeps each one's logits for ``sample``.

    Args:
        readings: of different sessions of one model, at least one.
        progress: called between blocks with the tokens done and the total; may raise, which
            cancels the call and comes out of it.
    """
    ffi, library = load()
    inputs = ffi.new("awqe_batch_input[]", len(readings))
    held: list[Any] = []  # what the inputs point to
    for reading, entry in zip(readings, inputs):
        _fill_input(entry, reading, held)
    call_with_progress(library.awqe_batch_evaluate, inputs, len(readings), progress=progress)


def _fill_input(entry: Any, reading: Reading, held: list[Any]) -> None:
    """Writes one ``awqe_batch_input``; `held` must live as long."""
    ffi, library = load()
    session = reading.session.pointer
    if reading.tokens is not None:
        rows = _token_array(reading.tokens)
        entry.tokens, entry.count = rows, len(rows)
    else:
        rows = ffi.from_buffer("float[]", reading.embeddings)
        entry.embeddings, entry.count = rows, len(rows) // reading.session.row_size
        entry.columns = reading.columns
    entry.struct_size = ffi.sizeof("awqe_batch_input")
    entry.session = session
    entry.which = library.AWQE_LOGITS_LAST
    held += [session, rows]
    if reading.logits is not None:
        entry.which = library.AWQE_LOGITS_ALL
        entry.logits = target = ffi.from_buffer("float[]", reading.logits, require_writable=True)
        held.append(target)
        if len(target) < entry.count * reading.session.vocabulary_size:
            raise errors.InvalidArgumentError("The array for the logits is too small.")
    if reading.hidden is not None:
        if reading.logits is None:
            entry.which = library.AWQE_LOGITS_NONE
        entry.hidden = target = ffi.from_buffer("float[]", reading.hidden, require_writable=True)
        held.append(target)
        if len(target) < entry.count * reading.session.hidden_size:
            raise errors.InvalidArgumentError("The array for the hidden states is too small.")


def _token_array(tokens: Sequence[int] | memoryview) -> Any:
    """Ids as the library reads them: uint32 [tokens]."""
    ffi, _ = load()
    if isinstance(tokens, memoryview):
        return ffi.from_buffer("uint32_t[]", tokens)
    try:
        return ffi.new("uint32_t[]", list(tokens))
    except (OverflowError, TypeError) as error:
        raise errors.InvalidArgumentError(f"Token ids are whole numbers: {error}.") from error
