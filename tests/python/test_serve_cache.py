"""Contexts on disk: nothing is read again, nothing changes, nothing that is damaged is used."""

from __future__ import annotations

import logging
import random
import time
from pathlib import Path

import pytest
from serving import Server
from test_serve_engine import Heard, asked, heard

from awq_edge import GenerationConfig, Model
from awq_edge.serve.engine import Engine
from awq_edge.serve.prefix_breaks import PrefixBreaks
from awq_edge.serve.stored_contexts import BLOCK_TOKENS, LEAST_STORED_TOKENS, StoredContexts
from awq_edge.serve.texts import Text

TINY = Path(__file__).parents[1] / "data" / "tiny.awq.gguf"
LONG = "Once upon a time there was a girl who had a red ball and a blue box. " * 4


def kept_engine(folder: Path, *, most_bytes: int = 1 << 30, parallel: int = 2) -> Engine:
    stored = StoredContexts(folder, most_bytes)
    return Engine(parallel=parallel, most_waiting=64, stored=stored)


def block_files(folder: Path) -> dict[int, list[Path]]:
    """The files by the position at which their blocks begin."""
    stored = StoredContexts(folder, 1 << 40)
    found: dict[int, list[Path]] = {}
    for block in stored._blocks.values():
        found.setdefault(block.begin, []).append(block.path)
    stored.close()
    return found


def run(engine: Engine, text: Text) -> str:
    engine.submit([text])
    return heard(text).text()


def run_until_kept(engine: Engine, text: Text) -> str:
    """As :func:`run`; comes back once the text's context is on the disk."""
    stored = engine.stored
    assert stored is not None
    before = stored.total_bytes
    said = run(engine, text)
    deadline = time.monotonic() + 60
    while stored.busy or stored.total_bytes == before:
        assert time.monotonic() < deadline, "it is not kept"
        time.sleep(0.01)
    return said


def test_a_context_is_there_after_a_restart(stories: Model, tmp_path: Path) -> None:
    first = asked(stories, LONG)
    engine = kept_engine(tmp_path)
    said = run(engine, first)
    engine.stop(5)
    held = len(first.prompt) + len(heard(first).tokens()) - 1
    assert sorted(block_files(tmp_path)) == list(range(0, held, BLOCK_TOKENS))
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in tmp_path.iterdir())
    prompt = [*first.prompt, *heard(first).tokens(), *stories.tokenize(" But", add_bos=False)]
    with stories.session() as session:
        alone = session.generate(prompt, seed=4, max_tokens=20).text()
    engine = kept_engine(tmp_path)
    second = Text(stories, "c", prompt, GenerationConfig(seed=4, max_tokens=20), Heard())
    assert run(engine, second) == alone
    assert heard(second).end().reused_tokens == len(first.prompt) + len(heard(first).tokens()) - 1
    assert engine.counts.read_tokens == len(prompt) - heard(second).end().reused_tokens
    again = asked(stories, LONG)
    assert run(engine, again) == said
    engine.stop(5)


