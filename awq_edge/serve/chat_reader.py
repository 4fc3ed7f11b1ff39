"""A chat model's text as its parts: reasoning, answer, calls of functions.

Owns their order alone; ``awq_edge/reasoning.py`` and ``tool_reader.py`` know the markers.
"""

from __future__ import annotations

from collections.abc import Iterable

from awq_edge.reasoning import ReasoningSplitter
from awq_edge.serve.answers import Delta, TextReader, ToolCallPart, finish_word
from awq_edge.serve.texts import Piece
from awq_edge.serve.tool_reader import ToolReader


class ChatReader(TextReader):
    """Reads one choice."""

    def __init__(self, splitter: ReasoningSplitter | None, tools: ToolReader | None) -> None:
        """Begins an answer.

        Args:
            splitter: Tells reasoning from answer; None: everything is answer.
            tools: Tells calls from text; None: everything is text.
        """
        self._splitter = splitter
        self._tools = tools

    def read(self, choice: int, piece: Piece) -> list[Delta]:
        """What a piece says; log-probabilities go with whatever comes first."""
        deltas = []
        if self._splitter is None:
            deltas += self._answer(choice, piece.text)
        else:
            for text, is_reasoning in self._splitter.add(piece.text):
                deltas += self._part(choice, text, is_reasoning)
        if piece.logprobs:
            deltas.insert(0, Delta(choice, logprobs=piece.logprobs))
        return deltas

    def finish(self, choice: int, reason: str) -> list[Delta]:
        """What was held back, and the end."""
        deltas = []
        if self._splitter is not None:
            for text, is_reasoning in self._splitter.finish():
                deltas += self._part(choice, text, is_reasoning)
        called = False
        if self._tools is not None:
            deltas += _deltas(choice, self._tools.finish())
            called = self._tools.called
        word = finish_word(reason)
        deltas.append(Delta(choice, finish="tool_calls" if called and word == "stop" else word))
        return deltas

    def _part(self, choice: int, text: str, is_reasoning: bool) -> list[Delta]:
        return [Delta(choice, reasoning=text)] if is_reasoning else self._answer(choice, text)

    def _answer(self, choice: int, text: str) -> list[Delta]:
        if not text:
            return []
        if self._tools is None:
            return [Delta(choice, content=text)]
        return _deltas(choice, self._tools.add(text))


def _deltas(choice: int, parts: Iterable[str | ToolCallPart]) -> list[Delta]:
    return [
        Delta(choice, content=part) if isinstance(part, str) else Delta(choice, call=part)
        for part in parts
    ]
