"""Several models on one server: names, loading on demand, and the memory that they share."""

from __future__ import annotations

import math
import shutil
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_serve_engine import asked, heard

from awq_edge import Model
from awq_edge.errors import InvalidArgumentError
from awq_edge.quantities import parse_duration
from awq_edge.serve.engine import Engine
from awq_edge.serve.faults import RequestError
from awq_edge.serve.models import Models
from awq_edge.serve.stored_contexts import StoredContexts
from awq_edge.serve.texts import BusyError


@pytest.fixture
def files(tmp_path: Path, stories_path: Path) -> list[Path]:
    paths = [tmp_path / f"{name}.awq.gguf" for name in ("one", "two", "three")]
    for path in paths:
        shutil.copy(stories_path, path)
    return paths


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine(parallel=4, most_waiting=8)
    yield made
    made.stop(5)


def opened(path: Path) -> Model:
    return Model.open(path, threads=1, check_memory=False)


def need(path: Path) -> int:
    with opened(path) as model:
        return model.memory().total_bytes


def loaded(models: Models) -> list[str]:
    return [served.name for served in models.all if served.model is not None]


def test_names_are_the_files(files: list[Path], engine: Engine) -> None:
    models = Models(files, engine, opened)
    assert models.names == ["one", "two", "three"]
    assert models.find("two").path == models.find("two:latest").path == files[1]
    with pytest.raises(RequestError, match="one, two, three") as refused:
        models.find("gpt-4")
    assert refused.value.status == 404
    models.close()
    single = Models(files[:1], engine, opened)
    assert single.find("gpt-4").name == single.find("").name == "one"
    single.close()
    with pytest.raises(InvalidArgumentError, match="Two files are called one"):
        Models([files[0], files[0]], engine, opened)


def test_models_come_and_go_within_their_memory(files: list[Path], engine: Engine) -> None:
    models = Models(files, engine, opened, need(files[0]) * 5 // 2)
    assert loaded(models) == ["one"]
    first, second, third = models.all
    with models.used(first) as model:
        text = asked(model, "Once upon a time")
        engine.submit([text])
        said = heard(text).text()
    with models.used(second):
        assert loaded(models) == ["one", "two"]
        with models.used(third):
            # The first was used longest ago; the second is being used.
            assert loaded(models) == ["two", "three"]
            with pytest.raises(BusyError, match="memory"):
                models.use(first)
            assert loaded(models) == ["two", "three"]
    with models.used(first) as model:
        text = asked(model, "Once upon a time")
        engine.submit([text])
        assert heard(text).text() == said
    assert "one" in loaded(models)
    models.close()


def test_sessions_count_too(files: list[Path], engine: Engine) -> None:
    """With room for one session and a half, four texts take turns, and all come to their end."""
    with opened(files[0]) as model:
        memory = model.memory()
    models = Models(files[:1], engine, opened, memory.total_bytes + memory.cache_bytes // 2)
    with models.used(models.all[0]) as model:
        texts = [asked(model, f"Number {i}", client=str(i), seed=i) for i in range(4)]
        engine.submit(texts)
        for text in texts:
            assert heard(text).end().tokens > 0
        assert engine.session_bytes() == memory.cache_bytes + memory.scratch_bytes
    models.close()


def test_a_model_that_never_fits_is_refused(files: list[Path], engine: Engine) -> None:
    models = Models(files, engine, opened, need(files[0]) // 2)
    with pytest.raises(RequestError, match="--memory"):
        models.use(models.all[1])
    models.close()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def test_what_nobody_asks_is_closed_after_a_while(files: list[Path], engine: Engine) -> None:
    opened_first: list[str] = []

    def noted(path: Path) -> Model:
        opened_first.append(path.name.partition(".")[0])
        return opened(path)

    models = Models(files, engine, noted, keep_seconds=0.3, pinned=["two"])
    assert opened_first == ["one", "two", "three"]
    first, second, third = models.all
    with models.used(first) as model:
        wait_for(lambda: loaded(models) == ["one", "two"])  # it is being used, and one is pinned
        time.sleep(0.4)
        text = asked(model, "Once upon a time")
        engine.submit([text])
        said = heard(text).text()
        assert loaded(models) == ["one", "two"]
    wait_for(lambda: loaded(models) == ["two"])
    with models.used(first) as model:  # and comes back when it is asked for
        again = asked(model, "Once upon a time")
        engine.submit([again])
        assert heard(again).text() == said
        models.keep(first, 1e300)  # as long as that, no clock can be set
    models.keep(third, 0.0)
    with models.used(third):
        assert loaded(models) == ["one", "two", "three"]
    wait_for(lambda: loaded(models) == ["one", "two"])
    time.sleep(0.5)
    assert loaded(models) == ["one", "two"]
    assert second.expires_in == math.inf
    models.close()


def test_nothing_wakes_where_nothing_expires(files: list[Path], engine: Engine) -> None:
    models = Models(files, engine, opened, pinned=["one"])
    waits = []
    condition = models._watch._condition
    wait = condition.wait

    def noted(timeout: float | None = None) -> bool:
        waits.append(timeout)
        return wait(timeout)

    condition.wait = noted  # type: ignore[method-assign]
    with models.used(models.all[1]):
        pass
    wait_for(lambda: bool(waits))
    time.sleep(0.2)
    models.close()
    assert set(waits) == {None}


def test_pinned_models_stay_within_the_memory_or_are_refused(
    files: list[Path], engine: Engine
) -> None:
    models = Models(files, engine, opened, need(files[0]) * 5 // 2, pinned=["two"])
    assert loaded(models) == ["one", "two"]
    with models.used(models.all[2]):
        assert loaded(models) == ["two", "three"]
        with pytest.raises(BusyError, match="memory"):
            models.use(models.all[0])
    models.close()
    with pytest.raises(InvalidArgumentError, match="pinned models need"):
        Models(files, engine, opened, need(files[0]) * 3 // 2, pinned=["one", "two"])
    with pytest.raises(InvalidArgumentError, match="none of one, two, three"):
        Models(files, engine, opened, pinned=["four"])


def test_durations_are_read_as_people_write_them() -> None:
    for text, seconds in [
        *(("90", 90), ("1.5", 1.5), ("90s", 90), ("5m", 300), ("1h30m", 5400), ("2h", 7200)),
        *(("1h2m3s", 3723), ("0", 0), ("-1", math.inf), ("-5m", math.inf)),
    ]:
        assert parse_duration(text) == seconds
    for text in ("", "m", "5 parrots", "5m1h", "1e3", "--1", "h5", "nan"):
        with pytest.raises(InvalidArgumentError, match="is no time"):
            parse_duration(text)


@pytest.mark.parametrize("stored", [False, True])
def test_a_closed_model_is_gone(files: list[Path], tmp_path: Path, stored: bool) -> None:
    """Nothing of the engine's holds on to one: opening and closing for ever takes no memory."""
    kept = StoredContexts(tmp_path / "kept", 1 << 30) if stored else None
    engine = Engine(parallel=2, most_waiting=8, stored=kept)
    models = Models(files[:1], engine, opened, keep_seconds=0.0)
    gone = []
    for _ in range(3):
        with models.used(models.all[0]) as model:
            gone.append(weakref.ref(model))
            text = asked(model, "Once upon a time there was a girl. " * 8)
            engine.submit([text])
            heard(text).end()
        del model, text
        wait_for(lambda: not loaded(models))

    wait_for(lambda: not any(one() for one in gone))
    models.close()
    engine.stop(5)