@pytest.mark.parametrize("begin", [0, BLOCK_TOKENS, 2 * BLOCK_TOKENS])
@pytest.mark.parametrize("damage", ["cut", "bit", "renamed", "foreign", "empty", "link", "half"])
def test_what_is_damaged_is_not_used(
    stories: Model, tmp_path: Path, damage: str, begin: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A damaged block costs what it holds and what follows; what comes before it serves."""
    folder = tmp_path / "cache"
    engine = kept_engine(folder)
    prompt = (stories.tokenize(LONG) * 4)[: 2 * BLOCK_TOKENS + 50]
    config = GenerationConfig(seed=3, max_tokens=24)
    said = run(engine, Text(stories, "one", prompt, config, Heard()))
    engine.stop(5)
    (path,) = block_files(folder)[begin]
    data = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(data[:-100])
    elif damage == "bit":
        data[-1000] ^= 16
        path.write_bytes(data)
    elif damage == "renamed":
        path.rename(folder / ("0" * 40 + ".context"))
    elif damage == "foreign":
        path.write_bytes(b"something else entirely" * 50)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "link":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.rename(folder / ".1234.context")
    with caplog.at_level(logging.WARNING):
        engine = kept_engine(folder)
        text = Text(stories, "one", prompt, config, Heard())
        assert run(engine, text) == said
        assert heard(text).end().reused_tokens == begin
        engine.stop(5)
    # It is there again, whole.
    assert sorted(block_files(folder)) == [0, BLOCK_TOKENS, 2 * BLOCK_TOKENS]
    again = kept_engine(folder)
    text = Text(stories, "one", prompt, config, Heard())
    assert run(again, text) == said
    assert heard(text).end().reused_tokens == len(prompt) - 1
    again.stop(5)
    assert ("is not used" in caplog.text) == (damage != "half")


def test_files_of_earlier_builds_go_quietly(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / f"{'0' * 40}.context").write_bytes(b"AWQEBLCK" + bytes(4000))
    (tmp_path / "pictures").mkdir()
    stored = StoredContexts(tmp_path, 1 << 30)
    stored.close()
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]
    assert not caplog.text


def test_the_oldest_go_when_there_is_no_room(stories: Model, tmp_path: Path) -> None:
    engine = kept_engine(tmp_path, parallel=8)
    for i in range(3):
        run_until_kept(engine, asked(stories, f"Number {i}. " + LONG, max_tokens=4))
    total = engine.stored.total_bytes  # type: ignore[union-attr]
    engine.stop(5)
    files = block_files(tmp_path)
    assert len(files[0]) == 3
    room = total * 2 // 3 + 10
    newest = max(path.stat().st_mtime for path in files[0])
    engine = kept_engine(tmp_path, most_bytes=room)
    left = block_files(tmp_path)
    assert len(left[0]) == 2
    assert newest in [path.stat().st_mtime for path in left[0]]
    run(engine, asked(stories, "Something new. " + LONG, max_tokens=4))
    engine.stop(5)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= room
    tiny = kept_engine(tmp_path / "tiny", most_bytes=10)
    run(tiny, asked(stories, LONG, max_tokens=4))
    tiny.stop(5)
    assert list((tmp_path / "tiny").iterdir()) == []


def test_a_context_that_goes_on_replaces_its_file(stories: Model, tmp_path: Path) -> None:
    engine = kept_engine(tmp_path)
    first = asked(stories, LONG)
    run(engine, first)
    prompt = [*first.prompt, *heard(first).tokens(), *stories.tokenize(LONG, add_bos=False)]
    more = Text(stories, "c", prompt, first.config, Heard())
    run(engine, more)
    engine.stop(5)
    held = len(more.prompt) + len(heard(more).tokens()) - 1
    files = block_files(tmp_path)
    assert sorted(files) == list(range(0, held, BLOCK_TOKENS))
    assert all(len(paths) == 1 for paths in files.values())
    count = len(files)
    short = asked(stories, "Hello", max_tokens=LEAST_STORED_TOKENS // 4)
    engine = kept_engine(tmp_path)
    run(engine, short)
    engine.stop(5)
    assert len(list(tmp_path.iterdir())) == count


def test_what_contexts_begin_with_is_there_once(stories: Model, tmp_path: Path) -> None:
    """Five conversations behind one long instruction: its blocks are shared, also afterwards."""
    instruction = (stories.tokenize(LONG) * 4)[: 2 * BLOCK_TOKENS]
    engine = kept_engine(tmp_path, parallel=8)
    prompts = [
        [*instruction, *stories.tokenize(f"{name} said: " + LONG, add_bos=False)[:60]]
        for name in ("Tom", "Lily", "Sam", "Ben", "Anna")
    ]
    config = GenerationConfig(seed=1, max_tokens=6)
    said = []
    for prompt in prompts:
        said.append(run_until_kept(engine, Text(stories, "c", prompt, config, Heard())))
    engine.stop(5)
    files = block_files(tmp_path)
    assert [len(files[begin]) for begin in (0, BLOCK_TOKENS, 2 * BLOCK_TOKENS)] == [1, 1, 5]
    whole = files[0][0].stat().st_size
    total = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert total < 5 * whole  # apart, each has more than two such blocks
    # A beginning stays for as long as something continues it.
    stored = StoredContexts(tmp_path, total - 1)
    assert stored.count == 6
    assert [len(paths) for paths in block_files(tmp_path).values()].count(1) == 2
    stored.close()
    again = kept_engine(tmp_path, parallel=3)
    texts = [Text(stories, "c", prompt, config, Heard()) for prompt in prompts]
    assert [run(again, text) for text in texts] == said
    reused = sorted(heard(text).end().reused_tokens for text in texts)
    again.stop(5)
    assert reused[0] >= 2 * BLOCK_TOKENS and reused[-1] == len(prompts[0]) - 1


def test_windows_that_have_moved_on_are_kept_in_larger_blocks(tmp_path: Path) -> None:
    """tiny has a layer with a window of 37: no block ends where its ring has lost something."""
    tokens = [(i * i + 9 * i) % 203 for i in range(310)]
    stored = StoredContexts(tmp_path, 1 << 30)
    with Model.open(TINY, threads=1) as model, model.session() as session:
        session.evaluate(tokens)
        assert session.earliest > BLOCK_TOKENS
        missing = stored.missing("key", tokens, session.earliest)
        assert missing is not None
        assert missing.spans == ((0, 256), (256, 310))
        saved = [session.save(end, begin=begin) for begin, end in missing.spans]
        stored.write(missing, tokens, saved)
        while stored.busy:
            time.sleep(0.01)
        chain, shared = stored.longest("key", [*tokens[:300], 5, 6])
        assert [block.end for block in chain] == [256, 310] and shared == 300
        with model.session() as other:
            for content in stored.read(chain).result():
                other.restore(content)
            assert other.tokens == tuple(tokens)
            assert (other.logits([1, 2, 3]) == session.logits([1, 2, 3])).all()
    assert stored.missing("key", tokens, 0) is None
    stored.close()


def test_a_cache_never_changes_a_text(stories: Model, tmp_path: Path) -> None:
    """Random conversations that branch, through two engines that are restarted, and without."""
    random_ = random.Random(4)
    words = ["the cat", "a red ball", "once more", "they ran home", "it was fun", "said Tom"]
    pasts: list[list[int]] = [stories.tokenize(LONG), stories.tokenize("The " + LONG)]
    plan = []
    for seed in range(24):
        past = random_.choice(pasts)
        cut = random_.randint(len(past) // 2, len(past))
        said = " ".join(random_.choice(words) for _ in range(random_.randint(1, 12)))
        prompt = [*past[:cut], *stories.tokenize(said, add_bos=False)][:400]
        pasts.append(prompt)
        plan.append((prompt, GenerationConfig(seed=seed, max_tokens=6, temperature=1.0)))
    alone = []
    for prompt, config in plan:
        with stories.session() as session:
            alone.append(session.generate(prompt, config).text())
    together, reused = [], 0
    for begin in range(0, len(plan), 8):
        engine = kept_engine(tmp_path, parallel=3, most_bytes=3 << 20)
        texts = [
            Text(stories, str(i % 3), p, c, Heard())
            for i, (p, c) in enumerate(plan[begin : begin + 8])
        ]
        for text in texts:
            engine.submit([text])
        together += [heard(text).text() for text in texts]
        reused += engine.counts.reused_tokens
        engine.stop(5)
    assert together == alone
    assert reused > 1000


def test_a_client_that_breaks_its_prefix_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    breaks = PrefixBreaks()
    talk = list(range(100, 400))
    with caplog.at_level(logging.WARNING):
        assert breaks.see("a", [1, *talk]) is None
        assert breaks.see("a", [1, *talk, *range(500, 550)]) is None  # it goes on
        assert breaks.see("a", [1, *range(600, 900)]) is None  # another conversation
        assert breaks.see("a", [1, *talk]) is None
        assert breaks.see("b", [1, 7, 2, *talk]) is None  # another client
        assert not caplog.records
        assert breaks.see("b", [1, 8, 2, *talk, 5, 5]) == 1  # the clock went on
        assert breaks.see("b", [1, 9, 2, *talk, 5, 5, 6]) == 1
    assert breaks.count == 2
    assert len(caplog.records) == 1


def test_a_killed_server_has_forgotten_nothing(chat_file: Path, tmp_path: Path) -> None:
    """A second turn after a thousand tokens, kill -9 and a restart reads its new tokens only."""
    speech = "Pray tell me about the house, the garden, and the weather of the season. " * 50
    messages = [{"role": "user", "content": speech}]
    body = {"temperature": 0, "max_tokens": 16}
    first = Server(chat_file, "--cache-dir", tmp_path)
    answer = first.ask("/v1/chat/completions", {**body, "messages": messages})[1]
    deadline = time.monotonic() + 60
    while not first.metric("stored_contexts"):
        assert time.monotonic() < deadline, "it is not kept"
        time.sleep(0.01)
    first.kill()
    said = answer["choices"][0]["message"]["content"].strip()
    messages += [{"role": "assistant", "content": said}, {"role": "user", "content": "And then?"}]
    second = Server(chat_file, "--cache-dir", tmp_path)
    try:
        turn = second.ask("/v1/chat/completions", {**body, "messages": messages})[1]
        read = second.metric("prompt_tokens_read_total")
    finally:
        second.stop()
    cold = Server(chat_file, "--cache-size", "0")
    try:
        plain = cold.ask("/v1/chat/completions", {**body, "messages": messages})[1]
        assert cold.metric("prompt_tokens_read_total") == plain["usage"]["prompt_tokens"]
    finally:
        cold.stop()
    assert turn["choices"] == plain["choices"]
    cached = turn["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert read == turn["usage"]["prompt_tokens"] - cached
    # Everything of the first prompt, and of its answer what the template writes the same.
    assert cached >= answer["usage"]["prompt_tokens"] > 950
    assert read < 60
