"""Tokenizers from GGUF entries: the ids of transformers' AutoTokenizer on a table of texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
import checkpoints  # noqa: E402
import tokenizers  # noqa: E402
from tokenizers import pre_tokenizers as cuts  # noqa: E402

from awq_edge.checkpoints.gguf_tokenizer import read_gguf_tokenizer  # noqa: E402
from awq_edge.errors import AwqEdgeError  # noqa: E402
from awq_edge.interchange.gguf_tokenizer import translate  # noqa: E402

PLACE = Path("m.gguf")
TEXTS = (
    "Hello world",
    "  two  blanks\n\n\ttab é 漢字 🦙\u200d🦙",
    "12345 6.78 99 bottles; 1,000,000",
    "def f(x):\n    return x + 1\n\n\nclass A:\n\tpass\r\n",
    "I don't, I'LL, we've — “quoted” \u2018it\u2019s\u2019 …",
    "ñ n\u0303 \uff46\uff55\uff4c\uff4c\u3000width ﬁ",
    "안녕하세요 мир, шалом שלום",
    "CamelCaseWORDS andMixed_up-things/like::these",
    " " * 20 + "x" + "\n" * 5,
    "a" * 40,
    "<|im_start|>user\nHi there<|im_end|>\n",
    "\ufffd \x00 end",
)
# Blanks that begin a text or follow each other: transformers divides them otherwise than
# SentencePiece and llama.cpp do.
WITHOUT_BLANKS = tuple(text for text in TEXTS if "  " not in text and "\x00" not in text)
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def isolated(pattern: str) -> Any:
    cut = cuts.Split(tokenizers.Regex(pattern), "isolated")
    return cuts.Sequence([cut, cuts.ByteLevel(add_prefix_space=False, use_regex=False)])


# llama.cpp's names, and what the tokenizer.json files behind them hold.
BYTE_LEVEL = {
    "gpt-2": (None, cuts.ByteLevel(add_prefix_space=False)),
    "olmo": (tokenizers.normalizers.NFC(), cuts.ByteLevel(add_prefix_space=False)),
    "smollm": (
        None,
        cuts.Sequence(
            [cuts.Digits(individual_digits=True), cuts.ByteLevel(add_prefix_space=False)]
        ),
    ),
    "llama-bpe": (None, isolated(LLAMA3)),
    "glm4": (None, isolated(LLAMA3)),
    "qwen2": (tokenizers.normalizers.NFC(), isolated(QWEN2)),
    "tekken": (None, isolated(TEKKEN)),
    "bloom": (None, isolated(" ?[^(\\s|[.,!?…。\uff0c、।\u06d4،])]+")),
    "falcon": (
        None,
        cuts.Sequence(
            [
                cuts.Punctuation("contiguous"),
                cuts.ByteLevel(add_prefix_space=False),
                cuts.Digits(individual_digits=False),
                cuts.Split(tokenizers.Regex("[0-9][0-9][0-9]"), "isolated"),
            ]
        ),
    ),
}


def training_text() -> list[str]:
    folder = Path(__file__).parents[2]
    names = ["README.md", "CONTRIBUTING.md", "tests/python/checkpoints.py", "Makefile"]
    return [(folder / name).read_text() for name in names] + list(TEXTS[:8])


def trained(normalizer: Any, pre_tokenizer: Any) -> Any:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=cuts.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_text(), trainer)
    return tokenizer


def entries_of(tokenizer_json: str, size: int, pre: str | None = None) -> dict[str, Any]:
    """The entries of a file, as numpy arrays where the container gives such."""
    vocabulary = translate(tokenizer_json, size) if pre is None else None
    if vocabulary is None:
        model = json.loads(tokenizer_json)
        tokens = sorted(model["model"]["vocab"], key=model["model"]["vocab"].__getitem__)
        special = {entry["content"] for entry in model["added_tokens"]}
        types = [3 if token in special else 1 for token in tokens]
        merges = [" ".join(pair) for pair in model["model"]["merges"]]
        return {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": pre,
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": np.array(types, np.int32),
            "tokenizer.ggml.merges": merges,
        }
    return {
        "tokenizer.ggml.model": vocabulary.model,
        "tokenizer.ggml.pre": vocabulary.pre,
        "tokenizer.ggml.tokens": vocabulary.tokens,
        "tokenizer.ggml.token_type": np.array(vocabulary.types, np.int32),
        "tokenizer.ggml.merges": vocabulary.merges,
        "tokenizer.ggml.add_space_prefix": vocabulary.add_space_prefix,
        **(
            {"tokenizer.ggml.scores": np.array(vocabulary.scores, np.float32)}
            if vocabulary.scores is not None
            else {}
        ),
    }


def assert_same_ids(entries: dict[str, Any], expected: Any, texts: tuple[str, ...]) -> None:
    read = read_gguf_tokenizer(PLACE, entries)
    assert read is not None
    ours = tokenizers.Tokenizer.from_str(json.dumps(read.json))
    for text in texts:
        ids = ours.encode(text, add_special_tokens=False).ids
        assert ids == expected.encode(text, add_special_tokens=False), text
        assert ours.decode(ids, skip_special_tokens=False) == expected.decode(
            expected.encode(text, add_special_tokens=False), clean_up_tokenization_spaces=False
        )


@pytest.mark.parametrize("name", sorted(BYTE_LEVEL))
def test_byte_level_by_the_name_of_its_cutting(name: str, tmp_path: Path) -> None:
    tokenizer = trained(*BYTE_LEVEL[name])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    expected = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert_same_ids(entries_of(tokenizer.to_str(), 0, pre=name), expected, TEXTS)


@pytest.mark.parametrize("name", ["gpt2", "smollm"])
def test_published_byte_level_tokenizers(name: str) -> None:
    directory = checkpoints.assets("tokenizers", name)
    expected = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(directory / "tokenizer.json")
    )
    text = (directory / "tokenizer.json").read_text()
    assert_same_ids(entries_of(text, len(expected)), expected, TEXTS)


def test_sentencepiece_as_the_export_writes_it() -> None:
    directory = Path(__file__).parents[2] / "examples/novels-7m"
    expected = transformers.AutoTokenizer.from_pretrained(directory)
    text = (directory / "tokenizer.json").read_text()
    assert_same_ids(entries_of(text, len(expected)), expected, WITHOUT_BLANKS)


def pieces_of(path: Path) -> dict[str, Any]:
    """What llama.cpp's converter takes from a SentencePiece model."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(path.read_bytes())
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [piece.piece for piece in proto.pieces],
        "tokenizer.ggml.scores": np.array([piece.score for piece in proto.pieces], np.float32),
        "tokenizer.ggml.token_type": np.array([piece.type for piece in proto.pieces], np.int32),
        "tokenizer.ggml.add_space_prefix": proto.normalizer_spec.add_dummy_prefix,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


