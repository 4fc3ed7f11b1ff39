"""Requests for embeddings and their answers, in OpenAI's words and in Ollama's.

Owns those words and the order of the work: texts of one request are read together, as far as the
engine computes texts together.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from awq_edge.errors import ContextFullError
from awq_edge.model import Model
from awq_edge.serve.faults import RequestError
from awq_edge.serve.fields import Fields
from awq_edge.serve.row_readers import PooledRows
from awq_edge.serve.service import Service, prompt_ids, unheard
from awq_edge.serve.texts import Ended, Event, Failed, Text
from awq_edge.serve.wanted import Prompt

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MOST_INPUTS = 2048
# Texts of one request that are in the engine's hands at a time.
_TOGETHER = 4


@dataclass(frozen=True)
class WantedVectors:
    """What a request asks for.

    Attributes:
        model: As the client calls it.
        inputs: Texts, or token ids.
        dimensions: Numbers of each vector; None for all.
        truncate: Whether a text that is too long loses its end, or is refused.
        as_bytes: Whether vectors are sent as base64 of float32.
    """

    model: str
    inputs: Sequence[Prompt]
    dimensions: int | None = None
    truncate: bool = False
    as_bytes: bool = False


@dataclass(frozen=True)
class Vectors:
    """The answer.

    Attributes:
        model_name: As the server calls it.
        vectors: float32 [numbers] for each input.
        tokens: Of all inputs.
        seconds: Since the request.
    """

    model_name: str
    vectors: Sequence[NDArray[np.float32]]
    tokens: int
    seconds: float


def read_openai(body: Fields) -> WantedVectors:
    """What a request to ``/v1/embeddings`` asks for."""
    form = body.text("encoding_format", "float")
    if form not in ("float", "base64"):
        raise body.wrong("encoding_format", 'is neither "float" nor "base64".')
    return WantedVectors(
        model=body.text("model") or "",
        inputs=_inputs(body, "input"),
        dimensions=body.integer("dimensions", 1, 1 << 20),
        as_bytes=form == "base64",
    )


def read_ollama(body: Fields, name: str) -> WantedVectors:
    """What a request to ``/api/embed`` asks for, or to ``/api/embeddings`` with another name."""
    return WantedVectors(
        model=body.text("model") or "",
        inputs=_inputs(body, name),
        dimensions=body.integer("dimensions", 1, 1 << 20),
        truncate=body.boolean("truncate", True),
    )


def _inputs(body: Fields, name: str) -> Sequence[Prompt]:
    value = body.value(name)
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise body.wrong(name, "is missing: use a text, or a list of them.")
    if all(type(entry) is int for entry in value):
        return [value]
    if len(value) > _MOST_INPUTS:
        raise body.wrong(name, f"has {len(value)} entries: use at most {_MOST_INPUTS}.")
    for entry in value:
        ids = isinstance(entry, list) and all(type(token) is int for token in entry)
        if not ids and not isinstance(entry, str):
            raise body.wrong(name, "is neither texts nor token ids.")
    return value


def openai_table(found: Vectors, wanted: WantedVectors) -> dict[str, Any]:
    """OpenAI's answer."""

    def sent(vector: NDArray[np.float32]) -> Any:
        if wanted.as_bytes:
            return base64.b64encode(vector.astype("<f4").tobytes()).decode()
        return vector.tolist()

    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": sent(vector)}
            for index, vector in enumerate(found.vectors)
        ],
        "model": found.model_name,
        "usage": {"prompt_tokens": found.tokens, "total_tokens": found.tokens},
    }


def ollama_table(found: Vectors, wanted: WantedVectors) -> dict[str, Any]:
    """The answer of ``/api/embed``."""
    return {
        "model": wanted.model or found.model_name,
        "embeddings": [vector.tolist() for vector in found.vectors],
        "total_duration": int(found.seconds * 1e9),
        "load_duration": 0,
        "prompt_eval_count": found.tokens,
    }


async def embed(service: Service, wanted: WantedVectors, client: str) -> Vectors:
    """Reads the texts.

    Raises:
        AwqEdgeError: One cannot be read; the sentence says why.
    """
    began = time.monotonic()
    served = service.models.find(wanted.model)
    model = await asyncio.to_thread(service.models.use, served)
    try:
        texts = await asyncio.to_thread(_texts, service, model, wanted, client)
        for begin in range(0, len(texts), _TOGETHER):
            await _read(service, texts[begin : begin + _TOGETHER])
    finally:
        service.models.release(served)
    vectors = []
    for text in texts:
        assert isinstance(text.rows, PooledRows)
        vectors.append(text.rows.pooled.vector(dimensions=wanted.dimensions))
    tokens = sum(len(text.prompt) for text in texts)
    return Vectors(served.name, vectors, tokens, time.monotonic() - began)


def _texts(service: Service, model: Model, wanted: WantedVectors, client: str) -> list[Text]:
    size = model.info.hidden_size
    if wanted.dimensions is not None and wanted.dimensions > size:
        raise RequestError(
            f"dimensions is {wanted.dimensions}: this model's embeddings have {size}.",
            param="dimensions",
        )
    deadline = time.monotonic() + service.limits.seconds
    texts = []
    for prompt in wanted.inputs:
        ids = prompt_ids(model, prompt)
        if wanted.truncate:
            ids = ids[: model.context_length]
        if not ids:
            raise RequestError("A text is empty: it has no token to embed.", param="input")
        if len(ids) > model.context_length:
            raise ContextFullError(
                f"A text has {len(ids)} tokens, and this server keeps {model.context_length}: send "
                "less, or start it with a longer --context."
            )
        texts.append(
            Text(
                model,
                client,
                ids,
                replace(service.defaults, max_tokens=0),
                unheard,
                deadline=deadline,
                rows=PooledRows(model, service.pooling),
            )
        )
    return texts


async def _read(service: Service, texts: Sequence[Text]) -> None:
    """Has the engine read texts, and waits for all; whoever is cancelled takes them back."""
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[Event] = asyncio.Queue()
    hear = _hearing(loop, events)
    for text in texts:
        text.listener = hear
    service.engine.submit(texts)
    try:
        missing = len(texts)
        while missing:
            event = await events.get()
            if isinstance(event, Failed):
                raise event.error
            missing -= isinstance(event, Ended)
    finally:
        service.engine.cancel(texts)


def _hearing(
    loop: asyncio.AbstractEventLoop, events: asyncio.Queue[Event]
) -> Callable[[Event], None]:
    def hear(event: Event) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(events.put_nowait, event)

    return hear
