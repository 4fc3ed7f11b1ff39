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
    assert texts.pop() == "" and len(texts) == len(lines) >= 40
    return [(text, [int(id) for id in line.split()]) for text, line in zip(texts, lines)]


@pytest.mark.parametrize("name", ["llama2", "gpt2"])
def test_golden_cases(name: str) -> None:
    directory = checkpoints.assets("tokenizers", name)
    stored = read_tokenizer(directory)
    for text, ids in golden_cases(directory):
        assert stored.encode(text) == ids, repr(text)


@pytest.mark.parametrize("settings", [{}, {"legacy": True}, {"legacy": False}])
@pytest.mark.parametrize("name", ["llama2", "mistral"])
def test_sentencepiece_agrees_with_its_own_package(
    name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    """Plain texts, wherever spaces arise around special tokens."""
    sentencepiece = pytest.importorskip("sentencepiece")
    path = checkpoints.assets("tokenizers", name) / "tokenizer.model"
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    (tmp_path / "tokenizer.model").write_bytes(path.read_bytes())
    settings = {"tokenizer_class": "LlamaTokenizer", **settings}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    stored = read_tokenizer(tmp_path)
    texts = [text for text, _ in golden_cases(checkpoints.assets("tokenizers", "llama2"))]
    texts.append(checkpoints.assets("text", "novels_val.txt").read_text(encoding="utf-8")[:50_000])
    for text in texts:
        ours = stored.encode(text)
        assert ours == processor.encode(text), repr(text[:80])
        assert stored.runtime.decode(ours) == text


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
    single = settings.pop("single", None)
    if single:
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single=single, special_tokens=[("<s>", 1), ("</s>", 2), ("<turn>", 3)]
        )
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def read_tokenizer(directory: Path, config: dict[str, Any] | None = None) -> Any:
    stored = hf_tokenizer.read_tokenizer(directory, config or {})
    assert stored is not None
    return stored


@pytest.mark.parametrize(
    ("settings", "add_bos"),
    [
        (dict(bos_token="<s>"), False),
        (dict(bos_token="<s>", single="<s> $A"), True),
        (dict(bos_token="<s>", single="<s> $A", add_bos_token=False), False),
        (dict(bos_token="<s>", add_bos_token=True), True),
        (dict(bos_token="<s>", tokenizer_class="LlamaTokenizer"), False),  # not SentencePiece
        (dict(bos_token=None, add_bos_token=True), False),
        (dict(bos_token={"content": "<s>"}, add_bos_token=True), True),
    ],
)
def test_bos_flag(tmp_path: Path, settings: dict[str, Any], add_bos: bool) -> None:
    word_tokenizer(tmp_path, **settings)
    stored = read_tokenizer(tmp_path)
    assert stored.add_bos is add_bos
    assert stored.encode("a b") == [4, 5]
    assert stored.runtime.encode("a b") == ([1, 4, 5] if add_bos else [4, 5])
    # The JSON alone says the same, whoever reads it.
    by_itself = tokenizers.Tokenizer.from_str(stored.json).encode("a b").ids
    assert by_itself == stored.runtime.encode("a b")


@pytest.mark.parametrize(
    ("settings", "ids"),
    [
        (dict(single="<s> </s> $A"), [1, 2, 4]),
        (dict(single="<unk> $A"), None),
        (dict(single="<turn> $A </s>"), [3, 4, 2]),
        (dict(single="<turn> $A", bos_token="<s>", add_bos_token=True), [1, 3, 4]),
        (dict(single="<s> <turn> $A", bos_token="<s>", add_bos_token=False), [3, 4]),
        (dict(single="$A </s>", bos_token="<s>", add_bos_token=True), [1, 4, 2]),
    ],
)
def test_whole_prefix_and_suffix(
    tmp_path: Path, settings: dict[str, Any], ids: list[int] | None
) -> None:
    if ids is None:
        pytest.skip("the package itself refuses a template with an unknown token")
    word_tokenizer(tmp_path, **settings)
    stored = read_tokenizer(tmp_path)
    assert stored.runtime.encode("a") == ids
    assert tokenizers.Tokenizer.from_str(stored.json).encode("a").ids == ids


def test_every_end_of_turn_is_kept(tmp_path: Path) -> None:
    word_tokenizer(tmp_path, eos_token="</s>")
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [3, 2, 999]}')
    stored = read_tokenizer(tmp_path, {"eos_token_id": 2, "bos_token_id": 1})
    assert (stored.bos_id, stored.eos_ids) == (1, (2, 3))
    metadata = stored.to_metadata()
    assert metadata["awq_edge.tokenizer.eos_token_ids"] == [2, 3]
    assert metadata["tokenizer.ggml.eos_token_id"] == 2
    assert "tokenizer.chat_template" not in metadata


def test_named_end_token_without_an_id_is_an_error(tmp_path: Path) -> None:
    word_tokenizer(tmp_path, eos_token="<|im_end|>")
    with pytest.raises(CheckpointError, match=r"'<\|im_end\|>' .* has no id"):
        read_tokenizer(tmp_path, {"eos_token_id": 2})
    (tmp_path / "added_tokens.json").write_text('{"<|im_end|>": 6}')
    assert read_tokenizer(tmp_path).eos_ids == (6,)


def test_end_token_of_special_tokens_map(tmp_path: Path) -> None:
    word_tokenizer(tmp_path)
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": {"content": "</s>"}}')
    assert read_tokenizer(tmp_path).eos_ids == (2,)
    # Where tokenizer_config.json lists added tokens, the older file does not count.
    word_tokenizer(tmp_path, added_tokens_decoder={})
    assert read_tokenizer(tmp_path).eos_ids == ()


