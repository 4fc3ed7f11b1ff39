"""Reasoning told apart from the answer, however the text is cut into pieces."""

from __future__ import annotations

import random

import pytest

from awq_edge.reasoning import Piece, ReasoningSplitter, reasoning_markers

THINK = reasoning_markers("")
MAGISTRAL = reasoning_markers("{{ '[THINK]' + message.thinking + '[/THINK]' }}")


def split(text: str, cuts: list[int], *, prompt: str = "", template: str = "") -> tuple[str, str]:
    splitter = ReasoningSplitter(reasoning_markers(template), prompt)
    pieces: list[Piece] = []
    for begin, end in zip([0, *cuts], [*cuts, len(text)]):
        pieces += splitter.add(text[begin:end])
    pieces += splitter.finish()
    kinds = [piece.is_reasoning for piece in pieces]
    assert kinds == sorted(kinds, reverse=True) and all(piece.text for piece in pieces)
    return (
        "".join(piece.text for piece in pieces if piece.is_reasoning),
        "".join(piece.text for piece in pieces if not piece.is_reasoning),
    )


@pytest.mark.parametrize(
    ("text", "prompt", "reasoning", "answer"),
    [
        ("Good morning", "", "", "Good morning"),
        (" Good morning\n", "", "", " Good morning\n"),
        ("<think>\nOne  and\n two\n</think>\n\nThree", "", "One  and\n two", "Three"),
        ("  <think>a</think>b", "", "a", "b"),
        ("<think>\n\n</think>\n\nAnswer", "", "", "Answer"),
        ("<think>never ended ", "", "never ended", ""),
        ("a <b and</think>\nb", "assistant\n<think>\n", "a <b and", "b"),
        ("no </think >here", "<think>", "no </think >here", ""),
        ("<thin ice> is dangerous", "", "", "<thin ice> is dangerous"),
        ("What is <think>? </think>", "", "", "What is <think>? </think>"),
        ("b", "<think>\n\n</think>\n\n", "", "b"),
        ("<think", "", "", "<think"),
        ("[THINK]a[/THINK]b", "", "", "[THINK]a[/THINK]b"),
        ("<think>a</think> <think>b</think>", "", "a", "<think>b</think>"),
    ],
)
def test_the_cut_does_not_depend_on_the_pieces(
    text: str, prompt: str, reasoning: str, answer: str
) -> None:
    rng = random.Random(text)
    assert split(text, list(range(1, len(text))), prompt=prompt) == (reasoning, answer)
    for _ in range(50):
        cuts = sorted(rng.choices(range(len(text) + 1), k=rng.randrange(5)))
        assert split(text, cuts, prompt=prompt) == (reasoning, answer)


def test_markers_come_from_the_template() -> None:
    assert THINK == (("<think>", "</think>"),)
    assert MAGISTRAL == (*THINK, ("[THINK]", "[/THINK]"))
    assert split("[THINK]a[/THINK]b", [3, 9], template="[THINK]") == ("a", "b")
