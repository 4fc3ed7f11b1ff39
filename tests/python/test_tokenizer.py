"""Tokenizing against golden ids, and text that arrives token by token."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from awq_edge import Model, tokenizers_library
from awq_edge.errors import FileInvalidError, InvalidArgumentError, UnsupportedError
from awq_edge.tokenizer import IncrementalDecoder, StopStrings, Tokenizer, eos_token_ids

SEPARATOR = "\n__ggml_vocab_test__\n"
TEXTS = (
    "Hello world",
    "  two spaces, then\n\n\tlines and tabs  ",
    "🦙🦙 llamas é 漢字 нещо на Български",
    "naïve café — “quoted” ½ ①",
    "👩‍👩‍👧‍👦",
)


def golden_cases(directory: Path) -> list[tuple[str, list[int]]]:
    texts = (directory / "golden.inp").read_text(encoding="utf-8").split(SEPARATOR)
    lines = (directory / "golden.out").read_text(encoding="utf-8").splitlines()
    ids = [[int(number) for number in line.split()] for line in lines]
    assert texts.pop() == ""  # every case is followed by a separator
    assert len(texts) == len(ids)
    return list(zip(texts, ids))


def tokenizer_json(assets: Path, name: str) -> str:
    directory = assets / "tokenizers" / name
    if (directory / "tokenizer.json").is_file():
        return (directory / "tokenizer.json").read_text(encoding="utf-8")
    pytest.importorskip("torch", reason="converting SentencePiece needs the extra [convert]")
    from awq_edge.checkpoints.sentencepiece_model import convert_sentencepiece

    return json.dumps(convert_sentencepiece(directory / "tokenizer.model")[0])


@pytest.mark.parametrize("name", ["gpt2", "llama2"])
def test_golden_ids(assets: Path, name: str) -> None:
    tokenizer = Tokenizer(tokenizer_json(assets, name))
    for text, ids in golden_cases(assets / "tokenizers" / name):
        assert tokenizer.encode(text) == ids, repr(text)


@pytest.mark.parametrize("name", ["gpt2", "llama2", "mistral", "smollm"])
@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_token_by_token(assets: Path, name: str, text: str) -> None:
    tokenizer = Tokenizer(tokenizer_json(assets, name))
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    decoder = IncrementalDecoder(tokenizer)
    pieces = [decoder.add(token) for token in tokens]
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) + decoder.finish() == text


@pytest.mark.parametrize("text", TEXTS)
def test_continuation_of_a_prompt_keeps_its_leading_space(stories: Model, text: str) -> None:
    tokenizer = stories.tokenizer
    tokens = tokenizer.encode("Once " + text)
    prompt_length = len(tokenizer.encode("Once"))
    decoder = IncrementalDecoder(tokenizer, tokens[:prompt_length])
    pieces = [decoder.add(token) for token in tokens[prompt_length:]]
    assert "".join(pieces) + decoder.finish() == " " + text


def test_many_emoji_of_single_bytes(stories: Model) -> None:
    """A vocabulary of 512 spells each of these with four byte tokens."""
    text = "🦙" * 10
    tokens = stories.tokenize(text, add_bos=False)
    assert len(tokens) >= 40
    decoder = IncrementalDecoder(stories.tokenizer)
    assert "".join(decoder.add(token) for token in tokens) == text


def test_bytes_that_are_no_character_come_out_in_the_end(stories: Model) -> None:
    llama = stories.tokenize("🦙", add_bos=False)
    decoder = IncrementalDecoder(stories.tokenizer)
    pieces = [decoder.add(token) for token in llama[:-1]]
    assert pieces[-1] == ""
    assert "\ufffd" in decoder.finish()
    decoder = IncrementalDecoder(stories.tokenizer)
    assert "".join(decoder.add(llama[-1]) for _ in range(20))


def test_bos_comes_once(stories: Model) -> None:
    assert stories.tokenizer.add_bos_token
    bos = stories.tokenizer.bos_token_id
    assert stories.tokenize("Once")[:2].count(bos) == 1
    assert stories.tokenize("<s>Once").count(bos) == 1
    assert bos not in stories.tokenize("Once", add_bos=False)
    assert stories.tokenize("") == [bos]


def test_broken_tokenizer_is_named() -> None:
    with pytest.raises(FileInvalidError, match="tokenizer"):
        Tokenizer("{")


# ---- what stands around a text -------------------------------------------------------------


def words(single: list[object] | None, **model: object) -> str:
    """A tokenizer.json of a few words that puts tokens around a text."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "<x>": 3, "a": 4, "b": 5}
    added = [
        {
            "id": number,
            "content": word,
            "special": True,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        }
        for word, number in vocabulary.items()
        if word.startswith("<")
    ]
    processor = single and {
        "type": "TemplateProcessing",
        "single": single,
        "pair": single,
        "special_tokens": {
            word: {"id": word, "ids": [vocabulary[word]], "tokens": [word]}
            for word in ("<s>", "</s>", "<x>")
        },
    }
    return json.dumps(
        {
            "version": "1.0",
            "truncation": {
                "direction": "Right",
                "max_length": 1,
                "strategy": "LongestFirst",
                "stride": 0,
            },
            "padding": {
                "strategy": {"Fixed": 50},
                "direction": "Right",
                "pad_to_multiple_of": None,
                "pad_id": 0,
                "pad_type_id": 0,
                "pad_token": "<unk>",
            },
            "added_tokens": added,
            "normalizer": None,
            "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": processor,
            "decoder": None,
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>", **model},
        }
    )


