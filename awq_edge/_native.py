"""The C library: finds it, declares it to cffi, and turns its calls into typed Python.

The only file that touches cffi. Owns the pointers of models, sessions and samplers, the way from
a status to an exception, and callbacks that never raise into C. Refuses tokenizing and policy:
``model.py`` has those. The contract of every call stands in ``native/include/awq_edge.h``.

A C object lives as long as anything refers to its pointer. Closing one here only drops a
reference: a call that another thread has begun holds its own until it returns.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import os
import struct
import zlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

from awq_edge import errors

LIBRARY_NAME = "libawq_edge.so"
HEADER_NAME = "awq_edge.h"
_BEGIN, _END = "/* cffi begin */", "/* cffi end */"

# How keys and values may be kept: the names of awqe_kv_type, in the order of the enum.
KV_TYPES = ("fp16", "int8")
# Names of the awqe_device values, in their order.
DEVICES = ("cpu", "auto", "cuda")

# One exception per awqe_status, in the order of the enum; 0 is success.
_EXCEPTIONS: tuple[type[errors.AwqEdgeError], ...] = (
    errors.InvalidArgumentError,
    errors.FileUnreadableError,
    errors.FileInvalidError,
    errors.UnsupportedError,
    errors.OutOfMemoryError,
    errors.ContextFullError,
    errors.CancelledError,
    errors.InternalError,
    errors.DeviceLostError,
)

Scalar = Union[int, float, bool, str]
Value = Union[Scalar, list[Scalar]]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ModelInfo:
    """Sizes of a model; counts of weights and bytes."""

    layers: int
    hidden_size: int
    vocabulary_size: int
    context_length: int
    heads: int
    kv_heads: int
    head_size: int
    feed_forward_size: int
    parameters: int
    file_bytes: int
    decode_bytes: int


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file. ``bits`` is that of a packed matrix, and 32 for float32."""

    name: str
    bits: int
    group_size: int
    rows: int
    columns: int
    offset: int
    bytes: int


@dataclass(frozen=True)
class VisionInfo:
    """The vision part of a model.

    Attributes:
        layers: Of the tower; so are the sizes up to ``feed_forward_size``.
        image_size: Pixels on a side of the square pictures that it reads.
        patch_size: The same of a patch.
        tokens: Embeddings that a picture becomes.
        embedding_size: Numbers of each: the decoder's hidden size, or what its layers look at.
        weight_bytes: Of its tensors in the file.
        session_bytes: That a session keeps of each picture that its layers look at; 0: pictures
            stand in the place of tokens.
        newline: float32 [embedding_size] as bytes, the embedding that this family puts behind a
            row of a picture's embeddings; None where there is none.
        step: Not 0: pictures have any height and width that are multiples of it up to
            ``image_size``, and an embedding for every square of so many pixels; ``tokens`` is 0.
        bidirectional: Whether a picture's embeddings see each other: they are read together.
    """

    layers: int
    hidden_size: int
    heads: int
    head_size: int
    feed_forward_size: int
    image_size: int
    patch_size: int
    tokens: int
    embedding_size: int
    weight_bytes: int
    session_bytes: int
    newline: bytes | None
    step: int
    bidirectional: bool


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that a session needs: mapped weights, keys and values, everything else."""

    weight_bytes: int
    cache_bytes: int
    scratch_bytes: int

    @property
    def total_bytes(self) -> int:
        """All three together."""
        return self.weight_bytes + self.cache_bytes + self.scratch_bytes


def header_path() -> Path:
    """The C header: beside the installed package, or in the checkout this file belongs to."""
    package = Path(__file__).parent
    for path in (
        package / "include" / HEADER_NAME,
        package.parent / "native/include" / HEADER_NAME,
    ):
        if path.is_file():
            return path
    raise errors.InternalError(
        f"{HEADER_NAME} is missing from {package}: install awq-edge again (pip install awq-edge)."
    )


def library_path() -> Path:
    """The shared library: AWQ_EDGE_LIBRARY, or the package's directory."""
    forced = os.environ.get("AWQ_EDGE_LIBRARY")
    if forced:
        return Path(forced)
    import awq_edge

    # An editable install has two directories: the sources and the place of the built library.
    for directory in awq_edge.__path__:
        path = Path(directory) / LIBRARY_NAME
        if path.is_file():
            return path
    raise errors.UnsupportedError(
        f"The library {LIBRARY_NAME} is not in {Path(__file__).parent}: install a wheel for this "
        "machine, or build it in a checkout with 'make setup'."
    )


