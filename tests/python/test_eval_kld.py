"""Divergence: equal to a plain calculation, whatever blocks the logits come in."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import STORIES, Command

from awq_edge.accuracy.kld import Divergence, measure
from awq_edge.accuracy.perplexity import SessionSource
from awq_edge.errors import InvalidArgumentError

VOCABULARY = 11


class FixedSource:
    """Logits that depend on position and token only, in blocks of a given number of rows."""

    vocabulary_size = VOCABULARY

    def __init__(self, seed: int, rows: int, spread: float = 2.0) -> None:
        random = np.random.default_rng(seed)
        self.table = random.normal(0, spread, (VOCABULARY, 200, VOCABULARY)).astype(np.float32)
        self.rows = rows

    def logits(self, tokens: Sequence[int], first: int) -> np.ndarray:
        return np.array([self.table[tokens[i], i] for i in range(first, len(tokens))])

    def next_token_logits(self, tokens: Sequence[int], first: int) -> Iterator[np.ndarray]:
        whole = self.logits(tokens, first)
        for begin in range(0, len(whole), self.rows):
            yield whole[begin : begin + self.rows]


def chunks(count: int = 3, context: int = 101) -> list[list[int]]:
    return np.random.default_rng(5).integers(0, VOCABULARY, (count, context)).tolist()


def test_ids_are_checked_before_the_work() -> None:
    """By the vocabulary of both models."""
    source = FixedSource(1, 7)
    smaller = FixedSource(2, 7)
    smaller.vocabulary_size = VOCABULARY - 1
    for pair in ((source, smaller), (smaller, source)):
        with pytest.raises(InvalidArgumentError, match=f"knows only {VOCABULARY - 1}"):
            measure(*pair, [[0, 1, 2, VOCABULARY - 1]])


def plain(p_source: FixedSource, q_source: FixedSource, texts: list[list[int]]) -> Divergence:
    """The same figures, one token at a time, with nothing but math."""
    divergences, same, flips, p_losses, q_losses = [], [], [], [], []
    for text in texts:
        first = len(text) // 2
        p_rows, q_rows = (source.logits(text[:-1], first) for source in (p_source, q_source))
        for offset, (p_row, q_row) in enumerate(zip(p_rows, q_rows)):
            p, q = ([math.exp(float(x)) for x in row] for row in (p_row, q_row))
            p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
            target = text[first + 1 + offset]
            divergences.append(sum(a * math.log(a / b) for a, b in zip(p, q)))
            same.append(p.index(max(p)) == q.index(max(q)))
            flips.append((p.index(max(p)) == target) != (q.index(max(q)) == target))
            p_losses.append(-math.log(p[target]))
            q_losses.append(-math.log(q[target]))
    count = len(divergences)
    mean = sum(divergences) / count
    variance = sum((x - mean) ** 2 for x in divergences) / (count - 1)
    agreement = sum(same) / count
    return Divergence(
        mean=mean,
        standard_error=math.sqrt(variance / count),
        median=sorted(divergences)[count // 2]
        if count % 2
        else sum(sorted(divergences)[count // 2 - 1 : count // 2 + 1]) / 2,
        percentile_99=float(np.percentile(divergences, 99)),
        largest=max(divergences),
        agreement=agreement,
        agreement_error=math.sqrt(agreement * (1 - agreement) / (count - 1)),
        flips=sum(flips) / count,
        reference_perplexity=math.exp(sum(p_losses) / count),
        perplexity=math.exp(sum(q_losses) / count),
        tokens=count,
        chunks=len(texts),
    )


@pytest.mark.parametrize(("p_rows", "q_rows"), [(1000, 1000), (64, 1), (7, 50), (32, 33)])
def test_figures_equal_a_plain_calculation(p_rows: int, q_rows: int) -> None:
    p, q = FixedSource(1, p_rows), FixedSource(2, q_rows)
    seen: list[Divergence] = []
    result = measure(p, q, chunks(), seen.append)
    expected = plain(p, q, chunks())
    assert result.tokens == expected.tokens == 150
    for name, value in vars(expected).items():
        assert math.isclose(getattr(result, name), value, rel_tol=1e-9), name
    assert [estimate.chunks for estimate in seen] == [1, 2, 3]
    assert seen[-1] == result


def test_a_model_does_not_diverge_from_itself() -> None:
    source = FixedSource(1, 64)
    result = measure(source, source, chunks())
    assert result.mean == result.largest == result.flips == 0.0
    assert result.agreement == 1.0
    assert result.perplexity == result.reference_perplexity


def test_vocabularies_of_different_sizes_are_refused() -> None:
    other = FixedSource(2, 64)
    other.table = other.table[:, :, :-1]
    with pytest.raises(InvalidArgumentError, match="11 tokens"):
        measure(FixedSource(1, 64), other, chunks())


def test_a_packed_file_against_itself(command: Command, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time, there was a little girl named Lily. " * 20)
    result = command(
        "eval", "kld", STORIES, "--reference", STORIES, "--text", text, "--context", 64,
        "--chunks", 3, "--json",
    )  # fmt: skip
    assert result.status == 0, result.err
    document = json.loads(result.out)
    assert document["mean"] == 0.0
    assert document["agreement"] == 1.0
    assert document["tokens"] == 3 * 31


def test_one_scored_token_has_no_errors(command: Command, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time, there was a little girl named Lily.")
    options = ("--reference", STORIES, "--text", text, "--context", 4, "--chunks", 1)
    result = command("eval", "kld", STORIES, *options, "--json")
    document = json.loads(result.out, parse_constant=pytest.fail)
    assert document["tokens"] == 1
    assert document["standard_error"] is document["agreement_error"] is None
    assert "100.00 ± - %" in command("eval", "kld", STORIES, *options).out


def test_perplexities_are_those_of_eval_ppl(command: Command, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Tim saw a big dog. The dog was sad. Tim gave it a ball and they ran. " * 20)
    options = ("--text", text, "--context", 64, "--chunks", 3, "--json")
    first = json.loads(command("eval", "kld", STORIES, "--reference", STORIES, *options).out)
    second = json.loads(command("eval", "ppl", STORIES, *options).out)
    assert math.isclose(first["perplexity"], second["perplexity"], rel_tol=1e-12)


def test_float_against_packed_is_small_but_not_zero(assets: Path) -> None:
    pytest.importorskip("torch")
    from awq_edge import Model
    from awq_edge.accuracy.checkpoint_logits import CheckpointSource
    from awq_edge.float_model import open_float_model

    floats = CheckpointSource(open_float_model(str(assets / "models/stories260k")))
    with Model.open(STORIES) as model:
        tokens = model.tokenize("Once upon a time, there was a little girl named Lily. " * 6)
        result = measure(floats, SessionSource(model.session()), [tokens[:64]])
    assert 1e-5 < result.mean < 0.2
    assert result.agreement > 0.7


@pytest.mark.parametrize("fault", ["no reference", "no text", "a short text"])
def test_bad_input_is_one_sentence(fault: str, command: Command, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Once" if fault == "a short text" else "Once upon a time. " * 100)
    if fault == "no text":
        text.unlink()
    reference = tmp_path / "nothing.gguf" if fault == "no reference" else STORIES
    result = command("eval", "kld", STORIES, "--reference", reference, "--text", text)
    result.assert_one_sentence({"a short text": "less than one chunk"}.get(fault, "No such file"))
