"""OpenAI's ``/v1/chat/completions``: its requests read, its answers written.

Owns the words of that protocol alone. The facts that clients rely on: a usage chunk has
``choices: []``, an error after the beginning is a chunk with ``error``, ``[DONE]`` ends the stream.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from awq_edge.generation import GenerationConfig
from awq_edge.serve.answers import Answer, Delta, Usage
from awq_edge.serve.fields import Fields
from awq_edge.serve.messages import read_messages, read_tools
from awq_edge.serve.openai_logprobs import TokenBytes, chat_logprobs
from awq_edge.serve.settings import read_settings
from awq_edge.serve.wanted import Wanted

MOST_LOGPROBS = 20


def read_request(body: Fields, defaults: GenerationConfig) -> Wanted:
    """What a request asks for.

    Raises:
        RequestError: A field has the wrong type or value.
    """
    logprobs = None
    if body.boolean("logprobs"):
        logprobs = body.integer("top_logprobs", 0, MOST_LOGPROBS) or 0
    elif body.integer("top_logprobs", 0, MOST_LOGPROBS):
        raise body.wrong("top_logprobs", "needs logprobs to be true.")
    variables = body.inner("chat_template_kwargs")
    return Wanted(
        model=body.text("model") or "",
        config=read_settings(body, defaults, None),
        messages=read_messages(body),
        choices=body.integer("n", 1, 1 << 16) or 1,
        logprobs=logprobs,
        tools=read_tools(body),
        tool_choice=read_tool_choice(body),
        schema=read_response_format(body),
        variables=variables.values if variables is not None else {},
        stream=body.boolean("stream"),
        usage_chunk=read_usage_chunk(body),
    )


def read_usage_chunk(body: Fields) -> bool:
    """Whether a stream is to end with its tokens."""
    options = body.inner("stream_options")
    return options is not None and options.boolean("include_usage")


def read_tool_choice(body: Fields) -> str:
    """One of "auto", "none", "required", or a function's name behind a colon."""
    value = body.value("tool_choice")
    if value is None:
        return "auto"
    if isinstance(value, dict):
        choice = Fields(value, "tool_choice")
        function = choice.inner("function") or choice
        return ":" + function.required_text("name")
    if value not in ("auto", "none", "required"):
        raise body.wrong("tool_choice", "is not one of auto, none, required, or a function.")
    return str(value)


def read_response_format(body: Fields) -> Any:
    """A JSON schema, True for any JSON object, or None."""
    wanted = body.inner("response_format")
    if wanted is None:
        return None
    kind = wanted.text("type", "text")
    if kind == "text":
        return None
    if kind == "json_object":
        schema = wanted.value("schema")
        return True if schema is None else schema
    if kind == "json_schema":
        inner = wanted.inner("json_schema") or wanted
        if not isinstance(inner.value("schema"), (dict, bool)):
            raise inner.wrong("schema", "is missing: use a JSON schema.")
        return inner.value("schema")
    raise wanted.wrong("type", "is not one of text, json_object, json_schema.")


