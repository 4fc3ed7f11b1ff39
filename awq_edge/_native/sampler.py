"""A random stream that draws tokens."""

from __future__ import annotations

from typing import Any

from awq_edge import errors
from awq_edge._native.library import call, load, structure


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
        ffi, library = load()
        sampling = structure("awqe_sampling")
        sampling.temperature = temperature
        sampling.top_k = top_k
        sampling.top_p = top_p
        sampling.min_p = min_p
        sampling.repetition_penalty = repetition_penalty
        sampling.repetition_window = repetition_window
        sampling.seed = seed
        pointer = ffi.new("awqe_sampler**")
        call(library.awqe_sampler_open, sampling, pointer)
        self.pointer = ffi.gc(pointer[0], library.awqe_sampler_close)

    def seek(self, draw: int) -> None:
        """The next draw uses this random number of the stream, counted from 0."""
        _, library = load()
        call(library.awqe_sampler_seek, self.pointer, draw)

    def draw(self, logits: Any, context: memoryview, added: Any = None) -> int:
        """Draws the token that follows a text, from a caller's logits.

        Args:
            logits: float32 [vocabulary], C-contiguous.
            context: uint32 [tokens], the text.
            added: float32 [vocabulary], C-contiguous, or None: as for ``NativeSession.sample``.
        """
        ffi, library = load()
        row = ffi.from_buffer("float[]", logits)
        tokens = ffi.from_buffer("uint32_t[]", context)
        more = ffi.NULL if added is None else ffi.from_buffer("float[]", added)
        if added is not None and len(more) != len(row):
            raise errors.InvalidArgumentError("What is added has another size than the logits.")
        token = ffi.new("uint32_t*")
        call(
            library.awqe_sampler_draw,
            *(self.pointer, row, len(row), tokens, len(tokens), more, token),
        )
        return int(token[0])
