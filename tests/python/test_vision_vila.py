"""VILA 1.5: against its parts' own classes, as one file, and in use."""

import json

import numpy as np
import pytest
import sentencepiece
import torch
from PIL import Image
from vila_models import Vila
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
    normalised,
    opened,
    picture,
    png,
    relative_error,
)

from awq_edge import Model, torch_decoder, torch_tower
from awq_edge.chat import chat_prompt
from awq_edge.checkpoints import hub
from awq_edge.errors import AwqEdgeError, ContextFullError, InvalidArgumentError
from awq_edge.hf_tokenizer import tokenizer_of
from awq_edge.vision.resize import resized

KINDS = [
    ("mlp_downsample", "siglip"),
    ("mlp2x_gelu", "siglip"),
    ("mlp2x_gelu", "clip"),
    ("linear", "clip"),
]
ROWS = 4  # of 4 x 4 patches


@pytest.mark.parametrize(("kind", "tower"), KINDS)
def test_a_text_with_pictures_has_the_logits_of_its_parts_classes(kind, tower, tmp_path):
    made = Vila(kind, tower)
    source, vision = opened(made.save(tmp_path))
    pixels = pictures(2)
    ours = torch_tower.encoded(vision.architecture, vision, pixels)
    theirs = made.rows(normalised(vision, pixels))
    assert difference(ours, theirs) < BOUND
    before, behind = torch.tensor([[5, 9, 17]]), torch.tensor([[33, 8]])
    embed = made.llm.get_input_embeddings()
    with torch.no_grad():
        embedded = torch.cat([embed(before), *theirs[:, None], embed(behind)], dim=1)
        expected = made.llm(inputs_embeds=embedded).logits
    count = theirs.shape[0] * theirs.shape[1]
    tokens = torch.cat([before, torch.zeros(1, count, dtype=torch.long), behind], dim=1)
    where = torch.zeros_like(tokens, dtype=torch.bool)
    where[0, 3 : 3 + count] = True
    found = torch_decoder.logits(
        source, source.architecture, tokens, pictures=(where, ours.flatten(0, 1))
    )
    assert difference(found, expected) < BOUND


def test_squares_of_patches_leave_column_by_column(tmp_path):
    made = Vila()
    _, vision = opened(made.save(tmp_path))
    rows = torch_tower.encoded(vision.architecture, vision, pictures(1))[0]
    turned = rows.view(2, 2, -1).transpose(0, 1).reshape(rows.shape)
    expected = made.rows(normalised(vision, pictures(1)))[0]
    assert difference(rows, expected) < BOUND
    assert difference(turned, expected) > 0.01


@pytest.mark.parametrize("side", [24, 26, 30])
def test_an_odd_number_of_patches_on_a_side_is_filled_with_zeros(side, tmp_path):
    made = Vila()
    grid = side // 6
    made.tower.config.image_size = side
    table = torch.nn.Embedding(grid * grid, 48)
    torch.nn.init.normal_(table.weight, 0, 0.5)
    embeddings = made.tower.embeddings if hasattr(made.tower, "embeddings") else None
    embeddings = embeddings or made.tower.vision_model.embeddings
    embeddings.position_embedding = table
    embeddings.image_size, embeddings.num_patches = side, grid * grid
    embeddings.num_positions = grid * grid
    embeddings.position_ids = torch.arange(grid * grid)[None]
    made.save(tmp_path)
    place = tmp_path / "vision_tower" / "preprocessor_config.json"
    change_json(place, lambda values: values.update(size={"height": side, "width": side}))
    _, vision = opened(tmp_path)
    pixels = pictures(1, side)
    ours = torch_tower.encoded(vision.architecture, vision, pixels)
    assert ours.shape[1] == vision.architecture.tokens == (-(-grid // 2)) ** 2
    assert difference(ours, made.rows(normalised(vision, pixels))) < BOUND


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (40, 26), (211, 300), (26, 26)])
def test_pixels_are_those_of_pillow(size, tmp_path):
    vision = opened(Vila().save(tmp_path))[1]
    pixels = picture(*size)
    tile = vision.processor.preprocessing.tiles(pixels).tiles[0]
    np.testing.assert_array_equal(tile, np.asarray(Image.fromarray(pixels).resize((26, 26))))
    np.testing.assert_allclose(vision.processor.mean, 0.5)