class ChatWriter:
    """Writes the answer to one request."""

    def __init__(self, answer: Answer, wanted: Wanted, token_bytes: TokenBytes) -> None:
        """Begins an answer.

        Args:
            answer: What is written.
            wanted: What was asked for.
            token_bytes: From a token's id to its bytes, for log-probabilities.
        """
        self._with_usage = wanted.usage_chunk
        self._answer = answer
        self._token_bytes = token_bytes
        self._head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": answer.model_name,
        }

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """The objects of a stream, without what ends it."""
        for choice in range(len(self._answer.texts)):
            yield self._chunk(choice, {"role": "assistant", "content": ""})
        async for delta in self._answer:
            for chunk in self._of_delta(delta):
                yield chunk
        if self._with_usage:
            yield {**self._head, "choices": [], "usage": usage_table(self._answer.usage)}

    async def whole(self) -> dict[str, Any]:
        """The answer as one object."""
        messages = [_Message() for _ in self._answer.texts]
        async for delta in self._answer:
            messages[delta.choice].add(delta, self._logprobs(delta))
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [message.table(i) for i, message in enumerate(messages)],
            "usage": usage_table(self._answer.usage),
            **self._timings(),
        }

    def _timings(self) -> dict[str, Any]:
        """What an answer took, where it is one; a field of llama-server that its clients show."""
        if len(self._answer.texts) != 1:
            return {}
        return {"timings": timings_table(self._answer.usage)}

    def _of_delta(self, delta: Delta) -> Iterator[dict[str, Any]]:
        if delta.reasoning:
            yield self._chunk(delta.choice, {"reasoning_content": delta.reasoning})
        if delta.content or delta.logprobs:
            yield self._chunk(
                delta.choice, {"content": delta.content}, logprobs=self._logprobs(delta)
            )
        if delta.call is not None:
            function: dict[str, Any] = {"arguments": delta.call.arguments}
            call: dict[str, Any] = {"index": delta.call.index, "function": function}
            if delta.call.id:
                call.update(id=delta.call.id, type="function")
                function["name"] = delta.call.name
            yield self._chunk(delta.choice, {"tool_calls": [call]})
        if delta.finish:
            last = self._chunk(delta.choice, {}, finish=delta.finish)
            yield {**last, **self._timings()}

    def _chunk(
        self,
        choice: int,
        delta: dict[str, Any],
        *,
        logprobs: dict[str, Any] | None = None,
        finish: str | None = None,
    ) -> dict[str, Any]:
        entry = {"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        chunk = {**self._head, "choices": [entry]}
        if self._with_usage:
            chunk["usage"] = None
        return chunk

    def _logprobs(self, delta: Delta) -> dict[str, Any] | None:
        if not delta.logprobs:
            return None
        return {"content": chat_logprobs(delta.logprobs, self._token_bytes), "refusal": None}


class _Message:
    """One choice, collected."""

    def __init__(self) -> None:
        self.content = ""
        self.reasoning = ""
        self.calls: list[dict[str, Any]] = []
        self.logprobs: list[Any] = []
        self.finish = "stop"

    def add(self, delta: Delta, logprobs: dict[str, Any] | None) -> None:
        self.content += delta.content
        self.reasoning += delta.reasoning
        if logprobs is not None:
            self.logprobs += logprobs["content"]
        if delta.call is not None:
            if delta.call.index == len(self.calls):
                function = {"name": delta.call.name, "arguments": ""}
                self.calls.append({"id": delta.call.id, "type": "function", "function": function})
            self.calls[delta.call.index]["function"]["arguments"] += delta.call.arguments
        self.finish = delta.finish or self.finish

    def table(self, choice: int) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": self.content, "refusal": None}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.calls:
            message["tool_calls"] = self.calls
            message["content"] = self.content or None
        return {
            "index": choice,
            "message": message,
            "logprobs": {"content": self.logprobs, "refusal": None} if self.logprobs else None,
            "finish_reason": self.finish,
        }


def usage_table(usage: Usage) -> dict[str, Any]:
    """Tokens in OpenAI's words."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.tokens,
        "total_tokens": usage.prompt_tokens + usage.tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def timings_table(usage: Usage) -> dict[str, Any]:
    """Times of an answer in llama-server's words: what was read and what was written."""
    times: dict[str, Any] = {"cache_n": usage.cached_tokens}
    for name, count, seconds in (
        ("prompt", usage.prompt_tokens - usage.cached_tokens, usage.prompt_seconds),
        ("predicted", usage.tokens, usage.decode_seconds),
    ):
        times[f"{name}_n"] = count
        times[f"{name}_ms"] = round(1000 * seconds, 3)
        times[f"{name}_per_second"] = round(count / seconds, 3) if seconds > 0 else None
    return times
