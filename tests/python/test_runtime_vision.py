"""The C++ runtime's pictures against a tower in plain numpy, for every form of a vision part."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gguf")

from decoder_forms import PLAIN, write_packed
from plain_decoder import PlainDecoder
from plain_vision import PlainVision
from vision_forms import FORMS, random_picture, vision_keys, write_vision
from vision_runtime import encoded, relative_errors

from awq_edge import _native
from awq_edge.errors import InvalidArgumentError, UnsupportedError
from awq_edge.model_file import read_dequantised


@pytest.mark.parametrize("form", FORMS)
def test_embeddings_are_those_of_a_plain_tower(form: str, tmp_path: Path) -> None:
    path = tmp_path / "model.awq.gguf"
    write_vision(form, path)
    plain = PlainVision(read_dequantised(path))
    pixels = np.stack([random_picture(form, seed) for seed in range(7)])
    worst = [
        relative_errors(rows, plain.embeddings(picture)).max()
        for rows, picture in zip(encoded(_native.NativeModel(path), pixels), pixels)
    ]
    # Both round activations to 8 bits. Where float32 and float64 disagree about a tie, one code
    # differs, and keys, values and regrouping carry that through the picture. In a picture without
    # a tie every embedding is the same but for what float32 rounds.
    assert min(worst) < 1e-6
    assert max(worst) < 3e-2


def test_logits_behind_a_picture_are_those_of_plain_numpy(tmp_path: Path) -> None:
    path = tmp_path / "model.awq.gguf"
    write_vision("as SmolVLM", path)
    pixels = random_picture("as SmolVLM", 1)
    plain = read_dequantised(path)
    decoder = PlainDecoder(plain)
    before, behind = [5, 17, 3], [44, 2, 91, 8]
    rows = PlainVision(plain).embeddings(pixels)
    expected = [decoder.step(token) for token in before]
    expected += [decoder.read(row) for row in rows]
    expected += [decoder.step(token) for token in behind]
    model = _native.NativeModel(path)
    session = _native.NativeSession(model, context_length=0, threads=1, prefill_threads=2)
    logits = np.empty((len(expected), PLAIN.vocabulary_size), dtype=np.float32)
    first, last = len(before), len(before) + len(rows)
    embeddings = encoded(model, pixels[None])[0]
    session.evaluate(before, logits[:first])
    _native.evaluate_together(
        [_native.Reading(session, None, embeddings=embeddings, logits=logits[first:last])]
    )
    session.evaluate(behind, logits[last:])
    error = relative_errors(logits, np.array(expected))
    assert np.quantile(error, 0.1) < 1e-6
    assert error.max() < 3e-2
    # Without the picture the text goes on otherwise.
    blind = _native.NativeSession(model, context_length=0, threads=1, prefill_threads=1)
    without = np.empty((len(before + behind), PLAIN.vocabulary_size), dtype=np.float32)
    blind.evaluate(before + behind, without)
    assert relative_errors(without[len(before) :], logits[last:]).min() > 0.1


def test_rows_of_a_picture_see_each_other_as_in_plain_numpy(tmp_path: Path) -> None:
    path = tmp_path / "model.awq.gguf"
    # A window shorter than the picture, in one of the layers.
    write_vision("as Gemma 3", path, dataclasses.replace(PLAIN, sliding_windows=(7, 0)))
    plain = read_dequantised(path)
    before, behind = [5, 17, 3], [44, 2, 91, 8]
    pixels = np.stack([random_picture("as Gemma 3", seed) for seed in (1, 2)])
    model = _native.NativeModel(path)
    rows = encoded(model, pixels)
    decoder = PlainDecoder(plain)
    expected = [decoder.step(token) for token in before]
    for picture in rows:
        expected += decoder.read_together(picture.astype(np.float64))
    expected += [decoder.step(token) for token in behind]
    logits = np.empty((len(expected), PLAIN.vocabulary_size), dtype=np.float32)
    session = _native.NativeSession(model, context_length=0, threads=1, prefill_threads=2)
    at = len(before)
    session.evaluate(before, logits[:at])
    for picture in rows:
        end = at + len(picture)
        _native.evaluate_together(
            [_native.Reading(session, None, embeddings=picture, logits=logits[at:end])]
        )
        at = end
    session.evaluate(behind, logits[at:])
    error = relative_errors(logits, np.array(expected))
    assert np.quantile(error, 0.1) < 1e-6
    assert error.max() < 3e-2
    # Read forwards, the picture is another one.
    forwards = PlainDecoder(plain)
    seen = [forwards.read(row) for row in rows[0].astype(np.float64)]
    alone = PlainDecoder(plain).read_together(rows[0].astype(np.float64))
    assert relative_errors(np.array(seen), np.array(alone))[0] > 0.1


def test_a_model_says_what_it_reads_pictures_with(tmp_path: Path) -> None:
    path = tmp_path / "model.awq.gguf"
    for form in FORMS:
        write_vision(form, path)
        vision, keys = _native.NativeModel(path).vision(), vision_keys(form)
        assert vision is not None
        for name in ("layers", "hidden_size", "heads", "head_size", "feed_forward_size"):
            assert getattr(vision, name) == keys[name]
        side = keys["image_size"] // keys["patch_size"] // keys.get("pool", 1)
        rotary = keys.get("position") == "rotary"
        assert vision.tokens == (0 if rotary else (-(-side // keys.get("regroup", 1))) ** 2)
        assert vision.step == (keys["patch_size"] * keys["regroup"] if rotary else 0)
        assert vision.embedding_size == PLAIN.hidden_size * (1 + len(keys.get("taps", ())))
        assert vision.newline is None
        assert vision.bidirectional == keys.get("bidirectional", False)


def test_a_model_of_text_reads_no_pictures(tmp_path: Path) -> None:
    path = tmp_path / "model.awq.gguf"
    write_packed(PLAIN, path)
    model = _native.NativeModel(path)
    assert model.vision() is None
    nothing = np.zeros(48, dtype=np.uint8), np.zeros(4, dtype=np.float32)
    with pytest.raises(UnsupportedError, match="no vision part"):
        model.encode_pictures(*nothing)
    with pytest.raises(UnsupportedError, match="no vision part"):
        model.vision_memory()


def test_a_text_is_read_as_by_the_decoder_alone(tmp_path: Path) -> None:
    both, text = tmp_path / "both.awq.gguf", tmp_path / "text.awq.gguf"
    write_vision("as LLaVA", both)
    write_packed(PLAIN, text)
    prompt = list(range(0, 60, 3))
    logits = np.empty((2, len(prompt), PLAIN.vocabulary_size), dtype=np.float32)
    for path, out in zip((both, text), logits):
        model = _native.NativeModel(path)
        session = _native.NativeSession(model, context_length=0, threads=1, prefill_threads=2)
        session.evaluate(prompt, out)
    assert np.array_equal(logits[0], logits[1])
    assert (
        _native.NativeModel(both).info().decode_bytes
        == _native.NativeModel(text).info().decode_bytes
    )


def test_a_callback_is_told_of_parts_and_may_raise(tmp_path: Path) -> None:
    path = tmp_path / "model.awq.gguf"
    write_vision("as Gemma 3", path)
    model = _native.NativeModel(path)
    pixels = np.stack([random_picture("as Gemma 3", seed) for seed in (1, 2)])
    expected = encoded(model, pixels)
    out = np.zeros_like(expected)
    told: list[tuple[int, int]] = []

    def tell(done: int, total: int) -> None:
        told.append((done, total))
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.encode_pictures(pixels, out, progress=tell)
    assert told == [(i, 8) for i in range(1, 6)]
    assert np.array_equal(out[0], expected[0])
    assert not out[1].any()


def test_arrays_that_are_no_pictures_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.awq.gguf"
    write_vision("as SmolVLM", path)
    model = _native.NativeModel(path)
    vision = model.vision()
    assert vision is not None
    pixels = random_picture("as SmolVLM")
    out = np.empty((vision.tokens, vision.embedding_size), dtype=np.float32)
    with pytest.raises(InvalidArgumentError, match="no pictures of 59 x 59 x 3"):
        model.encode_pictures(pixels[:-1].copy(), out)
    with pytest.raises(InvalidArgumentError, match="no pictures of 59 x 59 x 3"):
        model.encode_pictures(pixels[:0], out)
    with pytest.raises(InvalidArgumentError, match="1 pictures give 1 x 9 x 72"):
        model.encode_pictures(pixels, out[:-1])
    with pytest.raises(InvalidArgumentError, match="-1 threads"):
        model.encode_pictures(pixels, out, threads=-1)
    with pytest.raises(InvalidArgumentError, match="threads is 5000"):
        model.encode_pictures(pixels, out, threads=5000)
    assert model.vision_memory(3) > model.vision_memory(1) > 0
    model.close()
    with pytest.raises(InvalidArgumentError, match="closed"):
        model.encode_pictures(pixels, out)