def declarations(header: str) -> str:
    """The part of ``awq_edge.h`` that cffi reads: the text between the two markers."""
    try:
        return header[header.index(_BEGIN) + len(_BEGIN) : header.index(_END)]
    except ValueError as error:
        raise errors.InternalError(f"{HEADER_NAME} has no cffi markers.") from error


def parsed_declarations(text: str) -> str:
    """A Python module with what cffi makes of declarations, which takes it longer than all else.

    Wheels and installed packages carry it as ``_declarations.py``; see ``_declared``.
    """
    import tempfile

    import cffi

    ffi = cffi.FFI()
    ffi.set_source("awq_edge._declarations", None)
    ffi.cdef(text)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "declarations.py"
        with contextlib.redirect_stdout(io.StringIO()):  # it tells what it writes
            ffi.emit_python_code(str(path))
        return f"{path.read_text(encoding='utf-8')}\nSOURCE = {zlib.crc32(text.encode()):#x}\n"


def _declared(text: str) -> Any:
    """What cffi makes of declarations: as it was made before, if it was made of the same."""
    try:
        made = importlib.import_module("awq_edge._declarations")
    except ImportError:  # a checkout that was not installed
        pass
    else:
        if zlib.crc32(text.encode()) == made.SOURCE:
            return made.ffi
    import cffi

    ffi = cffi.FFI()
    ffi.cdef(text)
    return ffi


@functools.cache
def _load() -> tuple[Any, Any]:
    ffi = _declared(declarations(header_path().read_text(encoding="utf-8")))
    path = library_path()
    try:
        library = ffi.dlopen(str(path))
    except OSError as error:
        raise errors.UnsupportedError(
            f"The library {path} cannot be loaded ({error}): install a wheel for this machine."
        ) from error
    found = library.awqe_abi_version()
    if found != library.AWQE_ABI_VERSION:
        raise errors.UnsupportedError(
            f"{path} has ABI {found}, this package needs {library.AWQE_ABI_VERSION}: "
            "install both from one release, or build the library again."
        )
    return ffi, library


def _call(function: Callable[..., int], *arguments: object) -> None:
    """Calls a function of the library and raises what its status says."""
    ffi, _ = _load()
    error = ffi.new("awqe_error*")
    status = int(function(*arguments, error))
    del arguments  # an exception that somebody keeps would keep these objects open
    if status != 0:
        text = ffi.string(error.message).decode("utf-8", "replace")
        kind = _EXCEPTIONS[status - 1] if status <= len(_EXCEPTIONS) else errors.InternalError
        raise kind(text or f"status {status}")


def _structure(name: str) -> Any:
    ffi, _ = _load()
    structure = ffi.new(f"{name}*")
    structure.struct_size = ffi.sizeof(name)
    return structure


def read_bandwidth(threads: int, size_bytes: int) -> float:
    """Bytes per second that ``threads`` threads read from memory, the best of several passes."""
    ffi, library = _load()
    result = ffi.new("double*")
    _call(library.awqe_read_bandwidth, threads, size_bytes, result)
    return float(result[0])


def kv_type_number(name: str) -> int:
    """The awqe_kv_type of a name."""
    if name not in KV_TYPES:
        raise errors.InvalidArgumentError(
            f"There is no cache of type '{name}': use one of {', '.join(KV_TYPES)}."
        )
    return KV_TYPES.index(name)


def device_number(name: str) -> int:
    """The awqe_device of a name."""
    if name not in DEVICES:
        raise errors.InvalidArgumentError(
            f"There is no device '{name}': use one of {', '.join(DEVICES)}."
        )
    return DEVICES.index(name)


