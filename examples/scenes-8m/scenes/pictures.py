"""Writes the pictures that lie beside the model, each with questions and their right answers.

Usage: python -m scenes.pictures DIRECTORY

They are test scenes with little noise, chosen among those whose every question the float model
answers rightly: what a conversion changes shows in them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from PIL import Image

from scenes.layout import TEST_SEEDS, draw_scenes
from scenes.pixels import paint
from scenes.questions import TYPES, ask, packed
from scenes.words import ID, PAD, make_tokenizer

# Past the scenes that accuracies are measured on.
SEEDS = tuple(TEST_SEEDS + (1 << 20) + n for n in (5, 8, 13, 15, 18, 34, 48, 67))
NOISE = (1.5, 1.5)  # levels


def pictures() -> torch.Tensor:
    """uint8 [pictures, 3, SIDE, SIDE]."""
    return paint(draw_scenes(torch.tensor(SEEDS)), NOISE)


def entries() -> list[dict[str, object]]:
    """What questions.json holds: pictures with one question of each possible type."""
    scenes = draw_scenes(torch.tensor(SEEDS))
    tokenizer = make_tokenizer()

    def text(slots: torch.Tensor) -> str:
        decoded: str = tokenizer.decode([id for id in slots.tolist() if id != ID[PAD]])
        return decoded

    found: list[list[dict[str, str]]] = [[] for _ in SEEDS]
    for kind in TYPES:
        asked = ask(scenes, kind)
        question, answer = packed(asked.question, ID[PAD]), packed(asked.answer, ID[PAD])
        for n in asked.valid.nonzero()[:, 0].tolist():
            found[n].append(
                {"type": kind, "question": text(question[n]), "answer": text(answer[n])}
            )
    return [
        {"picture": f"{n}.png", "seed": seed, "questions": questions}
        for n, (seed, questions) in enumerate(zip(SEEDS, found, strict=True), start=1)
    ]


def main() -> None:
    """Write the PNG files and questions.json."""
    directory = Path(sys.argv[1])
    directory.mkdir(exist_ok=True)
    for n, picture in enumerate(pictures(), start=1):
        image = Image.fromarray(picture.permute(1, 2, 0).numpy())
        image.save(directory / f"{n}.png", optimize=True)
    text = json.dumps(entries(), indent=1) + "\n"
    (directory / "questions.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
