"""What answers requests, whichever protocol they came by.

Owns the way from ``Wanted`` to an ``Answer``: the model, the prompt by its template, the seeds, the
limits. Refuses HTTP.

Requests with pictures are prepared one after the other on a thread of their own: a photograph takes
up to a second and some hundred megabytes until it is what a tower reads.
"""

from __future__ import annotations

import asyncio
import functools
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

from awq_edge.errors import ContextFullError, UnsupportedError
from awq_edge.fill_in_middle import fill_prompt
from awq_edge.generation import GenerationConfig
from awq_edge.model import Model
from awq_edge.serve.answer_form import AnswerForm
from awq_edge.serve.answers import Answer, TextReader
from awq_edge.serve.chat_prompts import chat_prompt
from awq_edge.serve.engine import Engine
from awq_edge.serve.faults import RequestError
from awq_edge.serve.long_bodies import LongBodies
from awq_edge.serve.models import Models, Served
from awq_edge.serve.row_readers import PromptScores
from awq_edge.serve.texts import BusyError, Event, Text
from awq_edge.serve.wanted import Prompt, Wanted
from awq_edge.token_ids import token_ids
from awq_edge.vision.picture_prompt import PicturePrompt

_SEEDS = 2**64
_RETRY_SECONDS = 5

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Limits:
    """What one request may take.

    Attributes:
        body_bytes: Of its body, where all models read text alone.
        picture_body_bytes: Of its body, where one sees pictures.
        waiting_bodies_bytes: Of all bodies above ``body_bytes`` together, until they are answered.
        waiting_pictures: Requests with pictures that may wait until these are prepared.
        choices: Answers, all prompts together.
        seconds: From its arrival to its end.
    """

    body_bytes: int = 4 << 20
    picture_body_bytes: int = 32 << 20
    waiting_bodies_bytes: int = 128 << 20
    waiting_pictures: int = 16
    choices: int = 16
    seconds: float = 600.0


@dataclass(frozen=True)
class _Prompt:
    """Ids, their text as far as it is known, what ends the answer besides, and pictures."""

    ids: list[int]
    text: str = ""
    end_tokens: Sequence[int] = ()
    pictures: PicturePrompt | None = None


@dataclass(frozen=True)
class _Prepared:
    texts: list[Text]
    readers: list[TextReader]
    prompts: int