@dataclass(frozen=True)
class Gpu:
    """The GPU that the device "cuda" computes on.

    Attributes:
        name: Its maker's.
        capability: Compute capability, 10 * major + minor; 87 is a Jetson Orin.
        driver_version: Of CUDA that the driver supports, 1000 * major + 10 * minor.
        multiprocessors: How many are switched on.
        integrated: CPU and GPU share one memory.
        memory_bytes: All of its memory.
        free_bytes: What of it is free.
    """

    name: str
    capability: int
    driver_version: int
    multiprocessors: int
    integrated: bool
    memory_bytes: int
    free_bytes: int


def gpu() -> Gpu:
    """Asks for the GPU.

    Raises:
        UnsupportedError: There is none that this library can use; the text says why.
    """
    ffi, library = _load()
    found = _structure("awqe_gpu")
    _call(library.awqe_gpu_get, found)
    return Gpu(
        name=ffi.string(found.name).decode("utf-8", "replace"),
        integrated=bool(found.integrated),
        **{
            name: int(getattr(found, name))
            for name in (
                "capability",
                "driver_version",
                "multiprocessors",
                "memory_bytes",
                "free_bytes",
            )
        },
    )


def kernel_tables() -> list[str]:
    """The kernel tables that this CPU can run, best first; the last one is ``reference``."""
    ffi, library = _load()
    names: list[str] = []
    while True:
        name = library.awqe_kernels(len(names))
        if name == ffi.NULL:
            return names
        names.append(_text(ffi, name))


@dataclass(frozen=True)
class SelftestResult:
    """One operation of one kernel table: cases run, and those whose bits were wrong."""

    kernels: str
    operation: str
    cases: int
    differing: int


def selftest(report: Callable[[SelftestResult], None]) -> None:
    """Runs every kernel that this CPU can run against the reference, bit for bit.

    Args:
        report: called for each operation of each table; may raise, which ends the self-test and
            comes out of it.
    """
    ffi, library = _load()
    raised: list[BaseException] = []

    def keep(_kind: object, error: BaseException, _traceback: object) -> None:
        raised.append(error)

    def tell(_user: object, result: Any) -> bool:
        report(
            SelftestResult(
                _text(ffi, result.kernels),
                _text(ffi, result.operation),
                int(result.cases),
                int(result.differing),
            )
        )
        return True

    signature = "bool(void*, const awqe_selftest_result*)"
    callback = ffi.callback(signature, tell, error=False, onerror=keep)
    try:
        _call(library.awqe_selftest, callback, ffi.NULL)
    except errors.CancelledError:
        if raised:
            raise raised[0] from None
        raise


