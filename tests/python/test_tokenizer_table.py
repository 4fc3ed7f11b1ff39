"""Token ids of whole folders against transformers' AutoTokenizer: the assets' and made ones.

Not compared, for transformers is no judge there: BOS of the novels models, which were trained with
one that its release 5 does not add; and runs of blanks beside a tokenizer.model, where
SentencePiece is right (``test_hf_tokenizer.py``).
"""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import checkpoints
import pytest

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

from awq_edge import hf_tokenizer  # noqa: E402  (after the check that torch is there)

TEXTS = (
    "",
    "a",
    "Once upon a time, there were 12,345 llamas.",
    "two  blanks, three   blanks\n\nlines\tand\ttabs",
    "naïve café — “quoted” ½ ① 漢字 🦙👩‍👩‍👧 нещо ـع",
    "it's we'll I'M they'Re",
    "x  \n ",
)
# SentencePiece merges what has the best score; transformers divides such blanks otherwise.
BLANKS_INSIDE = TEXTS[3]
BLANKS_FIRST = ("  two blanks first", " ", "\n a", "\t")


def compare(directory: Path, texts: tuple[str, ...], special: bool = False) -> None:
    """Ids of each text, with or without what stands around it."""
    if not (directory / "config.json").exists():
        (directory / "config.json").write_text(json.dumps({"model_type": "llama"}))
    config = json.loads((directory / "config.json").read_text())
    stored = hf_tokenizer.read_tokenizer(directory, config)
    assert stored is not None
    right = transformers.AutoTokenizer.from_pretrained(directory)
    for text in texts:
        expected = right(text, add_special_tokens=special)["input_ids"]
        ours = stored.runtime.encode(text) if special else stored.encode(text)
        assert ours == expected, repr(text)
    for name, token in right.special_tokens_map.items():
        assert stored.special_tokens[name] == token
    assert set(stored.special_tokens) == set(right.special_tokens_map)
    if right.eos_token_id is not None:
        assert stored.eos_ids[0] == right.eos_token_id


def copy(source: Path, target: Path, *without: str, **settings: Any) -> Path:
    """A writable folder with a tokenizer's files and changed settings."""
    for file in source.iterdir():
        wanted = "token" in file.name or file.name in ("config.json", "vocab.json", "merges.txt")
        if wanted and file.name not in without:
            shutil.copyfile(file, target / file.name)
    change(target / "tokenizer_config.json", **settings)
    return target


def change(path: Path, **values: Any) -> None:
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**before, **values}))


# ---- the assets ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        *[("tokenizers", name) for name in ("gpt2", "llama2", "mistral", "smollm")],
        *[
            ("models", name)
            for name in (
                "stories260k",
                "novels-7m",
                "novels-45m",
                "novels-chat",
                "novels-opt",
                "novels-falcon",
                "novels-starcoder",
                "novels-stablelm",
                "novels-gemma3",
                "novels-phi3",
                "novels-qwen3_moe",
            )
        ],
    ],
)
def test_every_tokenizer_of_the_assets(folder: str, name: str, tmp_path: Path) -> None:
    directory = copy(checkpoints.assets(folder, name), tmp_path)
    alone = folder == "tokenizers" and (directory / "tokenizer.model").exists()
    special = (
        "<s>x</s>y",
        "<|im_start|>user\nHi<|im_end|>\n",
        "a<|endoftext|>b <pad> c<end_of_turn>",
    )
    texts = (*TEXTS, *special, *BLANKS_FIRST)
    if alone:
        texts = tuple(text for text in texts if text not in (BLANKS_INSIDE, *BLANKS_FIRST))
    compare(directory, texts)


