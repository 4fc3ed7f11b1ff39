"""Qwen2-VL, 2.5-VL and 3-VL: pictures of any shape, whose rows turn by their place in it."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2VLProcessor
from vision_models import ANY_SHAPE, PLACEHOLDER, save, save_tokenizer
from vision_support import (
    BOUND,
    GREEDY,
    LONGER,
    QUESTION,
    bits_of_every_table,
    change_json,
    difference,
    last_logits,
    photograph,
    picture,
)

from awq_edge import Model, conversion, torch_decoder, torch_tower
from awq_edge.errors import AwqEdgeError, ContextFullError
from awq_edge.float_model import open_float_model, open_vision_part
from awq_edge.model_file import PackedFile, read_dequantised

STEP = 12
# A pixel, lines, portraits, sizes that are rounded up, down, to even, and made smaller.
SIZES = [(1, 1), (3, 500), (500, 3), (40, 26), (37, 100), (300, 211), (24, 24), (30, 54)]


@pytest.fixture(scope="module", params=ANY_SHAPE)
def checkpoint(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp(request.param)
    model = save(request.param, directory)
    save_tokenizer(directory)
    source = open_float_model(str(directory))
    return model, directory, source, open_vision_part(source)[0]


def processor():
    """transformers' own."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    settings = {key: value for key, value in ANY_SHAPE["qwen2_vl"][1].items() if key[-4:] != "type"}
    return Qwen2VLImageProcessorPil(**settings)


def patches_of(pixels, **settings):
    """What transformers' model reads of a picture, and its patches in time, rows and columns."""
    first = pixels.transpose(2, 0, 1)
    given = processor()(first, input_data_format="channels_first", return_tensors="pt", **settings)
    return given["pixel_values"], given["image_grid_thw"]


def rows_of(model, values, grid):
    """What transformers' decoder takes up of a picture, float32 [rows, hidden and that of taps]."""
    with torch.no_grad():
        given = model.model.get_image_features(pixel_values=values, image_grid_thw=grid)
    taps = [torch.cat(list(tap)) for tap in getattr(given, "deepstack_features", None) or []]
    return torch.cat([torch.cat(list(given.pooler_output)), *taps], dim=1)


def turns_of(tokens, grids):
    """The three numbers of every position, counted from the published rule: int64 [3, t]."""
    numbers, counter, at, left = [], 0, 0, list(grids)
    while at < len(tokens):
        if tokens[at] != PLACEHOLDER:
            numbers.append([counter] * 3)
            counter, at = counter + 1, at + 1
            continue
        rows, columns = left.pop(0)
        numbers += [
            [counter, counter + r, counter + c] for r in range(rows) for c in range(columns)
        ]
        counter, at = counter + max(rows, columns), at + rows * columns
    return torch.tensor(numbers).T


