"""Models that see pictures as one file: what is in it, and what calibration does for its tower."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import transformers as tf
from PIL import Image
from vision_models import PLACEHOLDER, TEXT, pictures, save, save_tokenizer

from awq_edge import conversion, torch_tower
from awq_edge.calibration import pictures as calibration_pictures
from awq_edge.errors import InvalidArgumentError
from awq_edge.float_model import open_float_model, open_vision_part
from awq_edge.model_file import PackedFile
from awq_edge.vision.preprocessing import Preprocessing


@pytest.fixture(scope="module", params=["llava", "llava_siglip", "smolvlm", "gemma3"])
def checkpoint(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp(request.param)
    save(request.param, directory)
    save_tokenizer(directory)
    return directory


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    directory = tmp_path_factory.mktemp("planted")
    save("llava", directory)
    save_tokenizer(directory)
    return directory


def packed(directory, output, **keys):
    options = conversion.Options(method="rtn", **keys)
    conversion.convert(str(directory), output, options)
    return PackedFile(output)


def tower_of(directory):
    return open_vision_part(open_float_model(str(directory)))[0]


def rows(vision, file, pixels):
    """What the decoder reads, by the float tower with the weights of a file."""

    def weights(name):
        return torch.from_numpy(file.floats(name))

    return torch_tower.encoded(vision.architecture, weights, pixels)


def test_tower_connector_and_decoder_are_in_one_file(checkpoint, tmp_path):
    vision = tower_of(checkpoint)
    file = packed(checkpoint, tmp_path / "model")
    names = vision.tensor_names()
    assert file.names()[-len(names) :] == names
    for name in names:
        shape = vision.shape(name)
        assert file.is_packed(name) == (len(shape) == 2)
        assert file.floats(name).shape == shape
        if len(shape) == 2:
            assert file.layout(name).bits == 8
    entries = file.metadata
    a = vision.architecture
    assert entries["awq_edge.vision.layers"] == a.layers
    assert entries["awq_edge.vision.image_size"] == 26
    assert entries["awq_edge.vision.connector"] == a.connector
    assert ("awq_edge.vision.class_token" in entries) == a.class_token
    assert ("awq_edge.vision.regroup" in entries) == (a.regroup > 1)
    assert entries.get("awq_edge.vision.bidirectional", False) == a.bidirectional
    prompt = json.loads(entries["awq_edge.vision.prompt"])
    assert prompt["placeholder"] == "<image>"
    assert prompt["token"] == PLACEHOLDER
    assert Preprocessing.from_json(entries["awq_edge.vision.preprocessing"]).side == 26


def test_eight_bits_keep_what_the_decoder_reads_of_a_picture(checkpoint, tmp_path):
    vision = tower_of(checkpoint)
    file = packed(checkpoint, tmp_path / "model")
    float_rows = torch_tower.encoded(vision.architecture, vision, pictures(2))
    ours = rows(vision, file, pictures(2))
    assert float((ours - float_rows).norm() / float_rows.norm()) < 0.02


def test_text_alone_is_the_decoder_alone(llava, tmp_path):
    """The same bytes of every decoder's matrix as of its text part, saved as a model of its own."""
    from transformers import LlavaForConditionalGeneration

    whole = LlavaForConditionalGeneration.from_pretrained(llava)
    text = tmp_path / "text"
    state = {f"model.{k}": v for k, v in whole.model.language_model.state_dict().items()}
    state["lm_head.weight"] = whole.lm_head.weight
    from transformers import LlamaForCausalLM

    alone = LlamaForCausalLM(whole.config.text_config)
    alone.load_state_dict(state)
    alone.save_pretrained(text)
    save_tokenizer(text)
    one, other = packed(llava, tmp_path / "one"), packed(text, tmp_path / "other")
    assert one.names()[: len(other.names())] == other.names()
    for name in other.names():
        np.testing.assert_array_equal(one.floats(name), other.floats(name), name)


def planted(directory, count=2, factor=24.0):
    """Outliers that leave the tower's function as it is: norms times, next columns divided."""
    from safetensors.torch import load_file, save_file

    path = directory / "model.safetensors"
    tensors = load_file(path)
    for name in [name for name in tensors if "vision_tower" in name and "layer_norm1" in name]:
        tensors[name][:count] *= factor
        if name.endswith("weight"):
            for matrix in ("q_proj", "k_proj", "v_proj"):
                at = name.replace("layer_norm1", f"self_attn.{matrix}")
                tensors[at][:, :count] /= factor
    save_file(tensors, path, metadata={"format": "pt"})