def special(word: str) -> dict[str, object]:
    return {"SpecialToken": {"id": word, "type_id": 0}}


TEXT = {"Sequence": {"id": "A", "type_id": 0}}


@pytest.mark.parametrize(
    ("single", "add_bos", "ids"),
    [
        (None, False, [4, 5]),
        (None, True, [1, 4, 5]),
        ([special("<s>"), TEXT], True, [1, 4, 5]),
        ([special("<s>"), TEXT], False, [4, 5]),
        ([special("<s>"), special("<x>"), TEXT], True, [1, 3, 4, 5]),
        ([special("<x>"), TEXT], False, [3, 4, 5]),
        ([special("<x>"), TEXT], True, [1, 3, 4, 5]),
        ([special("<s>"), TEXT, special("</s>")], True, [1, 4, 5, 2]),
        ([TEXT, special("</s>"), special("<x>")], False, [4, 5, 2, 3]),
    ],
)
def test_whole_prefix_and_suffix(
    single: list[object] | None, add_bos: bool, ids: list[int]
) -> None:
    """Whatever the post-processor puts around a text, and BOS as the model expects it."""
    tokenizer = Tokenizer(words(single), bos_token_id=1, add_bos_token=add_bos)
    assert tokenizer.encode("a b") == ids
    assert tokenizer.encode("a b", add_bos=False) == [4, 5]
    assert tokenizer.encode("a b", add_bos=True) == [1, 4, 5]
    assert tokenizer.add_bos_token is add_bos
    if add_bos:
        assert tokenizer.encode("<s>a b") == ids  # spelt out, BOS stands once


def test_truncation_and_padding_are_off() -> None:
    assert Tokenizer(words(None)).encode("a " * 90) == [4] * 90


def test_special_tokens_may_be_read_as_text() -> None:
    assert Tokenizer(words(None)).encode("a<s>") == [4, 1]
    split = Tokenizer(words(None), split_special_tokens=True)
    assert split.encode("a<s>") == [4, 0, 0, 0]


# ---- failures of the package ---------------------------------------------------------------


def panicking(stories: Model) -> str:
    """A tokenizer.json that makes the package's Rust code panic while it is read."""
    tokenizer = json.loads(str(stories.metadata["tokenizer.huggingface.json"]))
    tokenizer["model"]["continuing_subword_prefix"] = "x" * 1000
    return json.dumps(tokenizer)


def test_panic_at_opening_is_a_sentence(stories: Model, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FileInvalidError, match="an error inside it"):
        Tokenizer(panicking(stories))
    assert capfd.readouterr().err == ""


def test_panic_in_use_is_a_sentence() -> None:
    """pyo3's panics are no Exception; the class that stands for them here is none either."""

    class Panic(BaseException):
        pass

    def fail(reason: str) -> InvalidArgumentError:
        return InvalidArgumentError(f"No: {reason}.")

    with pytest.raises(InvalidArgumentError, match=r"No: an error inside it: a b\."):
        with tokenizers_library.failures_become(fail):
            raise Panic("a\n  b.")
    with pytest.raises(KeyboardInterrupt), tokenizers_library.failures_become(fail):
        raise KeyboardInterrupt


def test_loading_keeps_what_others_say(stories: Model) -> None:
    """Standard error is aside while a tokenizer is loaded; what is written meanwhile arrives."""
    program = (
        "import os, sys\n"
        "from awq_edge import tokenizers_library as library\n"
        "with library._panics_unprinted(): os.write(2, b'heard')\n"
        "try:\n"
        "    with library._panics_unprinted(): os.write(2, b'panicked'); raise BaseException\n"
        "except BaseException: pass\n"
        "os.close(2)\n"
        "library.load_tokenizer(sys.argv[1], RuntimeError)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, words(None)],
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONDEVMODE": "0"},
    )
    assert done.stderr == b"heard"


def test_file_without_tokenizer_says_what_to_do() -> None:
    with pytest.raises(UnsupportedError, match="token ids"):
        Tokenizer.from_metadata({})


def test_lone_surrogate_is_refused(stories: Model) -> None:
    with pytest.raises(InvalidArgumentError, match="Unicode"):
        stories.tokenize("\ud800")


def test_all_eos_ids_count_once() -> None:
    metadata = {
        "awq_edge.tokenizer.eos_token_ids": [128001, 128008, 128009],
        "tokenizer.ggml.eos_token_id": 128009,
    }
    assert eos_token_ids(metadata) == (128001, 128008, 128009)
    assert eos_token_ids({}) == ()


@pytest.mark.parametrize(
    ("pieces", "stops", "shown", "found"),
    [
        (["Hello", " world"], ["xyz"], "Hello world", False),
        (["Hello", " world"], ["lo wo"], "Hel", True),
        (["a", "b", "c", "d"], ["bcd"], "a", True),
        (["ab", "ab", "ac"], ["abac"], "ab", True),
        (["one two three"], ["three", "two"], "one ", True),
        (["ends with a", " begin"], ["beginning"], "ends with a begin", False),
        (["x"], ["x"], "", True),
    ],
)
def test_stop_strings(pieces: list[str], stops: list[str], shown: str, found: bool) -> None:
    watcher = StopStrings(stops)
    text = ""
    for piece in pieces:
        text += watcher.add(piece)
        if watcher.found:
            break
    assert (text + watcher.finish(), watcher.found) == (shown, found)


def test_empty_stop_string_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="empty"):
        StopStrings(["a", ""])