@pytest.mark.parametrize("size", SIZES)
def test_rows_of_a_picture_are_those_of_transformers(checkpoint, size):
    model, _, _, vision = checkpoint
    pixels = picture(*size)
    tile = vision.processor.preprocessing.tiles(pixels).tiles
    ours = torch_tower.encoded(vision.architecture, vision, torch.from_numpy(tile))[0]
    values, grid = patches_of(pixels)
    assert [tile.shape[1] // 6, tile.shape[2] // 6] == grid[0, 1:].tolist()
    made = Qwen2VLProcessor.__new__(Qwen2VLProcessor)  # a whole one asks for videos' package
    made.image_processor, made.image_token = processor(), "<image>"
    written = made.replace_image_token({"image_grid_thw": grid}, 0)
    assert written == "<image>" * len(ours)
    theirs = rows_of(model, values, grid)
    # The processor resizes to within a level; what is compared is the tower, of the same pixels.
    mean, std = (torch.tensor(v) for v in (vision.processor.mean, vision.processor.deviation))
    same = (torch.from_numpy(tile[0]).double() / 255 - mean) / std
    blocks = same.float().view(grid[0, 1] // 2, 2, 6, grid[0, 2] // 2, 2, 6, 3)
    blocks = blocks.permute(0, 3, 1, 4, 6, 2, 5).reshape(len(values), 3, 1, 36)
    values = blocks.expand(-1, -1, 2, -1).reshape(len(values), -1)
    exact = rows_of(model, values, grid)
    assert difference(ours, exact) < BOUND
    assert difference(ours, theirs) < 0.1


@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_within_one_level_of_the_processor(checkpoint, size):
    vision = checkpoint[3]
    pixels = picture(*size)
    tile = vision.processor.preprocessing.tiles(pixels).tiles[0]
    values, grid = patches_of(pixels, do_rescale=False, do_normalize=False)
    _, height, width = grid[0].tolist()
    blocks = values.view(height // 2, width // 2, 2, 2, 3, 2, 6, 6)[:, :, :, :, :, 0]
    theirs = blocks.permute(0, 2, 5, 1, 3, 6, 4).reshape(height * 6, width * 6, 3).numpy()
    assert tile.shape == theirs.shape
    assert np.abs(tile.astype(float) - theirs).max() <= 1


def test_a_text_with_pictures_has_the_logits_of_transformers(checkpoint):
    model, _, source, _ = checkpoint
    shown = [picture(40, 90, seed=1), picture(70, 30, seed=2)]
    read = [patches_of(pixels) for pixels in shown]
    rows, grids = [], []
    for values, grid in read:
        rows.append(rows_of(model, values, grid))
        grids.append([int(side) // 2 for side in grid[0, 1:]])
    ids = [5, 9, *[PLACEHOLDER] * len(rows[0]), 17, 4, *[PLACEHOLDER] * len(rows[1]), 33, 8]
    tokens = torch.tensor([ids])
    where = tokens == PLACEHOLDER
    turns = turns_of(ids, grids)
    ours = torch_decoder.logits(
        source, source.architecture, tokens, pictures=(where, torch.cat(rows)), turns=turns
    )
    with torch.no_grad():
        theirs = model(
            input_ids=tokens,
            pixel_values=torch.cat([values for values, _ in read]),
            image_grid_thw=torch.cat([grid for _, grid in read]),
            mm_token_type_ids=where.int(),
        ).logits
    assert difference(ours, theirs) < BOUND
    plain = torch_decoder.logits(
        source, source.architecture, tokens, pictures=(where, torch.cat(rows))
    )
    assert difference(plain, theirs) > 0.01


@pytest.fixture(scope="module")
def converted(checkpoint):
    directory = checkpoint[1]
    path = directory / "model.awq.gguf"
    options = conversion.Options(method="rtn", bits=8, group_size=32)
    conversion.convert(str(directory), path, options)
    return path


@pytest.fixture
def model(converted):
    with Model.open(converted, context_length=160) as opened:
        yield opened


@pytest.mark.parametrize("size", [(40, 90), (97, 60), (1, 1)])
def test_the_runtime_encodes_what_the_float_tower_does(converted, checkpoint, model, size):
    vision = checkpoint[3]
    prepared = model.pictures.prepare(picture(*size), channels="last")
    found = model.pictures.encoded(prepared)
    held = read_dequantised(converted)
    tiles = torch.from_numpy(prepared.tiled.tiles)
    of_file = torch_tower.encoded(
        vision.architecture, lambda name: torch.from_numpy(held.tensors[name]), tiles
    )[0].numpy()
    assert found.shape == of_file.shape
    assert np.linalg.norm(found - of_file) / np.linalg.norm(of_file) < 0.02


def test_questions_about_two_pictures_have_the_logits_of_the_float_decoder(converted, model):
    shown = [picture(40, 90, seed=1), picture(70, 30, seed=2)]
    prompt = model.picture_chat(QUESTION, shown)[1]
    held = read_dequantised(converted)
    tokens = torch.tensor([prompt.tokens])
    rows = np.concatenate([model.pictures.encoded(span.picture) for span in prompt.spans])
    grids = [
        [side // STEP for side in span.picture.tiled.tiles.shape[1:3]] for span in prompt.spans
    ]

    def float_logits(turns):
        return torch_decoder.logits(
            lambda name: torch.from_numpy(held.tensors[name]),
            held.architecture,
            tokens,
            pictures=(tokens == PLACEHOLDER, torch.from_numpy(rows)),
            turns=turns,
        )[0, -1].numpy()

    found = last_logits(model, prompt)
    errors = [
        np.linalg.norm(found - one) / np.linalg.norm(one)
        for one in (float_logits(turns_of(prompt.tokens, grids)), float_logits(None))
    ]
    assert errors[0] < 0.03
    assert errors[1] > 2 * errors[0]


def test_the_second_question_costs_no_encoding_and_reads_no_row_again(model):
    first = model.chat(QUESTION, GREEDY, images=[picture(40, 90)])
    first.text()
    second = model.chat(LONGER, GREEDY, images=[picture(40, 90)])
    second.text()
    assert model.pictures.encodings == 1
    assert second.reused_tokens > first.prompt_tokens.count(PLACEHOLDER)
    with model.session() as anew:
        expected = anew.generate(model.picture_chat(LONGER, [picture(40, 90)])[1], GREEDY)
        expected.text()
    assert second.tokens == expected.tokens


def test_a_context_with_a_picture_is_saved_and_goes_on_to_the_same_bits(model):
    prompt = model.picture_chat(QUESTION, [picture(40, 90)])[1]
    with model.session() as session, model.session() as other:
        session.generate(prompt, GREEDY).start()
        other.restore(session.save())
        np.testing.assert_array_equal(session.logits([5, 9, 17]), other.logits([5, 9, 17]))
        session.truncate(len(prompt.tokens))
        session.evaluate([7])
        cut = session.save(begin=len(prompt.tokens))
        other.truncate(len(prompt.tokens))
        other.restore(cut)
        np.testing.assert_array_equal(session.logits([5, 9]), other.logits([5, 9]))


def test_a_prompt_that_ends_in_a_picture_is_read_again_as_a_whole(model):
    prepared = model.pictures.prepare(picture(40, 90))
    count = sum(model.pictures.rules.runs(prepared.tiled, 0))
    prompt = model.picture_prompt([5, 9, *[PLACEHOLDER] * count], [prepared])
    expected = last_logits(model, prompt)
    with model.session() as session:
        for _ in range(2):
            generation = session.generate(prompt, GREEDY)
            generation.start()
            np.testing.assert_array_equal(session.last_logits(), expected)
            generation.text()


def test_contexts_limit_a_picture_before_it_is_encoded(model):
    big = picture(400, 300)
    high = model.picture_chat(QUESTION, [big])[1]
    assert 30 <= high.tokens.count(PLACEHOLDER) <= 40  # as many pixels as the settings allow
    with pytest.raises(ContextFullError):
        model.chat(QUESTION, GREEDY, images=[big] * 5)
    assert model.pictures.encodings == 0


def test_every_table_and_thread_count_gives_the_same_bits(converted, monkeypatch):
    assert len(bits_of_every_table(converted, [picture(60, 97)], 160, monkeypatch)) == 1


def test_files_as_they_were_released_are_the_same(checkpoint, tmp_path):
    """The text's keys and names beside those of the whole; pixels by their older names."""
    _, directory, source, vision = checkpoint
    if vision.part.family == "qwen3_vl":
        pytest.skip("released with its text in a table, as it is saved")
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    text["rope_theta"] = rope["rope_theta"]
    text["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    (tmp_path / "config.json").write_text(json.dumps({**text, **config}), encoding="utf-8")
    tensors = {
        name.replace("model.language_model.", "model.").replace("model.visual.", "visual."): tensor
        for name, tensor in load_file(directory / "model.safetensors").items()
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    old = json.loads((directory / "preprocessor_config.json").read_text(encoding="utf-8"))
    size = old.pop("size")
    old["min_pixels"], old["max_pixels"] = size["shortest_edge"], size["longest_edge"]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old), encoding="utf-8")
    other = open_float_model(str(tmp_path))
    part = open_vision_part(other)[0]
    assert other.architecture == source.architecture
    assert part.architecture == vision.architecture
    assert part.processor == vision.processor
    tokens = torch.arange(5, 25)[None]
    assert torch.equal(
        torch_decoder.logits(other, other.architecture, tokens),
        torch_decoder.logits(source, source.architecture, tokens),
    )
    for name in vision.tensor_names():
        assert torch.equal(part(name), vision(name)), name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda values: values["text_config"]["rope_parameters"].update(mrope_section=7), "mrope"),
        (
            lambda values: values["text_config"]["rope_parameters"].update(mrope_section=[1, 2, 3]),
            "turns .1, 2, 3. angles",
        ),
    ],
)
def test_positions_that_cannot_be_are_refused(tmp_path, change, words):
    save("qwen2_vl", tmp_path)
    change_json(tmp_path / "config.json", change)
    with pytest.raises(AwqEdgeError, match=words):
        open_float_model(str(tmp_path))


@pytest.mark.parametrize("family", ANY_SHAPE)
def test_awq_wins_back_what_rounding_loses_to_outliers_in_a_tower(family, tmp_path):
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    save(family, directory)
    save_tokenizer(directory)
    path = directory / "model.safetensors"
    tensors = load_file(path)
    for name in [name for name in tensors if "visual" in name and ".norm1." in name]:
        tensors[name][:2] *= 24.0  # a norm times, the next columns divided: the same function
        if name.endswith("weight"):
            tensors[name.replace("norm1", "attn.qkv")][:, :2] /= 24.0
    save_file(tensors, path, metadata={"format": "pt"})
    vision = open_vision_part(open_float_model(str(directory)))[0]
    pixels = torch.from_numpy(photograph(48, 36, seed=9))[None]
    float_rows = torch_tower.encoded(vision.architecture, vision, pixels)
    errors = {}
    for method in ("rtn", "awq"):
        options = conversion.Options(
            method=method, vision_bits=4, group_size=32, samples=2, sequence_length=16
        )
        output = tmp_path / method
        conversion.convert(str(directory), output, options)
        file = PackedFile(output)
        made = torch_tower.encoded(
            vision.architecture, lambda name, file=file: torch.from_numpy(file.floats(name)), pixels
        )
        errors[method] = float((made - float_rows).norm() / float_rows.norm())
    assert errors["awq"] < 0.9 * errors["rtn"]
