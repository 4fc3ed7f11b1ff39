"""Opening a model file and generating text from it.

Owns ``Model``, ``Session``, ``GenerationConfig`` and ``Generation``: thin and typed over the C
library. Refuses printing and the command line. Importing it loads neither numpy nor the library;
both come with the first model.

Threads: a ``Model`` may be shared; a ``Session`` serves one thread at a time and says so if two
meet. ``Model.generate`` and ``Model.logits`` share one session: give each thread its own with
``Model.session()``.
"""

from __future__ import annotations

import functools
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from awq_edge import thread_counts
from awq_edge.errors import (
    ContextFullError,
    FileInvalidError,
    FileUnreadableError,
    InvalidArgumentError,
    OutOfMemoryError,
)
from awq_edge.free_memory import read_free_memory
from awq_edge.quantities import size_text
from awq_edge.tokenizer import IncrementalDecoder, StopStrings, Tokenizer, eos_token_ids

if TYPE_CHECKING:
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray

    from awq_edge._native import MemoryNeed, ModelInfo, NativeModel, TensorInfo, Value

# A cache for the whole trained length can be larger than the model (4 GiB for Llama 3.2 1B):
# a conversation of this length fits every board, and more is one argument away.
DEFAULT_CONTEXT_LENGTH = 4096

