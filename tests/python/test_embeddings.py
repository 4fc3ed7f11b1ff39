"""Hidden states and what is made of them: against two other decoders, and the same bits always."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from awq_edge import Model
from awq_edge.embedding import Pooling
from awq_edge.errors import ContextFullError, InvalidArgumentError

TINY = Path(__file__).parents[1] / "data" / "tiny.awq.gguf"
PROMPT = [(17 * i * i + 5 * i + 3) % 203 for i in range(90)]
TEXTS = ["Once upon a time there was a cat.", "The dog ran.", "Lily had a red ball and a box. " * 9]


def test_hidden_states_are_those_of_a_plain_transformer() -> None:
    pytest.importorskip("gguf")
    from plain_decoder import Floats, PlainDecoder

    from awq_edge.model_file import read_dequantised

    class Listening(PlainDecoder):
        head_input: Floats

        def linear(self, name: str, x: Floats, bias: str = "") -> Floats:
            if name == ("token_embd" if self.a.tied_head else "output"):
                self.head_input = x
            return super().linear(name, x, bias)

    oracle = Listening(read_dequantised(TINY))
    expected = []
    for token in PROMPT:
        oracle.step(token)
        expected.append(oracle.head_input)
    with Model.open(TINY, threads=2) as model, model.session() as session:
        hidden = session.hidden(PROMPT)
    error = np.linalg.norm(hidden - np.array(expected), axis=1) / np.linalg.norm(expected, axis=1)
    # As in test_runtime_oracle.py; but no rounding of the head's input hides what float32 and
    # float64 differ by.
    assert np.median(error) < 2e-5
    assert error.max() < 2e-2


def test_embeddings_are_near_those_of_the_float_decoder(
    stories: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The PyTorch decoder rounds no activations: what that costs is what differs."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("gguf")
    from awq_edge import torch_decoder
    from awq_edge.model_file import read_dequantised

    source = read_dequantised(stories.path)
    seen = []
    ended = torch_decoder.ended

    def listening(*arguments: object) -> object:
        seen.append(ended(*arguments))  # type: ignore[arg-type]
        return seen[-1]

    monkeypatch.setattr(torch_decoder, "ended", listening)
    shapes = {"token_embd.weight", "output.weight"}
    assert shapes & set(source.tensors)
    for pooling in ("mean", "last"):
        vectors = stories.embed(TEXTS, pooling=pooling)
        assert vectors.dtype == np.float32
        for text, vector in zip(TEXTS, vectors):
            tokens = torch.tensor([stories.tokenize(text)])
            torch_decoder.logits(
                lambda name: torch.from_numpy(source.tensors[name]).float(),
                source.architecture,
                tokens,
            )
            rows = seen[-1][0].double().numpy()
            pooled = rows.mean(axis=0) if pooling == "mean" else rows[-1]
            assert float(vector @ pooled / np.linalg.norm(pooled)) > 0.999
        assert np.abs(vectors @ vectors.T - np.eye(len(TEXTS))).max() > 0.01  # they differ


def test_embeddings_have_the_same_bits_always(stories_path: Path) -> None:
    program = (
        "import sys; from awq_edge import Model\n"
        "with Model.open(sys.argv[1], threads=int(sys.argv[2])) as model:\n"
        "    print(model.embed(sys.argv[3:]).tobytes().hex())\n"
    )

    def run(kernels: str, threads: int) -> str:
        done = subprocess.run(
            [sys.executable, "-c", program, str(stories_path), str(threads), *TEXTS],
            env={**os.environ, "AWQ_EDGE_KERNELS": kernels},
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout

    from awq_edge._native import kernel_tables

    expected = run("reference", 1)
    assert len(expected) > 1000
    for kernels in kernel_tables():
        for threads in (1, 3):
            assert run(kernels, threads) == expected


def test_an_embedding_does_not_depend_on_its_neighbours(stories: Model) -> None:
    together = stories.embed(TEXTS)
    for text, vector in zip(TEXTS, together):
        assert np.array_equal(stories.embed([text])[0], vector)
    with stories.session() as one, stories.session() as other:
        tokens = stories.tokenize(TEXTS[2])
        rows = np.empty((len(tokens), stories.info.hidden_size), np.float32)
        logits = np.empty((3, stories.info.vocabulary_size), np.float32)
        stories.evaluate_together(
            [(one, tokens), (other, tokens[:3])], hidden={one: rows}, logits={other: logits}
        )
        assert np.array_equal(logits, stories.logits(tokens[:3]))
        with stories.session() as alone:
            parts = [alone.hidden(tokens[i : i + 7]) for i in range(0, len(tokens), 7)]
        assert np.array_equal(np.concatenate(parts), rows)


def test_pooling_is_plain_arithmetic() -> None:
    rows: npt.NDArray[np.float32] = np.random.default_rng(3).normal(size=(37, 24)).astype("f4")
    pooled = Pooling(24, "mean")
    for begin in range(0, 37, 10):
        pooled.add(rows[begin : begin + 10])
    mean = [math.fsum(float(x) for x in column) / 37 for column in rows.T]
    length = math.sqrt(math.fsum(x * x for x in mean))
    assert np.allclose(pooled.vector(), [x / length for x in mean], rtol=2e-7, atol=0)
    assert np.allclose(pooled.vector(normalize=False), mean, rtol=2e-7, atol=0)
    short = pooled.vector(dimensions=5)
    assert len(short) == 5 and abs(np.linalg.norm(short) - 1) < 1e-6
    last = Pooling(24, "last")
    last.add(rows[:9])
    last.add(rows[9:])
    assert np.array_equal(last.vector(normalize=False), rows[-1])
    assert not Pooling(4, "mean").vector().any()  # nothing has no direction


def test_what_cannot_be_embedded_is_refused_in_words(stories: Model) -> None:
    with pytest.raises(InvalidArgumentError, match="'middle' is none of mean, last"):
        stories.embed(["x"], pooling="middle")
    with pytest.raises(InvalidArgumentError, match="list of texts"):
        stories.embed("x")
    with pytest.raises(ContextFullError):
        stories.embed(["word " * 2000])
    assert stories.embed([]).shape == (0, stories.info.hidden_size)
