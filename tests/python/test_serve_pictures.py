"""Pictures in requests: what Model.chat answers, whichever client, cache or neighbour there is."""

from __future__ import annotations

import base64
import io
import json
import os
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzz_requests import fuzz
from serving import Server
from test_serve_cache import kept_engine, run_until_kept
from test_serve_engine import Heard, heard

from awq_edge import GenerationConfig, Model
from awq_edge.errors import CancelledError
from awq_edge.serve.engine import Engine
from awq_edge.serve.texts import Text
from awq_edge.vision.stored_pictures import StoredPictures

Image = pytest.importorskip("PIL.Image")
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "scenes-8m"
ENTRIES = json.loads((EXAMPLE / "pictures" / "questions.json").read_text(encoding="utf-8"))
FILES = [(EXAMPLE / "pictures" / entry["picture"]).read_bytes() for entry in ENTRIES]
QUESTIONS = [[one["question"] for one in entry["questions"]] for entry in ENTRIES]


@pytest.fixture(scope="module")
def model(scenes_file: Path) -> Iterator[Model]:
    with Model.open(scenes_file, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def seeing(scenes_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(scenes_file, "--cache-dir", tmp_path_factory.mktemp("kept"))
    yield started
    started.stop()


def coded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def url(content: bytes) -> str:
    return f"data:image/png;base64,{coded(content)}"


def openai_part(content: bytes, **more: object) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url(content), **more}}


def alone(model: Model, messages: list[dict[str, Any]], **settings: Any) -> str:
    """What a session that nobody else has answers."""
    prompt = model.picture_chat(messages)[1]
    with model.session() as session:
        return session.generate(prompt, **settings).text()


def asked(number: int, question: int, *more: int) -> list[dict[str, Any]]:
    """A question of a picture's for Model.chat, after further ones with their pictures' answers."""
    messages = []
    for at, picture in enumerate((number, *more)):
        parts = [
            {"type": "image", "image": FILES[picture]},
            {"type": "text", "text": QUESTIONS[picture][question]},
        ]
        messages.append({"role": "user", "content": parts})
        if at < len(more):
            messages.append({"role": "assistant", "content": "red"})
    return messages


SAMPLED = {"temperature": 1.0, "seed": 5, "max_tokens": 8}


# ---- the clients ---------------------------------------------------------------------------------


def test_openai_chat(seeing: Server, model: Model) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=seeing.url + "/v1", api_key="-", max_retries=0, timeout=60)
    said = [
        {"type": "text", "text": "First this."},
        openai_part(FILES[0]),
        openai_part(FILES[1], detail="low"),
        {"type": "text", "text": QUESTIONS[1][0]},
    ]
    messages = [
        {"role": "user", "content": said},
        {"role": "assistant", "content": "blue"},
        {"role": "user", "content": [openai_part(FILES[2]), {"type": "text", "text": "And?"}]},
    ]
    ours = [
        {
            "role": "user",
            "content": [
                said[0],
                {"type": "image", "image": FILES[0]},
                {"type": "image", "image": model.pictures.prepare(FILES[1], "low")},
                said[3],
            ],
        },
        messages[1],
        {
            "role": "user",
            "content": [{"type": "image", "image": FILES[2]}, {"type": "text", "text": "And?"}],
        },
    ]
    expected = [alone(model, ours, temperature=1.0, max_tokens=8, seed=seed) for seed in (5, 6)]
    answer = client.chat.completions.create(model="x", messages=messages, n=2, **SAMPLED)
    assert [choice.message.content for choice in answer.choices] == expected
    assert answer.usage.prompt_tokens == len(model.picture_chat(ours)[1].tokens)
    stream = client.chat.completions.create(model="x", messages=messages, stream=True, **SAMPLED)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == expected[0]
    (known,) = client.models.list().data
    assert known.input_modalities == ["text", "image"]


def test_openai_responses(seeing: Server, model: Model) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=seeing.url + "/v1", api_key="-", max_retries=0, timeout=60)
    said = [
        {"type": "input_image", "image_url": url(FILES[3]), "detail": "auto"},
        {"type": "input_text", "text": QUESTIONS[3][1]},
    ]
    answer = client.responses.create(
        model="x", input=[{"role": "user", "content": said}], temperature=0, max_output_tokens=20
    )
    assert answer.output_text == alone(model, asked(3, 1), temperature=0.0, max_tokens=20)