@pytest.mark.parametrize("name", ["novels-7m", "novels-chat", "novels-gemma3", "novels-phi3"])
def test_tokenizer_model_alone(name: str, tmp_path: Path) -> None:
    """What the tokenizer.json beside it says comes out of tokenizer.model by itself."""
    source = checkpoints.assets("models", name)
    whole = hf_tokenizer.read_tokenizer(source, {})
    directory = copy(source, tmp_path, "tokenizer.json")
    entries = json.loads((source / "tokenizer.json").read_text())["added_tokens"]
    table = {str(entry.pop("id")): entry for entry in entries}
    change(directory / "tokenizer_config.json", added_tokens_decoder=table)
    alone = hf_tokenizer.read_tokenizer(directory, {})
    assert whole is not None and alone is not None
    assert (alone.bos_id, alone.add_bos) == (whole.bos_id, whole.add_bos)
    for text in (*TEXTS, "<|im_start|>user\nHi<|im_end|>\nx", "<|user|>a<|end|> b"):
        assert alone.runtime.encode(text) == whole.runtime.encode(text), repr(text)


# ---- folders made here -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small byte-level BPE, trained here."""
    directory = tmp_path_factory.mktemp("byte-level")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<|endoftext|>", "<s>", "</s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*TEXTS, "Hello there, hello world " * 20], trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"})
    )
    return directory


ADDED = (
    "<tool>x<extra>y",
    "a <tool> b <extra>  c",
    "a<pad>b",
    "xtool tool <TOOL>",
    "hello</s> <s>",
)


def flags(content: str, **more: bool) -> dict[str, Any]:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"content": content, **plain, **more}


def named(content: str, **more: bool) -> dict[str, Any]:
    return {"__type": "AddedToken", **flags(content, **more)}


SETTINGS: dict[str, dict[str, Any]] = {
    "decoder": {
        "added_tokens_decoder": {"340": flags("<tool>", special=True), "341": flags("<extra>")}
    },
    "decoder with flags": {
        "added_tokens_decoder": {
            "340": flags("<tool>", lstrip=True, rstrip=True),
            "341": flags("tool", single_word=True, normalized=True),
            "2": flags("</s>", rstrip=True, special=True),
        }
    },
    "named": {"pad_token": "<pad>", "additional_special_tokens": ["<tool>", "<extra>"]},
    "named as tables": {"pad_token": named("<pad>", lstrip=True), "mask_token": named("<tool>")},
    "extra": {
        "extra_special_tokens": ["<tool>", "<extra>"],
        "additional_special_tokens": ["<pad>"],
    },
    "extra by name": {"extra_special_tokens": {"tool_token": "<tool>"}, "image_token": "<extra>"},
    "in the vocabulary": {"unk_token": "e", "eos_token": "h"},
    "null": {"eos_token": None, "bos_token": None},
    "split": {"split_special_tokens": True},
    "lengths": {"model_max_length": 3, "truncation_side": "left", "padding_side": "left"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_keys_of_tokenizer_config(name: str, byte_level: Path, tmp_path: Path) -> None:
    compare(copy(byte_level, tmp_path, **SETTINGS[name]), (*TEXTS, *BLANKS_FIRST, *ADDED))


@pytest.mark.parametrize("special", [False, True])
def test_added_tokens_json_and_special_tokens_map(
    special: bool, byte_level: Path, tmp_path: Path
) -> None:
    directory = copy(byte_level, tmp_path)
    (directory / "added_tokens.json").write_text(json.dumps({"<tool>": 340, "<extra>": 341}))
    values: dict[str, Any] = {"bos_token": "<s>", "eos_token": {**flags("</s>"), "lstrip": True}}
    if special:
        values["additional_special_tokens"] = ["<tool>", "<pad>"]
    (directory / "special_tokens_map.json").write_text(json.dumps(values))
    compare(directory, (*TEXTS, *ADDED))


@pytest.mark.parametrize("part", ["truncation", "padding"])
def test_truncation_and_padding_are_off(part: str, byte_level: Path, tmp_path: Path) -> None:
    directory = copy(byte_level, tmp_path)
    plain = hf_tokenizer.read_tokenizer(directory, {})
    loaded = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    whole = loaded.encode("hello " * 40).ids
    assert len(whole) > 40
    if part == "truncation":
        loaded.enable_truncation(3)
    else:
        loaded.enable_padding(length=500)
    loaded.save(str(directory / "tokenizer.json"))
    stored = hf_tokenizer.read_tokenizer(directory, {})
    assert stored == plain
    assert stored is not None and json.loads(stored.json)[part] is None
    assert stored.encode("hello " * 40) == whole


SINGLES = {
    "two in front": "<s> </s> $A",
    "not BOS": "<|endoftext|> $A",
    "behind": "$A </s>",
    "both": "<s> $A </s> </s>",
    "typed": "<s>:3 $A:3",
}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("name", [*SINGLES, "bert", "roberta", "pair only"])
def test_post_processors(name: str, nested: bool, byte_level: Path, tmp_path: Path) -> None:
    directory = copy(byte_level, tmp_path)
    tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    processors = tokenizers.processors
    all_of_them = [("<|endoftext|>", 0), ("<s>", 1), ("</s>", 2)]
    if name == "bert":
        processor = processors.BertProcessing(("</s>", 2), ("<s>", 1))
    elif name == "roberta":
        processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 1))
    elif name == "pair only":
        processor = processors.TemplateProcessing(pair="<s> $A $B", special_tokens=all_of_them)
    else:
        processor = processors.TemplateProcessing(
            single=SINGLES[name], pair="$A $B", special_tokens=all_of_them
        )
    if nested:
        processor = processors.Sequence([processors.ByteLevel(), processor])
    tokenizer.post_processor = processor
    tokenizer.save(str(directory / "tokenizer.json"))
    compare(directory, tuple(text for text in TEXTS if text), special=True)


