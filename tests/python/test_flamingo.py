"""OpenFlamingo, as it is released: against its arithmetic in plain torch, as one file, in use."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from awq_edge.converters import find
from awq_edge.converters.open_flamingo import whole_config
from awq_edge.converters.vision_part import vision_part
from flamingo_models import END_OF_SHOT, KINDS, PICTURE, ROWS_OF_TABLE, SIDE, Flamingo
from PIL import Image
from safetensors.torch import load_file, save_file
from vision_models import pictures
from vision_support import difference, normalised, opened

from awq_edge import Model, conversion, torch_decoder, torch_tower
from awq_edge.errors import CheckpointError, UnsupportedError
from awq_edge.float_model import open_float_model
from awq_edge.generation import GenerationConfig
from awq_edge.hf_tokenizer import tokenizer_of
from awq_edge.model_file import PackedFile
from awq_edge.torch_decoder import LookedAt

BOUND = 1e-4  # the largest difference over the largest magnitude
# A text before the first picture, two shots, a picture right behind another, a question.
TOKENS = [5, 9, PICTURE, 17, 4, END_OF_SHOT, PICTURE, 33, 20, END_OF_SHOT, PICTURE, PICTURE, 40, 7]
SEEN = [-1, -1, 0, 0, 0, 0, 1, 1, 1, 1, 2, 3, 3, 3]


def logits(source, vision, tokens, pixels, seen):
    rows = torch_tower.encoded(vision.architecture, vision, pixels)
    looked_at = LookedAt.of_rows(source.architecture.cross, rows, torch.tensor(seen))
    ids = torch.tensor([tokens])
    return torch_decoder.logits(source, source.architecture, ids, looked_at=looked_at)


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_with_several_shots_have_the_logits_of_the_reference(kind, tmp_path):
    model = Flamingo(kind)
    model.save(tmp_path)
    source, vision = opened(tmp_path)
    assert source.architecture.vocabulary_size == ROWS_OF_TABLE
    assert list(source.architecture.cross.numbers) == model.numbers
    pixels = pictures(4, SIDE)
    theirs = model.logits(TOKENS, normalised(vision, pixels))
    ours = logits(source, vision, TOKENS, pixels, SEEN)
    assert difference(ours, theirs) < BOUND
    # What stands before the first picture sees none, and what follows sees its own.
    blind = torch_decoder.logits(source, source.architecture, torch.tensor([TOKENS]))
    assert difference(blind[:, :2], theirs[:, :2]) < BOUND
    assert difference(blind[:, 2:], theirs[:, 2:]) > 0.01
    swapped = pixels[[1, 0, 2, 3]]
    others = model.logits(TOKENS, normalised(vision, swapped))
    assert difference(others, theirs) > 0.01
    assert difference(logits(source, vision, TOKENS, swapped, SEEN), others) < BOUND


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({}, "learned positions"),
        ({"alibi": True, "prefix_lm": True}, "prefix_lm"),
        ({"alibi": True, "logit_scale": "inv_sqrt_d_model"}, "logit_scale"),
        ({"alibi": True, "attn_qk_ln": True, "attn_clip_qkv": 6}, "a clamp in front of norms"),
    ],
)
def test_forms_of_the_first_mpt_that_are_not_computed_are_refused(keys, words):
    config = {"model_type": "mosaic_gpt", **keys}
    with pytest.raises(UnsupportedError, match=words):
        find(config).architecture(config)


@pytest.mark.parametrize("names", ["list", "training"])
def test_older_files_and_those_of_trainings_hold_the_same(names, tmp_path):
    model = Flamingo("gpt_neox")
    (tmp_path / "today").mkdir()
    (tmp_path / "other").mkdir()
    model.save(tmp_path / "today")
    model.save(tmp_path / "other", names)
    today, other = (opened(tmp_path / name) for name in ("today", "other"))
    for one, another in zip(today, other):
        assert one.tensor_names() == another.tensor_names()
        for name in one.tensor_names():
            assert torch.equal(one(name), another(name))


def as_open_clip(directory):
    """A tower's files by open_clip's names, its text half and its projection beside."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "config.json").unlink()
    (directory / "model.safetensors").unlink()
    found = {"logit_scale": torch.tensor(1.0), "visual.proj": torch.zeros(48, 8)}
    found["transformer.resblocks.0.ln_1.weight"] = torch.ones(8)
    plain = {
        "embeddings.class_embedding": "class_embedding",
        "embeddings.position_embedding.weight": "positional_embedding",
        "embeddings.patch_embedding.weight": "conv1.weight",
        "pre_layrnorm.": "ln_pre.",
        "post_layernorm.": "ln_post.",
        "encoder.layers.": "transformer.resblocks.",
        "layer_norm1.": "ln_1.",
        "layer_norm2.": "ln_2.",
        "self_attn.out_proj.": "attn.out_proj.",
        "mlp.fc1.": "mlp.c_fc.",
        "mlp.fc2.": "mlp.c_proj.",
    }
    for name, value in tensors.items():
        name = name.removeprefix("vision_model.")
        if "self_attn.q_proj" in name:
            parts = [
                tensors[f"vision_model.{name.replace('q_proj', kind)}"]
                if f"vision_model.{name}" in tensors
                else tensors[name.replace("q_proj", kind)]
                for kind in ("q_proj", "k_proj", "v_proj")
            ]
            name = name.replace("self_attn.q_proj.", "attn.in_proj_")
            value = torch.cat(parts)
        elif "k_proj" in name or "v_proj" in name:
            continue
        for theirs, ours in plain.items():
            name = name.replace(theirs, ours)
        found[f"visual.{name}"] = value
    save_file(found, directory / "open_clip_model.safetensors")
    settings = {
        "model_cfg": {"quick_gelu": True, "vision_cfg": {"head_width": 16, "image_size": 26}}
    }
    (directory / "open_clip_config.json").write_text(json.dumps(settings))


