"""examples/scenes-8m: its scenes and questions are right, and the float model answers them."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
Image = pytest.importorskip("PIL.Image")

import scenes_oracle  # noqa: E402  (after the check that torch is there)

FOLDER = Path(__file__).parents[2] / "examples" / "scenes-8m"
sys.path.insert(0, str(FOLDER))

from scenes import cider, evaluate, layout, pictures, pixels, questions, sequences, train  # noqa: E402
from scenes import words as vocabulary  # noqa: E402

COUNT = 200


@pytest.fixture(scope="module")
def some() -> Any:
    return layout.draw_scenes(layout.seeds_from(layout.CALIBRATION_SEEDS, COUNT))


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    loaded = transformers.LlavaForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.float32)
    yield loaded.eval()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    import tokenizers

    return tokenizers.Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


def texts(tokenizer: Any, slots: Any) -> list[str]:
    pad = vocabulary.ID[vocabulary.PAD]
    return [
        tokenizer.decode([id for id in row if id != pad])
        for row in questions.packed(slots, pad).tolist()
    ]


def shipped() -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads((FOLDER / "pictures/questions.json").read_text())
    return entries


# ---- scenes ------------------------------------------------------------------------------------


def test_a_scene_depends_on_its_seed_alone(some: Any) -> None:
    picked = torch.tensor([3, 77, 150])
    alone = layout.draw_scenes(some.seeds[picked])
    together = some.rows(picked)
    for name, values in vars(alone).items():
        assert torch.equal(values, getattr(together, name)), name
    assert torch.equal(pixels.paint(alone), pixels.paint(some)[picked])
    for kind in questions.TYPES:
        one, all_of_them = questions.ask(alone, kind), questions.ask(some, kind)
        assert torch.equal(one.question, all_of_them.question[picked])
        assert torch.equal(one.answer, all_of_them.answer[picked])


def test_seeds_of_training_calibration_and_test_are_apart() -> None:
    # 12,000 steps of 768 is the most that the recipe trains for.
    assert layout.TRAINING_SEEDS + 12_000 * 768 < layout.CALIBRATION_SEEDS
    assert layout.CALIBRATION_SEEDS + (1 << 30) <= layout.TEST_SEEDS
    assert max(pictures.SEEDS) < 1 << 32


def test_objects_lie_inside_and_hardly_overlap(some: Any) -> None:
    for row in range(COUNT):
        objects = scenes_oracle.objects_of(some, row)
        assert objects
        for n, thing in enumerate(objects):
            for centre in (thing["x"], thing["y"]):
                assert thing["radius"] < centre < 96 - thing["radius"]
            for other in objects[:n]:
                distance = math.hypot(thing["x"] - other["x"], thing["y"] - other["y"])
                reach = thing["radius"] + other["radius"]
                assert distance > reach - 0.51 * min(thing["radius"], other["radius"])


def _area(shape: str, radius: float) -> float:
    """Pixels that a shape covers, from school geometry."""
    if shape == "circle":
        return math.pi * (0.9 * radius) ** 2
    if shape == "square":
        return (2 * 0.78 * radius) ** 2
    if shape == "triangle":
        return 3 * math.sqrt(3) * (0.55 * radius) ** 2  # equilateral, by its inner circle
    if shape == "cross":
        return 2 * (1.9 * radius) * (0.6 * radius) - (0.6 * radius) ** 2
    if shape == "ring":
        return math.pi * ((0.95 * radius) ** 2 - (0.49 * radius) ** 2)
    tip, notch = 1.05 * radius, 0.45 * 1.05 * radius
    return 10 * 0.5 * tip * notch * math.sin(math.pi / 5)


def test_shapes_have_their_areas_and_colours(some: Any) -> None:
    """Against a plain background; the colour by Pillow's own conversion to hue."""
    seen = set()
    for row in range(COUNT):
        objects = scenes_oracle.objects_of(some, row)
        if len(objects) > 1 or some.shows_number[row]:
            continue
        picked = some.rows(torch.tensor([row]))
        nothing = pixels.paint(
            layout.Scenes(**{**vars(picked), "present": torch.zeros_like(picked.present)}), (0, 0)
        )
        picture = pixels.paint(picked, (0, 0))
        covered = (picture != nothing).any(1)[0].numpy()
        (thing,) = objects
        # The edge's pixels count whole: up to half a pixel more along it, all around.
        area = _area(thing["shape"], thing["radius"])
        rim = 0.75 * 2 * math.pi * thing["radius"] * 1.6
        assert area - 4 < covered.sum() < area + rim, thing
        image = Image.fromarray(picture[0].permute(1, 2, 0).numpy())
        hue, saturation = np.asarray(image.convert("HSV"))[..., :2].transpose(2, 0, 1)
        middle = np.median(hue[covered & (saturation > 110)].astype(float)) * 360 / 256
        turns = np.abs((np.array([0, 24, 50, 115, 178, 225, 265, 318]) - middle + 180) % 360 - 180)
        own = turns[scenes_oracle.COLOURS.index(thing["colour"])]
        assert own < 15, (thing, middle)
        seen.add(thing["shape"])
    assert seen == set(scenes_oracle.SHAPES)


