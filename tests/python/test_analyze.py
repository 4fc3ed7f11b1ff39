"""The analysis measures what it says, and its page needs nothing but itself."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from checkpoints import assets, random_model, save  # noqa: E402  (after the checks above)
from conftest import STORIES, Command  # noqa: E402

from awq_edge import stages, torch_decoder  # noqa: E402
from awq_edge.accuracy.perplexity import cut_chunks  # noqa: E402
from awq_edge.analysis import calibration_runs, exponents, salient  # noqa: E402
from awq_edge.analysis.subject import Settings, Subject, divide_text  # noqa: E402
from awq_edge.errors import FileUnreadableError, InvalidArgumentError  # noqa: E402
from awq_edge.float_model import open_float_model  # noqa: E402
from awq_edge.hf_tokenizer import read_tokenizer  # noqa: E402
from awq_edge.quantize import grouped  # noqa: E402
from awq_edge.quantize.awq import plain_scales  # noqa: E402

TEXT = "the quick brown fox jumps over the lazy dog and runs away " * 60
SETTINGS = Settings(
    bits=3, group_size=32, samples=3, sequence_length=32, context=32, chunks=4, seed=1
)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A random model with a tokenizer that knows letters."""
    path = save(random_model("llama", hidden_size=72, intermediate_size=96), tmp_path / "model")
    letters = ["<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz "]
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "model": {
            "type": "BPE",
            "vocab": {letter: number for number, letter in enumerate(letters)},
            "merges": [],
        },
    }
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    return path


@pytest.fixture
def subject(directory: Path) -> Subject:
    source = open_float_model(str(directory))
    tokenizer = read_tokenizer(directory, source.checkpoint.config)
    assert tokenizer is not None
    return Subject(source, tokenizer, SETTINGS, *divide_text(TEXT))


def inputs_of(subject: Subject) -> dict[tuple[int, str], torch.Tensor]:
    """What each matrix reads, [tokens, k], from one plain forward over all blocks."""
    found: dict[tuple[int, str], torch.Tensor] = {}
    hidden = subject.weights["token_embd.weight"][subject.blocks]
    positions = torch_decoder.Positions.of(
        subject.architecture, hidden.shape[1], subject.weights.__getitem__
    )
    for layer in range(subject.architecture.layers):
        weights = subject.layer(layer)

        def linear(
            name: str, x: torch.Tensor, layer: int = layer, weights: Any = weights
        ) -> torch.Tensor:
            found[layer, name] = x.reshape(-1, x.shape[-1])
            return x @ weights[f"{name}.weight"].T

        hidden = torch_decoder.Layer(subject.architecture, layer, weights, positions, linear).run(
            hidden
        )
    return found


def test_sums_are_those_of_all_tokens(subject: Subject) -> None:
    inputs = inputs_of(subject)
    layers = dict(subject.layers())
    assert sorted(layers) == list(range(subject.architecture.layers))
    for layer, found in layers.items():
        for stage in stages.stages(subject.architecture, layer):
            x, seen = inputs[layer, stage.matrices[-1]].double(), found[stage.name]
            assert len(x) == subject.blocks.numel() == seen.tokens
            torch.testing.assert_close(
                seen.mean_absolute().double(), x.abs().mean(0), rtol=1e-4, atol=1e-6
            )
            torch.testing.assert_close(
                seen.mean_products()[0].double(), x.T @ x / len(x), rtol=1e-3, atol=1e-4
            )


def test_curves_are_errors_of_the_outputs(subject: Subject) -> None:
    inputs = inputs_of(subject)
    found = dict(subject.layers())[1]
    weights = subject.layer(1)
    curves = exponents.layer_curves(subject, 1, found)
    described = stages.stages(subject.architecture, 1)
    assert [curve.matrices for curve in curves] == [stage.matrices for stage in described]
    for curve, stage in zip(curves, described):
        x = inputs[1, curve.matrices[0]].double()
        for exponent, error in zip(exponents.EXPONENTS, curve.errors):
            if exponent not in (0.0, 0.5, 1.0):
                continue
            scales = plain_scales(found[stage.name].mean_absolute(), exponent)
            difference = power = 0.0
            for name in curve.matrices:
                weight = weights[f"{name}.weight"]
                rounded = grouped.round_trip(weight * scales, 3, 32) / scales
                difference += float((x @ (rounded - weight).double().T).square().sum())
                power += float((x @ weight.double().T).square().sum())
            assert math.isclose(error, difference / power, rel_tol=1e-2), (curve.matrices, exponent)


