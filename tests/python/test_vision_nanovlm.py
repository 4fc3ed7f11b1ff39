"""nanoVLM: against its arithmetic in plain torch, as one file, and in use."""

import json
import math

import numpy as np
import pytest
import torch
from nanovlm_models import LONGEST, TILE, WORDS, NanoVlm, save_tokenizer
from PIL import Image
from vision_models import pictures
from vision_support import (
    BOUND,
    GREEDY,
    LONGER,
    QUESTION,
    bits_of_every_table,
    change_json,
    change_tensors,
    converted,
    difference,
    float_logits,
    float_rows,
    last_logits,
    opened,
    photograph,
    picture,
    png,
    relative_error,
)

from awq_edge import Model, torch_decoder, torch_tower
from awq_edge.checkpoints import hub
from awq_edge.errors import AwqEdgeError, ContextFullError, InvalidArgumentError
from awq_edge.hf_tokenizer import tokenizer_of

ROWS = 4  # of a tile
USER, ASSISTANT = "<|im_start|>user\n{}<|im_end|>\n", "<|im_start|>assistant\n"


def over_255(tiles):
    """What its program reads of tiles, uint8 [b, s, s, 3]."""
    return tiles.permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("keys", [{}, {"lm_tie_weights": False}, {"mp_pixel_shuffle_factor": 4}])
def test_a_text_with_a_picture_has_the_logits_of_its_arithmetic(keys, tmp_path):
    if "mp_pixel_shuffle_factor" in keys:
        keys["mp_image_token_length"] = 1
    made = NanoVlm(**keys)
    source, vision = opened(made.save(tmp_path))
    tiles = pictures(2, TILE)
    ours = torch_tower.encoded(vision.architecture, vision, tiles)
    theirs = made.rows(over_255(tiles))
    assert difference(ours, theirs) < BOUND
    table, before, behind = made.embedding(), [5, 9, 17], [33, 8]
    expected = made.logits(torch.cat([table[before], *theirs, table[behind]]))
    count = theirs.shape[0] * theirs.shape[1]
    tokens = torch.tensor([[*before, *[0] * count, *behind]])
    where = torch.zeros_like(tokens, dtype=torch.bool)
    where[0, 3 : 3 + count] = True
    found = torch_decoder.logits(
        source, source.architecture, tokens, pictures=(where, ours.flatten(0, 1))
    )
    assert difference(found[0], expected) < BOUND


def program_size(height, width, enlarge):
    """Its program's rule for the picture that is cut, written anew."""
    long, short = max(height, width), min(height, width)
    target = LONGEST if enlarge else min(LONGEST, TILE * math.ceil(long / TILE))
    other = max(TILE, TILE * math.ceil(short * (target / long) / TILE))
    return (other, target) if width >= height else (target, other)


SIZES = [(1, 1), (3, 500), (40, 26), (211, 300), (26, 26), (78, 52), (20, 79), (90, 30)]


