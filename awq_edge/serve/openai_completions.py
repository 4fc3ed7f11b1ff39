"""OpenAI's ``/v1/completions``: texts continued, without a template."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from awq_edge.generation import GenerationConfig
from awq_edge.serve.answers import Answer
from awq_edge.serve.fields import Fields
from awq_edge.serve.openai_chat import (
    MOST_LOGPROBS,
    read_response_format,
    read_usage_chunk,
    usage_table,
)
from awq_edge.serve.openai_logprobs import CompletionLogprobs, TokenBytes
from awq_edge.serve.row_readers import PromptScores
from awq_edge.serve.settings import read_settings
from awq_edge.serve.wanted import Prompt, Wanted

# What the protocol says where a request says nothing.
_MAX_TOKENS = 16


def read_request(body: Fields, defaults: GenerationConfig) -> Wanted:
    """What a request asks for.

    Raises:
        RequestError: A field has the wrong type or value, or asks for what is not there.
    """
    suffix = body.text("suffix") or ""
    prompts = read_prompts(body)
    if suffix and not all(isinstance(prompt, str) for prompt in prompts):
        raise body.wrong("suffix", "is not supported together with token ids as the prompt.")
    logprobs = body.integer("logprobs", 0, MOST_LOGPROBS)
    if suffix and logprobs is not None and body.boolean("echo"):
        raise body.wrong("suffix", "is not supported together with echo and logprobs.")
    return Wanted(
        model=body.text("model") or "",
        config=read_settings(body, defaults, _MAX_TOKENS),
        prompts=prompts,
        choices=body.integer("n", 1, 1 << 16) or 1,
        logprobs=logprobs,
        schema=read_response_format(body),
        stream=body.boolean("stream"),
        usage_chunk=read_usage_chunk(body),
        echo=body.boolean("echo"),
        suffix=suffix,
    )


def read_prompts(body: Fields) -> list[Prompt]:
    """``prompt``: a text, a list of texts, ids, or a list of these."""
    value = body.value("prompt")
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise body.wrong("prompt", "is missing: use a text, token ids, or a list of them.")
    if all(type(entry) is int for entry in value):
        return [value]
    for entry in value:
        ids = isinstance(entry, list) and all(type(token) is int for token in entry)
        if not ids and not isinstance(entry, str):
            raise body.wrong("prompt", "is neither texts nor token ids.")
    return list(value)


class CompletionWriter:
    """Writes the answer to one request."""

    def __init__(self, answer: Answer, wanted: Wanted, bytes_of: TokenBytes) -> None:
        """Begins an answer.

        Args:
            answer: What is written.
            wanted: What was asked for.
            bytes_of: From a token's id to its bytes.
        """
        self._with_usage = wanted.usage_chunk
        self._answer = answer
        echoed = wanted.prompts if wanted.echo else ()
        self._echoed = [self._echo(prompt) for prompt in echoed]
        self._choices = wanted.choices
        self._logprobs = [CompletionLogprobs(bytes_of) for _ in answer.texts]
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": answer.model_name,
        }

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """The objects of a stream, without what ends it."""
        echoing = set(range(len(self._answer.texts))) if self._echoed else set()
        for choice in sorted(echoing):
            if not self._is_scored(choice):
                echoing.remove(choice)
                yield self._chunk(choice, self._echoed[choice // self._choices], None, None)
        async for delta in self._answer:
            choice = delta.choice
            if choice in echoing:  # its prompt is read, so its scores are known
                echoing.remove(choice)
                text = self._echoed[choice // self._choices]
                yield self._chunk(choice, text, self._prompt_table(choice), None)
            if delta.content or delta.logprobs or delta.finish:
                table = self._logprobs[choice].table(delta.logprobs) if delta.logprobs else None
                yield self._chunk(choice, delta.content, table, delta.finish)
        if self._with_usage:
            yield {**self._head, "choices": [], "usage": usage_table(self._answer.usage)}

    async def whole(self) -> dict[str, Any]:
        """The answer as one object."""
        texts = [""] * len(self._answer.texts)
        entries: list[list[Any]] = [[] for _ in texts]
        finish = ["stop"] * len(texts)
        async for delta in self._answer:
            texts[delta.choice] += delta.content
            entries[delta.choice] += delta.logprobs
            finish[delta.choice] = delta.finish or finish[delta.choice]
        choices = []
        for choice, text in enumerate(texts):
            before = self._echoed[choice // self._choices] if self._echoed else ""
            table = self._prompt_table(choice) if self._is_scored(choice) else None
            if entries[choice]:
                drawn = self._logprobs[choice].table(entries[choice])
                table = (
                    drawn if table is None else {name: table[name] + drawn[name] for name in drawn}
                )
            choices.append(
                {
                    "index": choice,
                    "text": before + text,
                    "logprobs": table,
                    "finish_reason": finish[choice],
                }
            )
        return {**self._head, "choices": choices, "usage": usage_table(self._answer.usage)}

    def _is_scored(self, choice: int) -> bool:
        return isinstance(self._answer.texts[choice].rows, PromptScores)

    def _prompt_table(self, choice: int) -> dict[str, Any]:
        """The log-probabilities of a prompt that was read."""
        text = self._answer.texts[choice]
        assert isinstance(text.rows, PromptScores)
        bos = text.model.tokenizer.bos_token_id
        return self._logprobs[choice].prompt_table(text.prompt, text.rows.entries, bos)

    def _echo(self, prompt: Prompt) -> str:
        if isinstance(prompt, str):
            return prompt
        return self._answer.texts[0].model.detokenize(prompt)

    def _chunk(
        self, choice: int, text: str, table: dict[str, Any] | None, finish: str | None
    ) -> dict[str, Any]:
        entry = {"index": choice, "text": text, "logprobs": table, "finish_reason": finish}
        chunk = {**self._head, "choices": [entry]}
        if self._with_usage:
            chunk["usage"] = None
        return chunk
