"""The trained model of examples/scenes-8m: what it answers about pictures from its packed file."""

import json
from pathlib import Path

import numpy as np
import pytest

from awq_edge import Model

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "scenes-8m"
ENTRIES = json.loads((EXAMPLE / "pictures" / "questions.json").read_text(encoding="utf-8"))
QUESTIONS = [
    (EXAMPLE / "pictures" / entry["picture"], one["question"], one["answer"])
    for entry in ENTRIES
    for one in entry["questions"]
]


@pytest.fixture(scope="module")
def model(scenes_file):
    """4 bits in the decoder and 8 in the tower."""
    with Model.open(scenes_file) as opened:
        yield opened


def answered(model, image):
    """How many of the questions are answered word for word, for pictures of ``image(path)``."""
    right = 0
    for path, question, answer in QUESTIONS:
        generation = model.chat(
            [{"role": "user", "content": question}],
            images=[image(path)],
            temperature=0.0,
            max_tokens=40,
        )
        right += generation.text().strip() == answer
    return right


def test_questions_are_answered_from_the_pictures_and_each_is_encoded_once(model):
    before = model.pictures.encodings
    assert answered(model, lambda path: path) >= 0.95 * len(QUESTIONS)
    assert model.pictures.encodings - before == len(ENTRIES)


def test_without_a_picture_to_see_most_answers_are_wrong(model):
    grey = np.full((96, 96, 3), 128, np.uint8)
    assert answered(model, lambda path: grey) < 0.6 * len(QUESTIONS)
