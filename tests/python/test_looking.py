"""Decoders that look at pictures: against transformers, as one file, and in use."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from cross_models import (
    ROWS,
    SIDE,
    make,
    save,
    save_tokenizer,
    seen_pictures,
)
from PIL import Image
from vision_models import PLACEHOLDER, WORDS, pictures
from vision_support import BOUND, change_tensors, difference, normalised, opened

from awq_edge import Model, conversion, torch_decoder, torch_tower
from awq_edge.errors import CheckpointError, InvalidArgumentError, UnsupportedError
from awq_edge.generation import GenerationConfig
from awq_edge.model_file import PackedFile
from awq_edge.torch_decoder import LookedAt

GREEDY = GenerationConfig(max_tokens=5, temperature=0.0)
# A text before the first picture, two pictures, an end of the text, a third picture.
TOKENS = [5, 9, 100, 17, 4, 100, 33, 20, 2, 21, 8, 100, 40]


def mask_of(seen, count):
    """As transformers' models take it, [1, t, pictures]."""
    seen = torch.tensor([seen])
    return (seen[..., None] == torch.arange(count)).long()


@pytest.mark.parametrize("row", ROWS)
def test_texts_with_pictures_have_the_logits_of_transformers(row, tmp_path):
    model = save(row, tmp_path)
    source, vision = opened(tmp_path)
    pixels, seen = pictures(3, SIDE), seen_pictures(TOKENS)
    assert seen == [-1, -1, 0, 0, 0, 1, 1, 1, 1, -1, -1, 2, 2]
    rows = torch_tower.encoded(vision.architecture, vision, pixels)
    looked_at = LookedAt.of_rows(source.architecture.cross, rows, torch.tensor(seen))
    tokens = torch.tensor([TOKENS])
    ours = torch_decoder.logits(source, source.architecture, tokens, looked_at=looked_at)
    with torch.no_grad():
        theirs = model(
            input_ids=tokens,
            pixel_values=normalised(vision, pixels)[None],
            image_attention_mask=mask_of(seen, 3),
        ).logits
    assert difference(ours, theirs) < BOUND
    blind = torch_decoder.logits(source, source.architecture, tokens)
    assert difference(blind[:, :2], theirs[:, :2]) < BOUND  # nothing was seen yet
    assert difference(blind[:, 2:], theirs[:, 2:]) > 0.01


def test_a_text_without_pictures_has_the_logits_of_transformers(tmp_path):
    model = save("a resampler", tmp_path)
    source, vision = opened(tmp_path)
    tokens = torch.tensor([[5, 9, 17, 4, 33]])
    with torch.no_grad():
        theirs = model(
            input_ids=tokens,
            pixel_values=normalised(vision, pictures(1, SIDE))[None],
            image_attention_mask=torch.zeros(1, 5, 1, dtype=torch.long),
        ).logits
    assert difference(torch_decoder.logits(source, source.architecture, tokens), theirs) < BOUND


def test_which_picture_a_token_sees_is_what_the_processor_of_transformers_says():
    from transformers.models.idefics.processing_idefics import (
        image_attention_mask_for_packed_input_ids,
    )

    class Words:
        eos_token_id = 2

        def convert_tokens_to_ids(self, word):
            return PLACEHOLDER

    theirs, _ = image_attention_mask_for_packed_input_ids(torch.tensor([TOKENS]), Words(), "pt")
    assert theirs[0].tolist() == seen_pictures(TOKENS)


@pytest.mark.parametrize(
    "name",
    [
        "model.gated_cross_attn_layers.1.alpha_dense",
        "model.gated_cross_attn_layers.0.cross_attn.o_proj.weight",
        "model.gated_cross_attn_layers.1.cross_attn.k_proj.weight",
        "model.perceiver_resampler.latents",
        "model.perceiver_resampler.blocks.1.1.fc.weight",
    ],
)
def test_what_is_missing_is_named(name, tmp_path):
    save("a resampler", tmp_path)
    change_tensors(tmp_path / "model.safetensors", lambda tensors: tensors.pop(name))
    with pytest.raises(CheckpointError, match=name.split("layers.")[-1].split("resampler.")[-1]):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"cross_layer_interval": 3}, "cross_layer_interval"),
        ({"num_attention_heads": 6}, "6 heads"),
        ({"hidden_act": "gelu"}, "only silu is"),
    ],
)
def test_forms_that_are_not_computed_are_refused(keys, words, tmp_path):
    save("a resampler", tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))
    with pytest.raises((CheckpointError, UnsupportedError), match=words):
        opened(tmp_path)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    directory = tmp_path_factory.mktemp("looking")
    save("norms of queries and keys, gates of their own", directory)
    save_tokenizer(directory)
    path = directory / "model.awq.gguf"
    options = conversion.Options(method="rtn", bits=8, group_size=32)
    conversion.convert(str(directory), path, options)
    return directory, path


