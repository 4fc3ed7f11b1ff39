"""Generating text: how tokens are drawn, and the iterator over the pieces of text.

Owns ``GenerationConfig`` and ``Generation``. Refuses to draw by itself: the C library's sampler
does, from logits to which ``adjustment.py`` may add something. Loads neither numpy nor the library
before a text begins.
"""

from __future__ import annotations

import os
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Union, cast

from awq_edge.adjustment import Adjustment, Constraint, TokenLogprob, token_logprob
from awq_edge.errors import ContextFullError, InvalidArgumentError
from awq_edge.token_ids import integer, token_ids
from awq_edge.tokenizer import IncrementalDecoder, StopStrings, Tokenizer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from awq_edge._native import NativeSampler
    from awq_edge.session import Session
    from awq_edge.vision.picture_prompt import PicturePrompt

_MAY_BE_NONE = ("max_tokens", "seed")

Prompt = Union[str, Sequence[int], "PicturePrompt"]
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
        presence_penalty: Taken from the logit of each token that the text holds already, without
            the prompt.
        frequency_penalty: Taken from it for each time that the text holds it.
        logit_bias: What is added to the logits of tokens, by id; -100 or less excludes one.
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
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuses what can never work, by name; integers of numpy become Python's."""
        for name, high in (
            ("max_tokens", None),
            ("top_k", 2**32 - 1),
            ("repetition_window", 2**32 - 1),
            ("seed", 2**64 - 1),
        ):
            value = getattr(self, name)
            if value is None and name in _MAY_BE_NONE:
                continue
            value = integer(value, name)
            if value < 0 or (high is not None and value > high):
                raise InvalidArgumentError(
                    f"{name} is {value}: use 0 {'or more' if high is None else f'to {high}'}."
                )
            object.__setattr__(self, name, value)
        for name, low, most in (
            ("temperature", 0.0, 100.0),
            ("top_p", 0.0, 1.0),
            ("min_p", 0.0, 1.0),
            ("repetition_penalty", 0.01, 100.0),
            ("presence_penalty", -100.0, 100.0),
            ("frequency_penalty", -100.0, 100.0),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Real):
                raise InvalidArgumentError(f"{name} is {value!r}: use a number.")
            if not low <= float(value) <= most:
                raise InvalidArgumentError(f"{name} is {value}: use {low} to {most}.")
        _check_bias(self.logit_bias)
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if not all(isinstance(stop, str) for stop in stops):
            raise InvalidArgumentError(f"stop is {self.stop!r}: use strings.")
        object.__setattr__(self, "stop", stops)
        StopStrings(stops)

    def sampler(self, seed: int) -> NativeSampler:
        """What draws like this, with the random numbers of a seed."""
        from awq_edge._native import NativeSampler

        return NativeSampler(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            repetition_window=self.repetition_window,
            seed=seed,
        )


