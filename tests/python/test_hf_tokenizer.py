"""Stored tokenizers: SentencePiece golden cases, and a truthful BOS flag."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
tokenizers = pytest.importorskip("tokenizers")

import checkpoints  # noqa: E402  (after the check that torch is there)

from awq_edge import hf_tokenizer  # noqa: E402
from awq_edge.errors import CheckpointError  # noqa: E402


def golden_cases(directory: Path) -> list[tuple[str, list[int]]]:
    texts = (directory / "golden.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    lines = (directory / "golden.out").read_text().splitlines()
    assert len(lines) >= 40
    return [(text, [int(id) for id in line.split()]) for text, line in zip(texts, lines)]


@pytest.mark.parametrize("name", ["llama2", "gpt2"])
def test_golden_cases(name: str) -> None:
    directory = checkpoints.assets("tokenizers", name)
    stored = hf_tokenizer.read_tokenizer(directory, {})
    assert stored is not None
    tokenizer = tokenizers.Tokenizer.from_str(stored.json)
    for text, ids in golden_cases(directory):
        assert tokenizer.encode(text, add_special_tokens=False).ids == ids, repr(text)


@pytest.mark.parametrize("name", ["llama2", "mistral"])
def test_sentencepiece_agrees_with_its_own_package(name: str) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    path = checkpoints.assets("tokenizers", name) / "tokenizer.model"
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    tokenizer = tokenizers.Tokenizer.from_str(hf_tokenizer.convert_sentencepiece(path))
    texts = [text for text, _ in golden_cases(checkpoints.assets("tokenizers", "llama2"))]
    texts.append(checkpoints.assets("text", "novels_val.txt").read_text(encoding="utf-8")[:50_000])
    for text in texts:
        ours = tokenizer.encode(text, add_special_tokens=False).ids
        assert ours == processor.encode(text), repr(text[:80])
        assert tokenizer.decode(ours) == text


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        (("tokenizers", "llama2"), dict(bos_id=1, eos_ids=(2,), add_bos=True)),  # says so
        (("tokenizers", "mistral"), dict(bos_id=1, add_bos=True)),  # SentencePiece's default
        (("tokenizers", "smollm"), dict(bos_id=1, eos_ids=(2,), add_bos=False)),
        (("tokenizers", "gpt2"), dict(bos_id=None, add_bos=False)),
        (("models", "stories260k"), dict(bos_id=1, eos_ids=(2,), add_bos=True)),  # post-processor
        (("models", "novels-7m"), dict(bos_id=1, eos_ids=(2,), add_bos=True)),
    ],
)
def test_special_tokens(folder: tuple[str, str], expected: dict[str, Any]) -> None:
    stored = hf_tokenizer.read_tokenizer(checkpoints.assets(*folder), {})
    assert stored is not None
    assert {key: getattr(stored, key) for key in expected} == expected


def word_tokenizer(directory: Path, **settings: Any) -> None:
    """A tokenizer.json of a few words, with a settings file."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "<turn>": 3, "a": 4, "b": 5}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    if settings.pop("post_processor", False):
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize(
    ("settings", "add_bos"),
    [
        (dict(bos_token="<s>"), False),
        (dict(bos_token="<s>", post_processor=True), True),
        (dict(bos_token="<s>", post_processor=True, add_bos_token=False), False),
        (dict(bos_token="<s>", add_bos_token=True), True),
        (dict(bos_token="<s>", tokenizer_class="LlamaTokenizer"), False),  # not SentencePiece
        (dict(bos_token=None, add_bos_token=True), False),
        (dict(bos_token={"content": "<s>"}, add_bos_token=True), True),
    ],
)
def test_bos_flag(tmp_path: Path, settings: dict[str, Any], add_bos: bool) -> None:
    word_tokenizer(tmp_path, **settings)
    stored = hf_tokenizer.read_tokenizer(tmp_path, {})
    assert stored is not None and stored.add_bos is add_bos
    assert stored.encode("a b") == [4, 5]  # never a special token: the flag says it all


def test_every_end_of_turn_is_kept(tmp_path: Path) -> None:
    word_tokenizer(tmp_path, eos_token="</s>")
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [3, 2, 999]}')
    stored = hf_tokenizer.read_tokenizer(tmp_path, {"eos_token_id": 2, "bos_token_id": 1})
    assert stored is not None
    assert (stored.bos_id, stored.eos_id, stored.eos_ids) == (1, 2, (2, 3))
    metadata = stored.to_metadata()
    assert metadata["awq_edge.tokenizer.eos_token_ids"] == [2, 3]
    assert "tokenizer.chat_template" not in metadata


def test_chat_template_from_each_place(tmp_path: Path) -> None:
    def template() -> str | None:
        stored = hf_tokenizer.read_tokenizer(tmp_path, {})
        assert stored is not None
        return stored.chat_template

    word_tokenizer(tmp_path, chat_template=[{"name": "tool", "template": "x"}])
    assert template() is None
    word_tokenizer(tmp_path, chat_template=[{"name": "default", "template": "one of two"}])
    assert template() == "one of two"
    word_tokenizer(tmp_path, chat_template="in the settings")
    assert template() == "in the settings"
    (tmp_path / "chat_template.json").write_text('{"chat_template": "in its own json"}')
    assert template() == "in its own json"
    (tmp_path / "chat_template.jinja").write_text("in its own file")
    assert template() == "in its own file"


def test_bad_tokenizers_are_refused(tmp_path: Path) -> None:
    assert hf_tokenizer.read_tokenizer(tmp_path, {}) is None
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(CheckpointError, match="not a SentencePiece model"):
        hf_tokenizer.read_tokenizer(tmp_path, {})
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is not a tokenizer"):
        hf_tokenizer.read_tokenizer(tmp_path, {})


def test_conversion_needs_no_settings(tmp_path: Path) -> None:
    source = checkpoints.assets("tokenizers", "llama2") / "tokenizer.model"
    shutil.copy(source, tmp_path)
    stored = hf_tokenizer.read_tokenizer(tmp_path, {"eos_token_id": 2})
    assert stored is not None
    assert (stored.bos_id, stored.eos_id, stored.add_bos) == (1, 2, True)
