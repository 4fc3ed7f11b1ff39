"""Filling a gap: the order of the markers of each family, and models that have none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from awq_edge import Model
from awq_edge.errors import UnsupportedError
from awq_edge.fill_in_middle import _FAMILIES, Markers, fill_prompt
from awq_edge.tokenizer import Tokenizer


def tokenizer(names: list[str], **settings: object) -> Tokenizer:
    """Characters are tokens, and so are the names, as special ones."""
    vocabulary = {chr(32 + i): i for i in range(90)} | {"?": 31}
    added = [
        {
            "id": 90 + i,
            "content": name,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i, name in enumerate(names)
    ]
    content = {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": "."},
            "behavior": "Isolated",
            "invert": False,
        },
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "?"},
    }
    plain = {"bos_token_id": None, "eos_token_ids": (), "add_bos_token": False}
    return Tokenizer(json.dumps(content), **{**plain, **settings})  # type: ignore[arg-type]


def plain(made: Tokenizer) -> Callable[[str], list[int]]:
    return lambda text: made.encode(text, add_bos=False)


@pytest.mark.parametrize("family", _FAMILIES, ids=lambda family: family.before)
def test_the_gap_comes_last(family: Markers) -> None:
    names = [family.before, family.behind, family.middle, *family.ends[:1]]
    made = tokenizer(names)
    prompt, ends = fill_prompt(made, "ab", "cd", plain(made))
    a, b, c, d = (ord(letter) - 32 for letter in "abcd")
    assert prompt == [90, a, b, 91, c, d, 92]
    assert ends == [93] * len(family.ends[:1])
    begun = tokenizer([*names, "<s>"], bos_token_id=90 + len(names), add_bos_token=True)
    assert fill_prompt(begun, "ab", "cd", plain(begun))[0] == [90 + len(names), *prompt]
    assert fill_prompt(made, "", "", plain(made))[0] == [90, 91, 92]


def test_a_model_without_markers_says_so(stories: Model) -> None:
    with pytest.raises(UnsupportedError, match="no markers"):
        fill_prompt(stories.tokenizer, "a", "b", plain(stories.tokenizer))
    # Two of three are none.
    with pytest.raises(UnsupportedError, match="no markers"):
        fill_prompt(tokenizer(["<fim_prefix>", "<fim_suffix>"]), "a", "b", lambda text: [1])


def test_real_vocabularies_have_theirs(assets: Path) -> None:
    folder = assets / "models/novels-starcoder"
    made = Tokenizer(
        (folder / "tokenizer.json").read_text(), bos_token_id=None, eos_token_ids=(),
        add_bos_token=False,
    )  # fmt: skip
    prompt, _ = fill_prompt(made, "def f(x):\n    return ", "\n", plain(made))
    texts = [made.token_text(token) for token in prompt]
    assert texts[0] == "<fim_prefix>" and texts[-1] == "<fim_middle>"
    assert texts.count("<fim_suffix>") == 1


def test_both_texts_are_encoded_as_the_caller_says() -> None:
    """So that a word for a picture's place that somebody typed stays a word."""
    family = _FAMILIES[0]
    made = tokenizer([family.before, family.behind, family.middle])
    asked: list[str] = []

    def encode(text: str) -> list[int]:
        asked.append(text)
        return [7]

    assert fill_prompt(made, "ab", "cd", encode)[0] == [90, 7, 91, 7, 92]
    assert asked == ["ab", "cd"]