def test_exponent_zero_is_plain_rounding() -> None:
    magnitudes = torch.tensor([0.0, 0.1, 3.0, 40.0])
    assert torch.equal(plain_scales(magnitudes, 0.0), torch.ones(4))
    one = plain_scales(magnitudes, 1.0)
    assert one[0] == 1.0  # a channel that is always zero has no say
    assert math.isclose(float(one[1] * one[3]), 1.0, rel_tol=1e-6)
    assert torch.equal(plain_scales(torch.zeros(4), 0.7), torch.ones(4))


def test_channels_are_chosen_by_their_rule() -> None:
    weight = torch.ones(3, 200)
    weight[:, 7] = 9.0
    magnitudes = torch.ones(200)
    magnitudes[11] = 9.0

    def chosen(rule: str, share: float, seed: int = 0) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        kept = salient.chosen_channels(rule, share, weight, magnitudes, generator)
        return sorted(kept.tolist())

    assert chosen("activation", 0.001) == [11]  # a fifth of a channel is one channel
    assert chosen("weight", 0.001) == [7]
    assert 11 in chosen("activation", 0.03)
    assert [len(chosen(rule, 0.03)) for rule in salient.RULES] == [6, 6, 6]
    assert len(set(chosen("random", 0.03))) == 6
    assert chosen("random", 0.03) == chosen("random", 0.03)
    assert chosen("random", 0.03) != chosen("random", 0.03, seed=1)


