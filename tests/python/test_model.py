"""Models, sessions and generation through the public Python API."""

from __future__ import annotations

import gc
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import BAD_FILES, ROOT

from awq_edge import GenerationConfig, Model, errors, free_memory

GREEDY = GenerationConfig(temperature=0, max_tokens=40)
PROMPT = "Once upon a time"


# ---- opening -------------------------------------------------------------------------------


@pytest.mark.parametrize(("fault", "words"), BAD_FILES.items())
def test_bad_file_is_refused(broken_file: Callable[[str], Path], fault: str, words: str) -> None:
    kind = (
        errors.FileUnreadableError if fault in ("missing", "directory") else errors.FileInvalidError
    )
    path = broken_file(fault)
    with pytest.raises(kind, match=words) as raised:
        Model.open(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("name", ["threads", "prefill_threads", "context_length"])
def test_zero_is_no_count(stories_path: Path, name: str) -> None:
    with pytest.raises(errors.InvalidArgumentError, match=name):
        Model.open(stories_path, **{name: 0})  # type: ignore[arg-type]


def test_path_may_be_text_with_any_characters(stories_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "модель ½.gguf"
    path.write_bytes(stories_path.read_bytes())
    with Model.open(str(path)) as model:
        assert model.path == path


def test_info_and_metadata_agree(stories: Model) -> None:
    info, metadata = stories.info, stories.metadata
    assert info.layers == metadata["awq_edge.decoder.layers"] == 5
    assert info.hidden_size == metadata["awq_edge.decoder.hidden_size"] == 64
    assert info.vocabulary_size == 512
    assert info.context_length == 512
    assert info.file_bytes == stories.path.stat().st_size
    assert 0 < info.decode_bytes < info.file_bytes
    assert metadata["awq_edge.decoder.sliding_windows"] == [0] * 5
    assert metadata["awq_edge.decoder.tied_head"] is True
    assert metadata["awq_edge.decoder.norm_epsilon"] == pytest.approx(1e-5)
    assert str(metadata["tokenizer.huggingface.json"]).startswith("{")


def test_tensors_lie_in_the_file(stories: Model) -> None:
    names = {tensor.name: tensor for tensor in stories.tensors}
    down = names["blk.4.ffn_down.weight"]
    assert (down.rows, down.columns, down.bits) == (64, 172, 3)
    assert names["output_norm.weight"].bits == 32
    for tensor in stories.tensors:
        assert tensor.offset % 64 == 0
        assert tensor.offset + tensor.bytes + 64 <= stories.info.file_bytes


def test_closing_twice_and_using_afterwards(stories_path: Path) -> None:
    model = Model.open(stories_path)
    session = model.session()
    model.close()
    model.close()
    session.close()
    with pytest.raises(errors.InvalidArgumentError, match="closed"):
        model.session()
    with pytest.raises(errors.InvalidArgumentError, match="closed"):
        session.evaluate([1])
    with pytest.raises(errors.InvalidArgumentError, match="closed"):
        model.generate(PROMPT)


def test_objects_may_die_in_any_order(stories_path: Path) -> None:
    session = Model.open(stories_path).session()
    gc.collect()
    assert session.logits([1]).shape == (1, 512)
    model = session.model
    del session
    gc.collect()
    assert model.logits([1]).shape == (1, 512)


# ---- memory --------------------------------------------------------------------------------


def test_memory_grows_with_the_context(stories: Model) -> None:
    small, large = stories.memory(64), stories.memory(512)
    assert small.cache_bytes < large.cache_bytes
    # 5 layers * (keys + values) * 4 heads * 8 numbers * 2 bytes
    assert large.cache_bytes >= 5 * 2 * 4 * 8 * 2 * 512
    assert large.total_bytes == large.weight_bytes + large.cache_bytes + large.scratch_bytes


def test_int8_cache_is_smaller_and_nearly_the_same(stories_path: Path) -> None:
    with Model.open(stories_path, threads=1, kv="int8") as narrow:
        # Heads of 8: 8 codes and 4 bytes of scale instead of 16 bytes.
        wide = narrow.memory(512, kv="fp16").cache_bytes
        assert narrow.memory(512).cache_bytes == wide * 12 // 16
        tokens = list(range(3, 60))
        with narrow.session(kv="fp16") as exact:
            difference = np.abs(narrow.logits(tokens) - exact.logits(tokens))
            assert (exact.kv, narrow.shared_session.kv) == ("fp16", "int8")
    assert 0 < difference.mean() < 0.2


def test_unknown_cache_type_is_named(stories_path: Path) -> None:
    with pytest.raises(errors.InvalidArgumentError, match=r"'int4'.*fp16, int8"):
        Model.open(stories_path, kv="int4")


def test_prompt_beyond_the_memory_of_a_sliding_window_is_read_anew() -> None:
    with Model.open(ROOT / "tests/data/tiny.awq.gguf", threads=1) as model:
        prompt = [(i * i + 3) % 203 for i in range(300)]
        other = [*prompt[:100], 7, 8, 9]
        with model.session() as session:
            session.evaluate(prompt)
            assert 100 < session.earliest < 300
            with pytest.raises(errors.InvalidArgumentError, match=str(session.earliest)):
                session.truncate(100)
            assert session.position == 300
            assert session.reusable(other) == 0
            assert session.reusable([*prompt[:250], 7]) == 250
            assert session.reusable(prompt) == 300
            session.truncate(299)
            assert session.reusable(prompt[:299]) == 298  # its logits belong to what was forgotten


def test_model_that_cannot_fit_is_refused_with_numbers(
    stories_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(free_memory, "memory_figures", lambda _: {"MemAvailable": 100_000})
    with Model.open(stories_path) as model:
        with pytest.raises(errors.OutOfMemoryError, match=r"needs .* kB .* 100\.0 kB are free:"):
            model.logits([1])
        assert model.session(check_memory=False).logits([1]).shape == (1, 512)
    with Model.open(stories_path, check_memory=False) as model:
        assert model.logits([1]).shape == (1, 512)


def test_context_beyond_the_trained_length_is_refused(stories: Model) -> None:
    with pytest.raises(errors.InvalidArgumentError, match="trained for 512"):
        stories.session(context_length=513)


# ---- logits --------------------------------------------------------------------------------


def test_logits_do_not_depend_on_the_way_they_are_asked_for(stories: Model) -> None:
    tokens = stories.tokenize("Once upon a time there was a little girl")
    whole = stories.logits(tokens)
    assert whole.dtype == np.float32
    assert whole.shape == (len(tokens), 512)
    assert np.isfinite(whole).all()
    with stories.session() as session:
        parts = [session.logits([token]) for token in tokens]
        assert session.tokens == tuple(tokens)
    assert np.array_equal(np.concatenate(parts), whole)
    assert np.array_equal(stories.logits(tokens[:5]), whole[:5])


def test_logits_of_nothing(stories: Model) -> None:
    assert stories.logits([]).shape == (0, 512)


def test_truncated_context_continues_as_if_it_had_never_been_longer(stories: Model) -> None:
    tokens = stories.tokenize("Once upon a time there was")
    with stories.session() as session:
        session.evaluate(tokens)
        session.evaluate([7, 8, 9])
        session.truncate(len(tokens))
        again = session.logits([42])
    assert np.array_equal(again, stories.logits([*tokens, 42])[-1:])


@pytest.mark.parametrize("position", [-1, 1])
def test_truncating_outside_the_context_is_refused(stories: Model, position: int) -> None:
    with stories.session() as session, pytest.raises(errors.InvalidArgumentError):
        session.truncate(position)


@pytest.mark.parametrize("token", [-1, 512, 2**40])
def test_token_outside_the_vocabulary_is_refused(stories: Model, token: int) -> None:
    with pytest.raises(errors.InvalidArgumentError, match="vocabulary of 512"):
        stories.logits([1, token])


def test_too_many_tokens_are_refused_with_numbers(stories: Model) -> None:
    with pytest.raises(errors.ContextFullError, match=r"513 more tokens .* 512"):
        stories.logits([1] * 513)


# ---- text ----------------------------------------------------------------------------------


def test_greedy_text_is_a_story(stories: Model) -> None:
    text = stories.generate(PROMPT, GREEDY).text()
    assert text.startswith(", there was a")
    assert len(stories.tokenize(text, add_bos=False)) >= 35


def test_pieces_make_the_text_of_the_tokens(stories: Model) -> None:
    generation = stories.generate(PROMPT, seed=3, max_tokens=60)
    pieces = list(generation)
    assert all(pieces)
    whole = stories.detokenize([*generation.prompt_tokens, *generation.tokens])
    assert PROMPT + "".join(pieces) == whole
    assert generation.stop_reason in ("length", "eos")


def test_equal_seeds_give_equal_texts_and_others_do_not(stories: Model) -> None:
    def text(seed: int) -> str:
        return stories.generate(PROMPT, seed=seed, max_tokens=40, temperature=1.0).text()

    assert text(5) == text(5)
    assert len({text(seed) for seed in range(4)}) > 1


def test_drawn_seed_repeats_its_text(stories: Model) -> None:
    first = stories.generate(PROMPT, max_tokens=40, temperature=1.0)
    text = first.text()
    again = stories.generate(PROMPT, seed=first.seed, max_tokens=40, temperature=1.0)
    assert again.text() == text


def test_prompt_may_be_token_ids(stories: Model) -> None:
    from_text = stories.generate(PROMPT, GREEDY).text()
    assert stories.generate(stories.tokenize(PROMPT), GREEDY).text() == from_text


@pytest.mark.parametrize("count", [0, 1, 7])
def test_length_is_kept(stories: Model, count: int) -> None:
    generation = stories.generate(PROMPT, temperature=0, max_tokens=count)
    generation.text()
    assert len(generation.tokens) == count
    assert generation.stop_reason == "length"


def test_stop_string_ends_the_text_before_it(stories: Model) -> None:
    whole = stories.generate(PROMPT, GREEDY).text()
    stop = whole[12:18]
    generation = stories.generate(PROMPT, GREEDY, stop=(stop,))
    assert generation.text() == whole[: whole.index(stop)]
    assert generation.stop_reason == "stop"


def test_any_eos_token_ends_the_text(stories: Model) -> None:
    first = stories.generate(PROMPT, GREEDY)
    first.text()
    stories.eos_token_ids = (400, first.tokens[5])
    generation = stories.generate(PROMPT, GREEDY)
    generation.text()
    assert generation.stop_reason == "eos"
    assert generation.tokens == first.tokens[: first.tokens.index(first.tokens[5])]


def test_full_context_ends_the_text(stories: Model) -> None:
    with stories.session(context_length=12) as session:
        generation = session.generate(PROMPT, temperature=0, max_tokens=None)
        text = generation.text()
        assert generation.stop_reason == "context"
        assert session.position == 12
    # The token drawn from the last position still counts: it needs no room.
    assert len(generation.prompt_tokens) + len(generation.tokens) == 13
    assert stories.generate(PROMPT, temperature=0, max_tokens=40).text().startswith(text)


def test_prompt_longer_than_the_context_is_refused(stories: Model) -> None:
    with stories.session(context_length=4) as session:
        with pytest.raises(errors.ContextFullError, match="up to 512"):
            session.generate(PROMPT)
    with pytest.raises(errors.ContextFullError, match="600 tokens"):
        stories.generate([1] * 600)


def test_prompt_without_tokens_is_refused(stories: Model) -> None:
    with pytest.raises(errors.InvalidArgumentError, match="empty"):
        stories.generate([])


def test_second_prompt_reuses_what_agrees_and_changes_nothing(stories: Model) -> None:
    start = "Once upon a time there was a"
    longer = start + " big dog who"
    fresh = stories.session().generate(longer, GREEDY).text()
    stories.generate(start, GREEDY).text()
    second = stories.generate(longer, GREEDY)
    assert second.text() == fresh
    assert second.reused_tokens >= 5
    same = stories.generate(longer, GREEDY)
    assert same.text() == fresh
    assert same.reused_tokens == len(same.prompt_tokens) - 1


def test_a_conversation_goes_on_and_reads_only_what_is_new(stories: Model) -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
    stories.metadata["tokenizer.chat_template"] = template
    messages = [{"role": "user", "content": "Once upon a time"}]
    first = stories.chat(messages, GREEDY, max_tokens=8)
    answer = first.text()
    assert first.prompt_tokens == stories.chat_tokens(messages)
    messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "And then"}]
    second = stories.chat(messages, GREEDY, max_tokens=8)
    text = second.text()
    # Less where an answer's tokens are not those that its text has as part of the next prompt.
    assert second.reused_tokens >= len(first.prompt_tokens) - 1
    with stories.session() as fresh:
        assert fresh.generate(stories.chat_tokens(messages), GREEDY, max_tokens=8).text() == text


def test_overtaken_generation_says_so(stories: Model) -> None:
    first = stories.generate(PROMPT, GREEDY)
    next(first)
    next(stories.generate("The dog", GREEDY))
    with pytest.raises(errors.InvalidArgumentError, match="taken over"):
        first.text()


def test_closed_generation_ends(stories: Model) -> None:
    generation = stories.generate(PROMPT, GREEDY)
    next(generation)
    generation.close()
    assert list(generation) == []
    assert generation.stop_reason == "closed"


def test_repetition_penalty_changes_the_text(stories: Model) -> None:
    plain = stories.generate(PROMPT, GREEDY).text()
    assert stories.generate(PROMPT, GREEDY, repetition_penalty=2.0).text() != plain


@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 1.1},
        {"min_p": -1},
        {"top_k": -1},
        {"repetition_penalty": 0},
        {"max_tokens": -1},
        {"seed": -1},
    ],
)
def test_nonsense_setting_is_named(setting: dict[str, float]) -> None:
    with pytest.raises(errors.InvalidArgumentError, match=next(iter(setting))):
        GenerationConfig(**setting)  # type: ignore[arg-type]


