"""What is right to answer about a scene, read from the question's text, one scene at a time.

The slow twin of ``examples/scenes-8m/scenes/questions.py``: it shares no code with it and knows
nothing of token ids.
"""

from __future__ import annotations

from typing import Any

SHAPES = ["circle", "square", "triangle", "cross", "ring", "star"]
COLOURS = ["red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink"]
SIZES = ["small", "large"]
_PLURALS = {name + "s": name for name in SHAPES if name != "cross"} | {"crosses": "cross"}
_CELLS = [
    ["top left", "top", "top right"],
    ["left", "centre", "right"],
    ["bottom left", "bottom", "bottom right"],
]


def objects_of(scenes: Any, row: int) -> list[dict[str, Any]]:
    """The objects of one scene of a batch."""
    return [
        {
            "size": SIZES[scenes.size[row, i]],
            "colour": COLOURS[scenes.colour[row, i]],
            "shape": SHAPES[scenes.shape[row, i]],
            "x": float(scenes.x[row, i]),
            "y": float(scenes.y[row, i]),
            "radius": float(scenes.radius[row, i]),
        }
        for i in range(scenes.present.shape[1])
        if scenes.present[row, i]
    ]


def fitting(objects: list[dict[str, Any]], words: list[str]) -> list[dict[str, Any]]:
    """The objects that words such as "small red crosses" may mean."""
    found = objects
    for word in words:
        word = _PLURALS.get(word, word)
        if word in ("one", "things"):
            continue
        found = [
            thing for thing in found if word in (thing["size"], thing["colour"], thing["shape"])
        ]
    return found


def named(objects: list[dict[str, Any]], words: list[str]) -> dict[str, Any]:
    """The only object that the words may mean."""
    (found,) = fitting(objects, words)
    return found


def answer(objects: list[dict[str, Any]], number: int | None, question: str) -> str:
    """The right answer to a question of any of the eight types."""
    words = question.replace("?", "").replace(",", "").split()
    text = " ".join(words)
    if text == "which number is shown":
        assert number is not None
        return str(number)
    if text.startswith("how many"):
        return str(len(fitting(objects, words[2:])))
    if text.startswith("is there a"):
        return "yes" if fitting(objects, words[3:]) else "no"
    if text.startswith("where is the"):
        thing = named(objects, words[3:])
        return _CELLS[int(thing["y"] // 32)][int(thing["x"] // 32)]
    if text.startswith("what colour is the"):
        return str(named(objects, words[4:])["colour"])
    if text.startswith("what shape is the"):
        return str(named(objects, words[4:])["shape"])
    if text.startswith("which is larger the"):
        first, second = text.removeprefix("which is larger the ").split(" or the ")
        pair = [named(objects, first.split()), named(objects, second.split())]
        return str(max(pair, key=lambda thing: thing["radius"])["colour"])
    assert text.startswith("is the ")
    for said, axis, before in (
        (" left of the ", "x", True),
        (" right of the ", "x", False),
        (" above the ", "y", True),
        (" below the ", "y", False),
    ):
        first, found, second = text.removeprefix("is the ").partition(said)
        if found:
            one, other = named(objects, first.split()), named(objects, second.split())
            assert one is not other
            return "yes" if (one[axis] < other[axis]) == before else "no"
    raise AssertionError(question)
