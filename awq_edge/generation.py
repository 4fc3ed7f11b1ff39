"""Generating text: how tokens are drawn, and the iterator over the pieces of text.

Owns ``GenerationConfig`` and ``Generation``. Refuses to draw by itself: the C library's sampler
does. Loads neither numpy nor the library before a text begins.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Union

from awq_edge.errors import ContextFullError, InvalidArgumentError
from awq_edge.tokenizer import IncrementalDecoder, StopStrings

if TYPE_CHECKING:
    from awq_edge.session import Session

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


def _drawn_seed() -> int:
    return int.from_bytes(os.urandom(8), "little") >> 1