# ---- questions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", questions.TYPES)
def test_answers_are_right(kind: str, some: Any, tokenizer: Any) -> None:
    asked = questions.ask(some, kind)
    pairs = zip(texts(tokenizer, asked.question), texts(tokenizer, asked.answer), strict=True)
    checked = 0
    for row, (question, answer) in enumerate(pairs):
        if not asked.valid[row]:
            continue
        number = int(some.number[row]) if some.shows_number[row] else None
        objects = scenes_oracle.objects_of(some, row)
        assert scenes_oracle.answer(objects, number, question) == answer, (row, question)
        checked += 1
    assert checked > COUNT / 4


def test_yes_and_no_are_as_frequent(tokenizer: Any) -> None:
    many = layout.draw_scenes(layout.seeds_from(layout.CALIBRATION_SEEDS, 2000))
    for kind in ("exists", "relation"):
        asked = questions.ask(many, kind)
        answers = [text for text, ok in zip(texts(tokenizer, asked.answer), asked.valid) if ok]
        # Four standard deviations of a fair coin.
        assert abs(answers.count("yes") - len(answers) / 2) < 2 * math.sqrt(len(answers)), kind


def test_the_tokenizer_reads_what_the_builders_write(some: Any, tokenizer: Any) -> None:
    pad = vocabulary.ID[vocabulary.PAD]
    slots = [questions.describe(some)]
    for kind in questions.TYPES:
        asked = questions.ask(some, kind)
        slots += [asked.question[asked.valid], asked.answer[asked.valid]]
    for part in slots:
        for row in questions.packed(part, pad).tolist():
            ids = [id for id in row if id != pad]
            assert tokenizer.encode(tokenizer.decode(ids)).ids == ids
    assert tokenizer.get_vocab_size() == len(vocabulary.VOCABULARY) <= vocabulary.EMBEDDED
    assert tokenizer.encode("What color is it at the center?").tokens[:2] == ["what", "colour"]