@pytest.mark.parametrize("place", ["examples/novels-7m", "llama2", "mistral"])
def test_sentencepiece_models(place: str) -> None:
    if place.startswith("examples"):
        directory = Path(__file__).parents[2] / place
    else:
        directory = checkpoints.assets("tokenizers", place)
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    read = read_gguf_tokenizer(PLACE, pieces_of(directory / "tokenizer.model"))
    assert read is not None and read.begins and read.named["bos_token"] == 1
    ours = tokenizers.Tokenizer.from_str(json.dumps(read.json))
    for text in TEXTS[:-1]:
        assert ours.encode(text, add_special_tokens=False).ids == processor.encode(text), text
    if place == "llama2":
        expected = transformers.AutoTokenizer.from_pretrained(directory)
        assert_same_ids(pieces_of(directory / "tokenizer.model"), expected, WITHOUT_BLANKS)
        for text in ("<s>Hi</s> there", "a <s> b", "</s>"):
            assert ours.encode(text, add_special_tokens=False).ids == expected.encode(
                text, add_special_tokens=False
            ), text


def test_a_whole_file_gives_ids_ends_and_templates(tmp_path: Path) -> None:
    import gguf_files

    from awq_edge.checkpoints import open_checkpoint
    from awq_edge.hf_tokenizer import tokenizer_of

    directory = checkpoints.save(checkpoints.random_model("llama", vocab_size=900), tmp_path / "hf")
    tokenizer = json.loads(trained(*BYTE_LEVEL["llama-bpe"]).to_str())
    vocabulary = tokenizer["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)

    def change(writer: Any, tensors: Any) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("llama-bpe")
        writer.add_token_list(tokens)
        writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
        writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(0)
        writer.add_eot_token_id(2)
        writer.add_chat_template("{{ messages[0].content }}")

    path = gguf_files.write(tmp_path / "m.gguf", directory, "Llama", change=change)
    stored = tokenizer_of(open_checkpoint(str(path)))
    assert stored is not None
    assert stored.bos_id == 0 and stored.add_bos and stored.eos_ids == (0, 2)
    assert stored.runtime.before == (0,)
    assert stored.chat_templates == {"default": "{{ messages[0].content }}"}
    assert stored.special_tokens == {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    assert stored.encode("<|im_start|>Hi")[0] == 1


def test_phi3_strips_behind_its_tokens() -> None:
    directory = Path(__file__).parents[2] / "examples/novels-7m"
    entries = pieces_of(directory / "tokenizer.model")
    entries["tokenizer.ggml.tokens"][-1] = "<|user|>"
    entries["tokenizer.ggml.token_type"][-1] = 3
    for architecture, strips in (("phi3", True), ("llama", False)):
        read = read_gguf_tokenizer(PLACE, {**entries, "general.architecture": architecture})
        assert read is not None
        by_content = {entry["content"]: entry["rstrip"] for entry in read.json["added_tokens"]}
        assert by_content["<|user|>"] is strips and by_content["<s>"] is False


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tokenizer.ggml.model": "bert"}, "'bert'"),
        ({"tokenizer.ggml.model": "t5"}, "'t5'"),
        ({"tokenizer.ggml.pre": "default"}, "does not say how"),
        ({"tokenizer.ggml.pre": "kimi-k2"}, "'kimi-k2'"),
        ({"tokenizer.ggml.tokens": None}, "holds no tokens"),
        ({"tokenizer.ggml.merges": None}, "without merges"),
        ({"tokenizer.ggml.merges": ["a b", "nopair"]}, "'nopair'"),
        ({"tokenizer.ggml.merges": ["a q"]}, "which is no token"),
        ({"tokenizer.ggml.token_type": np.array([1])}, "not one token_type"),
        ({"tokenizer.ggml.bos_token_id": 99}, "bos_token_id"),
        ({"tokenizer.ggml.eos_token_id": True}, "eos_token_id"),
    ],
)
def test_broken_vocabularies(changes: dict[str, Any], says: str) -> None:
    entries = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": ["a", "b", "ab"],
        "tokenizer.ggml.token_type": np.array([1, 1, 1], np.int32),
        "tokenizer.ggml.merges": ["a b"],
    }
    read = read_gguf_tokenizer(PLACE, entries)
    assert read is not None and read.named == {}
    with pytest.raises(AwqEdgeError, match=says):
        read_gguf_tokenizer(PLACE, {**entries, **changes})


def test_no_vocabulary_is_no_tokenizer() -> None:
    assert read_gguf_tokenizer(PLACE, {}) is None
    assert read_gguf_tokenizer(PLACE, {"tokenizer.ggml.model": "no_vocab"}) is None
