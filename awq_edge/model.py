"""Opening a model file: what is in it, and sessions that run it.

Owns ``Model``: thin and typed over the C library. Refuses printing and the command line. Importing
it loads neither numpy nor the library; both come with the first model.

Threads: a ``Model`` may be shared; a ``Session`` serves one thread at a time. ``Model.generate``
and ``Model.logits`` share one session: give each thread its own with ``Model.session()``.
"""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from awq_edge import thread_counts
from awq_edge.errors import (
    FileInvalidError,
    FileUnreadableError,
    InvalidArgumentError,
    OutOfMemoryError,
    UnsupportedError,
)
from awq_edge.free_memory import read_free_memory
from awq_edge.generation import Generation, GenerationConfig, Progress, Prompt
from awq_edge.quantities import size_text
from awq_edge.session import Input, Session
from awq_edge.tokenizer import Tokenizer, eos_token_ids

if TYPE_CHECKING:
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray

    from awq_edge._native import (
        GpuMemoryNeed,
        MemoryNeed,
        ModelInfo,
        NativeModel,
        TensorInfo,
        Value,
    )
    from awq_edge.speculation import Speculation
    from awq_edge.vision.decoding import Source
    from awq_edge.vision.picture_prompt import PicturePrompt
    from awq_edge.vision.reader import PictureReader

# A cache for the whole trained length can be larger than the model (4 GiB for Llama 3.2 1B):
# a conversation of this length fits every board, and more is one argument away.
DEFAULT_CONTEXT_LENGTH = 4096
_MANY_ROWS = 32  # on a side of a picture that keeps its shape: as many as a board has the time for
# Hidden states that are held at a time.
_EMBEDDED_TOKENS = 128


_models: weakref.WeakSet[Model] = weakref.WeakSet()


def _renew_locks() -> None:
    """In a forked child: whoever held a lock of the parent's does not run here."""
    for model in _models:
        model._lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_locks)


