"""NVILA: against its parts' own classes and Pillow, as one file, and what is refused."""

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from vila_models import Vila
from vision_support import (
    BOUND,
    GREEDY,
    QUESTION,
    change_json,
    converted,
    difference,
    float_logits,
    float_rows,
    last_logits,
    normalised,
    opened,
    picture,
    relative_error,
)

from awq_edge import Model, torch_decoder, torch_tower
from awq_edge.errors import AwqEdgeError
from awq_edge.vision.tilings import closest_grid

ROWS = 4  # of a tile of 4 x 4 patches
SIDE = 26
NEWLINE = 256  # rows of the vocabulary in front of the two ends of lines that are one token


def nvila(directory, **keys):
    made = Vila(decoder="qwen2", vocab_size=300, max_position_embeddings=512)
    return made, made.save(directory, "qwen2", **keys)


def tiles_of(pixels, rows, columns):
    """By Pillow, which its program asks: the picture squashed to a grid, cut, then the whole."""
    image = Image.fromarray(pixels)
    grid = image.resize((columns * SIDE, rows * SIDE))
    boxes = [(c * SIDE, r * SIDE) for r in range(rows) for c in range(columns)]
    tiles = [grid.crop((x, y, x + SIDE, y + SIDE)) for x, y in boxes]
    return np.stack([*tiles, *([image.resize((SIDE, SIDE))] if len(tiles) > 1 else [])])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    made, directory = nvila(tmp_path_factory.mktemp("nvila"), max_tiles=6)
    return made, directory, converted(directory)


@pytest.fixture
def model(checkpoint):
    with Model.open(checkpoint[2], context_length=512) as opened_model:
        yield opened_model


def test_a_text_with_tiles_has_the_logits_of_its_parts_classes(checkpoint):
    made, directory, _ = checkpoint
    source, vision = opened(directory)
    pixels = torch.from_numpy(tiles_of(picture(40, 90), 1, 2))
    ours = torch_tower.encoded(vision.architecture, vision, pixels)
    theirs = made.rows(normalised(vision, pixels))
    assert difference(ours, theirs) < BOUND
    embed = made.llm.get_input_embeddings()
    end, before, behind = (torch.tensor([ids]) for ids in ([198], [5, 9, 17], [33, 8]))
    parts, tokens, where = [embed(before)], [before], [torch.zeros(1, 3, dtype=torch.bool)]
    for rows in theirs:
        parts += [rows[None], embed(end), embed(end)]
        tokens += [torch.zeros(1, ROWS, dtype=torch.long), end, end]
        where += [torch.ones(1, ROWS, dtype=torch.bool), torch.zeros(1, 2, dtype=torch.bool)]
    with torch.no_grad():
        expected = made.llm(inputs_embeds=torch.cat([*parts, embed(behind)], dim=1)).logits
    found = torch_decoder.logits(
        source,
        source.architecture,
        torch.cat([*tokens, behind], dim=1),
        pictures=(
            torch.cat([*where, torch.zeros(1, 2, dtype=torch.bool)], dim=1),
            ours.flatten(0, 1),
        ),
    )
    assert difference(found, expected) < BOUND


def test_squares_of_patches_leave_line_by_line_whatever_the_connector_is_called(tmp_path):
    encoder = '{"_target_": "llava.model.encoders.BasicImageEncoder"}'
    first = opened(nvila(tmp_path / "one")[1])[1]
    directory = nvila(tmp_path / "two", image_encoder=encoder)[1]
    of("mm_projector/config.json", mm_projector_type="mlp_downsample_2x2_fix")(directory)
    assert first.architecture == opened(directory)[1].architecture
    assert not first.architecture.by_columns


@pytest.mark.parametrize(
    ("height", "width", "grid"),
    [
        (100, 100, (1, 1)),
        (633, 633, (1, 1)),
        (634, 634, (2, 2)),  # more than half of the pixels of 2 x 2 tiles
        (1000, 1000, (3, 3)),
        (448, 1344, (1, 3)),
        (3000, 1000, (6, 2)),
        (60, 5000, (1, 12)),
        (600, 450, (4, 3)),
        (1080, 1920, (2, 4)),
    ],
)
def test_the_grid_has_the_nearest_shape(height, width, grid):
    assert closest_grid(height, width, 448, 1, 12) == grid