def test_captions_say_every_object_with_its_place(some: Any, tokenizer: Any) -> None:
    for row, caption in enumerate(texts(tokenizer, questions.describe(some))):
        said = caption.removesuffix(".").replace(", ", " and ").split(" and ")
        objects = scenes_oracle.objects_of(some, row)
        expected = [
            f"a {thing['size']} {thing['colour']} {thing['shape']} at the "
            + scenes_oracle._CELLS[int(thing["y"] // 32)][int(thing["x"] // 32)]
            for thing in objects
        ]
        if some.shows_number[row]:
            assert said.pop() == f"the number {int(some.number[row])}"
        assert sorted(said) == sorted(expected)


def test_cider_d_by_hand() -> None:
    # Three captions of distinct words: log(3) is every weight, and cancels.
    right = [[[1, 2, 3, 4]], [[5, 6, 7, 8]], [[9, 10, 11, 12]]]
    assert cider.cider_d([captions[0] for captions in right], right) == pytest.approx(10)
    assert cider.cider_d([[20], [21], [22]], right) == 0
    # Half of the first caption and two tokens fewer: cosines sqrt(2/4), sqrt(1/3), 0 and 0.
    half = 10 / 4 * (math.sqrt(1 / 2) + math.sqrt(1 / 3)) * math.exp(-4 / 72) / 3
    assert cider.cider_d([[1, 2], [20], [20]], right) == pytest.approx(half)
    # Said twice, it counts twice in our length and once in the product.
    twice = cider.cider_d([[1, 1, 1, 1], [20], [20]], right)
    assert twice == pytest.approx(10 / 4 / 3 * 1 / (4 * 2))


# ---- the model ---------------------------------------------------------------------------------


def test_shipped_pictures_are_the_generator_s() -> None:
    """Sines differ between processors: a level, on an edge."""
    entries = shipped()
    assert entries == pictures.entries()
    assert len(entries) == 8
    for entry, painted in zip(entries, pictures.pictures(), strict=True):
        path = FOLDER / "pictures" / entry["picture"]
        assert path.stat().st_size < 16_000
        image = np.asarray(Image.open(path)).astype(int)
        assert image.shape == (96, 96, 3)
        assert np.abs(image - painted.permute(1, 2, 0).numpy().astype(int)).max() <= 1


def test_the_float_model_answers_the_shipped_pictures(model: Any) -> None:
    """As a user of transformers would ask: chat template, processor, greedy generation."""
    processor = transformers.AutoProcessor.from_pretrained(FOLDER)
    asked = 0
    for entry in shipped():
        image = Image.open(FOLDER / "pictures" / entry["picture"])
        for question in entry["questions"]:
            content = [{"type": "image", "image": image}]
            content.append({"type": "text", "text": question["question"]})
            inputs = processor.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
            assert (inputs["input_ids"] == model.config.image_token_id).sum() == 64
            output = model.generate(**inputs, max_new_tokens=6, do_sample=False)
            said = output[0, inputs["input_ids"].shape[1] :]
            assert said[-1] == model.config.text_config.eos_token_id
            answer = processor.decode(said, skip_special_tokens=True)
            assert answer == question["answer"], (entry["picture"], question)
            asked += 1
    assert asked == 61


def test_the_packed_model_answers_them_too(tmp_path: Path) -> None:
    """At 8 bits; and each picture is encoded once, however many questions it is asked."""
    from awq_edge import Model

    file = tmp_path / "scenes-8m.awq.gguf"
    command = [sys.executable, "-m", "awq_edge.cli.main", "convert", str(FOLDER), "--quiet"]
    command += ["--method", "rtn", "--bits", "8", "--output", str(file)]
    subprocess.run(command, check=True, timeout=300)
    with Model.open(file, threads=1) as packed:
        for entry in shipped():
            picture = FOLDER / "pictures" / entry["picture"]
            for question in entry["questions"]:
                message = [{"role": "user", "content": question["question"]}]
                answer = packed.chat(message, images=[picture], temperature=0, max_tokens=6)
                assert answer.text().strip() == question["answer"], (entry["picture"], question)
        assert packed.pictures.encodings == 8


def test_without_the_picture_it_guesses(model: Any) -> None:
    """Bounds: what 2,000 scenes with a noise of 44 gave, four standard deviations of 96 away."""
    for kind, sees, guesses in (("position", 0.90, 0.19), ("digits", 0.66, 0.06)):
        assert evaluate.accuracy(model, kind, 96, pixels.TEST_NOISE) > sees
        blind = evaluate.accuracy(model, kind, 96, pixels.TEST_NOISE, without_picture=True)
        assert blind < guesses


def test_training_computes_what_transformers_computes() -> None:
    """The recipe puts pictures and words together itself; LLaVA's own forward agrees."""
    torch.manual_seed(3)
    learner = train.Learner().eval()
    batch = sequences.make_batch(layout.seeds_from(layout.TRAINING_SEEDS, 2))
    with torch.no_grad():
        ours, _ = learner(
            batch.pictures, batch.tokens, batch.weights, batch.patch_class, batch.patch_colour
        )
        logits = learner.model(
            input_ids=batch.tokens[:, :-1], pixel_values=train.normalise(batch.pictures)
        ).logits
    wanted, weights = batch.tokens[:, 1:], batch.weights[:, 1:]
    each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), wanted, reduction="none")
    assert weights.sum() > 10
    assert float(ours) == pytest.approx(float((each * weights).sum() / weights.sum()), rel=1e-5)