class NativeModel:
    """A mapped and validated file. May be used from several threads at once."""

    def __init__(self, path: Path) -> None:
        """Maps ``path`` and reads its texts.

        Raises:
            FileInvalidError: The file breaks a rule of FORMAT.md, or a text is not UTF-8.
        """
        ffi, library = _load()
        name = os.fsencode(path)
        if b"\0" in name:
            raise errors.InvalidArgumentError(
                f"The path {str(path)!r} holds a NUL character, which no name of a file can."
            )
        pointer = ffi.new("awqe_model**")
        _call(library.awqe_model_open, name, pointer)
        self._pointer = ffi.gc(pointer[0], library.awqe_model_close)
        # Read here, so that a damaged text is refused like every other damage: on opening.
        self._metadata = self._read_metadata()

    @property
    def pointer(self) -> Any:
        """The C object, which stays open for as long as somebody holds this."""
        pointer = self._pointer
        if pointer is None:
            raise errors.InvalidArgumentError("The model is closed.")
        return pointer

    def close(self) -> None:
        """Gives up the file; a second call does nothing. Sessions that are open go on."""
        self._pointer = None

    def info(self) -> ModelInfo:
        """The model's sizes."""
        _, library = _load()
        info = _structure("awqe_model_info")
        _call(library.awqe_model_info_get, self.pointer, info)
        return ModelInfo(
            **{name: int(getattr(info, name)) for name in ModelInfo.__dataclass_fields__}
        )

    def metadata(self) -> dict[str, Value]:
        """All entries, in file order."""
        if self._pointer is None:  # as everything else
            raise errors.InvalidArgumentError("The model is closed.")
        return dict(self._metadata)

    def _read_metadata(self) -> dict[str, Value]:
        ffi, library = _load()
        array = library.AWQE_VALUE_ARRAY
        pointer = self.pointer  # its strings are read below
        entries: dict[str, Value] = {}
        for index in range(library.awqe_model_metadata_count(pointer)):
            entry = _structure("awqe_metadata")
            _call(library.awqe_model_metadata_at, pointer, index, entry)
            key = _text(ffi, entry.key)
            entries[key] = _array(entry, key) if entry.type == array else _scalar(entry, key)
        return entries

    def tensors(self) -> list[TensorInfo]:
        """All tensors, in file order."""
        ffi, library = _load()
        pointer = self.pointer  # its strings are read below
        tensors = []
        for index in range(library.awqe_model_tensor_count(pointer)):
            tensor = _structure("awqe_tensor")
            _call(library.awqe_model_tensor_at, pointer, index, tensor)
            tensors.append(
                TensorInfo(
                    name=_text(ffi, tensor.name),
                    bits=int(tensor.bits),
                    group_size=int(tensor.group_size),
                    rows=int(tensor.rows),
                    columns=int(tensor.columns),
                    offset=int(tensor.offset),
                    bytes=int(tensor.bytes),
                )
            )
        return tensors

    def measure_threads(self) -> int:
        """Threads with which this machine decodes best; takes some tenths of a second."""
        ffi, library = _load()
        threads = ffi.new("uint32_t*")
        _call(library.awqe_model_measure_threads, self.pointer, threads)
        return int(threads[0])

    def memory(self, context_length: int, kv_type: str = "fp16") -> MemoryNeed:
        """What a session with this context would need on the CPU; allocates nothing."""
        _, library = _load()
        need = _structure("awqe_memory")
        options = _session_options(context_length, 0, 0, kv_type, "cpu")
        _call(library.awqe_session_memory, self.pointer, options, need)
        return MemoryNeed(int(need.weight_bytes), int(need.cache_bytes), int(need.scratch_bytes))

    def vision(self) -> VisionInfo | None:
        """What it reads pictures with; None where it reads none."""
        ffi, library = _load()
        pointer = self.pointer  # the newline is read below
        info = _structure("awqe_vision_info")
        try:
            _call(library.awqe_vision_info_get, pointer, info)
        except errors.UnsupportedError:
            return None
        newline = None
        if info.newline != ffi.NULL:
            newline = bytes(ffi.buffer(info.newline, 4 * info.embedding_size))
        sizes = {
            name: int(getattr(info, name))
            for name in VisionInfo.__dataclass_fields__
            if name not in ("newline", "bidirectional")
        }
        return VisionInfo(**sizes, newline=newline, bidirectional=bool(info.bidirectional))

    def vision_memory(self, threads: int = 0, height: int = 0, width: int = 0) -> int:
        """Bytes that ``encode_pictures`` takes while it runs, beside its arguments.

        For pictures of ``height`` x ``width`` pixels; 0 x 0: of the model's one size, or its most.
        """
        ffi, library = _load()
        scratch = ffi.new("uint64_t*")
        _call(
            library.awqe_vision_memory,
            *(self.pointer, height, width, _thread_count(threads), scratch),
        )
        return int(scratch[0])

    def encode_pictures(
        self, pixels: Any, embeddings: Any, threads: int = 0, progress: Progress | None = None
    ) -> None:
        """Turns pictures into embeddings that ``Reading`` takes in the place of tokens.

        Args:
            pixels: uint8 [pictures, height, width, 3], C-contiguous, red first.
            embeddings: float32 [pictures, tokens, embedding_size], C-contiguous, to fill.
            threads: Zero lets the library choose.
            progress: called between parts of the work (patches, layers, connector) with those done
                and the total; may raise, which cancels the call and comes out of it. The pictures
                that were through by then are in ``embeddings``.

        Raises:
            UnsupportedError: The model has no vision part.
            InvalidArgumentError: The arrays are no pictures of its size, or do not fit each other.
        """
        ffi, library = _load()
        pointer = self.pointer
        info = _structure("awqe_vision_info")
        _call(library.awqe_vision_info_get, pointer, info)
        source = ffi.from_buffer("uint8_t[]", pixels)
        target = ffi.from_buffer("float[]", embeddings, require_writable=True)
        height = width = int(info.image_size)
        tokens = int(info.tokens)
        if info.step and pixels.ndim == 4:
            height, width = pixels.shape[1:3]
            tokens = height // info.step * (width // info.step)
        size, rest = divmod(len(source), max(height * width * 3, 1))
        if rest or size == 0:
            raise errors.InvalidArgumentError(
                f"The pixels are {len(source)} bytes, which are no pictures of "
                f"{height} x {width} x 3."
            )
        if len(target) != size * tokens * info.embedding_size:
            raise errors.InvalidArgumentError(
                f"The array for the embeddings has {len(target)} numbers, {size} pictures give "
                f"{size} x {tokens} x {info.embedding_size}."
            )
        _call_with_progress(
            library.awqe_vision_encode,
            *(pointer, source, size, height, width, _thread_count(threads), target),
            progress=progress,
        )