def test_kinds_of_models(tmp_path: Path) -> None:
    """WordLevel, WordPiece and Unigram are stored as they are, with tokens added."""
    models = tokenizers.models
    words = {"[UNK]": 0, "[SEP]": 1, "hel": 2, "##lo": 3, "world": 4, "hello": 5, "##s": 6}
    for number, model in enumerate(
        (
            models.WordLevel(words, unk_token="[UNK]"),
            models.WordPiece(words, unk_token="[UNK]"),
            models.Unigram(
                [("<unk>", 0.0), ("▁", -1.0), ("hel", -2.5), ("lo", -2.0), ("▁world", -3.25)],
                unk_id=0,
                byte_fallback=False,
            ),
        )
    ):
        directory = tmp_path / str(number)
        directory.mkdir()
        tokenizer = tokenizers.Tokenizer(model)
        tokenizer.normalizer = tokenizers.normalizers.Lowercase()
        tokenizer.pre_tokenizer = (
            tokenizers.pre_tokenizers.Metaspace()
            if isinstance(model, models.Unigram)
            else tokenizers.pre_tokenizers.BertPreTokenizer()
        )
        tokenizer.save(str(directory / "tokenizer.json"))
        size = tokenizer.get_vocab_size()
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "added_tokens_decoder": {str(size): flags("<X>", normalized=True)},
            "pad_token": "<pad>",
        }
        (directory / "tokenizer_config.json").write_text(json.dumps(settings))
        compare(directory, ("Hello world hellos", "a<x>b <X>", "world<pad>hello", "[SEP]"))