class Generation:
    """Text that is being generated: an iterator over its pieces, also for ``async for``.

    Attributes:
        prompt_tokens: Ids of the prompt.
        tokens: Ids generated so far, without the one that ended the text.
        logprobs: For each of them what the model itself gave it; empty unless asked for.
        seed: What the random stream began with.
        stop_reason: None while it runs; then "eos", "stop" (a stop string), "length" (max_tokens),
            "context" (no room left) or "closed".
        prefill_seconds: Time spent reading the prompt.
        decode_steps: Tokens of the text that were read after the prompt.
        guesses: How it is guessed ahead, if it is.
        decode_seconds: Time spent on everything after the prompt, without the caller's own.
    """

    def __init__(
        self,
        session: Session,
        prompt: Prompt,
        config: GenerationConfig,
        *,
        logprobs: int | None = None,
        constraint: Constraint | None = None,
        special_tokens: bool = False,
        end_tokens: Sequence[int] = (),
    ) -> None:
        """Tokenizes the prompt and checks that it fits; computes nothing yet.

        Args:
            session: Whose context the text becomes.
            prompt: Text, token ids, or both with pictures.
            config: How to draw and when to stop.
            logprobs: Fill ``logprobs``, each with so many of the likeliest tokens; None does not.
            constraint: What may be drawn next; None allows everything.
            special_tokens: Whether they are spelt out in the text.
            end_tokens: What ends the text beside the model's own tokens for that.
        """
        model = session.model
        self.session = session
        self.config = config
        self.seed = _drawn_seed() if config.seed is None else config.seed
        self._pictures: PicturePrompt | None = None
        if isinstance(prompt, str):
            ids: Sequence[int] = model.tokenize(prompt)
        elif hasattr(prompt, "spans"):  # its class is not loaded for text alone
            self._pictures = cast("PicturePrompt", prompt)
            ids = self._pictures.tokens
        else:
            ids = prompt
        self.prompt_tokens = token_ids(ids, model.info.vocabulary_size)
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self._top = logprobs
        self._special_tokens = special_tokens
        self._ends = frozenset((*model.eos_token_ids, *end_tokens))
        self._adjustment = Adjustment.needed(
            model.info.vocabulary_size,
            presence_penalty=config.presence_penalty,
            frequency_penalty=config.frequency_penalty,
            logit_bias=config.logit_bias,
            constraint=constraint,
        )
        self._reused: int | None = None
        self.stop_reason: str | None = None
        self.prefill_seconds = 0.0
        self.decode_steps = 0
        self.decode_seconds = 0.0
        if not self.prompt_tokens:
            raise InvalidArgumentError("The prompt is empty: it needs at least one token.")
        room = session.context_length - len(self.prompt_tokens)
        if room < 0:
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
        self._sampler = config.sampler(self.seed)
        # Everything else follows from the prompt and the tokens drawn: a step that an interrupt
        # broke off is done again, to the same end.
        held = self.prompt_tokens if self._pictures is None else self._pictures.held
        self._context = array("I", held)
        self._context.frombytes(bytes(room * self._context.itemsize))
        self._text = self._new_text()
        self._shown = 0  # characters that were given out
        self._begun = False
        self._noted = 0  # tokens drawn that are in _context
        # Guesses go by ids, and a picture's rows have none.
        shared = model.speculation if self._pictures is None else None
        self.guesses = None if shared is None else shared.guesses(config, self.seed)
        self._guess: Sequence[int] = ()  # what stands in the session behind the text, unchecked
        self._rows: NDArray[np.float32] | None = None

    def __iter__(self) -> Generation:
        """The generation itself."""
        return self

    def __next__(self) -> str:
        """The next piece of text; never empty, never half a character."""
        self.start()
        started = time.perf_counter()
        try:
            piece = self._piece()
            while not piece and self.stop_reason is None:
                self._read()
                self._draw_all()
                piece = self._piece()
        finally:
            self.decode_seconds += time.perf_counter() - started
            self._end_guesses()
        if not piece:
            raise StopIteration
        self._shown = self._text.length
        return piece

    def unread(self) -> Sequence[int]:
        """What the session must read before ``step``; nothing if the text has come to its end.

        For whoever evaluates several sessions together: that call reads these tokens, in one part
        or in several, and ``step`` draws. Iterating does both.
        """
        count = len(self.prompt_tokens) + len(self.tokens)
        if self.stop_reason is not None or count > self.session.context_length:
            return ()
        self._note(count)
        if not self._begun:
            shared = self._reusable(count)
            self.session.truncate(shared)
            if self._reused is None:  # not what an interrupted start has read
                self._reused = shared
            self._begun = shared == count
            return self.prompt_tokens[shared:]
        return self._context[self._known(count) : count]

    def ahead(self, unread: Sequence[int], texts: int = 1) -> Sequence[int]:
        """What to read in the place of ``unread``: behind the last token, guesses of the next ones.

        Args:
            unread: What ``unread()`` gave, whole.
            texts: How many texts are written together.

        Returns:
            Ids. With guesses, ``rows()`` must be filled with the logits after each of them.
        """
        self._guess = ()
        if self.guesses is None or len(unread) != 1 or not self.tokens:
            return unread
        count = len(self.prompt_tokens) + len(self.tokens)
        room = self.session.context_length - count
        if self.config.max_tokens is not None:
            room = min(room, self.config.max_tokens - len(self.tokens) - 1)
        if room <= 0:
            return unread
        text = memoryview(self._context)[:count]
        guess = self.guesses.next(text, len(self.tokens), room, texts)
        size = self.session.model.info.vocabulary_size
        if not guess or max(guess) >= size:
            return unread
        self._guess = guess
        return [*unread, *guess]

    def rows(self) -> NDArray[np.float32] | None:
        """Where the logits after each token of ``ahead`` go: float32 [tokens, vocabulary], or None.

        None where nothing was guessed.
        """
        if not self._guess:
            return None
        import numpy as np  # a tenth of a second that texts without guesses do not pay

        count = len(self._guess) + 1
        if self._rows is None or len(self._rows) < count:
            self._rows = np.empty((count, self.session.model.info.vocabulary_size), np.float32)
        return self._rows[:count]

    def step(self) -> str:
        """Draws where nothing is unread: one token, and one more for each guess that was right.

        Returns:
            The text that they complete, often empty.
        """
        self._begun = True
        self._draw_all()
        if self.stop_reason is None:
            self._limit()
        piece = self._piece()
        self._shown = self._text.length
        self._end_guesses()
        return piece

    def __aiter__(self) -> Generation:
        """The generation itself: ``async for`` computes in a thread and leaves the loop free."""
        return self

    async def __anext__(self) -> str:
        """The next piece of text, computed in a thread; a cancelled task waits for its step."""
        from awq_edge.async_steps import next_piece

        piece = await next_piece(self)
        if piece is None:
            raise StopAsyncIteration
        return piece

    def take_back(self, piece: str) -> None:
        """The last piece reached nobody: the next one begins with it."""
        self._shown -= len(piece)

    def text(self) -> str:
        """Everything that is still to come, in one string."""
        return "".join(self)

    def close(self) -> None:
        """Ends the text here."""
        if self.stop_reason is None:
            self.stop_reason = "closed"
        self._end_guesses()

    def start(self, progress: Progress | None = None) -> None:
        """Reads the prompt; the first step does it otherwise. A second call does nothing.

        Args:
            progress: Called with the tokens read so far and their number; may raise to stop.
        """
        if self._begun or self.stop_reason is not None:
            return
        started = time.perf_counter()
        try:
            missing = self.unread()
            if missing and self._pictures is not None:
                begin = len(self.prompt_tokens) - len(missing)
                self._pictures.read(self.session, begin, progress)
            elif missing:
                self.session.evaluate(missing, progress=progress)
            self._begun = True
        finally:
            self.prefill_seconds += time.perf_counter() - started

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the text; None where something else did."""
        return self._text.stop_string if self.stop_reason == "stop" else None

    @property
    def reused_tokens(self) -> int:
        """Tokens of the prompt that were in the cache already; 0 before it is read."""
        return self._reused or 0

    def _limit(self) -> None:
        """Ends a text that has no room for another token."""
        if self.config.max_tokens is not None and len(self.tokens) >= self.config.max_tokens:
            self.stop_reason = "length"
        elif len(self.prompt_tokens) + len(self.tokens) > self.session.context_length:
            self.stop_reason = "context"

    def _read(self) -> None:
        """Makes the session's context the text so far."""
        missing = self.unread()
        if not missing:
            return
        ahead = self.ahead(missing)
        rows = self.rows()
        logits = {} if rows is None else {self.session: rows}
        model = self.session.model
        began = time.perf_counter()
        model.evaluate_together([(self.session, ahead)], logits=logits)
        if model.speculation is not None:
            model.speculation.costs.learn(len(ahead), time.perf_counter() - began)
        self.decode_steps += len(missing)

    def _draw_all(self) -> None:
        """Draws a token and, as long as it was guessed, the next one."""
        guess, rows, right = self._guess, self.rows(), 0
        begun = len(self.tokens)
        self._draw(None if rows is None else rows[0])
        if not guess or rows is None or self.guesses is None:
            return
        while right < len(guess) and self.stop_reason is None and self.tokens[-1] == guess[right]:
            right += 1
            self._piece()  # a stop string ends the text here
            if self.stop_reason is None:
                self._draw(rows[right])
        position = len(self.prompt_tokens) + begun + right
        if position < self.session.position:
            self.session.truncate(position)
        self._guess = ()
        self.decode_steps += right
        self.guesses.checked(len(guess), right)

    def _draw(self, row: NDArray[np.float32] | None) -> None:
        """Draws one token, or finds a reason to stop.

        Args:
            row: float32 [vocabulary], what it is drawn from; None: the session's logits.
        """
        self._limit()
        if self.stop_reason is not None:
            return
        drawn = len(self.tokens)
        added = None if self._adjustment is None else self._adjustment.added(self.tokens)
        if row is None:
            token = self.session.sample(self._sampler, drawn, added)
        else:
            count = len(self.prompt_tokens) + drawn
            self._note(count)
            self._sampler.seek(drawn)
            token = self._sampler.draw(row, memoryview(self._context)[:count], added)
        if token in self._ends:
            self.stop_reason = "eos"
            return
        if self._top is not None:
            del self.logprobs[drawn:]
            seen = self.session.last_logits() if row is None else row
            self.logprobs.append(token_logprob(seen, token, self._top))
        self.tokens.append(token)

    def _note(self, count: int) -> None:
        """Makes the first ``count`` elements of ``_context`` the text."""
        place = len(self.prompt_tokens)
        for index in range(self._noted, count - place):
            self._context[place + index] = self.tokens[index]
        self._noted = max(self._noted, count - place)

    def _end_guesses(self) -> None:
        """Gives back what guessing has taken, once the text has ended."""
        if self.guesses is not None and self.stop_reason is not None:
            self.guesses.close()

    def _known(self, count: int) -> int:
        """How much of a text of ``count`` tokens the context holds, whose beginning it must be."""
        text = memoryview(self._context)[:count]
        read = self._reusable(count)
        if self._guess and read < self.session.position and self._holds_guess(text):
            self.session.truncate(read)  # an interrupt came before they were checked
        if read < self.session.position:
            raise InvalidArgumentError(
                "Something else has taken over this session since the last piece of text "
                "(another generation, evaluate(), logits() or truncate()): end one before the next "
                "begins, or give each its own session (Model.session())."
            )
        return read

    def _holds_guess(self, text: memoryview) -> bool:
        """Whether the session holds the text, or its beginning, and guesses behind it."""
        held = self.session.tokens
        for end in range(len(held) - 1, len(held) - 1 - len(self._guess), -1):
            guessed = list(held[end:])
            if list(text[:end]) == list(held[:end]) and guessed == self._guess[: len(guessed)]:
                return True
        return False

    def _reusable(self, count: int) -> int:
        """How much of the first ``count`` tokens the session need not read again."""
        if self._pictures is None:
            return self.session.reusable(memoryview(self._context)[:count])
        return self._pictures.reusable(self.session, self.tokens)

    def _piece(self) -> str:
        """Text that is complete and was not given out yet."""
        if self.stop_reason == "closed":
            return ""
        if not self._text.whole:
            self._text = self._new_text()
        self._text.update(self.tokens, ended=self.stop_reason is not None, shown=self._shown)
        if self._text.stopped:
            self.stop_reason = "stop"
        return self._text.unshown

    def _new_text(self) -> _Text:
        return _Text(
            self.session.model.tokenizer,
            self.prompt_tokens,
            self.config.stop,
            self._special_tokens,
        )


