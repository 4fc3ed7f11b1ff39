"""Who is next: clients take turns, and each client's texts keep their order.

Owns the order alone. Refuses threads: whoever uses it holds a lock.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator

from awq_edge.serve.texts import Text


class FairQueue:
    """Texts that wait, by client."""

    def __init__(self) -> None:
        """Begins empty."""
        self._waiting: OrderedDict[str, deque[Text]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        """Texts that wait."""
        return self._count

    def __iter__(self) -> Iterator[Text]:
        """All of them, client by client."""
        for texts in self._waiting.values():
            yield from texts

    def add(self, text: Text) -> None:
        """Puts a text behind those of its client."""
        self._waiting.setdefault(text.client, deque()).append(text)
        self._count += 1

    def take(self, ready: Callable[[Text], bool]) -> Text | None:
        """The first text of the client whose turn it is; clients whose first is not ready wait."""
        for client, texts in self._waiting.items():
            if ready(texts[0]):
                text = texts.popleft()
                self._count -= 1
                if texts:
                    self._waiting.move_to_end(client)
                else:
                    del self._waiting[client]
                return text
        return None

    def remove(self, unwanted: Callable[[Text], bool]) -> list[Text]:
        """Takes out every text that is no longer wanted."""
        removed = []
        for client in list(self._waiting):
            texts = self._waiting[client]
            gone = [text for text in texts if unwanted(text)]
            if gone:
                removed += gone
                kept = deque(text for text in texts if text not in gone)
                if kept:
                    self._waiting[client] = kept
                else:
                    del self._waiting[client]
        self._count -= len(removed)
        return removed
