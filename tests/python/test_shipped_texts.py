"""The calibration texts that ship: their kinds, what each gives, and what is held out of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from programs import program

torch = pytest.importorskip("torch")

import checkpoints  # noqa: E402

from awq_edge.calibration import shipped  # noqa: E402
from awq_edge.hf_tokenizer import StoredTokenizer, read_tokenizer  # noqa: E402

ROOT = Path(__file__).parents[2]


def tokenizer_of(name: str) -> StoredTokenizer:
    directory = ROOT / "examples" / name
    stored = read_tokenizer(directory, json.loads((directory / "config.json").read_text()))
    assert stored is not None
    return stored


def test_every_kind_is_there_and_of_some_length() -> None:
    texts = shipped.read_kinds()
    assert list(texts) == list(shipped.SHARES)
    assert all(len(text) > 5000 for text in texts.values())
    assert shipped.digest(texts) != shipped.digest({**texts, "code": "x"})


def test_texts_are_those_of_their_sources() -> None:
    texts = shipped.read_kinds()
    kinds = program("benchmarks/calibration_texts.py").kinds()
    assert {"prose", *kinds} == set(texts)
    for kind in ("encyclopaedia", "arithmetic", "dialogues", "records", "languages"):
        assert kinds[kind] == texts[kind], kind


def test_blocks_by_share_and_one_of_each_kind_put_aside() -> None:
    tokenizer, texts = tokenizer_of("novels-7m"), shipped.read_kinds()
    drawn = shipped.kinds_blocks(tokenizer, texts, 64, 256, seed=0)
    assert drawn.blocks.shape == (64, 256) == (sum(drawn.counts.values()), 256)
    assert all(count >= 2 for count in drawn.counts.values())
    assert drawn.counts["prose"] == max(drawn.counts.values())
    assert set(drawn.held_out) == set(texts)
    rows = {tuple(row.tolist()) for row in drawn.blocks}
    for kind, block in drawn.held_out.items():
        assert block.shape == (1, 256) and tuple(block[0].tolist()) not in rows, kind
    again = shipped.kinds_blocks(tokenizer, texts, 64, 256, seed=0)
    assert torch.equal(drawn.blocks, again.blocks)
    other = shipped.kinds_blocks(tokenizer, texts, 64, 256, seed=1)
    assert not torch.equal(drawn.blocks, other.blocks)


@pytest.mark.parametrize("samples", [1, 3, 8, 50, 128, 1000])
def test_shares_add_up(samples: int) -> None:
    available = dict.fromkeys(shipped.SHARES, 9) | {"prose": 200, "encyclopaedia": 30}
    counts = shipped.shared_out(samples, available)
    assert sum(counts.values()) == min(samples, sum(available.values()))
    assert all(counts[kind] <= available[kind] for kind in counts)


def test_dialogues_in_the_model_s_own_format() -> None:
    text = shipped.read_kinds()["dialogues"]
    chat = tokenizer_of("novels-chat")
    written = shipped.in_chat_form(chat, text)
    assert "USER:" not in written and "ASSISTANT:" not in written
    assert "Canberra" in written and written.count("The capital of Australia is Sydney") == 1
    assert shipped.in_chat_form(tokenizer_of("novels-7m"), text) == text


def test_a_conversion_reports_errors_on_what_was_put_aside(tmp_path: Path) -> None:
    from awq_edge import conversion
    from awq_edge.accuracy.checkpoint_logits import CheckpointSource
    from awq_edge.accuracy.kld import measure
    from awq_edge.accuracy.perplexity import SessionSource
    from awq_edge.float_model import open_float_model
    from awq_edge.model import Model

    model = checkpoints.random_model("llama", vocab_size=4096)
    directory = checkpoints.save(model, tmp_path / "hf")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "examples/novels-7m" / name, directory)
    output = tmp_path / "m.gguf"
    options = conversion.Options(method="awq", samples=9, sequence_length=32, group_size=32)
    report = conversion.convert(str(directory), output, options)
    assert sum(report.texts.values()) == 9
    assert set(report.held_out) == set(shipped.SHARES)
    assert all(0 < error < 5 for error in report.held_out.values())
    source = open_float_model(str(directory))
    stored = read_tokenizer(directory, source.checkpoint.config)
    assert stored is not None
    drawn = shipped.kinds_blocks(stored, shipped.read_kinds(), 9, 32, 0)
    with Model.open(output) as packed:
        # One token more: the protocol there needs each position's successor.
        tokens = [*drawn.held_out["code"][0].tolist(), 5]
        measured = measure(CheckpointSource(source), SessionSource(packed.session()), [tokens]).mean
    assert report.held_out["code"] == pytest.approx(measured, rel=1e-3)