def test_towers_of_open_clip_are_those_of_transformers(tmp_path):
    model = Flamingo("mpt")
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        model.save(tmp_path / name)
    as_open_clip(tmp_path / "other" / "vision_tower")
    one, other = (opened(tmp_path / name)[1] for name in ("one", "other"))
    assert one.architecture == other.architecture
    for name in one.tensor_names():
        assert torch.equal(one(name), other(name))


def test_words_for_pictures_and_ends_of_shots_are_added(tmp_path):
    Flamingo("mpt").save(tmp_path)
    source, vision = opened(tmp_path)
    tokenizer = tokenizer_of(source.checkpoint)
    assert tokenizer.encode("<image>a<|endofchunk|>")[::2] == [PICTURE, END_OF_SHOT]
    assert tokenizer.eos_ids[0] == END_OF_SHOT  # it ends a shot, so it ends an answer
    assert len(tokenizer.eos_ids) == 2
    prompt = json.loads(vision.prompt(tokenizer.json))
    assert prompt == {"token": PICTURE, "placeholder": "<image>", "layout": "single"}


def rewritten(directory, change):
    path = directory / "checkpoint.pt"
    tensors = torch.load(path, weights_only=True)
    change(tensors)
    torch.save(tensors, path)


def without(part):
    def change(tensors):
        for name in [name for name in tensors if part in name]:
            del tensors[name]

    return change


