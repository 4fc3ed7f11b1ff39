"""A model for EleutherAI's lm-evaluation-harness (the extra [eval]).

Owns the way from the harness's requests to tokens: where a continuation begins, what is cut when a
prompt is too long, and which position scores which token. The models are those of
``task_models.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from lm_eval.api.model import LM
from lm_eval.utils import (
    get_rolling_token_windows,
    make_disjoint_window,
)

from awq_edge.accuracy.perplexity import check_ids
from awq_edge.accuracy.task_models import TaskModel, chat_prompt
from awq_edge.errors import InvalidArgumentError

_DEFAULT_NEW_TOKENS = 256


class HarnessModel(LM):  # type: ignore[misc,unused-ignore]  # the package has no annotations here
    """Answers the harness's three kinds of requests, one at a time."""

    def __init__(
        self, model: TaskModel, name: str, advance: Callable[[float], None] = lambda share: None
    ) -> None:
        """Takes an open model.

        Args:
            model: The model.
            name: What the harness calls it in its results.
            advance: Called after each request with its share of all requests of its kind.
        """
        super().__init__()
        self._model = model
        self._name = name
        self._advance = advance
        self._chats = False

    # ---- requests ----------------------------------------------------------------------------

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Log-probability of each continuation after its context, and whether it is greedy's."""
        results = []
        for request in requests:
            context, continuation = request.args
            results.append(self._score(*self._divide(context, continuation)))
            self._advance(1 / len(requests))
        return results

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Log-probability of each whole text, with as much context as fits before every token."""
        results = []
        for request in requests:
            (text,) = request.args
            tokens = self._model.tokenizer.encode(text, add_bos=False)
            windows = get_rolling_token_windows(
                tokens, self._first_token(), self._model.context_length, 1
            )
            pairs = map(make_disjoint_window, windows)
            results.append(sum(self._score(list(known), list(new))[0] for known, new in pairs))
            self._advance(1 / len(requests))
        return results

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Continues each prompt until one of its stop strings."""
        results = []
        for request in requests:
            prompt, settings = request.args
            stop = settings.get("until") or []
            stop = [stop] if isinstance(stop, str) else list(stop)
            wanted = int(settings.get("max_gen_toks", _DEFAULT_NEW_TOKENS))
            sampled = settings.get("do_sample", False)
            temperature = float(settings.get("temperature", 1.0)) if sampled else 0.0
            room = self._model.context_length - 1
            count = min(wanted, room)
            tokens = self._cut_left(self._encode(prompt), max(room - count, 1))
            check_ids(tokens, self._model.vocabulary_size)
            results.append(
                self._model.generate(tokens, [text for text in stop if text], count, temperature)
            )
            self._advance(1 / len(requests))
        return results

    # ---- chat --------------------------------------------------------------------------------

    @property
    def tokenizer_name(self) -> str:
        """Distinguishes cached prompts of different models."""
        return self._name.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The template, for the harness's record."""
        return str(self._model.metadata.get("tokenizer.chat_template", ""))

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The prompt for a conversation; from then on, prompts hold all of their special tokens."""
        self._chats = True
        return chat_prompt(self._model, chat_history, add_generation_prompt)

    # ---- tokens ------------------------------------------------------------------------------

    def _encode(self, text: str) -> list[int]:
        add_bos = False if self._chats else None
        return self._model.tokenizer.encode(text, add_bos=add_bos) or [self._first_token()]

    def _first_token(self) -> int:
        """What stands before a text that has nothing before it."""
        tokenizer = self._model.tokenizer
        if tokenizer.bos_token_id is not None:
            return tokenizer.bos_token_id
        if tokenizer.eos_token_ids:
            return tokenizer.eos_token_ids[0]
        raise InvalidArgumentError(
            "The model's tokenizer has neither a BOS nor an EOS token to put before an empty "
            "prompt."
        )

    def _divide(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of the context and of the continuation, cut where the text is.

        Both are read as one text, so that the tokens are those that the model would see; spaces at
        the end of the context belong to the word that follows.
        """
        stripped = context.rstrip(" ")
        continuation = context[len(stripped) :] + continuation
        known = self._encode(stripped)
        whole = self._encode(stripped + continuation)
        if not stripped and whole[:1] != known:
            whole = known + whole
        return known, whole[len(known) :]

    def _cut_left(self, tokens: list[int], room: int) -> list[int]:
        """The last ``room`` tokens, but BOS stays where the model expects it."""
        if len(tokens) <= room:
            return tokens
        tokenizer = self._model.tokenizer
        if tokenizer.add_bos_token and room > 1:
            return [tokens[0], *tokens[len(tokens) - room + 1 :]]
        return tokens[len(tokens) - room :]

    def _score(self, known: list[int], new: list[int]) -> tuple[float, bool]:
        """Log-probability of the tokens ``new`` after ``known``; whether each is the likeliest."""
        if not new:
            return 0.0, True
        if len(new) > self._model.context_length:
            raise InvalidArgumentError(
                f"A continuation of {len(new)} tokens does not fit the context of "
                f"{self._model.context_length}."
            )
        # The last new token is scored, never fed.
        known = self._cut_left(known, self._model.context_length - len(new) + 1)
        check_ids([*known, *new], self._model.vocabulary_size)
        tokens = (known + new)[:-1]
        total, greedy, position = 0.0, True, 0
        for logits in self._model.next_token_logits(tokens, len(known) - 1):
            targets = np.asarray(new[position : position + len(logits)])
            wide = logits.astype(np.float64)
            wide -= wide.max(axis=1, keepdims=True)
            chosen = wide[np.arange(len(targets)), targets]
            total += float((chosen - np.log(np.exp(wide).sum(axis=1))).sum())
            greedy = greedy and bool((wide.argmax(axis=1) == targets).all())
            position += len(logits)
        return total, greedy
