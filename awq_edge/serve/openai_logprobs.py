"""Log-probabilities in OpenAI's two forms, that of chats and that of completions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from awq_edge.adjustment import TokenLogprob

# What JSON has no word for: a probability of zero.
_LEAST = -9999.0

TokenBytes = Callable[[int], bytes]


def chat_logprobs(entries: Sequence[TokenLogprob], token_bytes: TokenBytes) -> list[dict[str, Any]]:
    """``logprobs.content`` of a chat: each token, its bytes, and the likeliest at its place."""
    return [
        {
            **_entry(entry.token, entry.logprob, token_bytes),
            "top_logprobs": [_entry(token, value, token_bytes) for token, value in entry.top],
        }
        for entry in entries
    ]


def _entry(token: int, logprob: float, token_bytes: TokenBytes) -> dict[str, Any]:
    data = token_bytes(token)
    return {
        "token": data.decode("utf-8", "replace"),
        "logprob": max(logprob, _LEAST),
        "bytes": list(data),
    }


class CompletionLogprobs:
    """``logprobs`` of a completion: lists side by side, with offsets in the text."""

    def __init__(self, token_bytes: TokenBytes, offset: int = 0) -> None:
        """Begins at a place of the text, in characters."""
        self._token_bytes = token_bytes
        self._offset = offset

    def prompt_table(
        self, prompt: Sequence[int], entries: Sequence[TokenLogprob], hidden: int | None
    ) -> dict[str, Any]:
        """The lists for a prompt, whose first token follows nothing and has no probability.

        Args:
            prompt: Its ids.
            entries: Of all but the first.
            hidden: A token that the text does not show, BOS; or None.
        """
        first = self._token_bytes(prompt[0]).decode("utf-8", "replace")
        table: dict[str, Any] = {
            "tokens": [first],
            "token_logprobs": [None],
            "top_logprobs": [None],
            "text_offset": [self._offset],
        }
        self._offset += 0 if prompt[0] == hidden else len(first)
        for name, values in self.table(entries).items():
            table[name] += values
        return table

    def table(self, entries: Sequence[TokenLogprob]) -> dict[str, Any]:
        """The lists for the next tokens."""
        table: dict[str, Any] = {
            "tokens": [],
            "token_logprobs": [],
            "top_logprobs": [],
            "text_offset": [],
        }
        for entry in entries:
            text = self._token_bytes(entry.token).decode("utf-8", "replace")
            table["tokens"].append(text)
            table["token_logprobs"].append(max(entry.logprob, _LEAST))
            table["top_logprobs"].append(
                {
                    self._token_bytes(token).decode("utf-8", "replace"): max(value, _LEAST)
                    for token, value in entry.top
                }
            )
            table["text_offset"].append(self._offset)
            self._offset += len(text)
        return table