@pytest.fixture
def model(converted):
    with Model.open(converted[1], context_length=128) as made:
        yield made


def picture(seed=0):
    return pictures(1, 40, seed)[0].numpy()


def test_everything_is_in_one_file(converted):
    source, vision = opened(converted[0])
    file = PackedFile(converted[1])
    assert file.names() == [*source.tensor_names(), *vision.tensor_names()]
    kept, whole = file.architecture.cross, source.architecture.cross
    assert (kept.layers, kept.heads, kept.qk_norm) == (whole.layers, whole.heads, True)
    assert kept.norm_epsilon == np.float32(whole.norm_epsilon)
    entries = file.metadata
    assert entries["awq_edge.vision.connector"] == "cross"
    assert entries["awq_edge.vision.resampler.rows"] == 5
    prompt = json.loads(entries["awq_edge.vision.prompt"])
    assert prompt == {
        "token": PLACEHOLDER,
        "placeholder": "<image>",
        "layout": "around",
        "ends": 2,
    }


def logits_of(path, tokens, rows, seen):
    """Behind the last token, by the float decoder with a file's weights."""
    file = PackedFile(path)

    def weights(name):
        return torch.from_numpy(file.floats(name))

    looked_at = LookedAt.of_rows(file.architecture.cross, rows, torch.tensor(seen))
    ids = torch.tensor([tokens])
    made = torch_decoder.logits(weights, file.architecture, ids, looked_at=looked_at)
    return made[0, -1].numpy()


def test_a_prompt_with_several_pictures_has_the_logits_of_the_float_decoder(converted, model):
    shown = [picture(seed) for seed in (1, 2, 3)]
    text = "what <image> is red </s> the thing <image><image> blue"
    prompt = model.picture_prompt(text, shown)
    around = model.tokenizer.encode("<fake_token_around_image>", add_bos=False)[0]
    assert prompt.tokens.count(PLACEHOLDER) == 3
    assert prompt.tokens.count(around) == 5  # the two neighbours share one
    prepared = [model.pictures.prepare(one) for one in shown]
    rows = torch.from_numpy(np.stack([model.pictures.encoded(one) for one in prepared]))
    expected = logits_of(converted[1], prompt.tokens, rows, seen_pictures(prompt.tokens))
    with model.session() as session:
        session.generate(prompt, GREEDY).start()
        found = session.last_logits()
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 0.03
    swapped = model.picture_prompt(text, [shown[0], shown[2], shown[1]])
    with model.session() as session:
        session.generate(swapped, GREEDY).start()
        other = session.last_logits()
    assert np.linalg.norm(found - other) / np.linalg.norm(found) > 1e-3


def test_a_second_question_encodes_nothing_and_reads_what_is_new(model):
    first = picture(4)
    text = "<image> what colour ?"
    answer = model.generate(text, GREEDY, images=[first]).text()
    assert model.pictures.encodings == 1
    longer = text + answer + " the thing <image> what"
    again = model.generate(longer, GREEDY, images=[first, picture(5)])
    again.start()
    assert model.pictures.encodings == 2
    assert again.reused_tokens > 0
    with model.session() as session:
        anew = session.generate(model.picture_prompt(longer, [first, picture(5)]), GREEDY)
        assert anew.text() == again.text()
    # The same words with another picture share what stands before it.
    other = model.generate(longer, GREEDY, images=[picture(6), picture(5)])
    other.start()
    assert other.reused_tokens <= other.prompt_tokens.index(PLACEHOLDER)
    # What a person types is text, and a text alone forgets the pictures.
    typed = model.generate("<image> what colour ?", GREEDY)
    typed.start()
    assert PLACEHOLDER not in typed.prompt_tokens


def test_numbers_of_pictures_and_places_must_agree(model):
    with pytest.raises(InvalidArgumentError, match="2 places for pictures, and 1 pictures"):
        model.picture_prompt("<image> and <image>", [picture()])


def test_pictures_are_counted_in_the_memory(model):
    vision = model.native.vision()
    assert vision.session_bytes >= 2 * vision.tokens * vision.embedding_size > 0
    with model.session() as session:
        with pytest.raises(InvalidArgumentError, match="shape"):
            session.look_at(np.zeros((3, 4), np.float32))
        session.look_at(model.pictures.encoded(model.pictures.prepare(picture())))
        session.evaluate([5, 6])
        with pytest.raises(UnsupportedError, match="not saved"):
            session.save()