@functools.lru_cache(maxsize=1)
def gpu_is_usable() -> bool:
    """Whether "auto" may try a GPU: there is one, and no kernel table of the CPU is forced."""
    from awq_edge import _native

    if os.environ.get("AWQ_EDGE_KERNELS"):
        return False
    try:
        _native.gpu()
    except UnsupportedError:
        return False
    return True


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
        device: str,
        gpu_layers: int | str | None,
        attention: str,
        check_memory: bool,
        lookup: bool = False,
        draft: Model | None = None,
    ) -> None:
        """Takes over an open file, and the draft; ``Model.open`` is the way to get a model."""
        self.path = path
        self._native: NativeModel | None = native
        self._threads = threads
        self._prefill_threads = prefill_threads
        self._context_length = context_length
        self._kv = kv
        self._device = device
        self._gpu_layers = gpu_layers
        self.attention = attention
        self._check_memory = check_memory
        # Changed by whole operations only, so that it needs no lock.
        self._sessions: set[weakref.ref[Session]] = set()
        self._lock = threading.RLock()
        _models.add(self)
        self._shared: Session | None = None
        self.info: ModelInfo = native.info()
        self._draft = draft
        self.speculation: Speculation | None = None
        if lookup or draft is not None:
            from awq_edge.speculation import Speculation

            self.speculation = Speculation(self, lookup=lookup, draft=draft)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        threads: int | None = None,
        prefill_threads: int | None = None,
        context_length: int | None = None,
        kv: str = "fp16",
        device: str = "auto",
        gpu_layers: int | str | None = None,
        attention: str = "exact",
        check_memory: bool = True,
        lookup: bool = False,
        draft: str | os.PathLike[str] | None = None,
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
            device: "cpu"; "cuda", an NVIDIA GPU; "auto": the GPU where there is one that holds the
                model, otherwise the CPU. The logits are the same, bit for bit.
            gpu_layers: How many of the last layers the GPU computes, with the output matrix, and
                the CPU those before them: a number, 0 for the CPU alone, "auto" for as many as the
                GPU's free memory holds when the first session is opened, None for the whole model.
                The logits are the same again. Of a draft it is likewise.
            attention: "exact"; with device "cuda" also "tensor", which computes the attention of
                prompts on fp16 tensor cores: sooner, but no longer the same bits
                (native/ARITHMETIC.md, section 7).
            check_memory: Refuse a session that the free memory cannot hold.
            lookup: Guess that a text goes on as it did where it had the same words before, and read
                guesses together with the last token. Texts are the same, sooner where they copy;
                where it would lose, guessing rests.
            draft: A packed file of a smaller model of the same tokens, whose guesses are read like
                that.

        Raises:
            FileUnreadableError: There is no such file, or it cannot be read.
            FileInvalidError: It is damaged, or no model of ours.
            InvalidArgumentError: The draft's tokens are others.
        """
        from awq_edge._native import (
            NativeModel,
            attention_number,
            device_number,
            gpu_layer_number,
            kv_type_number,
        )

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
        device_number(device)
        if gpu_layers == 0:
            device, gpu_layers = "cpu", None
        gpu_layer_number(gpu_layers)
        attention_number(attention)
        try:
            native = NativeModel(path)
        except FileInvalidError as error:
            raise FileInvalidError(f"{path} is no usable model file: {error}.") from error
        settings: dict[str, Any] = {
            "threads": threads,
            "prefill_threads": threads if prefill_threads is None else prefill_threads,
            "kv": kv,
            "device": device,
            "gpu_layers": gpu_layers,
            "attention": attention,
            "check_memory": check_memory,
        }
        smaller = None
        if draft is not None:
            smaller = cls.open(draft, **settings)
            if context_length is not None:
                smaller._context_length = min(context_length, smaller.info.context_length)
        model = cls(
            native, path, context_length=context_length, lookup=lookup, draft=smaller, **settings
        )
        if smaller is not None:
            from awq_edge.guess_sources import check_same_tokens

            try:
                check_same_tokens(model, smaller)
            except BaseException:
                model.close()
                raise
        return model

    # ---- the file ----------------------------------------------------------------------------

    @property
    def native(self) -> NativeModel:
        """The open file, for the rest of the package."""
        native = self._native
        if native is None:
            raise InvalidArgumentError(f"{self.path} is closed.")
        return native

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
    def kv(self) -> str:
        """How sessions keep keys and values unless they are told otherwise: "fp16" or "int8"."""
        return self._kv

    @property
    def prefill_threads(self) -> int:
        """Threads that read prompts and pictures; 0 lets the library choose."""
        return self._prefill_threads or 0

    @property
    def context_length(self) -> int:
        """Tokens that a session keeps unless it is told otherwise."""
        if self._context_length is not None:
            return self._context_length
        return min(self.info.context_length, DEFAULT_CONTEXT_LENGTH)

    def memory(self, context_length: int | None = None, *, kv: str | None = None) -> MemoryNeed:
        """Bytes that a session needs on the CPU; allocates nothing."""
        context_length = context_length or self.context_length
        self._require_trained(context_length)
        return self.native.memory(context_length, kv or self._kv)

    def encoding_bytes(self) -> int:
        """Bytes that a tower takes while it encodes a picture, and gives back; 0: there is none.

        Where pictures keep their shape, for one of 1,024 rows; a tile has always the same size.
        """
        vision = self.native.vision()
        if vision is None:
            return 0
        side = min(_MANY_ROWS * vision.step, vision.image_size)
        return self.native.vision_memory(self.prefill_threads, side, side)

    def gpu_memory(
        self,
        context_length: int | None = None,
        *,
        kv: str | None = None,
        gpu_layers: int | str | None = None,
    ) -> GpuMemoryNeed:
        """Bytes that a session needs of the GPU's memory; allocates nothing.

        Args:
            context_length: Tokens; None is what a session of this model keeps.
            kv: "fp16" or "int8"; None is as the model was opened.
            gpu_layers: A number of layers, "auto" for as many as there is room for, None for the
                whole model.

        Raises:
            UnsupportedError: There is no GPU that this library can use, or none that computes this
                model.
        """
        context_length = context_length or self.context_length
        self._require_trained(context_length)
        return self.native.gpu_memory(context_length, kv or self._kv, gpu_layers)

    def _require_trained(self, context_length: int) -> None:
        if context_length > self.info.context_length:
            raise InvalidArgumentError(
                f"A context of {context_length} tokens was asked for, but {self.name} was trained "
                f"for {self.info.context_length}: use at most that."
            )

    def close(self) -> None:
        """Closes every session and the file. A second call does nothing.

        What another thread's call is using goes when that call ends.
        """
        native, self._native = self._native, None  # from here on no session is added
        if native is not None:
            native.close()
        for reference in list(self._sessions):
            session = reference()
            if session is not None:
                session.close()
        if self._draft is not None:
            self._draft.close()

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
        """Token ids of a prompt and of what the model expects around it: ``Tokenizer.encode``."""
        return self.tokenizer.encode(text, add_bos=add_bos)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        return self.tokenizer.decode(tokens)

    def chat_prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        template: str | None = None,
        add_generation_prompt: bool = True,
        **variables: object,
    ) -> str:
        """The text of a prompt for a conversation, by the file's chat template.

        It holds every token that the model was trained on, also BOS where there is one: its ids are
        those of :meth:`chat_tokens`.

        Args:
            messages: ``{"role": …, "content": …}``, oldest first.
            tools: What the model may call, as JSON schemas.
            documents: What the model may read, ``{"title": …, "text": …}``.
            template: The name of one of several templates; None takes ``tool_use`` if there are
                tools and the file has it, and else ``default``.
            add_generation_prompt: Whether to end with the opening of the assistant's turn.
            **variables: What else the template may ask for, for example ``enable_thinking``.

        Raises:
            InvalidArgumentError: The file has no such template, or it refuses these messages.
        """
        from awq_edge.chat import chat_prompt

        try:
            return chat_prompt(
                self.metadata,
                self.tokenizer,
                messages,
                tools=tools,
                documents=documents,
                template=template,
                add_generation_prompt=add_generation_prompt,
                **variables,
            )
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"{self.path}: {error}") from error

    def chat_tokens(self, messages: Sequence[Mapping[str, Any]], **settings: Any) -> list[int]:
        """Token ids of a prompt for a conversation: the template's tokens alone.

        Args:
            messages: As for :meth:`chat_prompt`.
            **settings: Its other arguments.
        """
        return self.tokenizer.encode(self.chat_prompt(messages, **settings), add_bos=False)

    # ---- pictures ----------------------------------------------------------------------------

    @property
    def sees_pictures(self) -> bool:
        """Whether the file has a vision part."""
        return "awq_edge.vision.layers" in self.metadata

    @functools.cached_property
    def pictures(self) -> PictureReader:
        """Reads and encodes pictures, each once.

        Raises:
            UnsupportedError: The file has no vision part.
        """
        from awq_edge.vision.reader import PictureReader

        return PictureReader(self)

    def text_tokens(self, text: str, *, add_bos: bool | None = None) -> list[int]:
        """Token ids of a text without pictures, in which a placeholder is the word that it is.

        Args:
            text: Any text.
            add_bos: As for ``Tokenizer.encode``.
        """
        if not self.sees_pictures:
            return self.tokenizer.encode(text, add_bos=add_bos)
        from awq_edge.vision.prompt import Marked

        marked = Marked.new(self.pictures.rules)
        return marked.tokens(self.tokenizer, marked.hidden(text), [], add_bos=add_bos)

    def picture_prompt(
        self, prompt: Prompt, images: Sequence[Source], detail: str = "high"
    ) -> PicturePrompt:
        """A text with pictures; encodes none.

        Args:
            prompt: A text; or ids, with a placeholder's id for every row of the pictures.
            images: The pictures, as for :meth:`generate`.
            detail: The same.

        Raises:
            UnsupportedError: The file has no vision part.
            InvalidArgumentError: The text has places for other numbers of pictures.
        """
        from awq_edge.vision.picture_prompt import PicturePrompt
        from awq_edge.vision.prompt import Marked

        reader = self.pictures
        pictures = reader.together(images, detail)
        if not isinstance(prompt, str):
            return PicturePrompt(reader, list(prompt), pictures)  # type: ignore[arg-type]  # ids
        marked, place = Marked.new(reader.rules), reader.rules.place
        if not pictures:
            prompt = marked.hidden(prompt)
        elif place not in prompt:
            prompt = reader.rules.in_front * len(pictures) + prompt
        return PicturePrompt.of_text(reader, self.tokenizer, prompt, marked, pictures, add_bos=None)

    def picture_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        images: Sequence[Source] = (),
        *,
        detail: str = "high",
        **settings: Any,
    ) -> tuple[str, PicturePrompt]:
        """The prompt for a conversation with pictures; encodes none.

        Args:
            messages: As for :meth:`chat`.
            images: The same.
            detail: The same.
            **settings: Other arguments of :meth:`chat_prompt`.

        Returns:
            Its text, with one placeholder for each picture; and the prompt.
        """
        from awq_edge.chat import templates
        from awq_edge.vision.messages import reads_parts, taken_apart
        from awq_edge.vision.picture_prompt import PicturePrompt
        from awq_edge.vision.prompt import Marked

        reader = self.pictures
        marked = Marked.new(reader.rules)
        in_parts = any(reads_parts(text) for text in templates(self.metadata).values())
        plain, found = taken_apart(messages, images, marked, in_parts=in_parts)
        pictures = reader.together(found, detail)
        text = self.chat_prompt(plain, **marked.hidden_in(settings))
        prompt = PicturePrompt.of_text(
            reader, self.tokenizer, text, marked, pictures, add_bos=False
        )
        return text, prompt

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
        on_cpu = self._device == "cpu" or (self._device == "auto" and not gpu_is_usable())
        # A GPU's own memory is counted when the model is brought to it.
        if on_cpu and (self._check_memory if check_memory is None else check_memory):
            _require_memory(self.memory(context_length, kv=kv), context_length)
        chosen = threads or self._threads
        if chosen is None:
            chosen = thread_counts.decode_threads(self.native) if on_cpu else 0
        session = Session(
            self,
            context_length=context_length,
            threads=chosen,
            prefill_threads=prefill_threads or threads or self._prefill_threads or 0,
            kv=kv or self._kv,
            device="cpu" if on_cpu else self._device,
            gpu_layers=None if on_cpu else self._gpu_layers,
            attention=self.attention,
        )
        self._sessions.add(weakref.ref(session, self._sessions.discard))
        if self._native is None:  # another thread has closed the model meanwhile
            session.close()
            raise InvalidArgumentError(f"{self.path} is closed.")
        return session

    def evaluate_together(
        self,
        batch: Iterable[tuple[Session, Input]],
        *,
        logits: Mapping[Session, NDArray[np.float32]] | None = None,
        hidden: Mapping[Session, NDArray[np.float32]] | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Appends tokens to several sessions at once, for about the price of one.

        The weights are read once for up to 128 tokens of all sessions, and each gets exactly the
        logits that it would get alone, whatever the others read. Serving many texts is a loop over
        this call: each session that decodes gives its last token, one with a long prompt the next
        part of it, and sessions join and leave between two calls; ``Session.sample`` draws.

        Args:
            batch: Sessions of this model, each once, with the ids or the ``Rows`` to append.
            logits: float32 [tokens, vocabulary] of some of them, C-contiguous, to be filled with
                the logits after each of their tokens.
            hidden: float32 [tokens, hidden] likewise, for what the output matrix reads there: the
                last layer's stream behind the final norm. Such a session gives logits only where
                ``logits`` names it too.
            progress: Called with the tokens done and their number, of all sessions; may raise to
                stop. What was read until then stays in each context.

        Raises:
            ContextFullError: One of them has no room; nothing was read.
            InvalidArgumentError: A session is in use, stands twice or has another model.
        """
        readings = list(batch)
        for session, _ in readings:
            if session.model is not self:
                raise InvalidArgumentError(
                    f"A session of {session.model.path} cannot be evaluated together with those of "
                    f"{self.path}: ask its own model."
                )
        if readings:
            Session.evaluate_together(readings, logits or {}, hidden or {}, progress)

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
        *,
        images: Sequence[Source] = (),
        detail: str = "high",
        **settings: Any,
    ) -> Generation:
        """Continues a prompt.

        Args:
            prompt: Text, token ids, or a prompt with pictures.
            config: How to draw and when to stop; None is ``GenerationConfig()``.
            images: Pictures: paths, bytes of files, pictures of Pillow's or arrays. Each takes the
                place of a placeholder in the text; without any they stand in front of it.
            detail: "low" makes one tile of a picture, "high" as many as the model was trained on.
            **settings: Fields of ``GenerationConfig`` to change for this call.

        Returns:
            An iterator over pieces of text. The prompt is read at its first step. What an earlier
            call left in the cache is used again as far as the prompts agree.
        """
        if images or (isinstance(prompt, str) and self.sees_pictures):
            prompt = self.picture_prompt(prompt, images, detail)
        return self.shared_session.generate(prompt, config, **settings)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        config: GenerationConfig | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        template: str | None = None,
        variables: Mapping[str, object] | None = None,
        images: Sequence[Source] = (),
        detail: str = "high",
        **settings: Any,
    ) -> Generation:
        """Answers the last message of a conversation.

        Args:
            messages: ``{"role": …, "content": …}``, oldest first; see :meth:`chat_prompt`. A
                content may be a list of ``{"type": "text", "text": …}`` and ``{"type": "image",
                "image": …}``.
            config: How to draw and when to stop; None is ``GenerationConfig()``.
            tools: What the model may call, as JSON schemas; calls come in the answer's text, in the
                model's own format.
            documents: What the model may read, ``{"title": …, "text": …}``.
            template: The name of one of several templates.
            variables: What else the template may ask for, as ``{"enable_thinking": False}``.
            images: Pictures for parts without one of their own; where there is no such part, they
                stand in front of the user's last message.
            detail: As for :meth:`generate`.
            **settings: Fields of ``GenerationConfig`` to change for this call.

        Returns:
            An iterator over pieces of the answer, also for ``async for``. Of a conversation that
            goes on, only what is new is read.
        """
        others = {"tools": tools, "documents": documents, "template": template}
        prompt: Prompt
        if not (self.sees_pictures or images or holds_pictures(messages)):
            prompt = self.chat_tokens(messages, **others, **(variables or {}))
        else:
            prompt = self.picture_chat(
                messages, images, detail=detail, **others, **(variables or {})
            )[1]
        return self.generate(prompt, config, **settings)

    def embed(
        self, texts: Sequence[str], *, pooling: str = "mean", normalize: bool = True
    ) -> NDArray[np.float32]:
        """Embeddings of texts, for comparing what they mean by their products.

        The model's own hidden states: one that was trained for embeddings is better at this than
        one that was trained to write.

        Args:
            texts: Each no longer than the context.
            pooling: "mean" of all tokens, or the "last" one's, which many embedding models expect.
            normalize: Whether each has the length 1.

        Returns:
            float32 [texts, hidden]; a text has the same bits on every machine, whatever stands
            beside it.
        """
        import numpy as np

        from awq_edge.embedding import Pooling, check_pooling

        check_pooling(pooling)
        if isinstance(texts, str):
            raise InvalidArgumentError("embed takes a list of texts: [text] for one.")
        vectors = np.empty((len(texts), self.info.hidden_size), np.float32)
        session = self.shared_session
        for place, text in enumerate(texts):
            tokens = self.text_tokens(text)
            if not tokens:
                raise InvalidArgumentError(f"Text {place} is empty: it has no token to embed.")
            pooled = Pooling(self.info.hidden_size, pooling)
            session.truncate(0)
            for begin in range(0, len(tokens), _EMBEDDED_TOKENS):
                pooled.add(session.hidden(tokens[begin : begin + _EMBEDDED_TOKENS]))
            vectors[place] = pooled.vector(normalize=normalize)
        return vectors

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


def holds_pictures(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a message has a part that is a picture."""
    return any(
        isinstance(part, Mapping) and part.get("type") == "image"
        for message in messages
        if isinstance(message, Mapping) and isinstance(message.get("content"), (list, tuple))
        for part in message["content"]
    )


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
