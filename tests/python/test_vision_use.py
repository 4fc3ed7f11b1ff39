"""Pictures in use: prompts, chats, the cache, what is refused, and the command line."""

import base64
import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from vision_models import PLACEHOLDER, pictures, save, save_tokenizer
from vision_support import GREEDY, QUESTION, last_logits, png

from awq_edge import Model, conversion, torch_decoder, torch_tower
from awq_edge.cli._saved_conversation import ShownPictures
from awq_edge.conversation import Conversation
from awq_edge.errors import (
    AwqEdgeError,
    ContextFullError,
    FileInvalidError,
    InvalidArgumentError,
    UnsupportedError,
)
from awq_edge.float_model import open_float_model, open_vision_part
from awq_edge.model_file import PackedFile, read_dequantised
from awq_edge.stages import tensor_names

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "scenes-8m"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Commands keep pictures here and not where whoever runs the tests has theirs."""
    monkeypatch.setenv("AWQ_EDGE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module", params=["llava", "llava_siglip"])
def converted(request, tmp_path_factory):
    """A checkpoint and its file; text_alone is a file without a vision part."""
    directory = tmp_path_factory.mktemp(request.param)
    save(request.param, directory)
    save_tokenizer(directory)
    path = directory / "model.awq.gguf"
    options = conversion.Options(method="rtn", bits=8, group_size=32)
    conversion.convert(str(directory), path, options)
    return directory, path


@pytest.fixture
def model(converted):
    with Model.open(converted[1], context_length=128) as opened:
        yield opened


def picture(seed=0, side=40):
    return pictures(1, side, seed)[0].numpy()


def test_the_tower_of_the_runtime_gives_what_the_float_tower_gives(converted, model):
    directory, path = converted
    vision = open_vision_part(open_float_model(str(directory)))[0]
    prepared = model.pictures.prepare(picture())
    found = model.pictures.encoded(prepared)
    expected = torch_tower.encoded(
        vision.architecture,
        lambda name: torch.from_numpy(PackedFile(path).floats(name)),
        torch.from_numpy(prepared.tiled.tiles),
    )[0].numpy()
    assert found.shape == expected.shape == (model.pictures.rows, 64)
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 0.02


def test_a_question_about_a_picture_has_the_logits_of_the_float_decoder(converted, model):
    prompt = model.picture_chat(QUESTION, [picture()])[1]
    (span,) = prompt.spans
    held = read_dequantised(converted[1])

    def weights(name):
        return torch.from_numpy(held.tensors[name])

    assert set(tensor_names(held.architecture)) < set(held.tensors)
    tokens = torch.tensor([prompt.tokens])
    rows = torch.from_numpy(model.pictures.encoded(span.picture).copy())
    expected = torch_decoder.logits(
        weights, held.architecture, tokens, pictures=(tokens == PLACEHOLDER, rows)
    )[0, -1].numpy()
    found = last_logits(model, prompt)
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 0.03


@pytest.mark.parametrize("kind", ["path", "text", "bytes", "pillow", "array", "prepared"])
def test_a_picture_is_the_same_in_every_form(kind, model, tmp_path):
    pixels = picture()
    path = tmp_path / "picture.png"
    path.write_bytes(png(pixels))
    forms = {
        "path": path,
        "text": str(path),
        "bytes": png(pixels),
        "pillow": Image.fromarray(pixels),
        "array": pixels,
        "prepared": model.pictures.prepare(pixels),
    }
    one = model.picture_chat(QUESTION, [forms[kind]])[1]
    other = model.picture_chat(QUESTION, [pixels])[1]
    np.testing.assert_array_equal(one.contents, other.contents)
    np.testing.assert_array_equal(last_logits(model, one), last_logits(model, other))


def test_the_second_question_about_a_picture_costs_no_encoding(model):
    first = model.chat(QUESTION, GREEDY, images=[picture()])
    answer = first.text()
    assert model.pictures.encodings == 1
    assert first.reused_tokens == 0
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what colour ?"}]},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": "yes ?"},
    ]
    second = model.chat(messages, GREEDY, images=[picture()])
    second.text()
    assert model.pictures.encodings == 1
    assert second.reused_tokens > model.pictures.rows  # its rows were not read again either
    alone = model.picture_chat(messages, [picture()])[1]
    with model.session() as anew:
        expected = anew.generate(alone, GREEDY)
        expected.text()
    assert second.tokens == expected.tokens
    assert model.pictures.encodings == 1


def test_a_new_picture_is_never_taken_for_the_old_one(model):
    one, other = picture(1), picture(2)
    answers = {}
    for name, images in (("one", [one]), ("other", [other]), ("one again", [one])):
        prompt = model.picture_chat(QUESTION, images)[1]
        model.shared_session.generate(prompt, GREEDY).start()
        answers[name] = model.shared_session.last_logits()
    assert not np.array_equal(answers["one"], answers["other"])
    np.testing.assert_array_equal(answers["one"], answers["one again"])
    np.testing.assert_array_equal(
        answers["other"], last_logits(model, model.picture_chat(QUESTION, [other])[1])
    )
    assert model.pictures.encodings == 2


def test_the_same_prompt_again_reads_one_token(model):
    prompt = model.picture_chat(QUESTION, [picture()])[1]
    first = model.generate(prompt, GREEDY)
    first.text()
    again = model.generate(prompt, GREEDY)
    again.text()
    assert again.tokens == first.tokens
    assert again.reused_tokens == len(prompt.tokens) - 1


def test_two_pictures_keep_their_order_and_both_are_seen(model):
    one, other = picture(1), picture(2)
    found = [
        last_logits(model, model.picture_chat(QUESTION, images)[1])
        for images in ([one, other], [other, one], [one, one])
    ]
    assert not np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])
    assert not np.array_equal(found[1], found[2])


def test_a_picture_without_content_works(model):
    blank = np.zeros((26, 26, 3), np.uint8)
    assert np.isfinite(last_logits(model, model.picture_chat(QUESTION, [blank])[1])).all()


def shown(*pixels):
    """The parts of a message with pictures."""
    return [*({"type": "image", "image": one} for one in pixels), {"type": "text", "text": "red"}]


def test_a_client_that_leaves_the_oldest_picture_out_costs_no_encoding(model):
    one, other = picture(1), picture(2)
    both = [
        {"role": "user", "content": shown(one)},
        {"role": "assistant", "content": "blue"},
        {"role": "user", "content": shown(other)},
    ]
    model.chat(both, GREEDY).text()
    assert model.pictures.encodings == 2
    later = model.chat(both[2:], GREEDY)
    later.text()
    assert model.pictures.encodings == 2
    with model.session() as anew:
        expected = anew.generate(model.picture_chat(both[2:])[1], GREEDY)
        expected.text()
    assert later.tokens == expected.tokens
    # What is left of the context is what both begin with alike, and no row of a picture.
    assert later.reused_tokens <= later.prompt_tokens.index(PLACEHOLDER)


def test_a_system_message_in_front_takes_no_picture_away(model):
    said = [{"role": "system", "content": "yes no"}, {"role": "user", "content": "what colour ?"}]
    prompt = model.picture_chat(said, [picture()])[1]
    (span,) = prompt.spans
    assert span.end - span.begin == model.pictures.rows
    assert prompt.tokens[: span.begin] != []
    alone = model.picture_chat(said[1:], [picture()])[1]
    assert not np.array_equal(last_logits(model, prompt), last_logits(model, alone))


def test_a_full_context_leaves_whole_turns_out_with_their_pictures(scenes_file):
    with Model.open(scenes_file, context_length=256) as model:
        talk = Conversation(model, config=GREEDY)
        for number in range(1, 6):
            shot = talk.pictures.prepare(EXAMPLE / "pictures" / f"{number}.png")
            assert list(talk.ask("what shape is the large one ?", [shot]))
        place, rows = model.pictures.rules.token, model.pictures.rows
        count = talk.last.prompt_tokens.count(place)
        assert 5 * rows > 256 > len(talk.last.prompt_tokens)
        assert count % rows == 0 and 1 <= count // rows < 4
        assert model.pictures.encodings == 5


def test_two_who_ask_for_one_picture_wait_for_one_encoding(model, monkeypatch):
    encode, inside = model.native.encode_pictures, threading.Barrier(2, timeout=30)

    def slow(*arguments):
        inside.wait()  # the other has been told to ask
        encode(*arguments)

    monkeypatch.setattr(model.native, "encode_pictures", slow)
    prepared = model.pictures.prepare(picture())
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(model.pictures.encoded, prepared) for _ in range(2)]
        inside.wait()
        first, second = (one.result(timeout=30) for one in asked)
    assert model.pictures.encodings == 1
    assert first is second


def test_text_alone_is_read_as_ever(model):
    found = model.generate("what colour ?", GREEDY)
    found.text()
    assert found.prompt_tokens == model.tokenize("what colour ?")
    assert model.pictures.encodings == 0


def test_what_a_user_types_stays_text(model):
    for generation in (
        model.chat([{"role": "user", "content": "what is <image> ?"}], GREEDY),
        model.generate("what is <image> ?", GREEDY),
    ):
        assert PLACEHOLDER not in generation.prompt_tokens
    both = model.chat(
        [{"role": "user", "content": "what is <image> ?"}], GREEDY, images=[picture()]
    )
    assert both.prompt_tokens.count(PLACEHOLDER) == model.pictures.rows


def test_a_prompt_says_where_its_pictures_stand(model):
    named = model.generate("red <image> blue", GREEDY, images=[picture()])
    at = named.prompt_tokens.index(PLACEHOLDER)
    assert 0 < at < len(named.prompt_tokens) - model.pictures.rows
    front = model.generate("red blue", GREEDY, images=[picture()])
    assert front.prompt_tokens[: model.pictures.rows] == [PLACEHOLDER] * model.pictures.rows


@pytest.mark.parametrize(("text", "count"), [("<image> red <image>", 1), ("<image>", 2)])
def test_more_or_fewer_places_than_pictures_are_refused(model, text, count):
    with pytest.raises(InvalidArgumentError, match=rf"{text.count('<')} places.*{count} pictures"):
        model.generate(text, GREEDY, images=[picture()] * count)


def test_ids_with_too_few_places_are_refused(model):
    with pytest.raises(InvalidArgumentError, match=r"3 places.*1 pictures have"):
        model.generate([1, *[PLACEHOLDER] * 3, 5], GREEDY, images=[picture()])


def test_a_prompt_that_does_not_fit_is_refused_before_anything_is_encoded(model):
    with pytest.raises(ContextFullError, match=r"has \d+ tokens and the context 128"):
        model.chat(QUESTION, GREEDY, images=[picture(seed) for seed in range(9)])
    assert model.pictures.encodings == 0


def test_an_interrupted_picture_is_read_again(model):
    prompt = model.picture_chat(QUESTION, [picture()])[1]
    expected = last_logits(model, prompt)
    with model.session() as session:
        generation = session.generate(prompt, GREEDY)
        (span,) = prompt.spans
        for stopped_at in (span.begin, span.begin + 5):  # in front of the picture, and within it
            session.truncate(0)
            session.evaluate(prompt.tokens[: span.begin])
            part = model.pictures.encoded(span.picture)[: stopped_at - span.begin]
            if len(part):
                known = prompt.contents[span.begin : stopped_at]
                session.evaluate_embeddings(part, contents=known)
            assert prompt.reusable(session) == span.begin
        generation.start()
        np.testing.assert_array_equal(session.last_logits(), expected)


def test_a_conversation_remembers_its_pictures(model):
    talk = Conversation(model, config=GREEDY)
    for _ in talk.ask("what colour ?", [talk.pictures.prepare(picture())]):
        pass
    if not talk.turns:  # the model had nothing to say: the question was taken back
        pytest.skip("a random model that ends at once")
    for _ in talk.ask("yes ?"):
        pass
    assert talk.last.prompt_tokens.count(PLACEHOLDER) == model.pictures.rows
    for _ in talk.retry():
        pass
    assert model.pictures.encodings == 1


def test_a_file_of_text_alone_refuses_pictures_in_a_sentence(stories_path):
    with Model.open(stories_path) as model:
        assert not model.sees_pictures
        with pytest.raises(UnsupportedError, match="has no vision part"):
            model.generate("a", images=[picture()])
        with pytest.raises(UnsupportedError, match="has no vision part"):
            model.chat([{"role": "user", "content": [{"type": "image", "image": picture()}]}])


def test_a_file_that_does_not_say_how_pictures_are_prepared_is_refused(model, monkeypatch):
    entries = {**model.metadata, "awq_edge.vision.preprocessing": "{}"}
    monkeypatch.setitem(model.__dict__, "metadata", entries)
    with pytest.raises(FileInvalidError, match=r"awq_edge\.vision\.preprocessing"):
        model.chat(QUESTION, images=[picture()])


def test_run_takes_pictures(command, converted, tmp_path):
    paths = [tmp_path / "one.png", tmp_path / "two.png"]
    for seed, path in enumerate(paths):
        path.write_bytes(png(picture(seed)))
    common = ("run", converted[1], "-p", "what colour ?", "-n", 4, "--temperature", 0, "--json")
    shown = ("--image", paths[0], "--image", paths[1], "--context", 128)
    found = command(*common, "--chat", *shown)
    assert found.status == 0, found.err
    alone = command(*common, "--chat")
    with Model.open(converted[1]) as model:
        rows = 2 * model.pictures.rows
    counts = [json.loads(one.out)["prompt_tokens"] for one in (found, alone)]
    assert counts[0] == counts[1] + rows


def test_run_names_what_is_wrong_with_a_picture(command, converted, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(png(picture())[:60])
    for path, words in ((broken, "no readable image"), (tmp_path / "none.png", "No such file")):
        found = command("run", converted[1], "-p", "a", "--image", path)
        assert found.status != 0
        assert words in found.err
        assert "Traceback" not in found.err


def test_chat_shows_a_picture_with_the_next_question(command, converted, tmp_path):
    path = tmp_path / "one.png"
    path.write_bytes(png(picture()))
    said = f"/image {path}\nwhat colour ?\n/stats\n"
    settings = ("-n", 4, "--temperature", 0, "--context", 128)
    found = command("chat", converted[1], *settings, stdin=said.encode())
    assert "40x40: shown with the next question" in found.err
    read = re.search(r"after (\d+) new tokens", found.err)
    with Model.open(converted[1]) as model:
        assert int(read[1]) > model.pictures.rows


def test_a_saved_conversation_holds_its_pictures(command, scenes_file, tmp_path):
    """The photograph is gone by then; the tower reads nothing again."""
    path, talk = tmp_path / "one.png", tmp_path / "talk.json"
    shown = sorted((EXAMPLE / "pictures").glob("*.png"))[0].read_bytes()
    path.write_bytes(shown)
    environment = {"AWQ_EDGE_CACHE": str(tmp_path / "cache")}
    settings = ("chat", scenes_file, "-n", 12, "--temperature", 0)
    first, second = "how many things are there ?", "what is on the left ?"

    def said(text):
        done = command(*settings, stdin=text.encode(), environment=environment)
        assert done.status == 0, done.err
        return done

    whole = said(f"/image {path}\n{first}\n/save {talk}\n{second}\n/stats\n")
    assert "the tower has read 1 tile of" in whole.err
    path.unlink()
    again = said(f"/load {talk}\n{second}\n/stats\n/save {tmp_path / 'copy'}\n")
    assert again.out == "".join(whole.out.splitlines(keepends=True)[1:])
    assert "the tower has read 0 tiles" in again.err
    document = json.loads(talk.read_text(encoding="utf-8"))
    assert base64.b64decode(document["turns"][0]["content"][0]["data"]) == shown
    copied = json.loads((tmp_path / "copy").read_text(encoding="utf-8"))
    assert copied["turns"][:2] == document["turns"]


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"type": "image", "data": "!"}, "no conversation that /save wrote"),
        ({"type": "image"}, "no conversation that /save wrote"),
        ({"type": "sound", "data": ""}, "no conversation that /save wrote"),
        ({"type": "image", "data": base64.b64encode(b"GIF89a" * 9).decode()}, "no readable image"),
    ],
)
def test_a_damaged_saved_conversation_is_refused_in_a_sentence(
    command, scenes_file, tmp_path, part, words
):
    talk = tmp_path / "talk.json"
    talk.write_text(json.dumps({"turns": [{"role": "user", "content": [part]}]}), encoding="utf-8")
    command("chat", scenes_file, stdin=f"/load {talk}\n".encode()).assert_one_sentence(words)


def test_whatever_a_saved_conversation_has_become_it_loads_or_is_a_sentence(scenes_file, tmp_path):
    """Bytes and values changed at random: of the document, of the base64, of the picture."""
    random = np.random.default_rng(5)
    path = tmp_path / "talk.json"
    values = (None, True, 7, -1, 1e300, "", "image", [], {}, [[]], {"type": "image"}, "a" * 9)
    loaded = refused = 0
    with Model.open(scenes_file) as model:
        shown = ShownPictures(Conversation(model))
        for number in range(400):
            content = bytearray(png(picture(side=24)))
            if number % 3 == 0:
                for _ in range(random.integers(1, 6)):
                    content[random.integers(len(content))] = random.integers(256)
            data = base64.b64encode(content).decode()
            part = {"type": "image", "data": data}
            asked = {"role": "user", "content": [part, {"type": "text", "text": "what ?"}]}
            answered = {"role": "assistant", "content": "red"}
            document = {"system": "", "turns": [asked, answered]}
            if number % 3 == 1:
                table = (document, asked, answered, part)[random.integers(4)]
                key = list(table)[random.integers(len(table))]
                table[key] = values[random.integers(len(values))]
            text = bytearray(json.dumps(document).encode())
            if number % 3 == 2:
                for _ in range(random.integers(1, 6)):
                    text[random.integers(len(text))] = random.integers(256)
                del text[random.integers(len(text) // 2, 2 * len(text)) :]
            path.write_bytes(text)
            try:
                assert shown.load(path) >= 0
                loaded += 1
            except AwqEdgeError as error:
                assert str(error).endswith(".") and "\n" not in str(error)
                refused += 1
    assert loaded > 5 and refused > 100


def test_a_model_of_text_alone_loads_no_pictures(command, chat_file, tmp_path):
    data = base64.b64encode(png(picture())).decode()
    turn = {"role": "user", "content": [{"type": "image", "data": data}]}
    talk = tmp_path / "talk.json"
    talk.write_text(json.dumps({"turns": [turn]}), encoding="utf-8")
    for said in (f"/load {talk}\n", f"/image {talk}\n"):
        command("chat", chat_file, stdin=said.encode()).assert_one_sentence("has no vision part")


def test_a_size_counts_the_tower(tmp_path):
    save("llava", tmp_path)
    save_tokenizer(tmp_path)
    path = tmp_path / "model.awq.gguf"
    quick = dict(samples=2, sequence_length=24, group_size=32)
    with pytest.raises(InvalidArgumentError, match="smallest possible one has") as refused:
        conversion.convert(str(tmp_path), path, conversion.Options(size=1000, **quick))
    smallest = int(re.search(r"has (\d+) bytes", str(refused.value))[1])
    for size in (smallest, smallest + 9000):
        options = conversion.Options(size=size, **quick)
        conversion.convert(str(tmp_path), path, options, force=True)
        assert size - 2048 < path.stat().st_size <= size
    with Model.open(path, context_length=64) as model:
        assert model.sees_pictures


def test_inspect_shows_the_vision_part(command, converted):
    found = command("inspect", converted[1])
    assert "26x26 pixels in patches of 6, 16 tokens each" in found.out
    document = json.loads(command("inspect", converted[1], "--json").out)
    assert document["vision"]["image_size"] == 26


PARTS_ALONE = (
    "{% for m in messages %}<u>{% for part in m.content %}"
    "{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}{% endfor %}<a>"
)


def test_the_server_reads_texts_for_templates_of_parts_and_no_word_as_a_picture(
    tmp_path_factory,
):
    from awq_edge.serve.chat_prompts import chat_prompt
    from awq_edge.serve.wanted import Wanted

    directory = tmp_path_factory.mktemp("parts")
    save("llava", directory)
    save_tokenizer(directory, PARTS_ALONE)
    path = directory / "model.awq.gguf"
    conversion.convert(str(directory), path, conversion.Options(method="rtn"))
    wanted = Wanted("m", GREEDY, messages=[{"role": "user", "content": "what is <image> ?"}])
    with Model.open(path) as model:
        ids = chat_prompt(model, wanted).ids
        assert PLACEHOLDER not in ids
        assert ids[:3] == model.tokenize("<u>what is")
        assert ids[-2:] == model.tokenize("? <a>")
        found = model.chat([{"role": "user", "content": "what ?"}], images=[picture()])
        assert found.prompt_tokens.count(PLACEHOLDER) == model.pictures.rows


def rows_told(model, pixels, detail="high"):
    """What a user is told of a picture."""
    return list(model.pictures.prepare(pixels, detail).notices)


def test_tiles_of_smolvlm_are_read_in_their_places(tmp_path_factory):
    directory = tmp_path_factory.mktemp("smolvlm")
    save("smolvlm", directory)
    save_tokenizer(directory)
    path = directory / "model.awq.gguf"
    conversion.convert(str(directory), path, conversion.Options(method="rtn", bits=8))
    held = read_dequantised(path)
    with Model.open(path, context_length=128) as model:
        prompt = model.picture_chat(QUESTION, [picture()])[1]
        assert len(prompt.spans) == 5  # two rows of two, and the whole
        assert all(span.end - span.begin == model.pictures.rows for span in prompt.spans)
        rows = model.pictures.encoded(prompt.spans[0].picture)
        tokens = torch.tensor([prompt.tokens])
        expected = torch_decoder.logits(
            lambda name: torch.from_numpy(held.tensors[name]),
            held.architecture,
            tokens,
            pictures=(tokens == PLACEHOLDER, torch.from_numpy(rows.copy())),
        )[0, -1].numpy()
        found = last_logits(model, prompt)
        assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 0.03
        assert model.pictures.encodings == 5
        assert rows_told(model, picture()) == [
            "The picture becomes 5 tiles, each of which the tower reads; in low detail it would be "
            "one, which shows no small text."
        ]
        assert rows_told(model, picture(), "low") == [
            "In low detail 26x26 pixels of the picture are read, which show no small text."
        ]
        assert rows_told(model, picture(side=26), "low") == []
        low = model.picture_chat(QUESTION, [picture()], detail="low")[1]
        assert len(low.spans) == 1
        alone, tiles = low.contents[low.spans[0].begin], prompt.contents
        assert alone not in tiles
