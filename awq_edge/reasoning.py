"""What a model thinks before it answers, told apart from the answer while both arrive.

Owns the markers that chat templates and models use, and the cut between them. Refuses to show
anything. Reasoning stands at the beginning of an answer: a marker later on is part of the text,
for a model may be asked about markers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from awq_edge.tokenizer import overlap

# Known to every model, because it is what most of them write.
_COMMON = ("<think>", "</think>")
# Taken for markers only where the model's own template has them.
_BY_TEMPLATE = (
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
    ("<thought>", "</thought>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("◁think▷", "◁/think▷"),
    ("Here is my thought process:", "Here is my response:"),
)

Markers = tuple[str, str]


class Piece(NamedTuple):
    """Some text of an answer, and whether it belongs to the reasoning before it."""

    text: str
    is_reasoning: bool = False


def reasoning_markers(template: str) -> tuple[Markers, ...]:
    """The pairs that begin and end a model's reasoning.

    Args:
        template: The model's chat template.
    """
    return (_COMMON, *(pair for pair in _BY_TEMPLATE if pair[0] in template))


class ReasoningSplitter:
    """Cuts a text that arrives in pieces into reasoning and answer; the markers are left out."""

    def __init__(self, markers: Iterable[Markers], prompt: str = "") -> None:
        """Begins an answer.

        Args:
            markers: As :func:`reasoning_markers` gives them.
            prompt: What the answer follows: a template may open the reasoning itself.
        """
        self._markers = tuple(markers)
        self._end = next((end for begin, end in self._markers if _opened(prompt, begin)), None)
        self._held = ""
        self._at_start = self._end is None
        # Whether white space behind a marker is still to be left out.
        self._space = self._end is not None

    def add(self, text: str) -> list[Piece]:
        """What can be told now. What may turn out to be a marker is held back."""
        self._held += text
        found: list[Piece] = []
        if self._at_start:
            self._begin()
        if not self._at_start and self._end is not None:
            self._reason(found)
        if not self._at_start and self._end is None and self._held:
            self._answer(found)
        return found

    def finish(self) -> list[Piece]:
        """What was held back, at the end of the text."""
        held, self._held = self._held, ""
        is_reasoning = self._end is not None
        text = held.rstrip() if is_reasoning else held
        return [Piece(text, is_reasoning)] if text else []

    def _begin(self) -> None:
        """Looks whether the text begins with a marker."""
        start = self._held.lstrip()
        if not start:
            return
        for begin, end in self._markers:
            if start.startswith(begin):
                self._held, self._end, self._space = start[len(begin) :], end, True
                self._at_start = False
                return
        self._at_start = any(begin.startswith(start) for begin, _ in self._markers)

    def _reason(self, found: list[Piece]) -> None:
        """Gives reasoning up to its end; trailing white space waits, for the end drops it."""
        end = self._end
        assert end is not None
        if self._space:
            self._held = self._held.lstrip()
            self._space = not self._held
        place = self._held.find(end)
        if place >= 0:
            text = self._held[:place].rstrip()
            self._held, self._end, self._space = self._held[place + len(end) :], None, True
        else:
            kept = overlap(self._held, end)
            text = self._held[: len(self._held) - kept].rstrip()
            self._held = self._held[len(text) :]
        if text:
            found.append(Piece(text, is_reasoning=True))

    def _answer(self, found: list[Piece]) -> None:
        if self._space:
            self._held = self._held.lstrip()
            self._space = not self._held
        if self._held:
            found.append(Piece(self._held))
            self._held = ""


def _opened(prompt: str, begin: str) -> bool:
    return prompt.rstrip().endswith(begin)