def test_anthropic_messages(seeing: Server, model: Model) -> None:
    anthropic = pytest.importorskip("anthropic")
    client = anthropic.Anthropic(base_url=seeing.url, api_key="-", max_retries=0, timeout=60)
    source = {"type": "base64", "media_type": "image/png", "data": coded(FILES[4])}
    said = [{"type": "image", "source": source}, {"type": "text", "text": QUESTIONS[4][0]}]
    messages = [{"role": "user", "content": said}]
    greedy = {"extra_body": {"temperature": 0}}
    answer = client.messages.create(model="x", max_tokens=20, messages=messages, **greedy)
    expected = alone(model, asked(4, 0), temperature=0.0, max_tokens=20)
    assert answer.content[0].text == expected
    count = client.messages.count_tokens(model="x", messages=messages)
    assert count.input_tokens == len(model.picture_chat(asked(4, 0))[1].tokens)
    with client.messages.stream(model="x", max_tokens=20, messages=messages, **greedy) as stream:
        assert stream.get_final_text() == expected


def test_ollama(seeing: Server, model: Model, tmp_path: Path) -> None:
    ollama = pytest.importorskip("ollama")
    client = ollama.Client(host=seeing.url, timeout=60)
    path = tmp_path / "scene.png"
    path.write_bytes(FILES[5])
    expected = alone(model, asked(5, 1), temperature=0.0, max_tokens=20)
    options = {"temperature": 0, "num_predict": 20}
    for shown in (path, FILES[5], coded(FILES[5])):
        message = {"role": "user", "content": QUESTIONS[5][1], "images": [shown]}
        answer = client.chat(model="x", messages=[message], options=options)
        assert answer.message.content == expected
    made = client.generate(model="x", prompt=QUESTIONS[5][1], images=[path], options=options)
    assert made.response == expected
    raw = client.generate(model="x", prompt="a <image> b", images=[path], raw=True, options=options)
    assert raw.response == model.generate("a <image> b", images=[path], temperature=0.0,
                                          max_tokens=20).text()  # fmt: skip
    assert "vision" in client.show("x").capabilities


# ---- what is refused -----------------------------------------------------------------------------


