"""The float tower, its connector and whole models with pictures, against transformers."""

import json

import numpy as np
import pytest
import torch
from awq_edge.converters.vision_part import bucketed_positions, vision_part
from vision_models import PLACEHOLDER, ROWS, TOWER, make, pictures, save
from vision_support import BOUND, change_tensors, difference, normalised

from awq_edge import torch_decoder, torch_tower
from awq_edge.checkpoints import open_checkpoint
from awq_edge.checkpoints.vision_tensors import VisionTensors
from awq_edge.errors import CheckpointError, UnsupportedError
from awq_edge.float_model import open_float_model, open_vision_part


@pytest.fixture(params=ROWS)
def opened(request, tmp_path):
    model = save(request.param, tmp_path)
    source = open_float_model(str(tmp_path))
    checkpoint = source.checkpoint.vision
    part = vision_part(checkpoint.config, source.architecture.hidden_size)
    return request.param, model, source, VisionTensors(checkpoint, part)


def features(name, model, read):
    """What transformers' model gives its decoder of pictures, [b, tokens, H]."""
    inner = model.model
    if name in ("smolvlm", "idefics3"):
        given = inner.get_image_features(read[None].float())
    else:
        given = inner.get_image_features(pixel_values=read.float())
    given = getattr(given, "pooler_output", given)
    return torch.stack(list(given)).reshape(len(read), -1, given[0].shape[-1])


def test_pictures_become_the_rows_that_transformers_makes_of_them(opened):
    name, model, _, vision = opened
    pixels = pictures(2)
    ours = torch_tower.encoded(vision.architecture, vision, pixels)
    assert ours.shape[1] == vision.architecture.tokens
    with torch.no_grad():
        assert difference(ours, features(name, model, normalised(vision, pixels))) < BOUND


def test_every_hidden_state_is_that_of_transformers(opened):
    name, model, _, vision = opened
    a, pixels = vision.architecture, pictures(1, seed=3)
    inner = model.model
    tower = inner.vision_model if name in ("smolvlm", "idefics3") else inner.vision_tower
    with torch.no_grad():
        theirs = tower(
            pixel_values=normalised(vision, pixels).float(), output_hidden_states=True
        ).hidden_states
    stream = torch_tower.embedded(
        a, vision, torch_tower.patches(a, vision("v.pixel_values"), pixels)
    )
    for number in range(a.layers):
        assert difference(stream, theirs[number]) < BOUND
        weights = torch_tower.layer_weights(a, vision, number)
        positions = torch_tower.positions_of(a, vision, number, (a.grid, a.grid))
        stream = torch_tower.layer(a, number, weights, positions).run(stream)


def test_a_text_with_a_picture_has_the_logits_of_transformers(opened):
    name, model, source, vision = opened
    pixels = pictures(2, seed=5)
    of_picture = [PLACEHOLDER] * vision.architecture.tokens
    tokens = torch.tensor([[5, 9, *of_picture, 17, 4, *of_picture, 33]])
    rows = torch_tower.encoded(vision.architecture, vision, pixels).flatten(0, 1)
    where, a = tokens == PLACEHOLDER, source.architecture
    both_ways = vision.architecture.bidirectional
    ours = torch_decoder.logits(source, a, tokens, pictures=(where, rows), both_ways=both_ways)
    read = normalised(vision, pixels).float()
    read = read[None] if name in ("smolvlm", "idefics3") else read
    types = {"token_type_ids": where.long()} if name == "gemma3" else {}
    with torch.no_grad():
        theirs = model(input_ids=tokens, pixel_values=read, **types).logits
    assert difference(ours, theirs) < BOUND
    if both_ways:
        forwards = torch_decoder.logits(source, a, tokens, pictures=(where, rows))
        assert difference(forwards, theirs) > 0.01


def test_another_picture_gives_other_rows(opened):
    vision = opened[3]
    first, second = (
        torch_tower.encoded(vision.architecture, vision, pictures(1, seed=seed)) for seed in (1, 2)
    )
    assert difference(first, second) > 0.01


@pytest.mark.parametrize("side", [4, 10, 14, 16, 24, 26, 27, 28, 32, 70])
def test_positions_of_a_whole_tile_are_those_of_transformers(side):
    from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig
    from transformers.models.smolvlm.modeling_smolvlm import SmolVLMVisionEmbeddings

    config = SmolVLMVisionConfig(
        hidden_size=1, image_size=side * 2, patch_size=2, num_attention_heads=1
    )
    embeddings = SmolVLMVisionEmbeddings(config)
    with torch.no_grad():
        embeddings.patch_embedding.weight.zero_()
        embeddings.patch_embedding.bias.zero_()
        embeddings.position_embedding.weight[:, 0] = torch.arange(side * side)
        mask = torch.ones(1, side, side, dtype=torch.bool)
        found = embeddings(torch.zeros(1, 3, side * 2, side * 2), mask)[0, :, 0]
    np.testing.assert_array_equal(bucketed_positions(side), found.long().numpy())


def test_a_tower_of_which_a_tensor_is_missing_is_refused_by_its_name(tmp_path):
    save("llava", tmp_path)
    name = "vision_tower.encoder.layers.1.mlp.fc1.weight"
    change_tensors(tmp_path / "model.safetensors", lambda tensors: tensors.pop(name))
    with pytest.raises(CheckpointError, match=r"tower.encoder.layers.1.mlp.fc1.weight"):
        open_vision_part(open_float_model(str(tmp_path)))


def test_a_connector_of_which_a_tensor_is_too_many_is_refused_by_its_name(tmp_path):
    save("llava", tmp_path)
    extra = {"multi_modal_projector.linear_3.weight": torch.zeros(2, 2)}
    change_tensors(tmp_path / "model.safetensors", lambda tensors: tensors.update(extra))
    with pytest.raises(CheckpointError, match=r"projector.linear_3.weight"):
        open_vision_part(open_float_model(str(tmp_path)))


def test_layers_behind_the_one_that_is_read_may_be_there_or_not(tmp_path):
    save("llava", tmp_path)

    def cut(tensors):
        for name in [name for name in tensors if ".layers.2." in name and "vision" in name]:
            del tensors[name]

    whole = open_vision_part(open_float_model(str(tmp_path)))[0]
    before = torch_tower.encoded(whole.architecture, whole, pictures(1))
    change_tensors(tmp_path / "model.safetensors", cut)
    part = open_vision_part(open_float_model(str(tmp_path)))[0]
    assert part.architecture.layers == TOWER["num_hidden_layers"] - 1
    assert torch.equal(torch_tower.encoded(part.architecture, part, pictures(1)), before)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"vision_feature_layer": [-2, -1]}, "vision_feature_layer is a list"),
        ({"vision_feature_select_strategy": "full"}, "strategy"),
        ({"vision_feature_layer": -9}, "3 layers"),
    ],
)
def test_forms_that_are_not_computed_are_refused(tmp_path, keys, words):
    save("llava", tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))
    with pytest.raises((CheckpointError, UnsupportedError), match=words):
        open_vision_part(open_float_model(str(tmp_path)))


def test_without_a_word_on_how_pictures_are_prepared_nothing_is_guessed(tmp_path):
    make("llava").save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json"):
        open_vision_part(open_float_model(str(tmp_path)))
    assert open_checkpoint(str(tmp_path)).vision is not None
