"""Tokenizing against golden ids, and text that arrives token by token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from awq_edge import Model
from awq_edge.chat import render_chat
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
    from awq_edge.hf_tokenizer import convert_sentencepiece

    return convert_sentencepiece(directory / "tokenizer.model")


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


# ---- chat templates ------------------------------------------------------------------------


def test_chat_template_of_a_real_model(assets: Path) -> None:
    text = (assets / "tokenizers/smollm/tokenizer_config.json").read_text(encoding="utf-8")
    prompt = render_chat(json.loads(text)["chat_template"], [{"role": "user", "content": "Hi"}])
    assert prompt.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_chat_template_helpers() -> None:
    template = (
        "{{ bos_token }}{% for m in messages %}\n    {{ m | tojson }}\n{% endfor %}"
        "{{ strftime_now('%Y')|length }}"
    )
    prompt = render_chat(template, [{"role": "user", "content": "<é>"}], bos_token="<s>")
    assert prompt == '<s>    {"role": "user", "content": "<é>"}\n4'


def test_chat_template_refusal_is_a_sentence() -> None:
    with pytest.raises(InvalidArgumentError, match="roles must alternate"):
        render_chat("{{ raise_exception('roles must alternate') }}", [])


@pytest.mark.parametrize("template", ["{% if %}", "{{ messages[0].content.x.y }}", "{{ 1 // 0 }}"])
def test_broken_chat_template_is_a_sentence(template: str) -> None:
    with pytest.raises(InvalidArgumentError, match="chat template"):
        render_chat(template, [{"role": "user", "content": "Hi"}])


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
    ],
)
def test_chat_template_cannot_leave_its_sandbox(template: str) -> None:
    with pytest.raises(InvalidArgumentError):
        render_chat(template, [{"role": "user", "content": "Hi"}])


def test_model_without_chat_template_says_so(stories: Model) -> None:
    with pytest.raises(InvalidArgumentError, match="no chat template"):
        stories.chat_prompt([{"role": "user", "content": "Hi"}])
