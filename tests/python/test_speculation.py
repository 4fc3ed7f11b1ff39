"""Guessing ahead: every text is what it is without, and what loses is left off."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import Command
from serving import Server
from test_serve_engine import Heard, heard

from awq_edge import GenerationConfig, Model
from awq_edge.errors import InvalidArgumentError
from awq_edge.guess_sources import TextLookup
from awq_edge.serve.engine import Engine
from awq_edge.serve.texts import Text

COPYING = "One day, Tom saw a big red ball. One day, Tom saw a big red ball. One day, Tom saw"
PROMPTS = [COPYING, "Once upon a time", "The dog and the cat and the dog and the cat and the"]
SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0.9, "seed": 3},
    {"temperature": 1.3, "top_k": 0, "min_p": 0.0, "seed": 4},
    {"temperature": 0.7, "repetition_penalty": 1.3, "seed": 5},
    {"temperature": 0.7, "presence_penalty": 0.4, "frequency_penalty": 0.3, "seed": 6},
    {"temperature": 0, "logit_bias": {261: 3.0, 270: -100}},
    {"temperature": 0, "stop": ("ball", "the cat")},
    {"temperature": 0, "max_tokens": 7},
    {"temperature": 0.8, "max_tokens": 600, "seed": 7},  # to the end of the context
]


def guessing(path: Path, **settings: Any) -> Model:
    """A model that guesses in every step, for steps seem to be cheaper with guesses."""
    model = Model.open(path, threads=1, prefill_threads=1, **settings)
    assert model.speculation is not None
    costs = model.speculation.costs
    for rows in range(1, 129):
        costs.learn(rows, 1 / rows)
    costs.learn = lambda rows, seconds: None  # type: ignore[method-assign]
    return model


@pytest.fixture(scope="module", params=["lookup", "draft", "both"])
def guesser(request: pytest.FixtureRequest) -> Iterator[Model]:
    path = Path(__file__).parents[1] / "data/stories260k.awq.gguf"
    settings = {"lookup": request.param != "draft"}
    with guessing(path, **settings, draft=None if request.param == "lookup" else path) as model:
        yield model


def plain(model: Model, prompt: str, settings: dict[str, Any]) -> tuple[Any, ...]:
    with model.session() as session:
        generation = session.generate(prompt, max_tokens=settings.get("max_tokens", 60), **{
            name: value for name, value in settings.items() if name != "max_tokens"
        })  # fmt: skip
        pieces = list(generation)
        assert session.tokens == (*generation.prompt_tokens, *generation.tokens)[: session.position]
        return "".join(pieces), generation.tokens, generation.stop_reason


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "-".join(settings))
def test_a_text_is_what_it_is_without(
    guesser: Model, stories: Model, settings: dict[str, Any]
) -> None:
    assert guesser.speculation is not None
    before = guesser.speculation.guessed
    for prompt in PROMPTS:
        assert plain(guesser, prompt, settings) == plain(stories, prompt, settings)
    assert guesser.speculation.guessed > before  # so that something was tried


def test_logprobs_are_those_of_each_token(guesser: Model, stories: Model) -> None:
    from awq_edge.generation import Generation

    found = []
    for model in (guesser, stories):
        with model.session() as session:
            config = GenerationConfig(temperature=0, max_tokens=40)
            generation = Generation(session, COPYING, config, logprobs=3)
            generation.text()
            found.append(generation.logprobs)
    assert found[0] == found[1]
    assert len(found[0]) == 40


def test_forms_are_kept(guesser: Model, stories: Model) -> None:
    """A constraint sees every token in its turn, also those that were guessed."""
    pytest.importorskip("llguidance")
    from awq_edge.generation import Generation
    from awq_edge.serve.grammar import GrammarConstraint, schema_grammar, token_table

    schema = {"type": "array", "items": {"enum": ["cat", "dog"]}, "minItems": 6, "maxItems": 9}
    found = []
    for model in (guesser, stories):
        constraint = GrammarConstraint(token_table(model), schema_grammar(schema))
        with model.session() as session:
            config = GenerationConfig(temperature=0.8, seed=2, max_tokens=90)
            found.append(Generation(session, COPYING, config, constraint=constraint).text())
    assert found[0] == found[1]
    assert found[0].count("cat") + found[0].count("dog") >= 6


def test_the_smaller_model_draws_as_the_larger_one(stories_path: Path) -> None:
    """With the same random numbers: equal models agree in every token, also when sampling."""
    with guessing(stories_path, draft=stories_path) as model:
        generation = model.generate(PROMPTS[1], temperature=1.0, seed=11, max_tokens=100)
        generation.text()
        assert generation.guesses is not None
        assert generation.guesses.right == generation.guesses.guessed > 60


def test_a_step_that_was_broken_off_is_done_again(stories_path: Path, stories: Model) -> None:
    """Ctrl-C anywhere in a step with guesses changes nothing."""
    with stories.session() as session:
        expected = session.generate(COPYING, temperature=0, max_tokens=40).text()
    with guessing(stories_path, lookup=True) as model:
        for where in ("evaluated", "drawn", "half"):
            with model.session() as session:
                generation = session.generate(COPYING, temperature=0, max_tokens=40)
                breaks = itertools.count()

                def broken(original: Any, breaks: Iterator[int] = breaks) -> Any:
                    def call(*arguments: Any, **more: Any) -> Any:
                        result = original(*arguments, **more)
                        if next(breaks) % 5 == 3:
                            raise KeyboardInterrupt
                        return result

                    return call

                if where == "evaluated":
                    model_call = model.evaluate_together
                    model.evaluate_together = broken(model_call)  # type: ignore[method-assign]
                elif where == "drawn":
                    session.truncate = broken(session.truncate)  # type: ignore[method-assign]
                else:
                    sampler = generation._sampler
                    sampler.draw = broken(sampler.draw)  # type: ignore[method-assign]
                text, interrupts = "", 0
                while True:
                    try:
                        piece = next(generation, None)
                    except KeyboardInterrupt:
                        interrupts += 1
                        continue
                    if piece is None:
                        break
                    text += piece
                if where == "evaluated":
                    del model.evaluate_together
                assert interrupts > 0, where
                assert text == expected, where


def test_another_text_in_the_session_is_still_noticed(stories_path: Path) -> None:
    with guessing(stories_path, lookup=True) as model, model.session() as session:
        generation = session.generate(COPYING, temperature=0, max_tokens=40)
        for _ in range(6):
            next(generation)
        session.evaluate([5, 6, 7])
        with pytest.raises(InvalidArgumentError, match="taken over this session"):
            list(generation)


def test_a_draft_of_other_tokens_is_refused(stories_path: Path, chat_file: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="its tokens are others"):
        Model.open(chat_file, draft=stories_path)


def test_many_texts_together_are_what_each_is_alone(stories_path: Path, stories: Model) -> None:
    with guessing(stories_path, lookup=True, draft=stories_path) as model:
        assert model.speculation is not None and model.speculation.draft is not None
        engine = Engine(parallel=5, most_waiting=64)
        texts = []
        for i in range(20):
            config = GenerationConfig(temperature=(i % 3) * 0.5, seed=i, max_tokens=10 + 4 * i)
            prompt = model.tokenize(PROMPTS[i % 3] + " x" * (i // 3))
            texts.append(Text(model, str(i % 3), prompt, config, Heard()))
        engine.submit(texts)
        together = [(heard(text).text(), heard(text).tokens()) for text in texts]
        engine.stop(5)
        assert model.speculation.right > 20
        assert model.speculation.draft.used == 0  # every context was given back
        alone = []
        for text in texts:
            with stories.session() as session:
                generation = session.generate(text.prompt, text.config)
                alone.append((generation.text(), generation.tokens))
        assert together == alone


# ---- how many tokens are guessed -----------------------------------------------------------------


def test_lookup_copies_what_followed_the_present_end() -> None:
    lookup = TextLookup()

    def guess(text: Sequence[int], most: int = 4) -> list[int]:
        import array

        return lookup.guess(memoryview(array.array("I", text)), 0, most, 0.0)

    assert guess([1, 2, 3, 4, 5]) == []
    assert guess([1, 2, 3, 4, 5, 9, 2, 3]) == [4, 5, 9, 2]
    assert guess([1, 2, 3, 4, 5, 9, 2, 3, 4]) == [5, 9, 2, 3]
    # The longest end counts, and of equal ones the last.
    longer = [1, 2, 3, 4, 5, 9, 2, 3, 4, 8, 8, 7, 3, 4]
    assert guess(longer, 1) == [8]
    # What repeats itself goes on.
    circle = memoryview(bytearray([7, 8, 7, 8, 7, 8]))
    assert TextLookup().guess(circle, 0, 5, 0.0) == [7, 8, 7, 8, 7]


# ---- the commands --------------------------------------------------------------------------------


def test_run_says_what_came_true(command: Command, stories_path: Path, chat_file: Path) -> None:
    arguments = ("run", stories_path, "-p", COPYING, "-n", "50", "--temperature", "0", "--json")
    plain = json.loads(command(*arguments).out)
    for options in (["--lookup"], ["--draft", stories_path], ["--lookup", "--draft", stories_path]):
        result = command(*arguments, *options)
        found = json.loads(result.out)
        assert found["text"] == plain["text"]
        assert found["guessed_right"] <= found["guessed_tokens"]
        told = command(*arguments[:-1], *options).err
        assert "guessed tokens were right" in told
    assert plain["guessed_tokens"] == 0
    command(*arguments, "--draft", chat_file).assert_one_sentence("its tokens are others")
    command(*arguments, "--draft", "no-such-file").assert_one_sentence("no-such-file")


def test_serve_counts_guesses(stories_path: Path) -> None:
    server = Server(stories_path, "--lookup", "--draft", stories_path, "--cache-size", "0")
    plain = Server(stories_path, "--cache-size", "0")
    try:
        for seed in range(4):
            body = {"prompt": COPYING, "max_tokens": 60, "temperature": 0.5, "seed": seed}
            found = server.ask("/v1/completions", body)[1]["choices"]
            assert found == plain.ask("/v1/completions", body)[1]["choices"]
        guessed = server.metric("tokens_guessed_total")
        assert 0 <= server.metric("tokens_guessed_right_total") <= guessed
        assert guessed + server.metric("guessing_rests_total") > 0
        assert "tokens_guessed" not in plain.ask("/metrics")[1]
    finally:
        server.stop()
        plain.stop()
