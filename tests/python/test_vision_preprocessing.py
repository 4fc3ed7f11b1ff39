"""What a tower reads of a picture: within one level of transformers' own processors."""

import json

import numpy as np
import pytest
from awq_edge.converters.preprocessor import processor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from vision_models import save
from vision_support import photograph

from awq_edge.errors import (
    AwqEdgeError,
    CheckpointError,
    FileInvalidError,
    InvalidArgumentError,
)
from awq_edge.float_model import open_float_model, open_vision_part
from awq_edge.vision.normalisation import pixel_values
from awq_edge.vision.preprocessing import Preprocessing
from awq_edge.vision.tilings import best_resolution

SIZES = [(1, 1), (23, 237), (26, 28), (64, 48), (100, 75), (75, 100), (386, 386), (300, 100)]
BARE = {"do_rescale": False, "do_normalize": False, "do_convert_rgb": False}
CLIP = {"size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}}
ROWS = {
    "clip": (CLIPImageProcessorPil, CLIP, 48),
    "llava": (LlavaImageProcessorPil, CLIP, 48),
    "llava padded": (
        LlavaImageProcessorPil,
        {**CLIP, "do_pad": True, "image_mean": [0.48145466, 0.4578275, 0.40821073]},
        48,
    ),
    "siglip": (SiglipImageProcessorPil, {"size": {"height": 48, "width": 48}}, 48),
    "gemma3": (
        Gemma3ImageProcessorPil,
        {"size": {"height": 48, "width": 48}, "do_pan_and_scan": False},
        48,
    ),
    "smolvlm": (
        SmolVLMImageProcessorPil,
        {"size": {"longest_edge": 128}, "max_image_size": {"longest_edge": 32}},
        32,
    ),
    "idefics3": (
        Idefics3ImageProcessorPil,
        {"size": {"longest_edge": 84}, "max_image_size": {"longest_edge": 42}},
        42,
    ),
    "idefics3 whole": (
        Idefics3ImageProcessorPil,
        {
            "size": {"longest_edge": 84},
            "max_image_size": {"longest_edge": 42},
            "do_image_splitting": False,
        },
        42,
    ),
}


def theirs(kind, settings, pixels):
    """What the processor gives, bytes [tiles, side, side, 3]."""
    made = kind(**settings, **BARE)
    image = pixels.transpose(2, 0, 1)
    given = made(image, return_tensors="np", input_data_format="channels_first")["pixel_values"]
    given = np.asarray(given).reshape(-1, *np.asarray(given).shape[-3:])
    return given.transpose(0, 2, 3, 1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("row", ROWS)
def test_within_one_level_of_the_processor(row, size):
    kind, settings, side = ROWS[row]
    name = kind.__name__.removesuffix("Pil")
    made = processor({"image_processor_type": name, **settings}, row, side, where="test")
    pixels = photograph(*size)
    ours = made.preprocessing.tiles(pixels).tiles
    expected = theirs(kind, settings, pixels)
    assert ours.shape == expected.shape
    assert np.abs(ours.astype(float) - expected).max() <= 1


@pytest.mark.parametrize("size", SIZES)
def test_any_resolution_is_within_one_level_of_llava_next(size):
    pinpoints = [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]]
    settings = {
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 32, "width": 32},
        "image_grid_pinpoints": pinpoints,
    }
    pixels = photograph(*size)
    sizes = tuple(tuple(one) for one in pinpoints)
    ours = Preprocessing("any_resolution", 32, sizes=sizes).tiles(pixels)
    expected = theirs(LlavaNextImageProcessorPil, settings, pixels)
    assert ours.tiles.shape == expected.shape
    assert np.abs(ours.tiles.astype(float) - expected).max() <= 1
    assert len(ours.tiles) == 1 + ours.rows * ours.columns


def test_the_sizes_of_the_reference_are_those_that_are_chosen():
    """vision.md, 2.4: counted by hand from the published rule."""
    sizes = [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]
    assert best_resolution(480, 640, sizes) == (672, 672)
    assert best_resolution(300, 1000, sizes) == (336, 1008)
    assert best_resolution(1000, 300, sizes) == (1008, 336)


@pytest.mark.parametrize(("size", "tiles"), [((75, 100), 13), ((386, 386), 17), ((300, 1000), 9)])
def test_smolvlm_makes_as_many_tiles_as_is_known(size, tiles):
    made = Preprocessing("rows_and_columns", 512, "lanczos", longest_edge=2048)
    tiled = made.tiles(np.zeros((*size, 3), dtype=np.uint8))
    assert len(tiled.tiles) == tiles == tiled.rows * tiled.columns + 1
    assert len(made.tiles(np.zeros((*size, 3), dtype=np.uint8), "low").tiles) == 1


