"""Pictures in a text: where they stand, what stands around them, what a user typed."""

import json

import numpy as np
import pytest
from vision_models import PLACEHOLDER, TEMPLATE, save_tokenizer

from awq_edge.chat import render_chat
from awq_edge.errors import FileInvalidError, InvalidArgumentError
from awq_edge.tokenizer import Tokenizer
from awq_edge.vision.messages import reads_parts, taken_apart
from awq_edge.vision.prompt import Marked, PromptRules
from awq_edge.vision.tilings import Tiled

RULES = PromptRules(PLACEHOLDER, "plain", "<image>")


def tiled(rows=0, columns=0):
    count = rows * columns + 1
    return Tiled(np.zeros((count, 2, 2, 3), np.uint8), rows, columns, (2, 2))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(directory)
    text = (directory / "tokenizer.json").read_text(encoding="utf-8")
    return Tokenizer(text, bos_token_id=1, eos_token_ids=(2,))


def test_a_plain_picture_is_its_rows():
    assert RULES.text(tiled(), 3) == "<image>" * 3


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("columns", [1, 2, 4])
def test_smolvlm_writes_what_its_processor_writes(rows, columns):
    from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

    rules = PromptRules(PLACEHOLDER, "rows_and_columns", "<image>")
    expected = get_image_prompt_string(
        rows,
        columns,
        image_seq_len=5,
        fake_token_around_image="<fake_token_around_image>",
        image_token="<image>",
        global_image_token="<global-img>",
    )
    assert rules.text(tiled(rows, columns), 5) == expected


def test_one_frame_of_smolvlm_is_what_its_processor_writes():
    from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

    rules = PromptRules(PLACEHOLDER, "rows_and_columns", "<image>")
    words = ("<fake_token_around_image>", "<image>", "<global-img>")
    assert rules.text(tiled(), 5) == get_image_prompt_string(0, 0, 5, *words)


def test_more_tiles_than_there_are_words_for_are_refused():
    rules = PromptRules(PLACEHOLDER, "rows_and_columns", "<image>")
    with pytest.raises(InvalidArgumentError, match="1 rows of 7"):
        rules.text(tiled(1, 7), 5)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "[]",
        "{}",
        '{"token": 1}',
        '{"token": "1", "layout": "plain"}',
        '{"token": true, "layout": "plain"}',
        '{"token": -1, "layout": "plain"}',
        '{"token": 1, "layout": "round"}',
        '{"token": 1, "layout": "plain", "other": 2}',
        "[" * 5000,
    ],
)
def test_a_damaged_record_is_refused(text):
    with pytest.raises(FileInvalidError, match=r"awq_edge\.vision\.prompt"):
        PromptRules.from_json(text)


def test_a_record_is_read():
    entry = {"token": PLACEHOLDER, "layout": "plain", "placeholder": "<image>"}
    assert PromptRules.from_json(json.dumps(entry)) == RULES


def ids(tokenizer, text, pictures, typed=""):
    marked = Marked.new(RULES)
    return marked.tokens(tokenizer, text + marked.hidden(typed), pictures, add_bos=False)


def test_a_picture_has_its_rows_where_it_stands(tokenizer):
    found = ids(tokenizer, "red <image> blue", ["<image>" * 4])
    expected = tokenizer.encode("red", add_bos=False)
    expected += [PLACEHOLDER] * 4 + tokenizer.encode("blue", add_bos=False)
    assert found == expected


def test_two_pictures_keep_their_order(tokenizer):
    found = ids(tokenizer, "red <image> blue <image>", ["<image>" * 2, "<image>" * 3])
    assert found.count(PLACEHOLDER) == 5
    at = found.index(tokenizer.encode("blue", add_bos=False)[0])
    assert found[:at].count(PLACEHOLDER) == 2


def test_what_a_user_typed_is_no_picture(tokenizer):
    found = ids(tokenizer, "<image> red ", ["<image>" * 2], typed="what is <image> ?")
    assert found.count(PLACEHOLDER) == 2
    assert found[:2] == [PLACEHOLDER] * 2
    assert tokenizer.decode(found[3:]).replace(" ", "") == "whatis<image>?"
    assert PLACEHOLDER not in ids(tokenizer, "", [], typed="<image><image>")


@pytest.mark.parametrize(("text", "count"), [("red", 1), ("<image>", 0), ("<image><image>", 1)])
def test_more_or_fewer_pictures_than_places_are_refused_with_both_numbers(tokenizer, text, count):
    words = rf"{text.count('<image>')} places for pictures, and {count} pictures"
    with pytest.raises(InvalidArgumentError, match=words):
        ids(tokenizer, text, ["<image>"] * count)


def rendered(messages, images=(), template=TEMPLATE):
    marked = Marked.new(RULES)
    plain, found = taken_apart(messages, images, marked, in_parts=reads_parts(template))
    text = render_chat(template, plain, add_generation_prompt=True)
    return text.replace(marked.marks[0], "(typed)"), found


def test_pictures_stand_where_their_parts_do():
    parts = [
        {"type": "text", "text": "red "},
        {"type": "image", "image": "a"},
        {"type": "text", "text": " blue"},
        {"type": "image"},
    ]
    text, found = rendered([{"role": "user", "content": parts}], ["b"])
    assert text == "<u>red <image> blue<image><a>"
    assert found == ["a", "b"]


def test_pictures_without_parts_stand_in_front_of_the_last_question():
    messages = [
        {"role": "user", "content": "red"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "blue <image>"},
    ]
    text, found = rendered(messages, ["a", "b"])
    assert text == "<u>red<a>yes</s><u><image><image>blue (typed)<a>"
    assert found == ["a", "b"]


def test_a_template_that_knows_no_pictures_gets_a_text_with_places():
    template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    messages = [{"role": "system", "content": "red"}, {"role": "user", "content": "blue"}]
    text, found = rendered(messages, ["a"], template)
    assert text == "[red][<image>\nblue]"
    assert found == ["a"]


@pytest.mark.parametrize(
    ("messages", "images", "words"),
    [
        ([{"role": "user", "content": [{"type": "image"}]}], [], "1 places.*0 pictures"),
        ([{"role": "user", "content": [{"type": "image"}]}], ["a", "b"], "1 places.*2 pictures"),
        ([{"role": "system", "content": "x"}], ["a"], "no message of the user"),
        ([{"role": "user", "content": 7}], [], "a text or a list"),
        ([{"role": "user", "content": [{"type": "sound"}]}], [], "sound"),
        ([{"role": "user", "content": [{"type": "text"}]}], [], "parts are"),
        (
            [{"role": "assistant", "content": [{"type": "image", "image": "a"}]}],
            [],
            "assistant's holds a picture",
        ),
    ],
)
def test_messages_that_say_nothing_are_refused(messages, images, words):
    with pytest.raises(InvalidArgumentError, match=words):
        rendered(messages, images)