def test_unknown_setting_is_named(stories: Model) -> None:
    with pytest.raises(errors.InvalidArgumentError, match="temprature"):
        stories.generate(PROMPT, temprature=1)


# ---- stopping and threads --------------------------------------------------------------------


def test_ctrl_c_in_a_long_prompt_keeps_what_was_read(stories: Model) -> None:
    tokens = [(37 * i + 11) % 512 for i in range(500)]
    expected = stories.logits(tokens)[-1]
    with stories.session() as session:
        with pytest.raises(KeyboardInterrupt):
            session.evaluate(tokens, progress=lambda _done, _total: signal.raise_signal(2))
        assert 0 < session.position < 500
        assert session.tokens == tuple(tokens[: session.position])
        rest = session.logits(tokens[session.position :])
    assert np.array_equal(rest[-1], expected)


def test_ctrl_c_between_tokens_leaves_the_session_usable(stories: Model) -> None:
    generation = stories.generate(PROMPT, GREEDY)
    with pytest.raises(KeyboardInterrupt):
        for _ in generation:
            signal.raise_signal(signal.SIGINT)
    assert stories.generate(PROMPT, GREEDY).text().startswith(", there was")


def test_sessions_in_parallel_do_not_disturb_each_other(stories: Model) -> None:
    expected = stories.session().generate(PROMPT, GREEDY).text()
    texts: list[str] = []

    def work() -> None:
        for _ in range(3):
            with stories.session(threads=1) as session:
                texts.append(session.generate(PROMPT, GREEDY).text())

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert texts == [expected] * 9


def test_one_session_in_two_threads_is_refused(stories: Model) -> None:
    with stories.session() as session:
        caught: list[BaseException] = []

        def intrude(_done: int, _total: int) -> None:
            def work() -> None:
                try:
                    session.truncate(0)
                except errors.AwqEdgeError as error:
                    caught.append(error)

            worker = threading.Thread(target=work)
            worker.start()
            worker.join()

        session.evaluate([1] * 400, progress=intrude)
        assert caught
        assert "another thread" in str(caught[0])
        assert session.position == 400