class NativeSampler:
    """A random stream with its settings."""

    def __init__(
        self,
        *,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        repetition_penalty: float,
        repetition_window: int,
        seed: int,
    ) -> None:
        """Checks the settings; their meaning is that of ``awqe_sampling``."""
        ffi, library = _load()
        sampling = _structure("awqe_sampling")
        sampling.temperature = temperature
        sampling.top_k = top_k
        sampling.top_p = top_p
        sampling.min_p = min_p
        sampling.repetition_penalty = repetition_penalty
        sampling.repetition_window = repetition_window
        sampling.seed = seed
        pointer = ffi.new("awqe_sampler**")
        _call(library.awqe_sampler_open, sampling, pointer)
        self.pointer = ffi.gc(pointer[0], library.awqe_sampler_close)

    def seek(self, draw: int) -> None:
        """The next draw uses this random number of the stream, counted from 0."""
        _, library = _load()
        _call(library.awqe_sampler_seek, self.pointer, draw)

    def draw(self, logits: Any, context: memoryview, added: Any = None) -> int:
        """Draws the token that follows a text, from a caller's logits.

        Args:
            logits: float32 [vocabulary], C-contiguous.
            context: uint32 [tokens], the text.
            added: float32 [vocabulary], C-contiguous, or None: as for ``NativeSession.sample``.
        """
        ffi, library = _load()
        row = ffi.from_buffer("float[]", logits)
        tokens = ffi.from_buffer("uint32_t[]", context)
        more = ffi.NULL if added is None else ffi.from_buffer("float[]", added)
        if added is not None and len(more) != len(row):
            raise errors.InvalidArgumentError("What is added has another size than the logits.")
        token = ffi.new("uint32_t*")
        _call(
            library.awqe_sampler_draw,
            *(self.pointer, row, len(row), tokens, len(tokens), more, token),
        )
        return int(token[0])


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
    ) -> None:
        """Allocates the cache; zero threads let the library choose."""
        ffi, library = _load()
        info = model.info()
        self.vocabulary_size, self.hidden_size = info.vocabulary_size, info.hidden_size
        options = _session_options(context_length, threads, prefill_threads, kv_type, device)
        pointer = ffi.new("awqe_session**")
        _call(library.awqe_session_open, model.pointer, options, pointer)
        # The library's own function: Python code that frees could swallow a Ctrl-C.
        self._pointer = ffi.gc(pointer[0], library.awqe_session_close)
        self.kernels = _text(ffi, library.awqe_session_kernels(self.pointer))
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
        _, library = _load()
        return int(library.awqe_session_position(self.pointer))

    @property
    def earliest(self) -> int:
        """The lowest position, apart from 0, that ``truncate`` can go back to."""
        _, library = _load()
        return int(library.awqe_session_earliest(self.pointer))

    def tokens(self) -> array[int]:
        """Everything in the context, uint32."""
        ffi, library = _load()
        pointer = self.pointer
        count = int(library.awqe_session_position(pointer))
        tokens = array("I", bytes(4 * count))
        target = ffi.from_buffer("uint32_t[]", tokens, require_writable=True)
        _call(library.awqe_session_tokens, pointer, target, count)
        return tokens

    def reusable(self, tokens: Sequence[int] | memoryview) -> int:
        """Tokens at the beginning of a text that need not be evaluated before the next is drawn.

        Args:
            tokens: ids, at least one; a memoryview of uint32 is read in place.
        """
        ffi, library = _load()
        ids = _token_array(tokens)
        reusable = ffi.new("uint32_t*")
        _call(library.awqe_session_reusable, self.pointer, ids, len(ids), reusable)
        return int(reusable[0])

    def truncate(self, position: int) -> None:
        """Forgets every token from ``position`` on."""
        _, library = _load()
        _call(library.awqe_session_truncate, self.pointer, position)

    def look_at(self, rows: Any) -> None:
        """What layers look at from here on: float32 [tokens, embedding_size], or None: nothing."""
        ffi, library = _load()
        source = ffi.NULL if rows is None else ffi.from_buffer("float[]", rows)
        count = 0 if rows is None else len(rows)
        _call(library.awqe_session_look_at, self.pointer, source, count)

    def save(self, begin: int, end: int) -> bytearray:
        """The positions from ``begin`` to before ``end`` of the context, for ``restore``."""
        ffi, library = _load()
        pointer, size = self.pointer, ffi.new("uint64_t*")
        _call(library.awqe_session_saved_bytes, pointer, begin, end, size)
        saved = bytearray(size[0])
        target = ffi.from_buffer(saved, require_writable=True)
        _call(library.awqe_session_save, pointer, begin, end, target, len(saved))
        return saved

    def restore(self, saved: bytes | bytearray | memoryview) -> None:
        """Makes what ``save`` gave the context, or its continuation."""
        ffi, library = _load()
        source = ffi.from_buffer(saved)
        _call(library.awqe_session_restore, self.pointer, source, len(source))

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
        ffi, library = _load()
        token = ffi.new("uint32_t*")
        if added is None:
            _call(library.awqe_session_sample, self.pointer, sampler.pointer, token)
        else:
            row = ffi.from_buffer("float[]", added)
            _call(
                library.awqe_session_sample_adjusted,
                *(self.pointer, sampler.pointer, row, len(row), token),
            )
        return int(token[0])

    def copy_logits(self, target: Any) -> None:
        """Copies what ``sample`` draws from to ``target``, float32 [vocabulary]."""
        ffi, library = _load()
        row = ffi.from_buffer("float[]", target, require_writable=True)
        _call(library.awqe_session_logits, self.pointer, row, len(row))


