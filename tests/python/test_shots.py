"""examples/scenes-8m/shots: captions are right, and what the recipe saves is an OpenFlamingo."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "scenes-8m"
sys.path[:0] = [str(FOLDER), str(ROOT / "benchmarks")]

import few_shots  # noqa: E402  (their folders)
from scenes import layout, pixels  # noqa: E402
from scenes.model import normalise  # noqa: E402
from shots import episodes, train, words  # noqa: E402
from shots import model as shots_model  # noqa: E402
from vision_support import difference, opened  # noqa: E402

from awq_edge import torch_decoder, torch_tower  # noqa: E402
from awq_edge.hf_tokenizer import tokenizer_of  # noqa: E402
from awq_edge.torch_decoder import LookedAt  # noqa: E402

BOUND = 1e-4
WAYS, EACH = 6, 20


@pytest.fixture(scope="module")
def some() -> Any:
    scenes = episodes.suitable(layout.CALIBRATION_SEEDS, WAYS * EACH, "cpu")
    styles = episodes.draw_styles(WAYS, torch.Generator().manual_seed(5))
    return scenes, styles


def said_of(scenes: Any, styles: Any, n: int) -> list[str]:
    """The whole caption of scene n, word by word from what is in it."""
    way = n // EACH
    groups = [group.split() for group in (*words.SIZES, *words.COLOURS, *words.SHAPES)]
    called = [group[styles.chosen[way, value]] for value, group in enumerate(groups)]
    objects = sorted(
        (float(scenes.x[n, i]), i) for i in range(layout.OBJECTS) if scenes.present[n, i]
    )
    text: list[str] = []
    for x, i in objects:
        if text:
            text.append(words.CONNECTIVES[styles.between[way]])
        parts = [
            called[int(scenes.size[n, i])] if styles.says_size[way] else "",
            called[2 + int(scenes.colour[n, i])],
            called[10 + int(scenes.shape[n, i])],
        ]
        text += [parts[kind] for kind in styles.order[way].tolist() if parts[kind]]
        if styles.says_place[way]:
            row, column = int(scenes.y[n, i] * 3 / layout.SIDE), int(x * 3 / layout.SIDE)
            down, across = ("top", "", "bottom")[row], ("left", "", "right")[column]
            text += ["at", *([down] if down else []), *([across] if across else [])]
            text += [] if down or across else ["centre"]
    return text


def test_captions_say_what_is_in_their_pictures(some: Any) -> None:
    scenes, styles = some
    slots = episodes.captions(scenes, styles)
    spelt = [*words.VOCABULARY, words.END_OF_SHOT, words.PICTURE]
    for n, row in enumerate(slots.tolist()):
        text = [spelt[id] for id in row if id != episodes.NOTHING]
        assert text == [words.PICTURE, *said_of(scenes, styles, n), words.END_OF_SHOT]
    assert 1 <= scenes.present.sum(1).min() < scenes.present.sum(1).max() == episodes.MOST_OBJECTS
    assert not scenes.shows_number.any()


def test_what_is_left_out_is_sizes_and_places(some: Any) -> None:
    scenes, styles = some
    generator = torch.Generator().manual_seed(6)
    whole = episodes.captions(scenes, styles)
    part = episodes.captions(scenes, styles, generator)
    sizes = {words.ID[word] for group in words.SIZES for word in group.split()}
    places = {words.ID[word] for word in words.PLACES}
    assert ((part == whole) | (part == episodes.NOTHING)).all()
    gone = set(whole[part != whole].tolist())
    assert gone & sizes and gone & places and gone <= sizes | places


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of the recipe, gates and norms then moved so that everything matters."""
    directory = tmp_path_factory.mktemp("shots")
    command = ["train", "--out", str(directory), "--device", "cpu"]
    command += ["--pool", "24", "--batch", "2", "--steps", "2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", command)
        train.main()
    return directory


def test_the_recipe_saves_an_openflamingo(trained: Path, some: Any) -> None:
    scenes, styles = some
    source, vision = opened(trained)
    model = shots_model.load(trained)
    tokenizer = tokenizer_of(source.checkpoint)
    rows = slice(0, 5)
    slots = episodes.captions(scenes, styles)[rows].flatten()
    ids = slots[slots != episodes.NOTHING]
    assert tokenizer.encode(few_shots.text_of(ids.tolist())) == ids.tolist()
    assert tokenizer.eos_ids[0] == words.ID_END_OF_SHOT
    painted = pixels.paint(scenes.rows(torch.arange(5)))
    seen = (ids == words.ID_PICTURE).cumsum(0) - 1
    packed = torch_tower.encoded(vision.architecture, vision, painted.permute(0, 2, 3, 1))
    looked_at = LookedAt.of_rows(source.architecture.cross, packed, seen)
    ours = torch_decoder.logits(source, source.architecture, ids[None], looked_at=looked_at)
    tower = train.load_tower(FOLDER).bfloat16().float()  # its weights are stored like that
    with torch.no_grad():
        states = tower(normalise(painted), output_hidden_states=True).hidden_states[-1][:, 1:]
        theirs = model(ids[None], states[None])
    assert difference(ours, theirs) < BOUND


@torch.no_grad()
def test_pictures_together_are_described_as_each_alone(trained: Path) -> None:
    model = shots_model.load(trained)
    generator = torch.Generator().manual_seed(4)
    for parameter in model.parameters():  # so that no word is always the likeliest
        scale = 0.15 if parameter.dim() == 2 else 0.0
        parameter += scale * torch.randn(parameter.shape, generator=generator)
    pictures = torch.randn(1, 7, 64, shots_model.TOWER_WIDTH, generator=generator)
    before = [words.ID_PICTURE, 5, 9, words.ID_END_OF_SHOT, words.ID_PICTURE, 30]
    before += [words.ID_END_OF_SHOT]
    wanted = []
    for n in range(2, 7):
        said: list[int] = []
        while len(said) < few_shots.LONGEST and words.ID_END_OF_SHOT not in said:
            tokens = torch.tensor([[*before, words.ID_PICTURE, *said]])
            logits = model(tokens, pictures[:, [0, 1, n]])
            said.append(int(logits[0, -1].argmax()))
        wanted.append([id for id in said if id != words.ID_END_OF_SHOT])
    assert len({tuple(said) for said in wanted}) > 1
    drafts = [[], wanted[1][:3], [7] * 9, list(range(20, 36)), wanted[4]]
    assert few_shots.greedy(model, before, pictures, drafts) == wanted