def test_the_command_line_shows_several_pictures(converted, tmp_path):
    def run(*arguments):
        command = [sys.executable, "-m", "awq_edge.cli.main", *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    paths = []
    for seed in (1, 2):
        paths.append(tmp_path / f"{seed}.png")
        Image.fromarray(picture(seed)).save(paths[-1])
    images = [part for path in paths for part in ("--image", str(path))]
    prompt = ("-p", "<image> red <image> blue", "--max-tokens", "3", "--temperature", "0")
    done = run("run", str(converted[1]), *prompt, "--json", *images)
    assert done.returncode == 0, done.stderr
    with Model.open(converted[1]) as model:
        shown = [picture(1), picture(2)]
        config = GenerationConfig(max_tokens=3, temperature=0.0)
        expected = model.generate(prompt[1], config, images=shown).text()
    assert json.loads(done.stdout)["text"].endswith(expected)
    assert "looked at as 5 rows" in run("inspect", str(converted[1])).stdout


def calibrated(directory, output, **keys):
    words = [*WORDS, *(f"word{number}" for number in range(40))]
    generator = np.random.default_rng(3)
    text = output.parent / "text.txt"
    text.write_text(" ".join(generator.choice(words, 1500)), encoding="utf-8")
    options = conversion.Options(
        bits=3, group_size=32, calibration=text, samples=6, sequence_length=48, **keys
    )
    conversion.convert(str(directory), output, options)
    return PackedFile(output)


def drift(source, vision, file):
    """How far the packed blocks and layers carry the float model's logits, with pictures seen."""
    seen = torch.arange(40) // 14
    tokens = (torch.arange(40) * 7 % 90 + 3)[None]

    def packed(name):
        return torch.from_numpy(file.floats(name))

    found = []
    for weights in (source, packed):
        read = vision if weights is source else packed
        rows = torch_tower.encoded(vision.architecture, read, pictures(3, SIDE, seed=9))
        looked_at = LookedAt.of_rows(source.architecture.cross, rows, seen)
        found.append(
            torch_decoder.logits(weights, source.architecture, tokens, looked_at=looked_at)
        )
    return float((found[1] - found[0]).norm() / found[0].norm())


def test_calibration_reaches_gated_blocks_and_the_resampler(tmp_path):
    """Outliers in the blocks' norms, their columns divided: AWQ recovers what rounding loses."""
    save("a resampler", tmp_path)
    save_tokenizer(tmp_path)

    def plant(tensors):
        for name in [name for name in tensors if "gated" in name and "layernorm" in name]:
            tensors[name][:2] *= 24.0
            block = name.rsplit(".", 2)[0]
            attends = "input_layernorm" in name
            readers = ("cross_attn.q_proj",) if attends else ("mlp.gate_proj", "mlp.up_proj")
            for reader in readers:
                tensors[f"{block}.{reader}.weight"][:, :2] /= 24.0

    change_tensors(tmp_path / "model.safetensors", plant)
    source, vision = opened(tmp_path)
    plain = calibrated(tmp_path, tmp_path / "rtn", method="rtn", vision_bits=8)
    awq = calibrated(tmp_path, tmp_path / "awq", method="awq", vision_bits=8)
    assert drift(source, vision, awq) < 0.8 * drift(source, vision, plain)
    # The tower's part below 8 bits: limits of groups are searched for the resampler too.
    narrow = calibrated(tmp_path, tmp_path / "narrow", method="awq", vision_bits=3)
    name = "v.resampler.0.ffn_up.weight"
    assert narrow.layout(name).bits == 3
    rounded = calibrated(tmp_path, tmp_path / "narrow_rtn", method="rtn", vision_bits=3)
    assert not np.array_equal(narrow.floats(name), rounded.floats(name))


def test_no_other_program_gets_such_a_model(converted, tmp_path):
    from awq_edge.interchange.export import Export

    with pytest.raises(UnsupportedError, match="no other program"):
        conversion.convert(
            str(converted[0]),
            tmp_path / "model",
            conversion.Options(method="rtn"),
            export=Export("gguf", tmp_path / "other.gguf"),
        )


def test_a_gate_that_is_shut_lets_nothing_through(tmp_path):
    model = make("a resampler")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "alpha" in name:
                parameter.zero_()
    model.save_pretrained(tmp_path)
    settings = dict(image_processor_type="IdeficsImageProcessor", image_size=SIDE)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    path = tmp_path / "model.awq.gguf"
    conversion.convert(str(tmp_path), path, conversion.Options(method="rtn"))
    with Model.open(path, context_length=32) as shut, shut.session() as session:
        blind = session.logits([5, 6, 7])
        session.truncate(0)
        session.look_at(shut.pictures.encoded(shut.pictures.prepare(picture())))
        np.testing.assert_array_equal(session.logits([5, 6, 7]), blind)