def test_other_ways_to_prepare_pictures(tmp_path):
    ways = {}
    for aspect in ("resize", "pad", None):
        directory = tmp_path / str(aspect)
        vision = opened(Vila("linear", "clip").save(directory, image_aspect_ratio=aspect))[1]
        ways[aspect] = vision.processor.preprocessing
    assert [ways[aspect].way for aspect in ways] == ["squash", "pad", "crop"]
    pixels = picture(20, 40)
    canvas = Image.new("RGB", (40, 40), (122, 116, 104))
    canvas.paste(Image.fromarray(pixels), (0, 10))
    np.testing.assert_array_equal(
        ways["pad"].tiles(pixels).tiles[0], resized(np.asarray(canvas), 26, 26, "bicubic")
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = Vila(max_position_embeddings=512).save(tmp_path_factory.mktemp("vila"))
    return directory, converted(directory)


@pytest.fixture
def model(checkpoint):
    with Model.open(checkpoint[1], context_length=512) as made:
        yield made


def pieces(checkpoint):
    return sentencepiece.SentencePieceProcessor(
        model_file=str(checkpoint[0] / "llm/tokenizer.model")
    )


def spoken(question, pictures_shown):
    """What VILA's program writes for a first question, by its published rule."""
    return (
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions. USER: "
        + "<image>\n" * pictures_shown
        + question
        + " ASSISTANT:"
    )


@pytest.mark.parametrize("count", [0, 1, 2])
def test_ids_are_those_of_texts_that_are_tokenised_one_by_one(checkpoint, model, count):
    words = pieces(checkpoint)
    shown = [picture(20, 30, seed) for seed in range(count)]
    place = model.pictures.rules.token
    first, *others = spoken("what colour ?", count).split("<image>")
    expected = [words.bos_id(), *words.encode(first)]
    for text in others:
        expected += [*[place] * ROWS, *words.encode(text)]
    if count:
        assert model.picture_chat(QUESTION, shown)[1].tokens == expected
    else:
        assert model.chat(QUESTION, GREEDY).prompt_tokens == expected
    assert place == words.get_piece_size()  # the next one: of no row of the embedding's


def test_a_picture_without_a_template_stands_where_the_prompt_says(checkpoint, model):
    words = pieces(checkpoint)
    prompt = model.picture_prompt("red <image> blue <image>", [picture(9, 9), picture(5, 2)])
    rows = [model.pictures.rules.token] * ROWS
    ids = [words.bos_id(), *words.encode("red "), *rows, *words.encode(" blue "), *rows]
    assert prompt.tokens == ids
    with pytest.raises(InvalidArgumentError, match="1 places for pictures, and 2"):
        model.picture_prompt("red <image>", [picture(9, 9)] * 2)


def test_a_placeholder_that_a_user_types_stays_text(model):
    typed = [{"role": "user", "content": "what is <image> ?"}]
    place = model.pictures.rules.token
    assert place not in model.chat(typed, GREEDY).prompt_tokens
    assert model.picture_chat(typed, [picture(9, 9)])[1].tokens.count(place) == ROWS


def test_a_conversation_is_written_as_its_program_does(tmp_path):
    first = tokenizer_of(opened(Vila().save(tmp_path / "vicuna"))[0].checkpoint)
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    vicuna = chat_prompt(first.to_metadata(), first.runtime, turns)
    assert vicuna == f"<s> {spoken('a', 0)} b</s>USER: c ASSISTANT:"
    other = Vila(vocab_size=300, eos_token_id=257)
    second = tokenizer_of(opened(other.save(tmp_path / "l3", "llama3"))[0].checkpoint)
    head = "<|start_header_id|>{}<|end_header_id|>\n\n"
    said = (
        f"<|begin_of_text|>{head.format('system')}You are a helpful language and vision assistant. "
        "You are able to understand the visual content that the user provides, and assist the "
        "user with a variety of tasks using natural language.<|eot_id|>"
        f"{head.format('user')}a<|eot_id|>{head.format('assistant')}b<|eot_id|>"
        f"{head.format('user')}c<|eot_id|>{head.format('assistant')}"
    )
    runtime = second.runtime
    assert chat_prompt(second.to_metadata(), runtime, turns) == said
    assert [runtime.token_text(token) for token in second.eos_ids] == [
        "<|end_of_text|>",
        "<|eot_id|>",
    ]


def test_the_runtime_gives_what_the_float_model_gives(checkpoint, model):
    directory, path = checkpoint
    vision = opened(directory)[1]
    prompt = model.picture_chat(QUESTION, [picture(40, 90, 1), picture(5, 2, 2)])[1]
    rows = []
    for span in prompt.spans:
        found = model.pictures.encoded(span.picture)
        assert relative_error(found, float_rows(path, vision, span.picture.tiled)[0]) < 0.02
        rows.append(found)
    expected = float_logits(path, prompt, np.concatenate(rows))
    assert relative_error(last_logits(model, prompt), expected) < 0.03


def test_every_table_and_thread_count_gives_the_same_bits(checkpoint, monkeypatch):
    assert len(bits_of_every_table(checkpoint[1], [picture(60, 97)], 512, monkeypatch)) == 1


def test_the_second_question_costs_no_encoding_and_another_picture_one(model):
    model.chat(QUESTION, GREEDY, images=[picture(40, 90)]).text()
    second = model.chat(LONGER, GREEDY, images=[picture(40, 90)])
    second.text()
    assert model.pictures.encodings == 1
    assert second.reused_tokens > ROWS
    model.chat(QUESTION, GREEDY, images=[picture(40, 90, 1)]).text()
    assert model.pictures.encodings == 2


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


def of(file, **keys):
    return lambda directory: change_json(directory / file, lambda values: values.update(keys))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (of("config.json", s2=True), "several sizes"),
        (of("config.json", dynamic_s2=True), "dynamic_s2"),
        (of("config.json", mm_use_im_start_end=True), "mm_use_im_start_end"),
        (of("config.json", mm_vision_select_feature="patch"), "cls_patch is supported"),
        (of("config.json", mm_vision_select_layer=[-2]), "mm_vision_select_layer is a list"),
        (of("config.json", image_aspect_ratio="dynamic"), "resize and pad"),
        (of("config.json", image_aspect_ratio=["pad"]), "resize and pad"),
        (of("mm_projector/config.json", mm_projector_type="identity"), "The connector"),
        (of("vision_tower/config.json", model_type="intern_vit_6b"), "intern_vit_6b"),
        (of("llm/config.json", model_type="gemma"), "gemma"),
        (
            lambda directory: (directory / "mm_projector" / "config.json").unlink(),
            "mm_projector/config.json is missing",
        ),
        (
            lambda directory: (directory / "vision_tower" / "preprocessor_config.json").unlink(),
            "vision_tower holds no preprocessor_config",
        ),
        (
            lambda directory: change_tensors(
                directory / "mm_projector" / "model.safetensors",
                lambda tensors: tensors.pop("layers.1.bias"),
            ),
            "projector.layers.1.bias",
        ),
        (
            lambda directory: change_tensors(
                directory / "mm_projector" / "model.safetensors",
                lambda tensors: tensors.update({"layers.6.weight": torch.zeros(2, 2)}),
            ),
            "projector.layers.6.weight",
        ),
    ],
)
def test_what_is_not_computed_or_missing_is_refused(change, words, tmp_path):
    Vila().save(tmp_path)
    change(tmp_path)
    with pytest.raises(AwqEdgeError, match=words):
        opened(tmp_path)


def test_no_output_takes_the_place_of_a_file_in_a_folder(tmp_path):
    checkpoint = opened(Vila().save(tmp_path))[0].checkpoint
    kept = {path.relative_to(tmp_path).as_posix() for path in checkpoint.files()}
    assert {"config.json", "llm/tokenizer.model", "mm_projector/model.safetensors"} <= kept
    before = checkpoint.identity()
    change_json(tmp_path / "vision_tower" / "preprocessor_config.json", lambda v: v.update(a=1))
    assert opened(tmp_path)[0].checkpoint.identity() != before


def test_a_model_of_the_hub_comes_with_its_folders(tmp_path, monkeypatch):
    import huggingface_hub

    wanted = []

    def snapshot(model, allow_patterns, ignore_patterns):
        wanted.append((allow_patterns, ignore_patterns))
        (tmp_path / "config.json").write_text('{"model_type": "llava_llama"}', encoding="utf-8")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert hub.download("somebody/vila") == tmp_path
    (_, others), (folders, none) = wanted
    assert "*/*" in others
    assert none == []
    for file in ("llm/*.safetensors", "vision_tower/*.json", "mm_projector/*.safetensors"):
        assert file in folders