@pytest.mark.parametrize("enlarge", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_tiles_are_those_of_pillow(size, enlarge, tmp_path):
    vision = opened(NanoVlm(resize_to_max_side_len=enlarge).save(tmp_path))[1]
    pixels = photograph(*size)
    tiled = vision.processor.preprocessing.tiles(pixels)
    height, width = program_size(*size, enlarge)
    whole = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    cut = [
        np.asarray(whole.crop((left, top, left + TILE, top + TILE)))
        for top in range(0, height, TILE)
        for left in range(0, width, TILE)
    ]
    if len(cut) == 1:
        assert (tiled.rows, tiled.columns) == (0, 0)
        np.testing.assert_array_equal(tiled.tiles, cut)
        return
    assert (tiled.rows, tiled.columns) == (height // TILE, width // TILE)
    np.testing.assert_array_equal(tiled.tiles[1:], cut)
    # The whole is made in floats by its program, with the widened triangle.
    read = torch.from_numpy(np.asarray(whole).copy()).permute(2, 0, 1)[None].float()
    small = torch.nn.functional.interpolate(
        read, (TILE, TILE), mode="bilinear", antialias=True, align_corners=False
    )
    found = torch.from_numpy(tiled.tiles[0]).permute(2, 0, 1).float()
    assert float((small[0] - found).abs().max()) <= 1.0
    low = vision.processor.preprocessing.tiles(pixels, "low")
    assert low.tiles.shape == (1, TILE, TILE, 3)


def test_bytes_become_numbers_without_mean_and_deviation(tmp_path):
    vision = opened(NanoVlm().save(tmp_path))[1]
    expected = torch.arange(256).float() / 255
    found = vision("v.pixel_values").view(3, 256)
    assert float((found - expected).abs().max()) < 1e-7


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = NanoVlm().save(tmp_path_factory.mktemp("nanovlm"))
    return directory, converted(directory)


@pytest.fixture
def model(checkpoint):
    with Model.open(checkpoint[1], context_length=512) as made:
        yield made


def theirs(tmp_path):
    """The tokenizer as its program makes it with transformers."""
    from transformers import PreTrainedTokenizerFast

    save_tokenizer(tmp_path)
    return PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"), extra_special_tokens=WORDS
    )


def words_of(rows, columns):
    """What stands in a text for a picture of so many tiles, by the published rule."""
    text = "<|global_image|>" + "<|image|>" * ROWS
    for row in range(1, rows + 1):
        for column in range(1, columns + 1):
            text += f"<row_{row}_col_{column}>" + "<|image|>" * ROWS
    return text


def test_ids_are_those_of_its_program(checkpoint, model, tmp_path):
    words = theirs(tmp_path)
    wide, one, tall = picture(20, 30), picture(26, 26), picture(78, 20)
    question = USER.format("what colour ?")
    asked = model.chat(QUESTION, GREEDY).prompt_tokens
    assert asked == words.encode(question + ASSISTANT, add_special_tokens=False)
    said = USER.format(f"{words_of(2, 3)}what colour ?") + ASSISTANT
    found = model.picture_chat(QUESTION, [wide])[1].tokens
    assert found == words.encode(said, add_special_tokens=False)
    several = "".join(
        f"<image: {n}>{words_of(*tiles)}" for n, tiles in enumerate([(2, 3), (3, 3), (3, 1)])
    )
    said = USER.format(f"{several}what colour ?") + ASSISTANT
    found = model.picture_chat(QUESTION, [wide, one, tall])[1].tokens
    assert found == words.encode(said, add_special_tokens=False)
    low = model.pictures.prepare(wide, "low")
    said = USER.format(f"{words_of(0, 0)}what colour ?") + ASSISTANT
    found = model.picture_chat(QUESTION, [low])[1].tokens
    assert found == words.encode(said, add_special_tokens=False)
    assert tokenizer_of(opened(checkpoint[0])[0].checkpoint).eos_ids == (2,)


def test_a_picture_without_a_template_stands_where_the_prompt_says(model):
    prompt = model.picture_prompt("red <|image|> blue", [picture(26, 26)])
    text = "red " + words_of(3, 3) + " blue"
    assert prompt.tokens == model.tokenizer.encode(text, add_bos=False)
    with pytest.raises(InvalidArgumentError, match="1 places for pictures, and 2"):
        model.picture_prompt("red <|image|>", [picture(9, 9)] * 2)


def test_the_runtime_gives_what_the_float_model_gives(checkpoint, model):
    directory, path = checkpoint
    vision = opened(directory)[1]
    prompt = model.picture_chat(QUESTION, [picture(40, 90, 1)])[1]
    shown = prompt.spans[0].picture
    assert len(prompt.spans) == len(shown.tiled.tiles) == 7
    rows = model.pictures.encoded(shown)
    expected_rows = float_rows(path, vision, shown.tiled).reshape(rows.shape)
    assert relative_error(rows, expected_rows) < 0.02
    assert relative_error(last_logits(model, prompt), float_logits(path, prompt, rows)) < 0.03


def test_every_table_and_thread_count_gives_the_same_bits(checkpoint, monkeypatch):
    assert len(bits_of_every_table(checkpoint[1], [picture(60, 97)], 512, monkeypatch)) == 1


def test_the_second_question_costs_no_encoding(model):
    model.chat(QUESTION, GREEDY, images=[picture(40, 90)]).text()
    assert model.pictures.encodings == 7
    second = model.chat(LONGER, GREEDY, images=[picture(40, 90)])
    second.text()
    assert model.pictures.encodings == 7
    assert second.reused_tokens > 7 * ROWS


def test_a_prompt_that_does_not_fit_is_refused_before_anything_is_encoded(model):
    with pytest.raises(ContextFullError):
        model.chat(QUESTION, GREEDY, images=[picture(9, 9)] * 200)
    assert model.pictures.encodings == 0


def test_run_answers_a_question_about_a_picture(command, checkpoint, model, tmp_path, monkeypatch):
    monkeypatch.setenv("AWQ_EDGE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "one.png"
    path.write_bytes(png(picture(60, 97)))
    settings = ("--chat", "-p", "what colour ?", "-n", 4, "--temperature", 0, "--json")
    found = command("run", checkpoint[1], *settings, "--image", path)
    assert found.status == 0, found.err
    expected = model.picture_chat(QUESTION, [picture(60, 97)])[1].tokens
    assert json.loads(found.out)["prompt_tokens"] == len(expected)


def test_a_model_of_the_hub_comes_with_the_tokenizer_that_it_names(tmp_path, monkeypatch):
    import huggingface_hub

    made = NanoVlm().save(tmp_path / "model", tokenizer=False)
    other = tmp_path / "other"
    other.mkdir()
    save_tokenizer(other)
    wanted = []

    def snapshot(model, allow_patterns, ignore_patterns):
        wanted.append((model, allow_patterns))
        return str(made if model == "lusxvr/nanoVLM-460M-8k" else other)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    source = opened("lusxvr/nanoVLM-460M-8k")[0]
    assert [model for model, _ in wanted] == [
        "lusxvr/nanoVLM-460M-8k",
        "HuggingFaceTB/SmolLM2-360M-Instruct",
    ]
    assert not any("safetensors" in pattern for pattern in wanted[1][1])
    assert tokenizer_of(source.checkpoint).encode("<|image|>") == [259]
    with pytest.raises(AwqEdgeError, match="is not a hub id"):
        hub.download_tokenizer("../x")


def of(**keys):
    return lambda directory: change_json(
        directory / "config.json", lambda values: values.update(keys)
    )


def tensors(change):
    return lambda directory: change_tensors(directory / "model.safetensors", change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (of(vlm_extra_tokens=None), "before its pictures had a tile of the whole"),
        (of(vlm_extra_tokens={"image_token": "<|image|>"}), "no global_image_token"),
        (of(vlm_extra_tokens={**WORDS, "image_token": "<i>"}), '"<i>" for image_token'),
        (of(vlm_extra_tokens={**WORDS, "r3c3": None}), "null for r3c3; <row_3_col_3>"),
        (of(max_img_size=26 * 9), "up to 9 rows and columns"),
        (of(max_img_size=77), "no whole number of tiles"),
        (of(max_img_size=0), "Pictures of 0 pixels"),
        (of(vit_cls_flag=True), "vit_cls_flag"),
        (of(lm_attn_scaling=0.5), "lm_attn_scaling"),
        (of(mp_image_token_length=64), "64 for mp_image_token_length, .* becomes 4 rows"),
        (of(mp_pixel_shuffle_factor=3), "no multiple of the mp_pixel_shuffle_factor 3"),
        (of(vit_hidden_dim="x"), 'whole number vit_hidden_dim; it has "x"'),
        (of(lm_hidden_dim=None), "whole number lm_hidden_dim"),
        (
            lambda directory: (
                of(lm_tokenizer=7)(directory),
                (directory / "tokenizer.json").unlink(),
            ),
            "7 for lm_tokenizer",
        ),
        (
            lambda directory: (directory / "tokenizer_config.json").unlink(),
            "no tokenizer_config.json: .* tokenizer of HuggingFaceTB/SmolLM2-360M-Instruct",
        ),
        (
            lambda directory: (directory / "tokenizer.json").unlink(),
            "no tokenizer.json: .* tokenizer of HuggingFaceTB/SmolLM2-360M-Instruct",
        ),
        (tensors(lambda t: t.pop("MP.proj.weight")), "projector.proj.weight"),
        (tensors(lambda t: t.pop("vision_encoder.blocks.1.attn.qkv_proj.bias")), "qkv_proj.bias"),
        (tensors(lambda t: t.update({"MP.proj.bias": torch.zeros(64)})), "projector.proj.bias"),
        (tensors(lambda t: t.pop("decoder.head.weight")), "no tensor .*token_embedding.weight"),
    ],
)
def test_what_is_not_computed_or_missing_is_refused(change, words, tmp_path):
    NanoVlm().save(tmp_path)
    change(tmp_path)
    with pytest.raises(AwqEdgeError, match=words) as raised:
        opened(tmp_path)
    assert "\n" not in str(raised.value)
