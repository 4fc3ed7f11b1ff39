"""Sampling settings of a request in OpenAI's words, which most local servers understand.

Owns the names and limits. What a request does not say is the server's default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from awq_edge.errors import InvalidArgumentError
from awq_edge.generation import GenerationConfig
from awq_edge.serve.faults import RequestError
from awq_edge.serve.fields import Fields

MOST_TOKENS = 2**31 - 1
_MOST_STOPS = 64
_MOST_BIASES = 4096
# Their names in requests, and GenerationConfig's.
_NUMBERS = {
    "temperature": ("temperature", 0.0, 100.0),
    "top_p": ("top_p", 0.0, 1.0),
    "min_p": ("min_p", 0.0, 1.0),
    "presence_penalty": ("presence_penalty", -2.0, 2.0),
    "frequency_penalty": ("frequency_penalty", -2.0, 2.0),
    "repetition_penalty": ("repetition_penalty", 0.01, 100.0),
    "repeat_penalty": ("repetition_penalty", 0.01, 100.0),
}


def read_settings(
    body: Fields, defaults: GenerationConfig, max_tokens: int | None
) -> GenerationConfig:
    """The settings of a request.

    Args:
        body: Its fields.
        defaults: Of the server.
        max_tokens: Where the request does not say; None goes on to the end of the context.
    """
    found: dict[str, Any] = {"max_tokens": max_tokens}
    for name, (ours, least, most) in _NUMBERS.items():
        value = body.number(name, least, most)
        if value is not None:
            found[ours] = value
    if found.get("top_p") == 0.0:
        # The likeliest token alone; the sampler wants a share above 0.
        found.pop("top_p")
        found["top_k"] = 1
    top_k = body.integer("top_k", -1, 2**32 - 1)
    if top_k is not None:
        found["top_k"] = max(top_k, 0)
    for name in ("repetition_window", "repeat_last_n"):
        window = body.integer(name, -1, 2**32 - 1)
        if window is not None:
            found["repetition_window"] = max(window, 0)
    seed = body.integer("seed", -(2**63), 2**64 - 1)
    if seed is not None:
        found["seed"] = seed % 2**64
    for name in ("max_tokens", "max_completion_tokens"):
        limit = body.integer(name, -1, MOST_TOKENS)
        if limit is not None:
            found["max_tokens"] = None if limit < 0 else limit
    stop = body.texts("stop", _MOST_STOPS)
    if stop:
        found["stop"] = tuple(text for text in stop if text)
    if "logit_bias" in body:
        found["logit_bias"] = _biases(body)
    try:
        return replace(defaults, **found)
    except InvalidArgumentError as error:
        raise RequestError(str(error)) from error


def _biases(body: Fields) -> Mapping[int, float]:
    table = body.value("logit_bias")
    if not isinstance(table, dict) or len(table) > _MOST_BIASES:
        raise body.wrong("logit_bias", f"is no table of at most {_MOST_BIASES} tokens.")
    biases = {}
    fields = Fields(table, "logit_bias")
    for name in table:
        value = fields.number(name, -100.0, 100.0)
        if not (name.isascii() and name.isdigit()) or len(name) > 10 or value is None:
            raise body.wrong("logit_bias", "names tokens by their ids, with a number each.")
        biases[int(name)] = value
    return biases