# ---- added tokens ---------------------------------------------------------------------------


def entry(content: str, **flags: bool) -> dict[str, Any]:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"content": content, **plain, **flags}


def test_ids_with_gaps_are_those_of_the_files(tmp_path: Path) -> None:
    """The package would number added tokens one behind the other."""
    word_tokenizer(tmp_path)
    (tmp_path / "added_tokens.json").write_text('{"<y>": 12, "<x>": 9}')
    stored = read_tokenizer(tmp_path)
    assert stored.encode("a<x>b<y>") == [4, 9, 5, 12]
    assert stored.runtime.decode([9, 12, 4], skip_special_tokens=False).split() == [
        "<x>",
        "<y>",
        "a",
    ]
    decoder = {"7": entry("<x>", special=True), "20": entry("<z>")}
    word_tokenizer(tmp_path, added_tokens_decoder=decoder, pad_token="<pad>")
    stored = read_tokenizer(tmp_path)
    assert stored.encode("<z><x><pad>") == [20, 7, 21]


def test_ids_that_no_token_can_have(tmp_path: Path) -> None:
    for decoder in ({"x": entry("<x>")}, {"99999999999": entry("<x>")}, {"-1": entry("<x>")}, [1]):
        word_tokenizer(tmp_path, added_tokens_decoder=decoder)
        with pytest.raises(CheckpointError, match=r"(id|table)"):
            read_tokenizer(tmp_path)


# ---- chat templates -------------------------------------------------------------------------


def test_chat_template_from_each_place(tmp_path: Path) -> None:
    def templates() -> dict[str, str]:
        found: dict[str, str] = read_tokenizer(tmp_path).chat_templates
        return found

    word_tokenizer(tmp_path, chat_template=[{"name": "tool", "template": "x"}])
    assert templates() == {"tool": "x"}
    word_tokenizer(tmp_path, chat_template=[{"name": "default", "template": "one of two"}])
    assert templates() == {"default": "one of two"}
    word_tokenizer(tmp_path, chat_template={"default": "d", "rag": "r"})
    assert templates() == {"default": "d", "rag": "r"}
    (tmp_path / "chat_template.json").write_text('{"chat_template": "a processor\'s"}')
    assert templates() == {"default": "d", "rag": "r"}
    word_tokenizer(tmp_path, chat_template="in the settings")
    assert templates() == {"default": "in the settings"}
    (tmp_path / "chat_template.jinja").write_text("in its own file")
    assert templates() == {"default": "in its own file"}
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("R")
    assert templates() == {"default": "in its own file", "rag": "R"}
    metadata = read_tokenizer(tmp_path).to_metadata()
    assert metadata["tokenizer.chat_template"] == "in its own file"
    assert json.loads(metadata["awq_edge.tokenizer.chat_templates"]) == {"rag": "R"}


def test_special_tokens_for_templates(tmp_path: Path) -> None:
    word_tokenizer(
        tmp_path,
        bos_token="<s>",
        eos_token=None,
        pad_token={"__type": "AddedToken", **entry("<unk>")},
        image_token="<turn>",
        add_bos_token=True,
        extra_special_tokens={"boi_token": "b"},
    )
    metadata = read_tokenizer(tmp_path).to_metadata()
    assert json.loads(metadata["awq_edge.tokenizer.special_tokens"]) == {
        "bos_token": "<s>",
        "pad_token": "<unk>",
        "image_token": "<turn>",
        "boi_token": "b",
    }


# ---- side files and damage ------------------------------------------------------------------


@pytest.mark.parametrize("content", ["", "{broken", "[1, 2]", '{"eos_token_id": "x"}', "[" * 9999])
def test_broken_side_files_spoil_nothing(tmp_path: Path, content: str) -> None:
    word_tokenizer(tmp_path, eos_token="</s>", added_tokens_decoder={})
    for name in (
        "generation_config.json",
        "chat_template.json",
        "special_tokens_map.json",
        "added_tokens.json",
    ):
        (tmp_path / name).write_text(content)
    assert read_tokenizer(tmp_path).eos_ids == (2,)


def test_bad_tokenizers_are_refused(tmp_path: Path) -> None:
    assert hf_tokenizer.read_tokenizer(tmp_path, {}) is None
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(CheckpointError, match="not a SentencePiece model"):
        hf_tokenizer.read_tokenizer(tmp_path, {})
    for text in ("{", "{}", '{"model": 3}', '{"model": {"vocab": {"a": "b"}}}'):
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"tokenizer\.json is not"):
            hf_tokenizer.read_tokenizer(tmp_path, {})
    word_tokenizer(tmp_path)
    sound = json.loads((tmp_path / "tokenizer.json").read_text())
    for key, value in {
        "added_tokens": [3],
        "model": {**sound["model"], "type": "Other"},
        "pre_tokenizer": {"type": "Other"},
        "decoder": 5,
    }.items():
        (tmp_path / "tokenizer.json").write_text(json.dumps({**sound, key: value}))
        with pytest.raises(CheckpointError, match=r"tokenizer\.json is not a tokenizer"):
            hf_tokenizer.read_tokenizer(tmp_path, {})


def test_conversion_needs_no_settings(tmp_path: Path) -> None:
    source = checkpoints.assets("tokenizers", "llama2") / "tokenizer.model"
    shutil.copy(source, tmp_path)
    stored = read_tokenizer(tmp_path, {"eos_token_id": 2})
    assert (stored.bos_id, stored.eos_ids, stored.add_bos) == (1, (2,), True)
