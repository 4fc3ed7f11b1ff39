"""``awq-edge eval ppl`` and the protocol behind it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import BAD_FILES, ROOT, STORIES, Command
from numpy.typing import NDArray

from awq_edge import Model, errors
from awq_edge.accuracy.perplexity import Perplexity, SessionSource, cut_chunks, measure

STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big red ball. She wanted to play with it, but it was too high. Her mom "
    "said, \"Lily, let's go to the park.\" Lily was sad and didn't know what to do. "
) * 3


@pytest.fixture
def story(tmp_path: Path) -> Path:
    path = tmp_path / "story.txt"
    path.write_text(STORY, encoding="utf-8")
    return path


# ---- the protocol --------------------------------------------------------------------------


def test_chunks_begin_with_bos_and_drop_the_rest() -> None:
    tokens = [1, *range(100, 119)]
    assert cut_chunks(tokens, 8, bos_token_id=1) == [
        [1, *range(100, 107)],
        [1, *range(108, 115)],
    ]
    assert cut_chunks(tokens, 8, bos_token_id=None)[1] == list(range(107, 115))
    assert len(cut_chunks(tokens, 8, bos_token_id=1, limit=1)) == 1


def test_text_shorter_than_a_chunk_is_refused() -> None:
    with pytest.raises(errors.InvalidArgumentError, match=r"7 tokens.*chunk of 8"):
        cut_chunks(list(range(7)), 8, bos_token_id=None)


class FixedSource:
    """Knows the next token with a given probability; remembers what it was asked."""

    def __init__(self, vocabulary_size: int, probability: float) -> None:
        self.asked: list[tuple[list[int], int]] = []
        self.vocabulary_size = vocabulary_size
        others = (1 - probability) / (vocabulary_size - 1)
        self._bonus = math.log(probability / others)

    def next_token_logits(self, tokens: Sequence[int], first: int) -> Iterator[NDArray[np.float32]]:
        self.asked.append((list(tokens), first))
        for position in range(first, len(tokens)):
            logits = np.full((1, self.vocabulary_size), 3.0, np.float32)  # any constant cancels
            logits[0, (tokens[position] + 1) % self.vocabulary_size] += self._bonus
            yield logits


def test_second_half_is_scored() -> None:
    """Tokens count up, so that the source is right about each: perplexity is 1 / probability."""
    source = FixedSource(64, 0.25)
    result = measure(source, cut_chunks(list(range(40)), 16, bos_token_id=None))
    assert result.value == pytest.approx(4.0)
    assert result.standard_error == pytest.approx(0.0, abs=1e-3)
    assert (result.chunks, result.tokens) == (2, 2 * (16 - 8 - 1))
    assert source.asked == [(list(range(15)), 8), (list(range(16, 31)), 8)]


def test_standard_error_is_that_of_the_mean() -> None:
    """Half of the tokens are guessed with 1/2, half with 1/8."""

    class Mixed:
        vocabulary_size = 2

        def next_token_logits(
            self, tokens: Sequence[int], first: int
        ) -> Iterator[NDArray[np.float32]]:
            for position in range(first, len(tokens)):
                probability = 1 / 2 if position % 2 else 1 / 8
                # Vocabulary of two; the right one is 0.
                yield np.log(np.array([[probability, 1 - probability]], np.float32))

    result = measure(Mixed(), [[0] * 9])
    losses = np.log([8.0, 2.0, 8.0, 2.0])
    assert result.value == pytest.approx(math.exp(losses.mean()), rel=1e-6)
    expected = result.value * math.sqrt(losses.var() / (len(losses) - 1))
    assert result.standard_error == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("chunk", [[0, 1, 2, 64], [0, 64, 1, 2], [64, 1, 2, 3], [0, -1, 2, 3]])
def test_ids_are_checked_before_the_work(chunk: list[int]) -> None:
    """Also the last one, which is scored and never fed; no chunk is measured before all are."""
    source = FixedSource(64, 0.25)
    with pytest.raises(errors.InvalidArgumentError, match=r"token -?\d+, but .* only 64;"):
        measure(source, [[0, 1, 2, 3], chunk])
    assert source.asked == []


def test_one_token_has_no_standard_error() -> None:
    assert measure(FixedSource(64, 0.25), [[0, 1, 2, 3]]) == Perplexity(
        value=pytest.approx(4.0), standard_error=None, tokens=1, chunks=1
    )


def test_a_loss_beyond_floats_is_an_infinite_perplexity() -> None:
    assert measure(FixedSource(64, math.exp(-720)), [list(range(8))]).value == math.inf


def test_report_runs_along() -> None:
    seen: list[Perplexity] = []
    final = measure(FixedSource(64, 0.5), [list(range(8))] * 3, seen.append)
    assert [one.chunks for one in seen] == [1, 2, 3]
    assert seen[-1] == final


def test_session_source_equals_one_pass(stories: Model) -> None:
    tokens = stories.tokenize(STORY)[:200]
    whole = stories.logits(tokens)[90:]
    with stories.session() as session:
        blocks = list(SessionSource(session).next_token_logits(tokens, 90))
    assert np.array_equal(np.concatenate(blocks), whole)


# ---- the command ---------------------------------------------------------------------------


def test_packed_file(command: Command, story: Path) -> None:
    result = command("eval", "ppl", STORIES, "--text", story, "--context", 64)
    assert result.status == 0
    assert result.out.startswith("perplexity ")
    assert "±" in result.out


def test_one_scored_token_is_told_without_an_error(command: Command, story: Path) -> None:
    arguments = ("eval", "ppl", STORIES, "--text", story, "--context", 4, "--chunks", 1)
    assert " ± - (1 chunks of 4 tokens, 1 scored)" in command(*arguments).out
    document = json.loads(command(*arguments, "--json").out, parse_constant=pytest.fail)
    assert document["scored_tokens"] == 1
    assert document["standard_error"] is None


def test_json_and_a_limit(command: Command, story: Path) -> None:
    arguments = ("eval", "ppl", STORIES, "--text", story, "--context", 64, "--json")
    document = json.loads(command(*arguments, "--chunks", 2).out)
    assert document["chunks"] == 2
    assert document["scored_tokens"] == 2 * 31
    assert 1 < document["perplexity"] < 20
    fewer = json.loads(command(*arguments, "--bytes", 300).out)
    assert fewer["chunks"] < json.loads(command(*arguments).out)["chunks"]


def test_bytes_may_cut_a_character(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("é" * 200, encoding="utf-8")
    result = command("eval", "ppl", STORIES, "--text", path, "--context", 32, "--bytes", 201)
    assert result.status == 0


def test_missing_text(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "nothing.txt"
    command("eval", "ppl", STORIES, "--text", path).assert_one_sentence(str(path))


def test_text_that_is_not_utf8(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "latin1.txt"
    path.write_bytes(b"caf\xe9 " * 100)
    command("eval", "ppl", STORIES, "--text", path).assert_one_sentence("not UTF-8", "byte 3")


def test_text_that_is_too_short(command: Command, story: Path) -> None:
    result = command("eval", "ppl", STORIES, "--text", story, "--bytes", 50, "--context", 64)
    result.assert_one_sentence("less than one chunk of 64")


def test_context_beyond_the_trained_length(command: Command, story: Path) -> None:
    result = command("eval", "ppl", STORIES, "--text", story, "--context", 600)
    result.assert_one_sentence("512")


def test_float_models_refuse_what_means_nothing_to_them(command: Command, story: Path) -> None:
    pytest.importorskip("torch")
    floats = ("eval", "ppl", ROOT / "examples/novels-7m", "--text", story)
    command(*floats, "--context", 600).assert_one_sentence("512", "not of 600")
    command(*floats, "--context", 64, "--kv", "int8").assert_one_sentence("--kv int8", "float")


@pytest.mark.parametrize("fault", sorted(set(BAD_FILES) - {"directory"}))
def test_bad_file(
    command: Command, broken_file: Callable[[str], Path], story: Path, fault: str
) -> None:
    path = broken_file(fault)
    result = command("eval", "ppl", path, "--text", story)
    result.assert_one_sentence(str(path), BAD_FILES[fault])


def test_directory_that_is_no_checkpoint(command: Command, tmp_path: Path, story: Path) -> None:
    directory = tmp_path / "empty"
    directory.mkdir()
    pytest.importorskip("torch", reason="needs the extra [convert]")
    result = command("eval", "ppl", directory, "--text", story)
    result.assert_one_sentence(str(directory))


def test_float_checkpoint(command: Command, assets: Path, story: Path) -> None:
    """Four bits cost such a small model something, and both are measured by the same lines."""
    pytest.importorskip("torch", reason="needs the extra [convert]")
    arguments = ("--text", story, "--context", 64, "--json")
    floats = command("eval", "ppl", assets / "models/stories260k", *arguments)
    packed = command("eval", "ppl", STORIES, *arguments)
    float_document, packed_document = json.loads(floats.out), json.loads(packed.out)
    assert float_document["weights"] == "float32"
    assert float_document["scored_tokens"] == packed_document["scored_tokens"]
    assert packed_document["perplexity"] == pytest.approx(float_document["perplexity"], rel=0.25)


def test_published_figure_of_the_protocol(command: Command, assets: Path) -> None:
    """As transformers' own forward gives it in float32.

    After all 120 chunks both are at 51.3007, and llama.cpp's tool with 16-bit weights at 51.3009.
    """
    pytest.importorskip("torch", reason="needs the extra [convert]")
    result = command(
        "eval",
        "ppl",
        assets / "models/novels-45m",
        "--text",
        assets / "text/novels_val.txt",
        "--bytes",
        1_200_000,
        "--chunks",
        5,
        "--json",
    )
    assert json.loads(result.out)["perplexity"] == pytest.approx(22.0175, abs=0.0005)


def test_a_checkpoint_without_a_tokenizer_is_named(
    command: Command, story: Path, tmp_path: Path
) -> None:
    pytest.importorskip("torch", reason="needs the extra [convert]")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(ROOT / "examples/novels-7m" / name)
    result = command("eval", "ppl", tmp_path, "--text", story)
    result.assert_one_sentence(str(tmp_path), "neither tokenizer.json nor tokenizer.model")