Prompt = Union[str, Sequence[int]]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class GenerationConfig:
    """How the next token is drawn, and when to stop.

    Attributes:
        max_tokens: Stop after this many tokens; None goes on to the end of the context.
        temperature: 0 always takes the likeliest token.
        top_k: Keep the k likeliest tokens; 0 keeps all.
        top_p: Keep the smallest set whose probability reaches this; 1 keeps all.
        min_p: Drop tokens less likely than this share of the likeliest; 0 keeps all.
        repetition_penalty: Above 1 makes recent tokens less likely; 1 is off.
        repetition_window: Tokens that count as recent; 0 is the whole context.
        seed: Equal seeds give equal texts, on every machine; None draws one.
        stop: Strings that end the text; they are not shown.
    """

    max_tokens: int | None = 256
    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repetition_penalty: float = 1.0
    repetition_window: int = 64
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuses what can never work, by name."""
        if self.max_tokens is not None and self.max_tokens < 0:
            raise InvalidArgumentError(f"max_tokens is {self.max_tokens}: use 0 or more.")
        for name, low, high in (
            ("temperature", 0.0, 100.0),
            ("top_p", 0.0, 1.0),
            ("min_p", 0.0, 1.0),
            ("repetition_penalty", 0.01, 100.0),
            ("top_k", 0, 2**32 - 1),
            ("repetition_window", 0, 2**32 - 1),
            ("seed", 0, 2**64 - 1),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise InvalidArgumentError(f"{name} is {value}: use {low} to {high}.")
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        StopStrings(self.stop)


class Model:
    """A packed model file, mapped into memory.

    A context manager: leaving it closes the file and every session.
    """

    def __init__(
        self,
        native: NativeModel,
        path: Path,
        *,
        threads: int | None,
        prefill_threads: int | None,
        context_length: int | None,
        kv: str,
        check_memory: bool,
    ) -> None:
        """Takes over an open file; ``Model.open`` is the way to get a model."""
        self.path = path
        self._native: NativeModel | None = native
        self._threads = threads
        self._prefill_threads = prefill_threads
        self._context_length = context_length
        self._kv = kv
        self._check_memory = check_memory
        self._sessions: weakref.WeakSet[Session] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._shared: Session | None = None
        self.info: ModelInfo = native.info()

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        threads: int | None = None,
        prefill_threads: int | None = None,
        context_length: int | None = None,
        kv: str = "fp16",
        check_memory: bool = True,
    ) -> Model:
        """Opens a file that ``awq-edge convert`` wrote.

        Args:
            path: The file.
            threads: Threads while decoding; None takes what is fastest here, which is measured
                once, in some tenths of a second, and remembered.
            prefill_threads: Threads while reading a prompt; None takes ``threads``, and without
                them every fast core.
            context_length: Tokens that a session keeps; None is the model's own length, at most
                4096.
            kv: How keys and values are kept: "fp16", or "int8" for half the memory and a little
                less exactness.
            check_memory: Refuse a session that the free memory cannot hold.

        Raises:
            FileUnreadableError: There is no such file, or it cannot be read.
            FileInvalidError: It is damaged, or no model of ours.
        """
        from awq_edge._native import NativeModel, kv_type_number

        path = Path(path)
        if path.is_dir():
            raise FileUnreadableError(
                f"{path} is a directory, not a packed file: 'awq-edge convert {path} -o "
                "model.awq.gguf' makes one of a Hugging Face model."
            )
        for name, value in (
            ("threads", threads),
            ("prefill_threads", prefill_threads),
            ("context_length", context_length),
        ):
            if value is not None and value < 1:
                raise InvalidArgumentError(f"{name} is {value}: use 1 or more.")
        kv_type_number(kv)
        try:
            native = NativeModel(path)
        except FileInvalidError as error:
            raise FileInvalidError(f"{path} is no usable model file: {error}.") from error
        return cls(
            native,
            path,
            threads=threads,
            prefill_threads=threads if prefill_threads is None else prefill_threads,
            context_length=context_length,
            kv=kv,
            check_memory=check_memory,
        )

    # ---- the file ----------------------------------------------------------------------------

    @property
    def native(self) -> NativeModel:
        """The open file, for the rest of the package."""
        if self._native is None:
            raise InvalidArgumentError(f"{self.path} is closed.")
        return self._native

    @functools.cached_property
    def metadata(self) -> dict[str, Value]:
        """All entries of the file, in its order."""
        return self.native.metadata()

    @functools.cached_property
    def tensors(self) -> list[TensorInfo]:
        """All tensors of the file, in its order."""
        return self.native.tensors()

    @property
    def name(self) -> str:
        """The model's name, or that of the file."""
        return str(self.metadata.get("general.name") or self.path.name)

    @property
    def context_length(self) -> int:
        """Tokens that a session keeps unless it is told otherwise."""
        if self._context_length is not None:
            return self._context_length
        return min(self.info.context_length, DEFAULT_CONTEXT_LENGTH)

    def memory(self, context_length: int | None = None, *, kv: str | None = None) -> MemoryNeed:
        """Bytes that a session needs; allocates nothing."""
        context_length = context_length or self.context_length
        self._require_trained(context_length)
        return self.native.memory(context_length, kv or self._kv)

    def _require_trained(self, context_length: int) -> None:
        if context_length > self.info.context_length:
            raise InvalidArgumentError(
                f"A context of {context_length} tokens was asked for, but {self.name} was trained "
                f"for {self.info.context_length}: use at most that."
            )

    def close(self) -> None:
        """Closes every session and the file. A second call does nothing."""
        for session in list(self._sessions):
            session.close()
        if self._native is not None:
            self._native.close()
            self._native = None

    def __enter__(self) -> Model:
        """The model itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the model."""
        self.close()

    # ---- text --------------------------------------------------------------------------------

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The file's tokenizer."""
        return Tokenizer.from_metadata(self.metadata)

    @functools.cached_property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Every token that ends a text."""
        return eos_token_ids(self.metadata)

    def tokenize(self, text: str, *, add_bos: bool | None = None) -> list[int]:
        """Token ids of a prompt, with BOS in front if the model expects it."""
        return self.tokenizer.encode(text, add_bos=add_bos)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        return self.tokenizer.decode(tokens)

    def chat_prompt(self, messages: Sequence[dict[str, Any]], **variables: object) -> str:
        """The prompt for a conversation, by the file's chat template.

        Args:
            messages: ``{"role": …, "content": …}``, oldest first.
            **variables: What else the template may ask for, for example ``tools``.

        Raises:
            InvalidArgumentError: The file has no chat template, or it refuses these messages.
        """
        from awq_edge.chat import render_chat

        template = self.metadata.get("tokenizer.chat_template")
        if not isinstance(template, str):
            raise InvalidArgumentError(
                f"{self.path} has no chat template: it holds a base model; write a plain prompt."
            )
        eos = self.eos_token_ids
        spelt: dict[str, Any] = {
            "bos_token": self.tokenizer.token_text(self.tokenizer.bos_token_id),
            "eos_token": self.tokenizer.token_text(eos[0] if eos else None),
        }
        return render_chat(template, messages, **{**spelt, **variables})

    # ---- computing ---------------------------------------------------------------------------

    def session(
        self,
        *,
        context_length: int | None = None,
        threads: int | None = None,
        prefill_threads: int | None = None,
        kv: str | None = None,
        check_memory: bool | None = None,
    ) -> Session:
        """A new, empty conversation; arguments default to those of ``Model.open``.

        Raises:
            OutOfMemoryError: The free memory cannot hold it, and ``check_memory`` is on.
        """
        context_length = context_length or self.context_length
        self._require_trained(context_length)
        if self._check_memory if check_memory is None else check_memory:
            _require_memory(self.memory(context_length, kv=kv), context_length)
        session = Session(
            self,
            context_length=context_length,
            threads=threads or self._threads or thread_counts.decode_threads(self.native),
            prefill_threads=prefill_threads or threads or self._prefill_threads or 0,
            kv=kv or self._kv,
        )
        self._sessions.add(session)
        return session

    @property
    def shared_session(self) -> Session:
        """The session behind ``generate`` and ``logits``; made at first use."""
        with self._lock:
            if self._shared is None or self._shared.closed:
                self._shared = self.session()
            return self._shared

    def generate(
        self,
        prompt: Prompt,
        config: GenerationConfig | None = None,
        **settings: Any,
    ) -> Generation:
        """Continues a prompt.

        Args:
            prompt: Text, or token ids.
            config: How to draw and when to stop; None is ``GenerationConfig()``.
            **settings: Fields of ``GenerationConfig`` to change for this call.

        Returns:
            An iterator over pieces of text. The prompt is read at its first step. What an earlier
            call left in the cache is used again as far as the prompts agree.
        """
        return self.shared_session.generate(prompt, config, **settings)

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits after each token of a text.

        Args:
            tokens: Ids, from the beginning of the text; BOS is not added.

        Returns:
            float32 [tokens, vocabulary].
        """
        session = self.shared_session
        session.truncate(0)
        return session.logits(tokens)


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
    ) -> None:
        """Allocates the cache; ``Model.session`` is the way to get a session."""
        from awq_edge._native import NativeSession

        self.model = model
        self.context_length = context_length
        self.kv = kv
        self._native: NativeSession | None = NativeSession(
            model.native,
            context_length=context_length,
            threads=threads,
            prefill_threads=prefill_threads,
            kv_type=kv,
        )
        self.kernels = self._native.kernels
        self.threads = self._native.threads
        self.prefill_threads = self._native.prefill_threads
        self._tokens: list[int] = []
        self._busy = threading.Lock()
        self._generation: Generation | None = None  # whose text the context continues

    @property
    def closed(self) -> bool:
        """Whether the session was closed."""
        return self._native is None

    @property
    def tokens(self) -> tuple[int, ...]:
        """Everything in the context."""
        return tuple(self._tokens)

    @property
    def position(self) -> int:
        """How many tokens are in the context."""
        return len(self._tokens)

    def close(self) -> None:
        """Frees the cache. A second call does nothing."""
        if self._native is not None:
            with self._use() as native:
                native.close()
                self._native = None

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
        with self._use() as native:
            return int(native.earliest)

    def reusable(self, prompt: Sequence[int]) -> int:
        """How many tokens at the beginning of a prompt need not be computed again.

        Never the last one: its logits are what the next token is drawn from.
        """
        shared = 0
        for old, new in zip(self._tokens, prompt[:-1]):
            if old != new:
                break
            shared += 1
        # Layers with a sliding window may have forgotten what comes before.
        return shared if shared == self.position or shared >= self.earliest else 0

    def truncate(self, position: int) -> None:
        """Forgets every token from ``position`` on; see ``earliest``."""
        if not 0 <= position <= len(self._tokens):
            raise InvalidArgumentError(
                f"Position {position} is not in the context, which holds {len(self._tokens)} "
                "tokens."
            )
        with self._use() as native:
            native.truncate(position)
            del self._tokens[position:]

    def evaluate(self, tokens: Sequence[int], *, progress: Progress | None = None) -> None:
        """Appends tokens. The result does not depend on how a text is divided into calls.

        Args:
            tokens: Ids.
            progress: Called with the tokens done and their number; may raise to stop. What was
                read until then stays in the context.
        """
        self._append(tokens, None, progress)

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Appends tokens and gives the logits after each: float32 [tokens, vocabulary]."""
        import numpy as np

        self._require_room(len(tokens))
        result = np.empty((len(tokens), self.model.info.vocabulary_size), np.float32)
        if len(tokens):
            self._append(tokens, result, None)
        return result

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

    def _append(self, tokens: Sequence[int], logits: Any, progress: Progress | None) -> None:
        tokens = [int(token) for token in tokens]
        self._require_room(len(tokens))
        vocabulary_size = self.model.info.vocabulary_size
        for token in tokens:
            if not 0 <= token < vocabulary_size:
                raise InvalidArgumentError(
                    f"Token {token} is not in the vocabulary of {vocabulary_size}."
                )
        with self._use() as native:
            try:
                native.evaluate(tokens, logits, progress)
            finally:
                self._tokens += tokens[: native.position - len(self._tokens)]

    def _require_room(self, count: int) -> None:
        if self.position + count > self.context_length:
            raise ContextFullError(
                f"{count} more tokens do not fit: the context of {self.context_length} already "
                f"holds {self.position}."
            )

    @contextmanager
    def _use(self) -> Iterator[Any]:
        """The native session, for one thread."""
        if not self._busy.acquire(blocking=False):
            raise InvalidArgumentError(
                "This session is in use by another thread: give each its own (Model.session())."
            )
        try:
            if self._native is None:
                raise InvalidArgumentError("The session is closed.")
            yield self._native
        finally:
            self._busy.release()


class Generation:
    """Text that is being generated: an iterator over its pieces.

    Attributes:
        prompt_tokens: Ids of the prompt.
        tokens: Ids generated so far, without the one that ended the text.
        reused_tokens: Tokens of the prompt that were in the cache already.
        seed: What the random stream began with.
        stop_reason: None while it runs; then "eos", "stop" (a stop string), "length" (max_tokens),
            "context" (no room left) or "closed".
        prefill_seconds: Time spent reading the prompt.
        decode_steps: Tokens read after the prompt, one at a time.
        decode_seconds: Time spent on everything after the prompt, without the caller's own.
    """

    def __init__(
        self,
        session: Session,
        prompt: Prompt,
        config: GenerationConfig,
    ) -> None:
        """Tokenizes the prompt and checks that it fits; computes nothing yet."""
        from awq_edge._native import NativeSampler

        model = session.model
        self.session = session
        self.config = config
        self.seed = _drawn_seed() if config.seed is None else config.seed
        self.prompt_tokens = (
            model.tokenize(prompt) if isinstance(prompt, str) else [int(token) for token in prompt]
        )
        self.tokens: list[int] = []
        self.reused_tokens = 0
        self.stop_reason: str | None = None
        self.prefill_seconds = 0.0
        self.decode_steps = 0
        self.decode_seconds = 0.0
        if not self.prompt_tokens:
            raise InvalidArgumentError("The prompt is empty: it needs at least one token.")
        if len(self.prompt_tokens) > session.context_length:
            longest = model.info.context_length
            more = (
                f"; open the model with a context of up to {longest}"
                if session.context_length < longest
                else ""
            )
            raise ContextFullError(
                f"The prompt has {len(self.prompt_tokens)} tokens and the context "
                f"{session.context_length}: shorten the prompt{more}."
            )
        self._sampler = NativeSampler(
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            min_p=config.min_p,
            repetition_penalty=config.repetition_penalty,
            repetition_window=config.repetition_window,
            seed=self.seed,
        )
        self._decoder = IncrementalDecoder(model.tokenizer, self.prompt_tokens)
        self._stops = StopStrings(config.stop)
        self._begun = False

    def __iter__(self) -> Generation:
        """The generation itself."""
        return self

    def __next__(self) -> str:
        """The next piece of text; never empty, never half a character."""
        while self.stop_reason is None:
            self.start()
            piece = self._step()
            if piece:
                return piece
        raise StopIteration

    def text(self) -> str:
        """Everything that is still to come, in one string."""
        return "".join(self)

    def close(self) -> None:
        """Ends the text here."""
        if self.stop_reason is None:
            self.stop_reason = "closed"

    def start(self, progress: Progress | None = None) -> None:
        """Reads the prompt; the first step does it otherwise. A second call does nothing.

        Args:
            progress: Called with the tokens read so far and their number; may raise to stop.
        """
        if self._begun:
            return
        started = time.perf_counter()
        prompt, shared = self.prompt_tokens, self.session.reusable(self.prompt_tokens)
        self.session.truncate(shared)
        self.session._generation = self
        self.session.evaluate(prompt[shared:], progress=progress)
        self.reused_tokens = shared
        self._begun = True
        self.prefill_seconds = time.perf_counter() - started

    def _step(self) -> str:
        """Draws one token; the text that it completes, and at the end what was held back."""
        started = time.perf_counter()
        try:
            if self.config.max_tokens is not None and len(self.tokens) >= self.config.max_tokens:
                return self._end("length")
            if self.tokens:
                if self.session.position >= self.session.context_length:
                    return self._end("context")
                if self.session._generation is not self:
                    raise InvalidArgumentError(
                        "Another generation has taken over this session: end one before the "
                        "next begins, or give each its own (Model.session())."
                    )
                self.session.evaluate(self.tokens[-1:])
                self.decode_steps += 1
            token = self._sample()
            if token in self.session.model.eos_token_ids:
                return self._end("eos")
            self.tokens.append(token)
            piece = self._stops.add(self._decoder.add(token))
            if self._stops.found:
                self.stop_reason = "stop"
            return piece
        finally:
            self.decode_seconds += time.perf_counter() - started

    def _sample(self) -> int:
        with self.session._use() as native:
            return int(native.sample(self._sampler))

    def _end(self, reason: str) -> str:
        piece = self._stops.add(self._decoder.finish())
        self.stop_reason = "stop" if self._stops.found else reason
        return piece + self._stops.finish()


def _require_memory(need: MemoryNeed, context_length: int) -> None:
    """Refuses with the numbers what the free memory cannot hold."""
    # Weights are counted in full even though the kernel could drop and read them again: a model
    # that is read from the disk for every token is of no use.
    free = read_free_memory()
    if need.total_bytes <= free.available:
        return
    limit = ""
    if free.group_limit is not None:
        limit = f" within the {size_text(free.group_limit)} of this container or service"
    raise OutOfMemoryError(
        f"The model needs {size_text(need.total_bytes)} (weights "
        f"{size_text(need.weight_bytes)}, {context_length} tokens of context "
        f"{size_text(need.cache_bytes)}, working memory {size_text(need.scratch_bytes)}), and "
        f"{size_text(free.available)} are free{limit}: close other programs, use a smaller context "
        "or fewer bits, or switch the check off."
    )


def _drawn_seed() -> int:
    return int.from_bytes(os.urandom(8), "little") >> 1