class Service:
    """Models, an engine and the limits."""

    def __init__(
        self,
        engine: Engine,
        models: Models,
        defaults: GenerationConfig,
        limits: Limits,
        pooling: str = "mean",
    ) -> None:
        """Takes what was started.

        Args:
            engine: Computes.
            models: What may be asked.
            defaults: How to draw where a request does not say.
            limits: Of a request.
            pooling: Of embeddings.
        """
        self.engine = engine
        self.models = models
        self.defaults = defaults
        self.limits = limits
        self.pooling = pooling
        self.started = time.monotonic()
        self._preparing = ThreadPoolExecutor(1, "awq-edge prepares pictures")
        self._waiting_pictures = 0
        self.long_bodies = LongBodies(limits.body_bytes, limits.waiting_bodies_bytes)
        self.sees_pictures = any(served.sees_pictures for served in models.all)

    async def answer(self, wanted: Wanted, client: str) -> Answer:
        """Begins to answer.

        Args:
            wanted: What is asked.
            client: Whose turn it takes.

        Raises:
            AwqEdgeError: It cannot be answered; the sentence says why.
        """
        served = self.models.find(wanted.model)
        # Opening a file, rendering a template and tokenizing wait or compute.
        model = await asyncio.to_thread(self.models.use, served)
        released = functools.partial(self.models.release, served)
        try:
            prepare = functools.partial(self._prepare, model, wanted, client)
            prepared = await self._apart(prepare, wanted)
            answer = Answer(
                self.engine,
                served.name,
                prepared.texts,
                prepared.readers,
                prepared.prompts,
                on_close=released,
            )
            answer.submit()
        except BaseException:
            released()
            raise
        return answer

    async def count_tokens(self, wanted: Wanted) -> int:
        """Tokens of a request's prompt."""

        def count(served: Served) -> int:
            with self.models.used(served) as model:
                return len(self._prompts(model, wanted)[0].ids)

        return await self._apart(functools.partial(count, self.models.find(wanted.model)), wanted)

    async def _apart(self, compute: Callable[[], _Result], wanted: Wanted) -> _Result:
        """What a request costs before it is in the engine's queue, beside the event loop."""
        if not wanted.pictures:
            return await asyncio.to_thread(compute)
        if self._waiting_pictures > self.limits.waiting_pictures:
            raise BusyError(
                "Too many requests with pictures wait already. Try again later.", _RETRY_SECONDS
            )
        self._waiting_pictures += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._preparing, compute)
        finally:
            self._waiting_pictures -= 1

    def _prepare(self, model: Model, wanted: Wanted, client: str) -> _Prepared:
        prompts = self._prompts(model, wanted)
        if len(prompts) * wanted.choices > self.limits.choices:
            raise RequestError(
                f"{len(prompts) * wanted.choices} answers are asked for: this server gives at most "
                f"{self.limits.choices} at once.",
                param="n",
            )
        seed = wanted.config.seed
        if seed is None:
            seed = int.from_bytes(os.urandom(8), "little")
        deadline = time.monotonic() + self.limits.seconds
        form = AnswerForm(model, wanted)
        texts, readers = [], []
        scored = wanted.echo and wanted.logprobs is not None
        for prompt in prompts:
            _check_room(model, prompt.ids)
            for choice in range(wanted.choices):
                texts.append(
                    Text(
                        model,
                        client,
                        prompt.ids,
                        replace(wanted.config, seed=(seed + choice) % _SEEDS),
                        unheard,
                        logprobs=wanted.logprobs,
                        constraint=form.constraint(),
                        special_tokens=form.special_tokens,
                        end_tokens=prompt.end_tokens,
                        deadline=deadline,
                        pictures=prompt.pictures,
                        rows=PromptScores(model, prompt.ids, wanted.logprobs or 0)
                        if scored
                        else None,
                    )
                )
                readers.append(form.reader(prompt.text))
        return _Prepared(texts, readers, len(prompts))

    def _prompts(self, model: Model, wanted: Wanted) -> list[_Prompt]:
        if wanted.pictures and not model.sees_pictures:
            raise RequestError(
                "The model reads text alone: it has no vision part, and the request has pictures.",
                param="messages" if wanted.messages is not None else "images",
            )
        if wanted.messages is not None:
            chat = chat_prompt(model, wanted)
            return [_Prompt(chat.ids, chat.text, pictures=chat.pictures)]
        if wanted.images:
            shown = [picture.prepared(model) for picture in wanted.images]
            whole = model.picture_prompt(wanted.prompts[0], shown)
            return [_Prompt(whole.tokens, pictures=whole)]
        if not wanted.suffix:
            return [_Prompt(prompt_ids(model, prompt)) for prompt in wanted.prompts]
        encode = functools.partial(model.text_tokens, add_bos=False)
        found = []
        for prompt in wanted.prompts:
            if not isinstance(prompt, str):
                raise RequestError("A suffix needs a text as the prompt.", param="suffix")
            try:
                ids, ends = fill_prompt(model.tokenizer, prompt, wanted.suffix, encode)
            except UnsupportedError as error:
                raise RequestError(str(error), param="suffix") from error
            found.append(_Prompt(ids, end_tokens=ends))
        return found


def prompt_ids(model: Model, prompt: Prompt) -> list[int]:
    """The ids of a text, or ids that are the model's."""
    if isinstance(prompt, str):
        return model.text_tokens(prompt)
    return token_ids(prompt, model.info.vocabulary_size)


def _check_room(model: Model, ids: Sequence[int]) -> None:
    if not ids:
        raise RequestError("The prompt is empty: it needs at least one token.", param="prompt")
    if len(ids) > model.context_length:
        raise ContextFullError(
            f"The prompt has {len(ids)} tokens, and this server keeps {model.context_length}: send "
            "less, or start it with a longer --context."
        )


def unheard(event: Event) -> None:
    """Until the answer puts its own in the place."""