class _Text:
    """The text of tokens, as far as it may be shown. Made anew, it comes to the same.

    Attributes:
        length: Characters that may be shown.
        unshown: The last of them, which were not.
        stopped: Whether a stop string was found.
        whole: False once an update has been broken off.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        stops: Sequence[str],
        special_tokens: bool,
    ) -> None:
        """Begins behind the prompt."""
        self._decoder = IncrementalDecoder(tokenizer, prompt, special_tokens=special_tokens)
        self._stops = StopStrings(stops)
        self._read = 0
        self._finished = False
        self.length = 0
        self.unshown = ""
        self.whole = True

    @property
    def stopped(self) -> bool:
        return self._stops.found

    @property
    def stop_string(self) -> str | None:
        return self._stops.string

    def update(self, tokens: Sequence[int], *, ended: bool, shown: int) -> None:
        """Takes in the tokens that are new.

        Args:
            tokens: All that were drawn.
            ended: Whether no more will come: what was held back can be shown.
            shown: How many characters were shown.
        """
        self.whole = False
        text = self.unshown
        for token in tokens[self._read :]:
            if self.stopped:
                break
            text += self._release(self._stops.add(self._decoder.add(token)))
            self._read += 1
        if ended and not self._finished:
            if not self.stopped:
                text += self._release(self._stops.add(self._decoder.finish()))
            text += self._release(self._stops.finish())
            self._finished = True
        unshown = self.length - shown
        self.unshown = text[len(text) - unshown :] if unshown > 0 else ""
        self.whole = True

    def _release(self, piece: str) -> str:
        self.length += len(piece)
        return piece


def _check_bias(bias: object) -> None:
    if not isinstance(bias, Mapping):
        raise InvalidArgumentError(f"logit_bias is {bias!r:.80}: use a table of ids and numbers.")
    for token, change in bias.items():
        integer(token, "A token of logit_bias")
        if isinstance(change, bool) or not isinstance(change, Real) or not -1e4 <= change <= 1e4:  # type: ignore[operator]  # Real has no order for mypy
            raise InvalidArgumentError(
                f"logit_bias of the token {token} is {change!r}: use a number from -100 to 100."
            )


def _drawn_seed() -> int:
    return int.from_bytes(os.urandom(8), "little") >> 1