@pytest.mark.parametrize(("size", "grid"), [((40, 90), (1, 2)), ((200, 130), (3, 2)), ((9, 9), ())])
def test_tiles_are_those_of_pillow(size, grid, checkpoint):
    pixels = picture(*size)
    made = opened(checkpoint[1])[1].processor.preprocessing
    np.testing.assert_array_equal(made.tiles(pixels).tiles, tiles_of(pixels, *(grid or (1, 1))))
    whole = np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE)))[None]
    np.testing.assert_array_equal(made.tiles(pixels, "low").tiles, whole)
    np.testing.assert_array_equal(made.beside_others(pixels).tiles, whole)


def test_ids_end_each_tile_by_an_end_of_line_of_its_own(checkpoint, model):
    read = Tokenizer.from_file(str(checkpoint[1] / "llm" / "tokenizer.json"))
    place = model.pictures.rules.token

    def ids(text):
        return read.encode(text, add_special_tokens=False).ids

    assert ids("\n\n") == [NEWLINE]
    end, rows = ids("\n"), [place] * ROWS
    before, behind = (
        ids("<|im_start|>user\n"),
        ids("what colour ?<|im_end|>\n<|im_start|>assistant\n"),
    )
    alone = model.picture_chat(QUESTION, [picture(40, 90)])[1]
    assert alone.tokens == [*before, *[*rows, *end, *end] * 3, *behind]
    assert [span.first_row for span in alone.spans] == [0, ROWS, 2 * ROWS]
    several = model.picture_chat(QUESTION, [picture(40, 90), picture(30, 20)])[1]
    assert several.tokens == [*before, *[*rows, *end] * 2, *behind]
    assert model.chat(QUESTION, GREEDY).prompt_tokens == [*before, *behind]
    typed = [{"role": "user", "content": "what is <image> ?"}]
    assert model.picture_chat(typed, [picture(9, 9)])[1].tokens.count(place) == ROWS


def test_the_runtime_gives_what_the_float_model_gives(checkpoint, model):
    vision = opened(checkpoint[1])[1]
    prompt = model.picture_chat(QUESTION, [picture(40, 90)])[1]
    shown = prompt.spans[0].picture
    rows = model.pictures.encoded(shown)
    expected = float_rows(checkpoint[2], vision, shown.tiled).reshape(rows.shape)
    assert relative_error(rows, expected) < 0.02
    found = last_logits(model, prompt)
    assert relative_error(found, float_logits(checkpoint[2], prompt, rows)) < 0.03
    assert model.pictures.encodings == 3


def of(file, **keys):
    return lambda directory: change_json(directory / file, lambda values: values.update(keys))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (of("config.json", image_aspect_ratio="dynamic_s2"), "dynamic is supported"),
        (of("config.json", image_aspect_ratio=None), "dynamic is supported"),
        (of("config.json", dynamic_s2=True), "several sizes"),
        (of("config.json", min_tiles=3, max_tiles=2), "pictures of 3 to 2 tiles"),
        (of("config.json", max_tiles=10**6), "1 to 64 are possible"),
        (of("config.json", max_tiles="12"), "max_tiles"),
        (of("config.json", chat_template="qwen2"), "a template of its program's"),
        (of("config.json", image_encoder={"_target_": "other"}), "other words around"),
        (
            of("mm_projector/config.json", mm_projector_type="mlp_downsample_3x3_fix"),
            "The connector of this model is .mlp_downsample_3x3_fix",
        ),
        (of("vision_tower/preprocessor_config.json", resample=2), "squash and bicubic"),
    ],
)
def test_what_is_not_computed_is_refused(change, words, tmp_path):
    _, directory = nvila(tmp_path)
    change(directory)
    with pytest.raises(AwqEdgeError, match=words):
        opened(directory)