@dataclass(frozen=True)
class Reading:
    """What one session reads in a call of ``evaluate_together``.

    Attributes:
        session: whose context grows.
        tokens: ids, each below the size of the vocabulary; None for embeddings.
        embeddings: float32 [rows, hidden], C-contiguous, in the place of tokens' embeddings.
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
    ffi, library = _load()
    inputs = ffi.new("awqe_batch_input[]", len(readings))
    held: list[Any] = []  # what the inputs point to
    for reading, entry in zip(readings, inputs):
        _fill_input(entry, reading, held)
    _call_with_progress(library.awqe_batch_evaluate, inputs, len(readings), progress=progress)


def _call_with_progress(
    function: Callable[..., int], *arguments: object, progress: Progress | None
) -> None:
    """Calls a function whose last arguments are an ``awqe_progress``, its user and the error."""
    ffi, _ = _load()
    raised: list[BaseException] = []

    def keep(_kind: object, error: BaseException, _traceback: object) -> None:
        raised.append(error)

    # Also what makes Ctrl-C work in a long prompt: Python looks for signals in here. An exception
    # goes to `keep` and never into C; the callback then returns false.
    def report(_user: object, done: int, total: int) -> bool:
        if progress is not None:
            progress(done, total)
        return True

    callback = ffi.callback("bool(void*, size_t, size_t)", report, error=False, onerror=keep)
    try:
        _call(function, *arguments, callback, ffi.NULL)
    except errors.CancelledError:
        if raised:
            raise raised[0] from None
        raise
    if raised:
        raise raised[0]


def _fill_input(entry: Any, reading: Reading, held: list[Any]) -> None:
    """Writes one ``awqe_batch_input``; `held` must live as long."""
    ffi, library = _load()
    session = reading.session.pointer
    if reading.tokens is not None:
        rows = _token_array(reading.tokens)
        entry.tokens, entry.count = rows, len(rows)
    else:
        rows = ffi.from_buffer("float[]", reading.embeddings)
        entry.embeddings, entry.count = rows, len(rows) // reading.session.hidden_size
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
    ffi, _ = _load()
    if isinstance(tokens, memoryview):
        return ffi.from_buffer("uint32_t[]", tokens)
    try:
        return ffi.new("uint32_t[]", list(tokens))
    except (OverflowError, TypeError) as error:
        raise errors.InvalidArgumentError(f"Token ids are whole numbers: {error}.") from error


def _thread_count(threads: int) -> int:
    if not 0 <= threads < 1 << 32:
        raise errors.InvalidArgumentError(f"There are no {threads} threads: ask for 0 or more.")
    return threads


def _session_options(
    context_length: int, threads: int, prefill_threads: int, kv_type: str, device: str
) -> Any:
    options = _structure("awqe_session_options")
    options.kv_type = kv_type_number(kv_type)
    options.device = device_number(device)
    try:
        options.context_length = context_length
        options.threads = threads
        options.prefill_threads = prefill_threads
    except OverflowError as error:
        raise errors.InvalidArgumentError(
            f"The context length and thread counts are whole numbers from 0 on: {error}."
        ) from error
    return options


def _scalar(value: Any, key: str) -> Scalar:
    """The Python value of an ``awqe_metadata`` that is no array."""
    ffi, library = _load()
    if value.type == library.AWQE_VALUE_STRING:
        return _decoded(bytes(ffi.buffer(value.string_value, value.count)), key)
    if value.type == library.AWQE_VALUE_BOOLEAN:
        return bool(value.unsigned_value)
    if value.type == library.AWQE_VALUE_REAL:
        return float(value.real_value)
    if value.type == library.AWQE_VALUE_SIGNED:
        return int(value.signed_value)
    return int(value.unsigned_value)


def _array(value: Any, key: str) -> list[Scalar]:
    """The elements of an ``awqe_metadata`` that is an array."""
    ffi, library = _load()
    data = bytes(ffi.buffer(value.array_value, value.array_bytes))
    if value.element_type == library.AWQE_VALUE_STRING:
        return _strings(data, key)
    # The letters of struct, by size.
    letters = {
        library.AWQE_VALUE_UNSIGNED: {1: "B", 2: "H", 4: "I", 8: "Q"},
        library.AWQE_VALUE_SIGNED: {1: "b", 2: "h", 4: "i", 8: "q"},
        library.AWQE_VALUE_REAL: {4: "f", 8: "d"},
        library.AWQE_VALUE_BOOLEAN: {1: "?"},
    }
    letter = letters[value.element_type][value.element_bytes]
    return list(struct.unpack(f"<{value.count}{letter}", data))


def _strings(data: bytes, key: str) -> list[Scalar]:
    """Strings that lie one behind the other, each with its length in front."""
    strings: list[Scalar] = []
    at = 0
    while at < len(data):
        begin = at + 8
        at = begin + int.from_bytes(data[at:begin], "little")
        strings.append(_decoded(data[begin:at], key))
    return strings


def _decoded(data: bytes, key: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise errors.FileInvalidError(
            f"The text of the key {key} is not UTF-8, from its byte {error.start} on: the model "
            "file is damaged, copy or convert it again"
        ) from error


def _text(ffi: Any, pointer: Any) -> str:
    return str(ffi.string(pointer).decode("utf-8", "replace"))