@pytest.mark.parametrize("prefix", [None, True, False])
def test_vocab_and_merges(prefix: bool | None, byte_level: Path, tmp_path: Path) -> None:
    """GPT-2's two files, which only their class explains."""
    model = json.loads((byte_level / "tokenizer.json").read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    settings: dict[str, Any] = {"tokenizer_class": "GPT2Tokenizer", "pad_token": "<pad>"}
    if prefix is not None:
        settings["add_prefix_space"] = prefix
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    compare(tmp_path, (*TEXTS, *BLANKS_FIRST, *ADDED))


@pytest.mark.parametrize("name", ["tokenizer.model", "tiktoken.model"])
def test_tiktoken_files(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")  # it would keep files by their paths alone
    ranks = [bytes([byte]) for byte in range(256)]
    ranks += [b"he", b"ll", b"hell", b"hello", b" w", b"or", b" wor", b" world", b"12", b"\xc3\xa9"]
    lines = [base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(ranks)]
    (tmp_path / name).write_bytes(b"".join(lines))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": {"266": flags("<|begin|>", special=True), "268": flags("<|end|>")},
        "bos_token": "<|begin|>",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    stored = hf_tokenizer.read_tokenizer(tmp_path, {})
    assert stored is not None
    assert stored.encode("hello world<|end|>é") == [259, 263, 268, 265]
    assert stored.encode("<|begin|>121") == [266, 264, 49]
    assert stored.runtime.decode([259, 263, 265]) == "hello worldé"
    pytest.importorskip("tiktoken", reason="transformers reads such files with it")
    compare(tmp_path, (*TEXTS, *BLANKS_FIRST, "<|begin|>hello world<|end|>x"))


SPACED = (
    "a<s>b",
    "x</s>y",
    "overheard",
    "x</s> y",
    "<s>b",
    "<s> b",
    "<s>",
    "a<tool>b",
    "a <tool> b",
)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"legacy": False},
        {"legacy": True},
        {"add_prefix_space": False},
        {"add_prefix_space": True, "legacy": False},
    ],
)
@pytest.mark.parametrize("alone", [True, False])
def test_spaces_of_sentencepiece(settings: dict[str, Any], alone: bool, tmp_path: Path) -> None:
    """Beside tokenizer.model and beside a tokenizer.json: where a space arises."""
    directory = copy(checkpoints.assets("tokenizers", "llama2"), tmp_path, **settings)
    (directory / "added_tokens.json").write_text(json.dumps({"<tool>": 32000, "<extra>": 32001}))
    texts = tuple(text for text in (*SPACED, *TEXTS) if text != BLANKS_INSIDE)
    if not alone:
        right = transformers.AutoTokenizer.from_pretrained(
            copy(checkpoints.assets("models", "novels-7m"), tmp_path)
        )
        right.backend_tokenizer.save(str(directory / "tokenizer.json"))
        (directory / "tokenizer.model").unlink()
        (directory / "added_tokens.json").unlink()
        change(directory / "tokenizer_config.json", tokenizer_class="LlamaTokenizer", **settings)
    if settings.get("legacy") is True:
        # A blank behind a special token: SentencePiece puts a second one before the part.
        texts = tuple(text for text in texts if "> " not in text)
    compare(directory, texts)


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize(
    ("name", "class_name"),
    [
        ("novels-opt", "GPT2Tokenizer"),
        ("novels-opt", None),
        ("novels-falcon", "PreTrainedTokenizerFast"),
        ("novels-falcon", "GPT2Tokenizer"),
        ("novels-starcoder", "GPT2Tokenizer"),
        ("novels-stablelm", "GPT2Tokenizer"),
        ("novels-stablelm", "GPTNeoXTokenizer"),
        ("novels-qwen3_moe", "Qwen2Tokenizer"),
        ("novels-qwen3_moe", "PreTrainedTokenizerFast"),
    ],
)
def test_a_blank_before_a_text(
    name: str, class_name: str | None, wanted: bool, tmp_path: Path
) -> None:
    """Which class obeys follows from the model's type; and none puts a blank before each piece."""
    source = checkpoints.assets("models", name)
    directory = copy(source, tmp_path, add_prefix_space=wanted)
    path = directory / "tokenizer_config.json"
    settings = {**json.loads(path.read_text()), "tokenizer_class": class_name}
    path.write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))
    config = json.loads((directory / "config.json").read_text())
    stored = hf_tokenizer.read_tokenizer(directory, config)
    right = transformers.AutoTokenizer.from_pretrained(directory)
    for text in ("Hello, world! 12,345", *TEXTS):
        assert stored.encode(text) == right(text, add_special_tokens=False)["input_ids"], text
