"""LLaVA 1.6 and OneVision: tiles put together, against transformers' models and processors."""

import hashlib
import json

import numpy as np
import pytest
import torch
from vision_models import (
    ANY_RESOLUTION,
    PLACEHOLDER,
    save,
    save_tokenizer,
)
from vision_support import (
    BOUND,
    GREEDY,
    LONGER,
    QUESTION,
    bits_of_every_table,
    change_json,
    difference,
    last_logits,
    picture,
)

from awq_edge import Model, conversion, torch_decoder, torch_tower
from awq_edge.errors import AwqEdgeError, FileInvalidError
from awq_edge.float_model import open_float_model, open_vision_part
from awq_edge.model_file import read_dequantised
from awq_edge.vision.arrangement import arranged, row_count, smaller
from awq_edge.vision.tilings import Tiled

FIRST = {"input_data_format": "channels_first"}
# One pixel, lines, portraits, sizes of which rows are cut, and those of whole tiles.
SIZES = [(1, 1), (1, 2000), (2000, 1), (40, 26), (37, 100), (300, 211), (26, 26), (52, 52)]


@pytest.fixture(scope="module", params=ANY_RESOLUTION)
def checkpoint(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp(request.param)
    model = save(request.param, directory)
    save_tokenizer(directory)
    source = open_float_model(str(directory))
    return model, directory, source, open_vision_part(source)[0]


def read_by_transformers(vision, tiled):
    """The tiles as transformers' model reads them, float32 [1, tiles, 3, s, s]."""
    mean, std = (
        torch.tensor(values)[:, None, None]
        for values in (vision.processor.mean, vision.processor.deviation)
    )
    pixels = torch.from_numpy(tiled.tiles).permute(0, 3, 1, 2).double()
    return ((pixels / 255 - mean) / std).float()[None]


def our_rows(vision, tiled):
    tiles = torch_tower.encoded(vision.architecture, vision, torch.from_numpy(tiled.tiles))
    newline = vision("mm.image_newline").numpy()
    return torch.from_numpy(arranged(tiles.numpy(), tiled, newline, vision.part.most_tiles))


@pytest.mark.parametrize("size", SIZES)
def test_rows_of_a_picture_are_those_of_transformers(checkpoint, size):
    model, _, _, vision = checkpoint
    tiled = vision.processor.preprocessing.tiles(picture(*size))
    ours = our_rows(vision, tiled)
    assert len(ours) == row_count(tiled, vision.architecture.grid, vision.part.most_tiles)
    with torch.no_grad():
        given = model.model.get_image_features(
            pixel_values=read_by_transformers(vision, tiled), image_sizes=torch.tensor([size])
        )
    assert difference(ours, torch.cat(list(getattr(given, "pooler_output", given)))) < BOUND


@pytest.mark.parametrize("size", [(40, 26), (90, 97)])
def test_a_text_with_a_picture_has_the_logits_of_transformers(checkpoint, size):
    model, _, source, vision = checkpoint
    tiled = vision.processor.preprocessing.tiles(picture(*size, seed=5))
    rows = our_rows(vision, tiled)
    tokens = torch.tensor([[5, 9, *[PLACEHOLDER] * len(rows), 17, 4, 33]])
    where = tokens == PLACEHOLDER
    ours = torch_decoder.logits(source, source.architecture, tokens, pictures=(where, rows))
    with torch.no_grad():
        theirs = model(
            input_ids=tokens,
            pixel_values=read_by_transformers(vision, tiled),
            image_sizes=torch.tensor([size]),
        ).logits
    assert difference(ours, theirs) < BOUND


def processor_of(name, directory):
    """transformers' own, with this tokenizer."""
    from transformers import LlavaNextProcessor, LlavaOnevisionProcessor, PreTrainedTokenizerFast
    from transformers.models.llava_next import image_processing_pil_llava_next as next_
    from transformers.models.llava_onevision import (
        image_processing_pil_llava_onevision as onevision,
    )

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(directory / "tokenizer.json"),
        extra_special_tokens={"image_token": "<image>"},
    )
    settings = {key: value for key, value in ANY_RESOLUTION[name][1].items() if key[-4:] != "type"}
    if name == "llava_onevision":
        # Its constructor asks for a processor of videos, which needs another package.
        made = LlavaOnevisionProcessor.__new__(LlavaOnevisionProcessor)
        made.image_processor = onevision.LlavaOnevisionImageProcessorPil(**settings)
        made.num_image_tokens, made.vision_aspect_ratio = 16, "anyres_max_3"
        made.image_token, made.vision_feature_select_strategy = "<image>", "full"
        return made
    images = next_.LlavaNextImageProcessorPil(**settings)
    return LlavaNextProcessor(
        images,
        tokenizer,
        patch_size=6,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


@pytest.mark.parametrize("size", [*SIZES, (3000, 2000), (768, 1024), (27, 53)])
def test_as_many_placeholders_as_the_processor_writes(checkpoint, size):
    _, directory, _, vision = checkpoint
    made = processor_of(vision.part.family, directory)
    pixels = picture(*size)
    read = made.image_processor([pixels.transpose(2, 0, 1)], **FIRST, return_tensors="np")
    read["batch_num_images"] = [1]
    expected = made.replace_image_token(read, 0)
    tiled = vision.processor.preprocessing.tiles(pixels)
    count = row_count(tiled, vision.architecture.grid, vision.part.most_tiles)
    assert expected == "<image>" * count


@pytest.mark.parametrize("size", SIZES)
def test_tiles_are_within_one_level_of_the_processor(checkpoint, size):
    _, directory, _, vision = checkpoint
    made = processor_of(vision.part.family, directory)
    pixels = picture(*size)
    first = pixels.transpose(2, 0, 1)
    plain = {"do_rescale": False, "do_normalize": False, "return_tensors": "np", **FIRST}
    preprocessing = vision.processor.preprocessing
    for images, ours in (
        ([[first]], preprocessing.tiles(pixels)),
        ([[first, first]], preprocessing.beside_others(pixels)),
    ):
        if ours is None:
            continue  # LLaVA 1.6 cuts several pictures as it cuts one
        given = np.asarray(made.image_processor(images, **plain)["pixel_values"][0])
        expected = given.transpose(0, 2, 3, 1)[: len(ours.tiles)]
        assert len(given) == len(ours.tiles)
        assert np.abs(ours.tiles.astype(float) - expected).max() <= 1


def test_a_grid_is_made_smaller_as_torch_does_and_with_the_same_bits_everywhere():
    drawn = np.random.default_rng(0)
    for (h, w), size in (
        ((30, 41), (21, 29)),
        ((7, 5), (7, 3)),
        ((4, 4), (1, 1)),
        ((3, 3), (5, 4)),
    ):
        grid = drawn.standard_normal((h, w, 5)).astype(np.float32)
        expected = torch.nn.functional.interpolate(
            torch.from_numpy(grid).double().permute(2, 0, 1)[None], size, mode="bilinear"
        )[0].permute(1, 2, 0)
        np.testing.assert_allclose(smaller(grid, *size), expected.numpy(), atol=2e-6)
    numbers = ((np.arange(30 * 41 * 5) * 2654435761 >> 11) % 4093 - 2046).astype(np.float32)
    made = smaller((numbers / np.float32(37)).reshape(30, 41, 5), 21, 29)
    found = hashlib.sha256(made.astype("<f4").tobytes()).hexdigest()
    assert found[:16] == "d7ed91b532d2c5cd"


@pytest.fixture(scope="module")
def converted(checkpoint):
    directory = checkpoint[1]
    path = directory / "model.awq.gguf"
    options = conversion.Options(method="rtn", bits=8, group_size=32)
    conversion.convert(str(directory), path, options)
    return path


@pytest.fixture
def model(converted):
    with Model.open(converted, context_length=256) as opened:
        yield opened


def test_the_runtime_has_the_logits_of_the_float_model(converted, checkpoint, model):
    vision = checkpoint[3]
    shown = picture(60, 97, seed=2)
    prompt = model.picture_chat(QUESTION, [shown])[1]
    tiled = vision.processor.preprocessing.tiles(shown)
    rows = our_rows(vision, tiled)
    found = torch.from_numpy(model.pictures.encoded(prompt.spans[0].picture).copy())
    assert float((found - rows).norm() / rows.norm()) < 0.02
    held = read_dequantised(converted)
    tokens = torch.tensor([prompt.tokens])
    expected = torch_decoder.logits(
        lambda name: torch.from_numpy(held.tensors[name]),
        held.architecture,
        tokens,
        pictures=(tokens == PLACEHOLDER, found),
    )[0, -1].numpy()
    logits = last_logits(model, prompt)
    assert np.linalg.norm(logits - expected) / np.linalg.norm(expected) < 0.03
    assert model.pictures.encodings == len(tiled.tiles)


def test_the_second_question_costs_no_encoding(model):
    first = model.chat(QUESTION, GREEDY, images=[picture(60, 97)])
    first.text()
    tiles = model.pictures.encodings
    assert tiles > 1
    second = model.chat(LONGER, GREEDY, images=[picture(60, 97)])
    second.text()
    assert model.pictures.encodings == tiles
    assert second.reused_tokens > first.prompt_tokens.count(PLACEHOLDER)
    model.chat(QUESTION, GREEDY, images=[picture(60, 97, seed=1)]).text()
    assert model.pictures.encodings == 2 * tiles


def test_several_pictures_are_cut_as_the_family_does(model):
    one, other = picture(60, 97, seed=1), picture(97, 60, seed=2)
    prompt = model.picture_chat(QUESTION, [one, other])[1]
    low = model.picture_chat(QUESTION, [one], detail="low")[1]
    rows = model.pictures.rows + 1
    assert low.tokens.count(PLACEHOLDER) == rows
    if model.metadata["awq_edge.vision.family"] == "llava_onevision":
        assert [span.end - span.begin for span in prompt.spans] == [rows, rows]
        assert (
            prompt.spans[0].picture.key != low.spans[0].picture.key
        )  # padded here, squashed there
    else:
        alone = model.picture_chat(QUESTION, [one])[1]
        assert prompt.spans[0].picture.key == alone.spans[0].picture.key
    prepared = [model.pictures.prepare(image) for image in (one, other)]
    again = model.picture_chat(QUESTION, prepared)[1]
    assert [span.picture.key for span in again.spans] == [span.picture.key for span in prompt.spans]
    assert again.tokens == prompt.tokens


def test_every_table_and_thread_count_gives_the_same_bits(converted, monkeypatch):
    assert len(bits_of_every_table(converted, [picture(60, 97)], 256, monkeypatch)) == 1


def test_run_takes_two_pictures(command, converted, tmp_path):
    from PIL import Image

    paths = [tmp_path / "one.png", tmp_path / "two.png"]
    for seed, path in enumerate(paths):
        Image.fromarray(picture(60, 97, seed)).save(path)
    shown = ("--image", paths[0], "--image", paths[1], "--context", 256)
    settings = ("-p", "what colour ?", "-n", 4, "--temperature", 0, "--json")
    found = command("run", converted, *settings, "--chat", *shown)
    assert found.status == 0, found.err
    with Model.open(converted) as model:
        images = [picture(60, 97, seed) for seed in range(2)]
        expected = model.picture_chat(QUESTION, images)[1].tokens
    assert json.loads(found.out)["prompt_tokens"] == len(expected)


@pytest.mark.parametrize(
    ("file", "keys", "words"),
    [
        ("config.json", {"vision_aspect_ratio": "pad"}, "anyres_max_"),
        ("config.json", {"vision_aspect_ratio": 9}, "anyres_max_"),
        ("config.json", {"image_grid_pinpoints": [[26, 26]]}, "put together"),
        ("config.json", {"image_grid_pinpoints": [[26]]}, "heights and widths"),
        ("preprocessor_config.json", {"image_grid_pinpoints": 26}, "heights and widths"),
        ("preprocessor_config.json", {"image_grid_pinpoints": [[26, 0]]}, "heights and widths"),
        ("preprocessor_config.json", {"image_grid_pinpoints": [[26, 27]]}, "no whole number"),
    ],
)
def test_what_contradicts_itself_is_refused(tmp_path, file, keys, words):
    save("llava_onevision", tmp_path)
    if words == "no whole number":
        change_json(tmp_path / "config.json", lambda values: values.update(keys))
    change_json(tmp_path / file, lambda values: values.update(keys))
    with pytest.raises(AwqEdgeError, match=words):
        open_vision_part(open_float_model(str(tmp_path)))


def test_a_file_without_the_vector_that_ends_lines_is_refused(model, monkeypatch):
    bare = model.native.vision()
    monkeypatch.setattr(
        type(model.native), "vision", lambda _: type(bare)(**{**vars(bare), "newline": None})
    )
    with pytest.raises(FileInvalidError, match=r"mm\.image_newline"):
        _ = model.pictures


def test_rows_are_counted_as_in_the_published_sizes():
    """vision.md, 4: LLaVA 1.6 with tiles of 24 x 24 rows."""
    for size, grid, rows in (
        ((480, 640), (2, 2), 2340),
        ((1000, 300), (3, 1), 2232),
        ((2000, 1999), (2, 2), 2928),
    ):
        tiled = Tiled(np.zeros((1, 1, 1, 3), np.uint8), *grid, size)
        assert row_count(tiled, 24, 0) == rows
