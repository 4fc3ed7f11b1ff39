"""The engine: one thread that owns every session and computes for all texts together.

Each step evaluates one token of every text that is being written, and beside them the next part of
the prompts that are being read: nobody's stream stands still while another's prompt is read. A
picture is encoded once the reading comes to it, by another thread (``picture_encoder.py``). What
a text becomes does not depend on its neighbours, on the parts or on the cache, to the bit: the
library promises that, and the tests compare with ``==``.

Owns the order of the work and the thread. Refuses HTTP, and everything that could wait: listeners
are told and return at once. Idle, the thread sleeps in one wait without a time limit.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from awq_edge.errors import AwqEdgeError, UnsupportedError
from awq_edge.serve.counts import Counts
from awq_edge.serve.fair_queue import FairQueue
from awq_edge.serve.picture_encoder import Encoding, PictureEncoder
from awq_edge.serve.prefix_breaks import PrefixBreaks
from awq_edge.serve.sessions import LEAST_COPIED_TOKENS, Sessions
from awq_edge.serve.stored_contexts import (
    LEAST_STORED_TOKENS,
    Block,
    StoredContexts,
)
from awq_edge.serve.texts import (
    BusyError,
    Ended,
    Event,
    Failed,
    Piece,
    StoppingError,
    Text,
    TimedOutError,
)
from awq_edge.session import common_length

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from awq_edge.generation import Generation
    from awq_edge.model import Model
    from awq_edge.session import Input, Session
    from awq_edge.vision.picture_prompt import Span

_log = logging.getLogger("awq_edge.serve")

# The library reads the weights once for so many rows.
BLOCK_ROWS = 128
# Beside texts that are written, a step reads as much of the prompts as takes about this long, or
# twice as long as writing alone: streams then slow down evenly instead of standing still.
_STEP_SECONDS = 0.1
_LEAST_ROWS = 8
_LONGEST_RETRY_SECONDS = 60


@dataclass(eq=False)
class _Live:
    """A text with a session."""

    text: Text
    session: Session
    generation: Generation
    begun: float
    prompt_read: float | None = None
    told: int = 0  # tokens that the listener knows
    unread: Sequence[int] = field(default_factory=tuple)
    coming: _Coming | None = None
    encodings: dict[bytes, Encoding] = field(default_factory=dict)  # by the pictures' keys

    @property
    def is_waiting(self) -> bool:
        """Whether the disk has not given its context yet, or a tower the picture that is next."""
        if self.coming is not None:
            return not self.coming.content.done()
        span = self.next_part()[1]
        return span is not None and not self.encodings[span.picture.key].rows.done()

    def next_part(self) -> tuple[int, Span | None]:
        """How much of the same kind is unread, and whose rows that is; None: tokens."""
        if self.text.pictures is None or self.prompt_read is not None or not self.unread:
            return len(self.unread), None
        begin = len(self.text.prompt) - len(self.unread)
        end, span = self.text.pictures.part(begin)
        return end - begin, span

    def most_next(self, rows: int) -> int:
        """How much is read of what is unread where ``rows`` are offered; more if it must be."""
        length, span = self.next_part()
        together = span is not None and self.text.model.pictures.whole
        return length if together else min(rows, length)

    def input(self, part: Sequence[int]) -> Input:
        """What the session reads where ``part`` of the text is unread."""
        span = self.next_part()[1]
        if span is None or self.text.pictures is None:
            return part
        begin = len(self.text.prompt) - len(self.unread)
        rows = self.encodings[span.picture.key].rows.result()
        return span.rows(rows, begin, begin + len(part), self.text.pictures.contents)

    def failed_encoding(self) -> BaseException | None:
        """Why a picture cannot be encoded, if one could not."""
        ended = [one.rows for one in self.encodings.values() if one.rows.done()]
        return next((error for one in ended if (error := one.exception())), None)


@dataclass(frozen=True)
class _Coming:
    """A context that is being read from the disk."""

    chain: Sequence[Block]
    content: Future[list[bytes]]


class Engine:
    """Computes texts together. Every method may be called from any thread.

    Attributes:
        counts: What was done so far.
        encoder: Encodes pictures.
        breaks: Clients that change the beginning of their prompts.
        stored: Contexts on disk, if they are kept.
        may_grow: Whether a session that is not the first of its model may take so many bytes.
        step_began: Of ``time.monotonic()``, while a step is computed; otherwise None.
    """

    def __init__(
        self, *, parallel: int, most_waiting: int, stored: StoredContexts | None = None
    ) -> None:
        """Starts the thread.

        Args:
            parallel: How many texts of a model are computed at a time.
            most_waiting: How many texts may wait beside them.
            stored: Contexts on disk; the engine closes them. None keeps nothing there.
        """
        self.stored = stored
        self.may_grow: Callable[[int], bool] = lambda size_bytes: True
        self._unsaved: list[Session] = []
        if stored is not None:
            stored.changed = self._look_again
        self._parallel = parallel
        self._most_waiting = most_waiting
        self._condition = threading.Condition()
        self._queue = FairQueue()
        self._live: list[_Live] = []
        self._sessions: dict[Model, Sessions] = {}
        self._tasks: list[Callable[[], None]] = []
        self._stopping = False
        self._changed = False  # something was asked since the last look
        self._row_seconds: float | None = None  # of a prompt's token, in steps with long prompts
        self._write_seconds: float | None = None  # of a step that only writes
        self._text_seconds = 1.0  # of a text, from its begin to its end
        self.encoder = PictureEncoder(self._look_again)
        self.counts = Counts()
        self.breaks = PrefixBreaks()
        self.step_began: float | None = None
        self._thread = threading.Thread(target=self._run, name="awq-edge engine", daemon=True)
        self._thread.start()

    # ---- for other threads -------------------------------------------------------------------

    def submit(self, texts: Sequence[Text]) -> None:
        """Queues texts of one request, all or none.

        Raises:
            BusyError: The queue has no room for them.
            StoppingError: The engine is being stopped.
        """
        with self._condition:
            if self._stopping:
                raise StoppingError("The server is being stopped.")
            free = self._parallel - len(self._live)
            if len(self._queue) + len(texts) > self._most_waiting + max(0, free):
                raise BusyError(
                    f"The server is busy: {len(self._live)} texts are being written and "
                    f"{len(self._queue)} wait. Try again later.",
                    self._retry_after(),
                )
            for text in texts:
                self._queue.add(text)
            self._wake()

    def cancel(self, texts: Sequence[Text]) -> None:
        """Ends texts that nobody waits for any more; their listeners are told nothing."""
        with self._condition:
            for text in texts:
                text.cancelled = True
            self._wake()

    def forget(self, model: Model) -> bool:
        """Closes a model's sessions; False, and nothing is done, while it has texts."""
        done = threading.Event()
        answer = []

        def close() -> None:
            busy = any(live.text.model is model for live in self._live) or any(
                text.model is model for text in self._queue
            )
            if not busy:
                sessions = self._sessions.pop(model, None)
                if sessions is not None:
                    sessions.close_idle()
            answer.append(not busy)
            done.set()

        with self._condition:
            if self._stopping:
                return False
            self._tasks.append(close)
            self._wake()
        done.wait()
        return answer[0]

    def stop(self, seconds: float) -> None:
        """Takes no more texts, lets the live ones end, and ends those that take longer."""
        with self._condition:
            self._stopping = True
            self._wake()
        self._thread.join(seconds)
        with self._condition:
            for live in self._live:
                live.text.deadline = 0.0
            self._wake()
        self._thread.join()

    @property
    def live_texts(self) -> int:
        """Texts that are being read or written."""
        return len(self._live)

    @property
    def waiting_texts(self) -> int:
        """Texts that wait."""
        return len(self._queue)

    def session_bytes(self, model: Model | None = None) -> int:
        """What the sessions of a model have allocated; None: of all models."""
        total = 0
        for sessions in list(self._sessions.values()):
            if model is None or sessions.model is model:
                speculation = sessions.model.speculation
                draft = None if speculation is None else speculation.draft
                total += sessions.bytes + (0 if draft is None else draft.bytes)
        return total

    def _look_again(self) -> None:
        with self._condition:
            self._wake()

    def _wake(self) -> None:
        self._changed = True
        self._condition.notify()

    def _retry_after(self) -> int:
        rounds = 1 + len(self._queue) // max(1, self._parallel)
        return max(1, min(_LONGEST_RETRY_SECONDS, round(rounds * self._text_seconds)))

    # ---- the thread --------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._await_work():
                try:
                    self._sweep()
                    self._admit()
                    self._step()
                    self._keep()
                except Exception as error:  # a bug must not leave clients waiting for ever
                    _log.exception("the engine failed")
                    self._fail_all(error)
        finally:
            self.encoder.close()
            self._keep_all()
            for sessions in self._sessions.values():
                sessions.close_idle()

    def _await_work(self) -> bool:
        """Waits until there is something to do; False when the engine is to end."""
        with self._condition:
            while not (self._changed or (self._stopping and not self._live) or self._can_step()):
                self._condition.wait()
            self._changed = False
            tasks, self._tasks = self._tasks, []
            for task in tasks:
                task()
            return bool(self._live) or not self._stopping or bool(self._tasks)

    def _can_step(self) -> bool:
        return any(not live.is_waiting for live in self._live)

    def _sweep(self) -> None:
        """Takes out what nobody wants any more or what took too long."""
        now = time.monotonic()

        def unwanted(text: Text) -> bool:
            late = text.deadline is not None and now > text.deadline
            return text.cancelled or late or self._stopping

        with self._condition:
            removed = self._queue.remove(unwanted)
        for text in removed:
            self._tell_removed(text)
        for live in list(self._live):
            late = live.text.deadline is not None and now > live.text.deadline
            if live.text.cancelled:
                self._leave(live, "cancelled")
            elif late:
                self._fail(live, TimedOutError("The text took longer than this server allows."))

    def _tell_removed(self, text: Text) -> None:
        if text.cancelled:
            self.counts.ended("cancelled")
            return
        self.counts.ended("failed")
        if self._stopping:
            self._tell(text, Failed(StoppingError("The server is being stopped.")))
        else:
            self._tell(
                text,
                Failed(BusyError("The server was busy for too long.", self._retry_after())),
            )

    def _admit(self) -> None:
        """Gives sessions to those whose turn it is."""
        while len(self._live) < self._parallel:
            with self._condition:
                text = self._queue.take(self._is_ready)
            if text is None:
                return
            try:
                begun = self._begin(text)
            except AwqEdgeError as error:
                self.counts.ended("failed")
                self._tell(text, Failed(error))
                continue
            if not begun:
                # No memory for its session yet; whoever ends next gives one back.
                with self._condition:
                    self._queue.add(text)
                return

    def _is_ready(self, text: Text) -> bool:
        """Whether reading now is best: not while another text reads the same beginning."""
        sessions = self._sessions.get(text.model)
        if sessions is None or not sessions.used or text.rows is not None:
            return True
        known: int | None = None
        for live in self._live:
            if live.text.model is not text.model or live.prompt_read is not None:
                continue
            common = common_length(live.text.contents, text.contents)
            if common < LEAST_COPIED_TOKENS or live.session.position >= common:
                continue
            if known is None:
                known = sessions.shared(text)
            if common > known + LEAST_COPIED_TOKENS:
                return False
        return True

    def _begin(self, text: Text) -> bool:
        from awq_edge.generation import Generation

        sessions = self._sessions.get(text.model)
        if sessions is None:
            sessions = self._sessions[text.model] = Sessions(
                text.model, self._parallel, lambda size_bytes: self.may_grow(size_bytes)
            )
        chain = self._stored_chain(sessions, text)
        session = sessions.take(text, copy=not chain and text.rows is None)
        if session is None:
            return False
        try:
            if text.pictures is not None and session.on_gpu:
                _check_gpu(text.model)
            if text.rows is not None:
                session.truncate(0)
            generation = Generation(
                session,
                text.prompt if text.pictures is None else text.pictures,
                text.config,
                logprobs=text.logprobs,
                constraint=text.constraint,
                special_tokens=text.special_tokens,
                end_tokens=text.end_tokens,
            )
        except BaseException:
            sessions.give_back(session)
            raise
        live = _Live(text, session, generation, time.monotonic())
        self.counts.waited_seconds += live.begun - text.submitted
        self._live.append(live)
        if not chain or self.stored is None:
            self._begin_reading(live)
        else:
            live.coming = _Coming(chain, self.stored.read(chain))
        return True

    def _stored_chain(self, sessions: Sessions, text: Text) -> Sequence[Block]:
        """The files that have more of a prompt than any session, if there are some."""
        if self.stored is None or text.rows is not None:
            return ()
        chain, shared = self.stored.longest(context_key(text.model), text.contents)
        if shared < LEAST_STORED_TOKENS:
            return ()
        return chain if shared >= sessions.shared(text) + LEAST_STORED_TOKENS else ()

    def _begin_reading(self, live: _Live) -> None:
        """Sees what of the prompt is there, the disk's part included."""
        coming, live.coming = live.coming, None
        if coming is not None and self.stored is not None:
            self._restore(live, coming.chain, coming.content.result())
        live.unread = live.generation.unread()
        self._encode_next(live)
        self.breaks.see(live.text.client, list(live.text.contents))
        self.counts.prompt_tokens += len(live.generation.prompt_tokens)
        self.counts.reused_tokens += live.generation.reused_tokens
        if live.text.pictures is not None:
            self.counts.pictures += len({span.picture.key for span in live.text.pictures.spans})

    def _encode_next(self, live: _Live) -> None:
        """Has the next picture encoded that the reading will come to; each text has one at a time.

        So texts take turns, whatever number of pictures each has.
        """
        pictures = live.text.pictures
        if pictures is None or any(not one.rows.done() for one in live.encodings.values()):
            return
        begin = len(live.text.prompt) - len(live.unread)
        for span in pictures.spans:
            key = span.picture.key
            if span.end > begin and key not in live.encodings:
                live.encodings[key] = self.encoder.encode(
                    live.text, span.picture, lambda: self._spare_threads(live)
                )
                return

    def _spare_threads(self, live: _Live) -> int:
        """Threads for a picture: those that writing leaves; called by the encoder's thread."""
        session = live.session
        if any(one is not live and not one.is_waiting for one in list(self._live)):
            return max(1, session.prefill_threads - session.threads)
        return session.prefill_threads

    def _restore(self, live: _Live, chain: Sequence[Block], saved: Sequence[bytes]) -> None:
        """Takes up blocks as far as they are sound."""
        for block, content in zip(chain, saved):
            try:
                live.session.restore(content, block.contents)
            except AwqEdgeError as error:
                if self.stored is not None:
                    self.stored.refuse(block, str(error))
                return
        if saved and live.text.reusable(live.session) < chain[len(saved) - 1].begin:
            # Only a part of the last block is wanted, and a layer with a sliding window cannot go
            # back into it: what comes before is worth more.
            for block, content in zip(chain, saved[:-1]):
                live.session.restore(content, block.contents)

    def _keep(self) -> None:
        """Writes the context of a text that has ended to the disk, one at a time."""
        stored = self.stored
        while self._unsaved and stored is not None and not stored.busy:
            session = self._unsaved.pop()
            sessions = self._sessions.get(session.model)
            if sessions is None or session not in sessions.idle:
                continue  # it has another text by now
            contents = session.contents
            missing = stored.missing(context_key(session.model), contents, session.earliest)
            if missing is not None:
                saved = [session.save(end, begin=begin) for begin, end in missing.spans]
                stored.write(missing, contents, saved)

    def _keep_all(self) -> None:
        """Writes what is not written yet, before the engine ends."""
        if self.stored is None:
            return
        while self._unsaved:
            with self._condition:
                while self.stored.busy:
                    self._condition.wait()
            self._keep()
        self.stored.close()

    def _step(self) -> None:
        """Evaluates the next tokens of all texts, model by model, and draws where all are read."""
        for model in list(dict.fromkeys(live.text.model for live in self._live)):
            lives = [
                live for live in self._live if live.text.model is model and not live.is_waiting
            ]
            for live in lives:
                if live.coming is not None:
                    self._begin_reading(live)
                failure = live.failed_encoding()
                if failure is not None:
                    self._fail(live, failure)
                else:
                    self._encode_next(live)
            lives = [live for live in lives if live in self._live and not live.is_waiting]
            parts = self._parts(lives)
            if parts:
                self.step_began = time.monotonic()
                try:
                    self._evaluate(model, parts)
                except AwqEdgeError as error:
                    for live, _ in parts:
                        # What the session holds is not known any more.
                        live.session.close()
                        self._fail(live, error)
                    continue
                finally:
                    self.step_began = None
            for live in lives:
                if not live.unread and live in self._live:
                    self._draw(live)

    def _parts(self, lives: Sequence[_Live]) -> list[tuple[_Live, Sequence[int]]]:
        """What each text reads in this step: its last token, or a part of its prompt."""
        writing = [live for live in lives if live.prompt_read is not None and live.unread]
        reading = [live for live in lives if live.prompt_read is None and live.unread]
        # Guesses have no place beside prompts, which fill the step.
        parts = [
            (live, live.unread if reading else live.generation.ahead(live.unread, len(writing)))
            for live in writing
        ]
        rows = self._prompt_rows(len(writing))
        # The shortest first: what it does not need is the others'.
        reading.sort(key=lambda live: len(live.unread))
        for place, live in enumerate(reading):
            share = live.most_next(max(1, rows // (len(reading) - place)))
            if live.text.rows is not None:
                share = min(share, live.text.rows.most_rows)
            part = live.unread[:share]
            rows = max(0, rows - len(part))
            parts.append((live, part))
        return parts

    def _prompt_rows(self, writing: int) -> int:
        """How many tokens of prompts a step reads."""
        if not writing or self._row_seconds is None:
            return BLOCK_ROWS - writing if writing < BLOCK_ROWS else _LEAST_ROWS
        seconds = max(_STEP_SECONDS, 2 * (self._write_seconds or 0.0))
        return max(_LEAST_ROWS, min(BLOCK_ROWS - writing, int(seconds / self._row_seconds)))

    def _evaluate(self, model: Model, parts: Sequence[tuple[_Live, Sequence[int]]]) -> None:
        logits: dict[Session, NDArray[np.float32]] = {}
        hidden: dict[Session, NDArray[np.float32]] = {}
        for live, part in parts:
            reader = live.text.rows if live.prompt_read is None else None
            if reader is not None:
                (hidden if reader.gives_hidden else logits)[live.session] = reader.target(len(part))
            elif live.prompt_read is not None:
                guessed = live.generation.rows()
                if guessed is not None:
                    logits[live.session] = guessed
        began = time.perf_counter()
        model.evaluate_together(
            [(live.session, live.input(part)) for live, part in parts],
            logits=logits,
            hidden=hidden,
        )
        seconds = time.perf_counter() - began
        rows = 0
        for live, part in parts:
            live.unread = live.unread[len(part) :]
            if live.prompt_read is None:
                rows += len(part)
                if live.text.rows is not None:
                    filled = hidden if live.text.rows.gives_hidden else logits
                    live.text.rows.take(filled[live.session])
        self.counts.steps += 1
        self.counts.step_seconds += seconds
        self.counts.read_tokens += rows
        if rows == 0:
            if model.speculation is not None:
                model.speculation.costs.learn(sum(len(part) for _, part in parts), seconds)
            self._write_seconds = _smoothed(self._write_seconds, seconds)
        elif rows >= _LEAST_ROWS:
            self._row_seconds = _smoothed(self._row_seconds, seconds / rows)

    def _draw(self, live: _Live) -> None:
        generation, first = live.generation, live.prompt_read is None
        before = len(generation.tokens)
        try:
            text = generation.step()
            if generation.stop_reason is None:
                live.unread = generation.unread()
        except AwqEdgeError as error:
            self._fail(live, error)
            return
        now = time.monotonic()
        if first:
            live.prompt_read = now
            self.counts.first_token_seconds += now - live.text.submitted
            self.counts.first_tokens += 1
        self.counts.drew(max(1, len(generation.tokens) - before))
        if text or (generation.stop_reason and live.told < len(generation.tokens)):
            drawn = tuple(generation.tokens[live.told :])
            logprobs = tuple(generation.logprobs[live.told :])
            live.told = len(generation.tokens)
            self._tell(live.text, Piece(text, drawn, logprobs))
        if generation.stop_reason is not None:
            self._end(live, generation.stop_reason)

    def _end(self, live: _Live, reason: str) -> None:
        generation, now = live.generation, time.monotonic()
        read = live.prompt_read or now
        self._leave(live, reason)
        self._text_seconds = _smoothed(self._text_seconds, now - live.begun)
        self._tell(
            live.text,
            Ended(
                reason,
                generation.stop_string,
                prompt_tokens=len(generation.prompt_tokens),
                reused_tokens=generation.reused_tokens,
                tokens=len(generation.tokens),
                waited_seconds=live.begun - live.text.submitted,
                prompt_seconds=read - live.begun,
                decode_seconds=now - read,
            ),
        )

    def _leave(self, live: _Live, reason: str) -> None:
        self._live.remove(live)
        for encoding in live.encodings.values():
            encoding.given_up.set()
        self._changed = True  # somebody who waits may have its place
        self._sessions[live.text.model].give_back(live.session)
        live.generation.close()
        keeps = self.stored is not None and live.text.rows is None
        if keeps and not live.session.closed:
            self._unsaved.append(live.session)
        self.counts.ended(reason)

    def _fail(self, live: _Live, error: BaseException) -> None:
        self._leave(live, "failed")
        self._tell(live.text, Failed(error))

    def _fail_all(self, error: BaseException) -> None:
        for live in list(self._live):
            live.session.close()
            self._fail(live, error)

    def _tell(self, text: Text, event: Event) -> None:
        try:
            text.listener(event)
        except Exception:  # a listener that is gone must not end the others
            _log.exception("a listener failed")


def context_key(model: Model) -> str:
    """Whose contexts can be exchanged: those of one model with one kind of keys and values."""
    attention = "" if model.attention == "exact" else f"-{model.attention}"
    return f"{model.metadata.get('awq_edge.sha256', '')}-{model.kv}{attention}"


def _check_gpu(model: Model) -> None:
    """Refuses for one text what would fail for all that are evaluated together."""
    if model.pictures.whole:
        raise UnsupportedError(
            "This model reads a picture as a whole, which the GPU does not so far: start the "
            "server with --device cpu for its pictures."
        )


def _smoothed(before: float | None, value: float) -> float:
    return value if before is None else 0.7 * before + 0.3 * value
