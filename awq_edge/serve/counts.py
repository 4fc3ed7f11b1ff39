"""What the engine counts, for /metrics and /health. Owns numbers alone; any thread may read."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

# Of the rate that /health shows.
_WINDOW_SECONDS = 10.0


@dataclass
class Counts:
    """Since the start. Written by the engine's thread only.

    Attributes:
        prompt_tokens: Of all prompts that were begun.
        reused_tokens: Of them, those that a cache had.
        read_tokens: Of them, those that were evaluated.
        tokens: Drawn.
        texts: Ended, by reason; also "cancelled" and "failed".
        steps: Evaluations of all sessions together.
        step_seconds: Their time.
        waited_seconds: Of all texts in the queue.
        first_token_seconds: Of all texts, from submission to the first token.
        first_tokens: How many of these there were.
        pictures: In prompts that were begun, each picture of a prompt once.
    """

    prompt_tokens: int = 0
    reused_tokens: int = 0
    read_tokens: int = 0
    tokens: int = 0
    texts: dict[str, int] = field(default_factory=dict)
    steps: int = 0
    step_seconds: float = 0.0
    waited_seconds: float = 0.0
    first_token_seconds: float = 0.0
    first_tokens: int = 0
    pictures: int = 0
    _recent: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=4096))

    def drew(self, tokens: int) -> None:
        """Counts drawn tokens."""
        self.tokens += tokens
        self._recent.append((time.monotonic(), tokens))

    def ended(self, reason: str) -> None:
        """Counts the end of a text."""
        self.texts[reason] = self.texts.get(reason, 0) + 1

    def tokens_per_second(self) -> float:
        """Drawn during the last seconds; 0 where nothing was."""
        now = time.monotonic()
        recent = [
            (when, count) for when, count in list(self._recent) if now - when < _WINDOW_SECONDS
        ]
        if len(recent) < 2:
            return 0.0
        first = recent[0][0]
        # The first entry begins the time that the others took.
        return sum(count for _, count in recent[1:]) / max(now - first, 1e-3)