def test_every_byte_has_the_number_that_the_processor_gives_it():
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    made = CLIPImageProcessorPil(
        do_resize=False, do_center_crop=False, image_mean=mean, image_std=std
    )
    ramp = np.tile(np.arange(256, dtype=np.uint8), (3, 2, 1))
    given = made(ramp, return_tensors="np", input_data_format="channels_first")["pixel_values"]
    np.testing.assert_array_equal(np.asarray(given)[0][:, 0], pixel_values(mean, std))


def test_a_record_is_read_back_as_it_was_written():
    for made in (
        Preprocessing("crop", 48, shortest_edge=50),
        Preprocessing("pad", 48, "lanczos", background=(122, 116, 104)),
        Preprocessing("rows_and_columns", 32, "lanczos", longest_edge=128, split=False),
        Preprocessing("any_resolution", 32, sizes=((32, 64), (64, 32))),
    ):
        assert Preprocessing.from_json(made.to_json()) == made


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "[]",
        '{"way": "crop"}',
        '{"way": "melt", "side": 4}',
        '{"way": "squash", "side": "4"}',
        '{"way": "squash", "side": true}',
        '{"way": "squash", "side": 0}',
        '{"way": "squash", "side": 4, "filter": "nearest"}',
        '{"way": "squash", "side": 4, "other": 1}',
        '{"way": "pad", "side": 4, "background": [1, 2]}',
        '{"way": "any_resolution", "side": 4, "sizes": [[6, 4]]}',
        '{"way": "any_resolution", "side": 4}',
        "[" * 5000,
    ],
)
def test_a_damaged_record_is_refused(text):
    with pytest.raises(FileInvalidError, match=r"awq_edge\.vision\.preprocessing"):
        Preprocessing.from_json(text)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_processor_type": "PixtralImageProcessor"}, "PixtralImageProcessor"),
        ({"image_processor_type": None}, "null"),
        ({"image_processor_type": "Gemma3ImageProcessor", "do_pan_and_scan": True}, "pan_and_scan"),
        ({"resample": 0}, "filter 0"),
        ({"do_resize": False}, "does not resize"),
        ({"size": {"shortest_edge": 47}, "crop_size": 47}, "47 pixels"),
        ({"do_center_crop": False}, "no squares"),
        ({"image_std": [1, 0, 1]}, "deviation of 0"),
        ({"image_mean": [1, 0]}, "three numbers"),
        ({"size": "large"}, "no size"),
    ],
)
def test_processors_that_are_not_ours_are_refused(change, words):
    settings = {"image_processor_type": "CLIPImageProcessor", **CLIP, **change}
    with pytest.raises(AwqEdgeError, match=words):
        processor(settings, "llava", 48, where="test")


def test_spellings_of_older_files_are_read():
    old = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 48, "crop_size": 48}
    new = {"image_processor_type": "CLIPImageProcessorFast", **CLIP}
    made = [processor(settings, "llava", 48, where="test") for settings in (old, new)]
    assert made[0] == made[1]
    assert json.loads(made[0].preprocessing.to_json())["shortest_edge"] == 48


def test_an_unknown_detail_is_refused():
    with pytest.raises(InvalidArgumentError, match="low, high"):
        Preprocessing("squash", 4).tiles(np.zeros((2, 2, 3), dtype=np.uint8), "middle")


def test_of_two_files_that_say_how_pictures_are_prepared_the_older_kind_counts(tmp_path):
    save("smolvlm", tmp_path)
    older = tmp_path / "preprocessor_config.json"
    table = json.loads(older.read_text(encoding="utf-8"))
    newer = {"image_processor": {**table, "do_image_splitting": False, "resample": 3}}
    (tmp_path / "processor_config.json").write_text(json.dumps(newer), encoding="utf-8")

    def said():
        part = open_vision_part(open_float_model(str(tmp_path)))[0]
        return part.processor.preprocessing

    both = said()
    assert (both.filter, both.split) == ("bicubic", False)  # what the older one leaves open
    older.write_text(json.dumps({**table, "resample": 2}), encoding="utf-8")
    assert (said().filter, said().split) == ("bilinear", False)
    older.unlink()
    assert said().filter == "bicubic"
    (tmp_path / "processor_config.json").unlink()
    with pytest.raises(CheckpointError, match="holds no preprocessor_config"):
        said()
