"""An open file: its sizes, entries and tensors, and the pictures that it encodes."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from awq_edge import errors
from awq_edge._native.library import Progress, call, call_with_progress, load, structure, text_at
from awq_edge._native.metadata import Value, entries
from awq_edge._native.options import session_options, thread_count


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


@dataclass(frozen=True)
class GpuMemoryNeed(MemoryNeed):
    """Bytes of a GPU's memory that a session needs there, of its layers and the output matrix.

    Attributes:
        layers: Of the model's last layers, those that the GPU would compute; 0: it has no room, and
            the bytes are those that were asked for.
        free_bytes: What is free there; where CPU and GPU share one memory, of that.
    """

    layers: int
    free_bytes: int


class NativeModel:
    """A mapped and validated file. May be used from several threads at once."""

    def __init__(self, path: Path) -> None:
        """Maps ``path`` and reads its texts.

        Raises:
            FileInvalidError: The file breaks a rule of FORMAT.md, or a text is not UTF-8.
        """
        ffi, library = load()
        name = os.fsencode(path)
        if b"\0" in name:
            raise errors.InvalidArgumentError(
                f"The path {str(path)!r} holds a NUL character, which no name of a file can."
            )
        pointer = ffi.new("awqe_model**")
        call(library.awqe_model_open, name, pointer)
        self._pointer = ffi.gc(pointer[0], library.awqe_model_close)
        # Read here, so that a damaged text is refused like every other damage: on opening.
        self._metadata = entries(self._pointer)

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
        _, library = load()
        info = structure("awqe_model_info")
        call(library.awqe_model_info_get, self.pointer, info)
        return ModelInfo(
            **{name: int(getattr(info, name)) for name in ModelInfo.__dataclass_fields__}
        )

    def metadata(self) -> dict[str, Value]:
        """All entries, in file order."""
        if self._pointer is None:  # as everything else
            raise errors.InvalidArgumentError("The model is closed.")
        return dict(self._metadata)

    def tensors(self) -> list[TensorInfo]:
        """All tensors, in file order."""
        ffi, library = load()
        pointer = self.pointer  # its strings are read below
        tensors = []
        for index in range(library.awqe_model_tensor_count(pointer)):
            tensor = structure("awqe_tensor")
            call(library.awqe_model_tensor_at, pointer, index, tensor)
            tensors.append(
                TensorInfo(
                    name=text_at(ffi, tensor.name),
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
        ffi, library = load()
        threads = ffi.new("uint32_t*")
        call(library.awqe_model_measure_threads, self.pointer, threads)
        return int(threads[0])

    def memory(self, context_length: int, kv_type: str = "fp16") -> MemoryNeed:
        """What a session with this context would need on the CPU; allocates nothing."""
        _, library = load()
        need = structure("awqe_memory")
        options = session_options(context_length, 0, 0, kv_type, "cpu")
        call(library.awqe_session_memory, self.pointer, options, need)
        return MemoryNeed(int(need.weight_bytes), int(need.cache_bytes), int(need.scratch_bytes))

    def gpu_memory(
        self, context_length: int, kv_type: str = "fp16", gpu_layers: int | str | None = None
    ) -> GpuMemoryNeed:
        """What such a session would need of the GPU's memory; allocates nothing.

        Raises:
            UnsupportedError: There is no GPU that this library can use, or none for this model.
        """
        _, library = load()
        need = structure("awqe_gpu_memory")
        options = session_options(context_length, 0, 0, kv_type, "cuda", gpu_layers)
        call(library.awqe_session_gpu_memory, self.pointer, options, need)
        return GpuMemoryNeed(
            **{name: int(getattr(need, name)) for name in GpuMemoryNeed.__dataclass_fields__}
        )

    def vision(self) -> VisionInfo | None:
        """What it reads pictures with; None where it reads none."""
        ffi, library = load()
        pointer = self.pointer  # the newline is read below
        info = structure("awqe_vision_info")
        try:
            call(library.awqe_vision_info_get, pointer, info)
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

    @functools.cached_property
    def row_size(self) -> int:
        """Numbers of what is read in the place of a token: a picture's row where it is read."""
        vision = self.vision()
        if vision is None or vision.session_bytes:
            return self.info().hidden_size
        return vision.embedding_size

    def vision_memory(self, threads: int = 0, height: int = 0, width: int = 0) -> int:
        """Bytes that ``encode_pictures`` takes while it runs, beside its arguments.

        For pictures of ``height`` x ``width`` pixels; 0 x 0: of the model's one size, or its most.
        """
        ffi, library = load()
        scratch = ffi.new("uint64_t*")
        call(
            library.awqe_vision_memory,
            *(self.pointer, height, width, thread_count(threads), scratch),
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
        ffi, library = load()
        pointer = self.pointer
        info = structure("awqe_vision_info")
        call(library.awqe_vision_info_get, pointer, info)
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
        call_with_progress(
            library.awqe_vision_encode,
            *(pointer, source, size, height, width, thread_count(threads), target),
            progress=progress,
        )