def cut(part, width):
    def change(tensors):
        for name in [name for name in tensors if part in name]:
            tensors[name] = tensors[name][..., :width].clone()

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("gated_cross"), "no gated blocks"),
        (without(".3.gated_cross"), "gated blocks before the layers 1;"),
        (without("perceiver.latents"), "resampler.latents"),
        (without("perceiver.layers.1.1.3"), "resampler.layers.1.1.3.weight"),
        (without(".3.gated_cross_attn_layer.ff_gate"), "blocks.3.ff_gate"),
        (without(".3.gated_cross_attn_layer.attn.to_out"), "blocks.3.attn.to_out.weight"),
        (cut("attn.to_q", 32), "a stream of 32 numbers, and the language model has 64"),
        (cut("to_kv", 32), "rows of 48 numbers, and the tower makes 48|32"),
        (cut("wte", 32), "asks for"),
        (lambda t: t.update({"perceiver.frame_embs": torch.zeros(2)}), "frame_embs"),
        (lambda t: t.update({"perceiver.more": torch.zeros(2)}), "resampler.more"),
        (lambda t: t.update({"other.weight": torch.zeros(2)}), "other.weight"),
    ],
)
def test_parts_that_are_not_of_one_model_are_refused(change, words, tmp_path):
    model = Flamingo("mpt")
    model.kind = KINDS["mpt"].__class__(
        model.kind.make, model.kind.layers, model.kind.table, every=2
    )
    model.trained = model._trained()
    model._enlarge()
    model.save(tmp_path)
    rewritten(tmp_path, change)
    with pytest.raises((CheckpointError, UnsupportedError), match=words):
        opened(tmp_path)


def test_a_release_alone_says_what_belongs_beside_it(tmp_path):
    torch.save({"perceiver.latents": torch.zeros(2, 2)}, tmp_path / "checkpoint.pt")
    with pytest.raises(
        CheckpointError, match="no folder language_model and no folder vision_tower"
    ):
        opened(tmp_path)


def test_the_hub_id_of_a_release_says_what_belongs_beside_it():
    with pytest.raises(CheckpointError, match="into language_model/"):
        open_float_model("openflamingo/OpenFlamingo-3B-vitl-mpt1b")


# Of a release: layers and width of its language model, before every how many a block stands, and
# the millions of parameters that its blocks are said to have.
RELEASES = {"3B": (24, 2048, 1, 881), "4B": (32, 2560, 2, 898), "9B": (32, 4096, 4, 1116)}


@pytest.mark.parametrize("release", RELEASES)
def test_shapes_of_releases_make_blocks_of_their_published_sizes(release):
    layers, width, every, millions = RELEASES[release]
    shapes = {"resampler.latents": (64, 1024)}
    for n in range(6):
        shapes[f"resampler.layers.{n}.0.to_q.weight"] = (512, 1024)
        shapes[f"resampler.layers.{n}.1.1.weight"] = (4096, 1024)
    for n in range(every - 1, layers, every):
        shapes[f"blocks.{n}.attn.to_q.weight"] = (512, width)
        shapes[f"blocks.{n}.attn.to_k.weight"] = (512, 1024)
        shapes[f"blocks.{n}.ff.1.weight"] = (4 * width, width)
    tower = dict(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=224,
        patch_size=14,
    )
    part = vision_part(whole_config(shapes, layers, width, tower), width)
    cross, resampler = part.architecture.cross, part.architecture.resampler
    seen = len(cross.numbers) * 2 * cross.size * 1024
    assert round((cross.linear_parameters(width) + seen) / 1e6) == millions
    assert (cross.heads, cross.head_size, cross.layers[0]) == (8, 64, int(every == 1))
    assert (resampler.layers, resampler.rows, resampler.heads) == (6, 64, 8)
    assert part.architecture.tokens == 64


def test_what_a_release_holds_is_never_run(tmp_path):
    Flamingo("mpt").save(tmp_path)

    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    torch.save({"perceiver.latents": Trap()}, tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="restricted unpickler"):
        opened(tmp_path)
    assert not (tmp_path / "sprung").exists()