def test_kept_channels_are_fp16_and_the_rest_is_rounded(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    plain = subject.perplexity

    def spy(weights: Any = None) -> Any:
        seen.append(weights)
        return plain(weights)

    monkeypatch.setattr(subject, "perplexity", spy)
    magnitudes = {
        layer: {name: seen.mean_absolute() for name, seen in found.items()}
        for layer, found in subject.layers()
    }
    steps: list[int] = []
    results = salient.measure_salient(subject, magnitudes, lambda: steps.append(1))
    assert len(results) == len(seen) == len(steps) == 10
    name = "blk.2.attn_v.weight"
    weight = subject.weights[name]
    rounded = grouped.round_trip(weight, 3, 32)
    assert torch.equal(seen[0][name], rounded)
    (row,) = [
        i for i, result in enumerate(results) if (result.rule, result.share) == ("activation", 0.03)
    ]
    kept = magnitudes[2]["qkv"].topk(2).indices
    other = [column for column in range(72) if column not in kept.tolist()]
    assert torch.equal(seen[row][name][:, kept], weight[:, kept].half().float())
    assert torch.equal(seen[row][name][:, other], rounded[:, other])
    assert torch.equal(seen[row]["token_embd.weight"], subject.weights["token_embd.weight"])


def test_perplexity_is_that_of_the_protocol(subject: Subject, directory: Path) -> None:
    from awq_edge.accuracy.checkpoint_logits import CheckpointSource
    from awq_edge.accuracy.perplexity import measure

    source = open_float_model(str(directory))
    tokenizer = read_tokenizer(directory, source.checkpoint.config)
    assert tokenizer is not None
    tokens = tokenizer.encode(divide_text(TEXT)[1])
    chunks = cut_chunks(tokens, 32, bos_token_id=None, limit=4)
    expected = measure(CheckpointSource(source), chunks)
    assert math.isclose(subject.perplexity().value, expected.value, rel_tol=1e-6)
    assert subject.perplexity().tokens == expected.tokens


def test_judged_and_calibration_text_do_not_overlap() -> None:
    text = "".join(chr(97 + number % 26) for number in range(1000))
    first, second = divide_text(text)
    assert first + second == text
    assert len(second) == 200


def test_texts_shorter_than_a_block_are_refused(directory: Path) -> None:
    source = open_float_model(str(directory))
    tokenizer = read_tokenizer(directory, source.checkpoint.config)
    assert tokenizer is not None
    with pytest.raises(InvalidArgumentError, match="one block of 32"):
        Subject(source, tokenizer, SETTINGS, "too short", TEXT)
    with pytest.raises(InvalidArgumentError, match="one chunk of 32"):
        Subject(source, tokenizer, SETTINGS, TEXT, "too short")


def test_calibration_runs_are_whole_conversions(subject: Subject, directory: Path) -> None:
    texts = {"first": TEXT, "second": TEXT[::-1]}
    results = calibration_runs.measure_calibration(
        subject, str(directory), texts, [2, 1], ["awq", "rtn"]
    )
    assert [(row.method, row.text, row.blocks) for row in results] == [
        ("awq", "first", 1),
        ("awq", "first", 2),
        ("awq", "second", 2),
        ("rtn", "first", 1),
        ("rtn", "first", 2),
        ("rtn", "second", 2),
    ]
    rounded = dict(subject.weights)
    for name in rounded:
        if name.startswith("blk.") and rounded[name].dim() == 2:
            rounded[name] = grouped.round_trip(rounded[name], 3, 32)
    expected = subject.perplexity(rounded).value
    assert {row.perplexity for row in results if row.method == "rtn"} == {results[3].perplexity}
    assert math.isclose(results[3].perplexity, expected, rel_tol=1e-6)


def test_texts_have_names(tmp_path: Path) -> None:
    (tmp_path / "wiki.txt").write_text("abc")
    path = tmp_path / "wiki.txt"
    assert calibration_runs.named_texts([str(path)]) == {"wiki": "abc"}
    assert calibration_runs.named_texts([f"w={path}"]) == {"w": "abc"}
    with pytest.raises(FileUnreadableError):
        calibration_runs.named_texts([str(tmp_path / "none.txt")])


# ---- the page and the command -------------------------------------------------------------------


class Page(HTMLParser):
    """Counts elements and collects what a page would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        for name, value in attributes:
            if name in ("src", "href", "xlink:href") and not (value or "").startswith("#"):
                self.fetched.append(str(value))


def analysis_command(command: Command, directory: Path, page: Path, *more: object) -> Any:
    (directory.parent / "text.txt").write_text(TEXT)
    return command(
        "analyze", directory, "-o", page, "--group-size", 32, "--samples", 2,
        "--sequence-length", 32, "--context", 32, "--chunks", 2, "--sizes", "1,2",
        "--calibration", directory.parent / "text.txt", "--json", "--quiet", *more,
    )  # fmt: skip


def test_the_page_holds_everything_and_fetches_nothing(
    command: Command, directory: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    page = tmp_path / "page.html"
    result = analysis_command(command, directory, page)
    assert result.status == 0, result.err
    document = json.loads(result.out)
    assert len(document["salient"]) == 10
    assert len(document["curves"]) == 4 * 3
    assert [row["blocks"] for row in document["calibration"]] == [1, 2]
    text = page.read_text()
    found = Page(text)
    assert found.counts["svg"] == found.counts["table"] == 3
    assert found.fetched == []
    assert "script" not in found.counts
    assert "link" not in found.counts
    for row in document["salient"]:
        assert f"{row['perplexity']:.3f}" in text
    assert f"{document['float_perplexity']:.3f}" in text
    # The same analysis gives the same page.
    again = tmp_path / "again.html"
    assert analysis_command(command, directory, again).status == 0
    assert again.read_text() == text


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--sizes", "two"), "--sizes"),
        (("--bits", 7), "2, 3, 4, 5, 6 or 8"),
        (("--methods", "awq,magic"), "'magic' is none of"),
        (("--context", 4096, "--text", "{short}"), "one chunk"),
        (("--text", "{none}"), "none.txt"),
        (("-o", "{none}/page.html"), "no directory"),
        (("-o", "{directory}"), "is a directory"),
        (("-o", "{short}"), "exists already"),
    ],
)
def test_bad_input_is_one_sentence(
    more: tuple[Any, ...], words: str, command: Command, directory: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "short.txt").write_text("short")
    places = {
        "short": tmp_path / "short.txt",
        "none": tmp_path / "none.txt",
        "directory": directory,
    }
    page = tmp_path / "page.html"
    filled = [
        argument.format(**places) if isinstance(argument, str) else argument for argument in more
    ]
    analysis_command(command, directory, page, *filled).assert_one_sentence(words)
    assert not page.exists()


def test_a_packed_file_is_refused(command: Command, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = command("analyze", STORIES, "-o", tmp_path / "page.html", "--quiet")
    result.assert_one_sentence("is a packed file already")


def test_large_activations_matter_on_a_trained_model() -> None:
    """The paper's first finding, on a model that was trained."""
    directory = assets("models", "stories260k")
    source = open_float_model(str(directory))
    tokenizer = read_tokenizer(directory, source.checkpoint.config)
    assert tokenizer is not None
    text = "Once upon a time, there was a little girl named Lily. She had a big red ball. " * 40
    settings = Settings(
        bits=2, group_size=64, samples=4, sequence_length=128, context=128, chunks=4
    )
    subject = Subject(source, tokenizer, settings, text, text)
    magnitudes = {
        layer: {name: seen.mean_absolute() for name, seen in found.items()}
        for layer, found in subject.layers()
    }
    found = {
        (row.rule, row.share): row.perplexity
        for row in salient.measure_salient(subject, magnitudes)
    }
    assert found["activation", 0.03] < found["random", 0.03]
    assert found["activation", 0.03] < found["none", 0.0]
