"""Decoders that look at pictures: the C++ runtime against plain numpy, form by form."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gguf")

from decoder_forms import PLAIN, random_matrix, write_packed
from plain_looking import PlainLooker, PlainLooking
from vision_runtime import encoded, relative_errors

from awq_edge import _native
from awq_edge.architecture import Architecture
from awq_edge.cross_attention import CrossAttention
from awq_edge.model_file import TensorSource, read_dequantised
from awq_edge.vision.architecture import Resampler, VisionArchitecture

BLOCKS = CrossAttention(
    layers=(1, 0),
    heads=3,
    head_size=14,
    feed_forward_size=40,
    norm="rms",
    norm_epsilon=2.0**-10,
    feed_forward="gated",
    activation="silu",
)
RESAMPLER = Resampler(
    layers=2,
    rows=7,
    heads=2,
    head_size=18,
    feed_forward_size=90,
    activation="relu",
    norm_epsilon=2.0**-17,
)
# Of each form: what its blocks, its resampler and its tower have otherwise.
FORMS: dict[str, tuple[dict[str, Any], dict[str, Any] | None, dict[str, Any]]] = {
    "as Idefics": ({}, {}, {"keep_class": True}),
    "as Idefics, with norms": (
        {"qk_norm": True, "layers": (1, 1)},
        {"qk_norm": True},
        {"keep_class": True},
    ),
    "as OpenFlamingo": (
        {"norm": "layer", "feed_forward": "plain", "activation": "gelu", "layers": (0, 1)},
        {"activation": "gelu"},
        {"activation": "quick_gelu"},
    ),
    "without a resampler": ({"heads": 1, "head_size": 6}, None, {"image_size": 59}),
}


def records(form: str) -> tuple[Architecture, VisionArchitecture]:
    blocks, resampler, tower = FORMS[form]
    cross = dataclasses.replace(BLOCKS, **blocks)
    keys: dict[str, Any] = {"image_size": 48, "activation": "gelu", **tower}
    vision = VisionArchitecture(
        **keys,
        layers=2,
        hidden_size=60,
        heads=3,
        head_size=20,
        feed_forward_size=100,
        patch_size=6,
        norm_epsilon=2.0**-20,
        decoder_size=PLAIN.hidden_size,
        class_token=True,
        patch_bias=False,
        pre_norm=True,
        resampler=None if resampler is None else dataclasses.replace(RESAMPLER, **resampler),
        connector="cross",
        connector_bias=False,
        cross=cross,
    )
    return dataclasses.replace(PLAIN, cross=cross), vision


def write_looking(form: str, path: Path) -> VisionArchitecture:
    """A packed file of a form with random tensors, none near to having no effect."""
    decoder, vision = records(form)
    generator = np.random.default_rng(11)
    tensors: list[tuple[str, TensorSource]] = []
    for i, name in enumerate(vision.tensor_names()):
        shape = vision.tensor_shape(name)
        if len(shape) == 2:
            bits = (8, 4, 6)[i % 3]
            packed = random_matrix(*shape, 0.35 * shape[1] ** -0.5, generator, bits, 64)
            tensors.append((name, packed))
            continue
        values = 0.3 * generator.standard_normal(shape)
        norm = name.endswith(".weight") and "position" not in name
        tensors.append((name, (values + norm).astype(np.float32)))
    metadata = {**vision.to_metadata()}
    write_packed(decoder, path, more_metadata=metadata, more_tensors=tensors)
    return vision


def random_picture(vision: VisionArchitecture, seed: int) -> np.ndarray:
    side = vision.image_size
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize("form", FORMS)
def test_what_layers_look_at_is_that_of_plain_numpy(form: str, tmp_path: Path) -> None:
    path = tmp_path / "model.awq.gguf"
    vision = write_looking(form, path)
    model, plain = _native.NativeModel(path), PlainLooking(read_dequantised(path))
    info = model.vision()
    assert info is not None
    assert (info.tokens, info.embedding_size) == (vision.tokens, vision.row_size)
    assert info.session_bytes == -(-2 * info.tokens * info.embedding_size // 64) * 64
    pixels = np.stack([random_picture(vision, seed) for seed in range(7)])
    worst = [
        relative_errors(rows, plain.looked_at(picture)).max()
        for rows, picture in zip(encoded(model, pixels), pixels)
    ]
    # As in test_runtime_vision.py: a tie that float32 and float64 decide otherwise is one code.
    assert min(worst) < 1e-6
    assert max(worst) < 3e-2


@pytest.mark.parametrize("form", FORMS)
def test_logits_of_texts_with_pictures_are_those_of_plain_numpy(form: str, tmp_path: Path) -> None:
    path = tmp_path / "model.awq.gguf"
    vision = write_looking(form, path)
    model, decoder = _native.NativeModel(path), PlainLooker(read_dequantised(path))
    pictures = encoded(model, np.stack([random_picture(vision, seed) for seed in (1, 2)]))
    parts = [([5, 17, 3], None), ([44, 2, 91, 8], 0), ([6, 6, 70], 1), ([12, 9], None)]
    expected = []
    session = _native.NativeSession(model, context_length=0, threads=1, prefill_threads=2)
    found = []
    for tokens, picture in parts:
        decoder.picture = None if picture is None else pictures[picture].astype(np.float64)
        expected += [decoder.step(token) for token in tokens]
        session.look_at(None if picture is None else pictures[picture])
        logits = np.empty((len(tokens), PLAIN.vocabulary_size), dtype=np.float32)
        session.evaluate(tokens, logits)
        found.append(logits)
    error = relative_errors(np.concatenate(found), np.array(expected))
    assert np.quantile(error, 0.1) < 1e-6
    assert error.max() < 3e-2
    # With the other picture the text goes on otherwise.
    other = _native.NativeSession(model, context_length=0, threads=1, prefill_threads=2)
    other.evaluate(parts[0][0])
    other.look_at(pictures[1])
    logits = np.empty_like(found[1])
    other.evaluate(parts[1][0], logits)
    assert relative_errors(logits, found[1]).min() > 1e-3