def bomb() -> bytes:
    """A PNG that says in 33 bytes that it has 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1 << 20)))


def large(side: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("1", side).save(file, "PNG")
    return file.getvalue()


REFUSED = {
    "address": ("https://example.org/cat.jpg", 400, "fetches nothing"),
    "file": ("file:///etc/passwd", 400, "fetches nothing"),
    "empty": ("", 400, "fetches nothing"),
    "no base64": ("data:image/png,abc", 400, "no picture in base64"),
    "text": (f"data:text/plain;base64,{coded(b'hello')}", 400, "'text/plain' and no picture"),
    "cut base64": (url(FILES[0])[:-3], 400, "no whole base64"),
    "letters": ("data:image/png;base64,äöü", 400, "no whole base64"),
    "nothing": ("data:image/png;base64,", 400, "is empty"),
    "cut file": (url(FILES[0][:200]), 400, "no readable image"),
    "noise": (url(b"\x00\x01" * 500), 400, "no readable image"),
    "svg": (f"data:image/svg+xml;base64,{coded(b'<svg></svg>')}", 400, "the format SVG"),
    "bomb": (url(bomb()), 400, "more than 50 million pixels"),
    "pixels": (url(large((9000, 9000))), 400, "at most 16384 on a side and 50 million"),
    "line": (url(large((3000, 2))), 400, "200 times as long"),
    "bytes": (url(bytes(12 << 20) + b"x"), 413, "pictures of up to 12.6 MB"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_read_is_refused_in_a_sentence(seeing: Server, kind: str) -> None:
    address, status, words = REFUSED[kind]
    part = {"type": "image_url", "image_url": {"url": address}}
    found, answer, _ = seeing.ask(
        "/v1/chat/completions", {"messages": [{"role": "user", "content": [part]}]}
    )
    assert (found, words in answer["error"]["message"]) == (status, True), answer
    assert answer["error"]["param"] == "messages[0].content[0].image_url.url"
    assert answer["error"]["message"].count("\n") == 0


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/v1/messages", {"type": "image", "source": {"type": "url", "url": "http://a/b"}},
         "fetches and keeps nothing"),
        ("/v1/messages", {"type": "image"}, "source is missing"),
        ("/v1/messages", {"type": "image", "source": {"type": "base64", "media_type": "a/b",
                                                      "data": ""}}, "no picture"),
        ("/v1/responses", {"type": "input_image", "file_id": "file-1"}, "nothing is stored"),
        ("/v1/responses", {"type": "input_audio"}, "texts and pictures"),
        ("/v1/chat/completions", {"type": "image_url"}, "image_url is missing"),
        ("/v1/chat/completions", {"type": "image_url", "image_url": {"url": "x", "detail": "?"}},
         "low, high, auto"),
    ],
)  # fmt: skip
def test_every_interface_says_what_it_takes(
    seeing: Server, path: str, body: dict[str, Any], words: str
) -> None:
    messages = [{"role": "user", "content": [body]}]
    asked_for = {"input": messages} if path == "/v1/responses" else {"messages": messages}
    status, answer, _ = seeing.ask(path, {**asked_for, "max_tokens": 4})
    assert status == 400 and words in json.dumps(answer), answer


def test_pictures_stand_in_messages_of_the_user_and_are_not_too_many(seeing: Server) -> None:
    for role in ("system", "assistant"):
        status, answer, _ = seeing.ask(
            "/v1/chat/completions",
            {"messages": [{"role": role, "content": [openai_part(FILES[0])]}]},
        )
        assert status == 400 and "messages of the user" in answer["error"]["message"]
    message = {"role": "user", "content": [openai_part(FILES[0])] * 33}
    status, answer, _ = seeing.ask("/v1/chat/completions", {"messages": [message]})
    assert status == 400 and "at most 32" in answer["error"]["message"]
    message = {"role": "user", "content": [openai_part(FILES[0])] * 9}
    before = seeing.metric("picture_tiles_encoded_total")
    status, answer, _ = seeing.ask("/v1/chat/completions", {"messages": [message]})
    assert status == 400 and answer["error"]["code"] == "context_length_exceeded"
    assert seeing.metric("picture_tiles_encoded_total") == before
    status, answer, _ = seeing.ask("/v1/chat/completions", raw=b" " * (33 << 20))
    assert status == 413


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"content": [openai_part(FILES[0])]}),
        ("/api/chat", {"content": "a", "images": [coded(FILES[0])]}),
        ("/api/generate", {"prompt": "a", "raw": True, "images": [coded(FILES[0])]}),
    ],
)  # fmt: skip
def test_a_model_of_text_alone_says_so(server: Server, path: str, body: dict[str, Any]) -> None:
    whole = body if path == "/api/generate" else {"messages": [{"role": "user", **body}]}
    status, answer, _ = server.ask(path, whole)
    assert status == 400
    assert "reads text alone" in json.dumps(answer)


def test_what_a_user_types_stays_a_word_beside_a_picture(seeing: Server, model: Model) -> None:
    typed = "What is <image> and <image>?"
    body = {
        "messages": [{"role": "user", "content": [openai_part(FILES[0]), typed]}],
        **SAMPLED,
    }
    answer = seeing.ask("/v1/chat/completions", body)[1]
    ours = [{"role": "user", "content": [{"type": "image", "image": FILES[0]},
                                         {"type": "text", "text": typed}]}]  # fmt: skip
    assert answer["choices"][0]["message"]["content"] == alone(model, ours, **SAMPLED)


def test_damaged_pictures_crash_nothing_and_leak_nothing(seeing: Server) -> None:
    fuzzing = fuzz(seeing, 150, seed=3, clients=3, pictures=0.9)
    assert not fuzzing.faults, fuzzing.faults[:3]
    assert fuzzing.statuses[200] > 15 and fuzzing.statuses[400] > 60


def test_a_vocabulary_without_bytes_enforces_no_form(seeing: Server) -> None:
    """The tokenizer of scenes-8m joins its pieces by spaces: llguidance cannot read it."""
    message = {"role": "user", "content": [openai_part(FILES[0]), "What?"]}
    body = {"messages": [message], "max_tokens": 3, "response_format": {"type": "json_object"}}
    status, answer, _ = seeing.ask("/v1/chat/completions", body)
    assert status == 400 and "no form of an answer" in answer["error"]["message"]


def test_long_bodies_have_a_limit_together() -> None:
    """What would take too much memory is told to come again, and counts no more."""
    from awq_edge.serve.long_bodies import LongBodies
    from awq_edge.serve.texts import BusyError

    bodies = LongBodies(from_bytes=10, most_bytes=50)
    short, one, other = bodies.hold(), bodies.hold(), bodies.hold()
    for _ in range(9):
        short.grow(10)
    one.grow(30)
    one.grow(40)
    with pytest.raises(BusyError, match="Try again"):
        other.grow(11)
    one.release()
    one.release()
    other.grow(50)
    assert (short.size, one.size, other.size) == (0, 0, 50)


# ---- the engine ----------------------------------------------------------------------------------


def text_of(model: Model, messages: list[dict[str, Any]], client: str = "a", **more: Any) -> Text:
    prompt = model.picture_chat(messages)[1]
    config = GenerationConfig(**{**SAMPLED, **more})
    return Text(model, client, prompt.tokens, config, Heard(), pictures=prompt)


def mixed(model: Model) -> list[Text]:
    """Texts with one picture, with two, with none; some begin alike."""
    plain = model.chat_tokens([{"role": "user", "content": "What colour is it?"}])
    return [
        text_of(model, asked(0, 0), seed=1),
        text_of(model, asked(1, 0), seed=2),
        text_of(model, asked(0, 1), "b", seed=3),
        Text(model, "c", plain, GenerationConfig(**{**SAMPLED, "max_tokens": 30}), Heard()),
        text_of(model, asked(0, 0, 1), "b", seed=4),
        text_of(model, asked(0, 0, 2), "c", seed=5),
        text_of(model, asked(2, 1, 0), "a", seed=6),
        text_of(model, asked(0, 0), "a", seed=7),
    ]


def test_texts_are_what_they_are_alone_beside_others_and_with_every_cache(
    model: Model, tmp_path: Path
) -> None:
    expected = []
    for text in mixed(model):
        with model.session() as session:
            generation = session.generate(text.pictures or text.prompt, text.config)
            expected.append((generation.text(), generation.tokens))
    for _ in range(3):  # nothing kept; kept on disk and in memory; kept on disk
        engine = kept_engine(tmp_path, parallel=3)
        for _ in range(2):
            texts = mixed(model)
            engine.submit(texts)
            assert [(heard(t).text(), heard(t).tokens()) for t in texts] == expected
        counts = engine.counts
        assert counts.prompt_tokens == counts.reused_tokens + counts.read_tokens
        assert counts.reused_tokens > counts.prompt_tokens / 3
        engine.stop(5)


def test_another_picture_is_never_taken_for_this_one(model: Model, tmp_path: Path) -> None:
    """In memory and on disk: what is shared ends where the picture begins."""

    def text(number: int) -> Text:
        shown = f"{QUESTIONS[0][0]} " * 5 + "<image> and?"
        prompt = model.picture_prompt(shown, [FILES[number]])
        config = GenerationConfig(**SAMPLED)
        return Text(model, "a", prompt.tokens, config, Heard(), pictures=prompt)

    first, other = text(0), text(1)
    assert first.prompt == other.prompt  # by ids alone they are one
    begin = first.pictures.spans[0].begin  # type: ignore[union-attr]
    assert begin > 32
    engine = kept_engine(tmp_path)
    run_until_kept(engine, first)
    engine.submit([other])
    heard(other).text()
    assert heard(other).end().reused_tokens == begin
    engine.stop(5)
    for number, shared in ((2, begin), (0, len(first.prompt) - 1)):
        engine = kept_engine(tmp_path)
        again = text(number)
        engine.submit([again])
        with model.session() as session:
            assert heard(again).text() == session.generate(again.pictures, **SAMPLED).text()
        assert heard(again).end().reused_tokens == shared
        engine.stop(5)


def test_a_kept_context_needs_no_encoding(model: Model, scenes_file: Path, tmp_path: Path) -> None:
    engine = kept_engine(tmp_path)
    run_until_kept(engine, text_of(model, asked(6, 0)))
    engine.stop(5)
    engine = kept_engine(tmp_path)
    with Model.open(scenes_file, threads=1) as again:
        text = text_of(again, asked(6, 0))
        engine.submit([text])
        assert heard(text).text() == alone(model, asked(6, 0), **SAMPLED)
        assert again.pictures.encodings == engine.encoder.tiles == 0
        engine.stop(5)


class Held:
    """A tower that stands still until it is told to go on."""

    def __init__(self, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        self.began, self.go_on, self.error = threading.Event(), threading.Event(), None
        encode = model.native.encode_pictures

        def held(pixels: Any, found: Any, threads: int, progress: Any) -> None:
            self.threads = threads
            self.began.set()
            try:
                while not self.go_on.wait(0.01):
                    progress(0, 1)
            except BaseException as error:
                self.error = error
                raise
            encode(pixels, found, threads, progress)

        monkeypatch.setattr(model.native, "encode_pictures", held)


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine(parallel=4, most_waiting=64)
    yield made
    made.stop(0)


def test_streams_go_on_while_a_picture_is_encoded_and_who_leaves_ends_it(
    scenes_file: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Model.open(scenes_file, threads=1, prefill_threads=2) as model:
        tower = Held(model, monkeypatch)
        picture = text_of(model, asked(0, 0))
        engine.submit([picture])
        assert tower.began.wait(60)
        assert tower.threads == 2  # nobody else computes
        plain = Text(model, "b", [1, 5, 9], GenerationConfig(max_tokens=20, seed=1), Heard())
        engine.submit([plain])
        assert heard(plain).text() is not None and heard(plain).end().tokens > 0
        assert engine.live_texts == 1 and engine.encoder.waiting == 1
        engine.cancel([picture])
        deadline = time.monotonic() + 60
        while engine.encoder.waiting and time.monotonic() < deadline:
            time.sleep(0.01)
        assert isinstance(tower.error, CancelledError)
        assert engine.live_texts == 0 and engine.counts.texts["cancelled"] == 1
        tower.go_on.set()
        again = text_of(model, asked(0, 0))
        engine.submit([again])
        assert heard(again).text() == alone(model, asked(0, 0), **SAMPLED)
        assert engine.encoder.tiles == 1 and engine.encoder.seconds > 0
        engine.stop(5)


def test_a_picture_that_takes_too_long_ends_its_text(
    scenes_file: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Model.open(scenes_file, threads=1) as model:
        tower = Held(model, monkeypatch)
        text = text_of(model, asked(0, 0))
        engine.submit([text])
        assert tower.began.wait(60)
        text.deadline = time.monotonic()
        assert "longer than this server allows" in str(heard(text).error())
        engine.stop(5)


def test_a_picture_that_cannot_be_encoded_fails_its_text_alone(
    scenes_file: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Model.open(scenes_file, threads=1) as model:

        def broken(*_: object) -> None:
            raise MemoryError

        monkeypatch.setattr(model.native, "encode_pictures", broken)
        text = text_of(model, asked(0, 0))
        plain = Text(model, "b", [1, 5, 9], GenerationConfig(max_tokens=5, seed=1), Heard())
        engine.submit([text, plain])
        assert isinstance(heard(text).error(), MemoryError)
        assert heard(plain).end().tokens > 0
        engine.stop(5)


# ---- the disk ------------------------------------------------------------------------------------


def test_a_killed_server_encodes_no_picture_again(scenes_file: Path, tmp_path: Path) -> None:
    """The contexts are removed, so that what is left is the pictures' own cache."""
    first = {"messages": [{"role": "user", "content": [openai_part(FILES[0]), QUESTIONS[0][0]]}],
             "temperature": 0, "max_tokens": 12}  # fmt: skip
    one = Server(scenes_file, "--cache-dir", tmp_path)
    answer = one.ask("/v1/chat/completions", first)[1]
    assert one.metric("picture_tiles_encoded_total") == 1
    one.kill()
    for path in tmp_path.glob("*.context"):
        path.unlink()
    said = answer["choices"][0]["message"]
    second = {**first, "messages": [*first["messages"], said,  # type: ignore[misc]
                                    {"role": "user", "content": QUESTIONS[0][1]}]}  # fmt: skip
    two = Server(scenes_file, "--cache-dir", tmp_path)
    turn = two.ask("/v1/chat/completions", second)[1]
    assert turn["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert two.metric("picture_tiles_encoded_total") == 0
    assert two.metric("pictures_from_disk_total") == two.metric("pictures_total") == 1
    two.stop()
    cold = Server(scenes_file, "--cache-size", "0")
    try:
        assert cold.ask("/v1/chat/completions", second)[1]["choices"] == turn["choices"]
        assert cold.metric("picture_tiles_encoded_total") == 1
    finally:
        cold.stop()


@pytest.mark.parametrize(
    "damage", ["cut", "longer", "bit", "head", "empty", "link", "foreign", "pipe"]
)
def test_a_damaged_picture_is_encoded_again(
    scenes_file: Path, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "pictures"
    with Model.open(scenes_file) as model:
        model.pictures.stored = StoredPictures(folder, 1 << 30)
        rows = model.pictures.encoded(model.pictures.prepare(FILES[0]))
    (path,) = folder.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    data = bytearray(path.read_bytes())
    if damage == "link":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    elif damage == "pipe":
        path.unlink()
        os.mkfifo(path)
    else:
        changed = {"cut": data[:-9], "longer": data + b"x", "empty": b"", "foreign": b"abc" * 99}
        data[{"bit": 500, "head": 9}.get(damage, 0)] ^= 4
        path.write_bytes(changed.get(damage, data))
    with Model.open(scenes_file) as model:
        model.pictures.stored = StoredPictures(folder, 1 << 30)
        again = model.pictures.encoded(model.pictures.prepare(FILES[0]))
        assert model.pictures.encodings == 1
    np.testing.assert_array_equal(rows, again)
    assert "is not used" in caplog.text
    with Model.open(scenes_file) as model:  # it is there again, whole
        model.pictures.stored = StoredPictures(folder, 1 << 30)
        np.testing.assert_array_equal(
            rows, model.pictures.encoded(model.pictures.prepare(FILES[0]))
        )
        assert (model.pictures.encodings, model.pictures.from_disk) == (0, 1)


def test_a_folder_in_a_picture_s_place_is_left_and_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = np.ones((4, 8), np.float32)
    stored = StoredPictures(tmp_path, 5000)
    stored.write(b"key", rows)
    (path,) = tmp_path.iterdir()
    path.unlink()
    (path / "inside").mkdir(parents=True)
    for _ in range(2):
        assert stored.read(b"key", (4, 8)) is None
        stored.write(b"key", rows)
    assert "is not used" in caplog.text and "cannot be kept" in caplog.text
    assert (path / "inside").is_dir()
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]  # nothing half-written


def test_the_oldest_pictures_go(tmp_path: Path) -> None:
    rows = np.ones((4, 8), np.float32)
    stored = StoredPictures(tmp_path, 500)  # three of 176 bytes are too many
    for number in range(3):
        stored.write(bytes([number]), rows * number)
        time.sleep(0.01)
        assert stored.read(bytes([0]), (4, 8)) is not None  # it is used, and stays
    assert stored.read(bytes([1]), (4, 8)) is None
    np.testing.assert_array_equal(stored.read(bytes([2]), (4, 8)), rows * 2)
    assert stored.total_bytes <= 500
    stored.write(b"large", np.ones((40, 8), np.float32))
    assert stored.read(b"large", (40, 8)) is None and stored.total_bytes > 0
    assert stored.read(bytes([2]), (8, 4)) is None  # of another shape is damaged


def test_run_encodes_nothing_the_second_time(
    command: Any, scenes_file: Path, tmp_path: Path
) -> None:
    picture = EXAMPLE / "pictures" / ENTRIES[0]["picture"]
    settings = ("--chat", "-p", QUESTIONS[0][0], "--image", picture, "--json", "--temperature", 0)
    environment = {"AWQ_EDGE_CACHE": str(tmp_path / "cache")}
    found = [
        json.loads(command("run", scenes_file, *settings, environment=environment).out)
        for _ in range(2)
    ]
    assert [one["picture_tiles_encoded"] for one in found] == [1, 0]
    assert found[0]["text"] == found[1]["text"]