def test_awq_wins_back_what_rounding_loses_to_outliers_in_a_tower(tmp_path):
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    save("llava", directory)
    save_tokenizer(directory)
    planted(directory)
    vision, pixels = tower_of(directory), pictures(4, seed=9)
    float_rows = torch_tower.encoded(vision.architecture, vision, pixels)
    errors = {}
    for method in ("rtn", "awq"):
        options = conversion.Options(
            method=method, vision_bits=4, group_size=32, samples=2, sequence_length=16
        )
        output = tmp_path / method
        conversion.convert(str(directory), output, options)
        file = PackedFile(output)
        assert file.layout("v.blk.0.attn_q.weight").bits == 4
        assert file.layout("v.patch_embd.weight").bits == 8
        difference = rows(vision, file, pixels) - float_rows
        errors[method] = float(difference.norm() / float_rows.norm())
    assert errors["awq"] < 0.9 * errors["rtn"]


def test_the_folder_of_calibration_pictures_counts(llava, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(2):
        Image.fromarray(pictures(1, 40, number)[0].numpy()).save(folder / f"{number}.png")
    options = conversion.Options(
        method="awq", vision_bits=4, samples=2, sequence_length=16, group_size=32
    )
    digests = []
    for name, images in (("drawn", None), ("own", folder)):
        chosen = dataclasses.replace(options, calibration_images=images)
        conversion.convert(str(llava), tmp_path / name, chosen)
        metadata = PackedFile(tmp_path / name).metadata
        digests.append(metadata["awq_edge.quantization.calibration_images_sha256"])
    assert digests[0] != digests[1]


def test_a_calibration_picture_is_no_output(llava, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    shown = folder / "one.png"
    Image.fromarray(pictures(1, 40)[0].numpy()).save(shown)
    (tmp_path / "hard").hardlink_to(shown)
    before = shown.read_bytes()
    options = conversion.Options(method="rtn", group_size=32, calibration_images=folder)
    for output in (shown, tmp_path / "hard"):
        with pytest.raises(InvalidArgumentError, match="would be overwritten"):
            conversion.convert(str(llava), output, options, force=True)
    assert shown.read_bytes() == before


def test_a_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(InvalidArgumentError, match="holds no picture"):
        calibration_pictures.of_folder(tmp_path)
    with pytest.raises(InvalidArgumentError, match="is no folder"):
        calibration_pictures.of_folder(tmp_path / "nothing")


def test_the_drawn_pictures_are_the_same_everywhere_and_no_two_alike():
    import hashlib

    drawn = calibration_pictures.drawn()
    digests = {hashlib.sha256(one.tobytes()).hexdigest() for one in drawn}
    assert len(digests) == len(drawn) == calibration_pictures.DRAWN
    assert digests == {
        hashlib.sha256(one.tobytes()).hexdigest() for one in calibration_pictures.drawn()
    }


def test_a_tower_that_overflows_is_refused_with_its_layer(tmp_path):
    from awq_edge.errors import UnsupportedError

    directory = tmp_path / "checkpoint"
    directory.mkdir()
    save("llava", directory)
    save_tokenizer(directory)
    planted(directory, count=1, factor=1.0)
    from safetensors.torch import load_file, save_file

    path = directory / "model.safetensors"
    tensors = load_file(path)
    tensors["vision_tower.encoder.layers.1.self_attn.k_proj.bias"] += 1e6
    save_file(tensors, path, metadata={"format": "pt"})
    options = conversion.Options(method="awq", samples=2, sequence_length=16)
    with pytest.raises(UnsupportedError, match="Layer 1 of the tower"):
        conversion.convert(str(directory), tmp_path / "model", options)
    assert not (tmp_path / "model").exists()


def test_mistral_3_becomes_the_text_that_it_holds_and_says_so(tmp_path):
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    tower = tf.PixtralVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    text = tf.MistralConfig(**TEXT)
    config = tf.Mistral3Config(vision_config=tower, text_config=text)
    tf.Mistral3ForConditionalGeneration(config).save_pretrained(directory)
    save_tokenizer(directory)
    said = []
    conversion.convert(
        str(directory),
        tmp_path / "model",
        conversion.Options(method="rtn"),
        events=conversion.Events(message=said.append),
    )
    assert any("text alone" in one and "rows and columns" in one for one in said)
    file = PackedFile(tmp_path / "model")
    assert not [key for key in file.metadata if key.startswith("awq_edge.vision.")]
    assert not [name for name in file.names() if name.startswith(("v.", "mm."))]