@pytest.fixture(scope="module", params=["mosaic_gpt", "gpt_neox"])
def converted(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("flamingo")
    Flamingo(request.param).save(directory)
    path = directory / "model.awq.gguf"
    conversion.convert(
        str(directory), path, conversion.Options(method="rtn", bits=8, group_size=32)
    )
    return path


@pytest.fixture
def model(converted):
    with Model.open(converted, context_length=128) as made:
        yield made


def picture(seed=0):
    return pictures(1, 40, seed)[0].numpy()


SHOTS = "<image>Output: a red thing.<|endofchunk|><image>Output: blue<|endofchunk|><image>Output:"


def test_a_few_shot_prompt_has_the_logits_of_the_float_decoder(converted, model):
    shown = [picture(seed) for seed in (1, 2, 3)]
    prompt = model.picture_prompt(SHOTS, shown)
    assert prompt.tokens.count(PICTURE) == 3
    assert prompt.tokens[0] == PICTURE  # and nothing around it
    times = np.cumsum(np.array(prompt.tokens) == PICTURE) - 1
    prepared = [model.pictures.prepare(one) for one in shown]
    rows = torch.from_numpy(np.stack([model.pictures.encoded(one) for one in prepared]))
    file = PackedFile(converted)
    looked_at = LookedAt.of_rows(file.architecture.cross, rows, torch.tensor(times))
    expected = torch_decoder.logits(
        lambda name: torch.from_numpy(file.floats(name)),
        file.architecture,
        torch.tensor([prompt.tokens]),
        looked_at=looked_at,
    )[0, -1].numpy()
    with model.session() as session:
        session.generate(prompt, GenerationConfig(max_tokens=1, temperature=0.0)).start()
        found = session.last_logits()
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 0.03


def test_the_command_line_reads_a_few_shot_prompt(converted, tmp_path):
    paths = []
    for seed in (1, 2, 3):
        paths.append(tmp_path / f"{seed}.png")
        Image.fromarray(picture(seed)).save(paths[-1])
    images = [part for path in paths for part in ("--image", str(path))]
    command = [sys.executable, "-m", "awq_edge.cli.main", "run", str(converted), "-p", SHOTS]
    command += ["--max-tokens", "4", "--temperature", "0", "--json", *images]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with Model.open(converted) as model:
        config = GenerationConfig(max_tokens=4, temperature=0.0)
        shown = [picture(seed) for seed in (1, 2, 3)]
        expected = model.generate(SHOTS, config, images=shown)
        assert json.loads(done.stdout)["text"] == expected.text()
        assert model.pictures.encodings == 3


@pytest.mark.parametrize("kind", ["mpt", "llama"])
def test_calibration_reaches_the_blocks(kind, tmp_path):
    """Outliers in the blocks' norms, their columns divided: AWQ recovers what rounding loses."""
    model = Flamingo(kind)
    for name, value in model.trained.items():
        if name.endswith(("attn.norm.weight", "ff.0.weight", "attn.norm.bias", "ff.0.bias")):
            value[:2] *= 24.0
        if name.endswith(("attn.to_q.weight", "ff.1.weight")) and "gated" in name:
            value[:, :2] /= 24.0
    model.save(tmp_path)
    text = tmp_path / "text.txt"
    generator = np.random.default_rng(3)
    text.write_text(" ".join(generator.choice([f"word{n}" for n in range(60)], 1500)))
    source, vision = opened(tmp_path)
    pixels = pictures(4, SIDE, seed=9)
    whole = logits(source, vision, TOKENS, pixels, SEEN)
    drift = {}
    for method in ("rtn", "awq"):
        options = conversion.Options(
            method=method, bits=3, group_size=32, calibration=text, samples=6, sequence_length=48
        )
        conversion.convert(str(tmp_path), tmp_path / method, options)
        file = PackedFile(tmp_path / method)

        def packed(name, file=file):
            return torch.from_numpy(file.floats(name))

        rows = torch_tower.encoded(vision.architecture, packed, pixels)
        looked_at = LookedAt.of_rows(source.architecture.cross, rows, torch.tensor(SEEN))
        ids = torch.tensor([TOKENS])
        ours = torch_decoder.logits(packed, file.architecture, ids, looked_at=looked_at)
        drift[method] = float((ours - whole).norm() / whole.norm())
    assert drift["awq"] < 0.8 * drift["rtn"]
