"""Thread counts: measured once per machine and kind of model, and remembered if possible."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from awq_edge import Model, thread_counts, user_cache


class FakeModel:
    """Counts how often it is measured."""

    def __init__(self, answer: int = 2, decode_bytes: int = 1000) -> None:
        self.answer = answer
        self.decode_bytes = decode_bytes
        self.measured = 0

    def info(self) -> FakeModel:
        return self

    def measure_threads(self) -> int:
        self.measured += 1
        return self.answer


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("AWQ_EDGE_CACHE", raising=False)
    monkeypatch.setattr(thread_counts, "_usable_cpus", lambda: 4)
    monkeypatch.setattr(thread_counts, "_busy", lambda _cpus: False)


def cache_path() -> Path:
    directory = user_cache.cache_directory()
    assert directory is not None
    return directory / thread_counts.FILE_NAME


def decode_threads(model: FakeModel) -> int:
    return thread_counts.decode_threads(model)  # type: ignore[arg-type]  # what it needs of a model


def test_second_question_is_answered_from_the_cache() -> None:
    assert decode_threads(FakeModel(3)) == 3
    again = FakeModel(1)
    assert (decode_threads(again), again.measured) == (3, 0)


def test_models_of_another_size_and_other_kernels_are_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decode_threads(FakeModel(3))
    large = FakeModel(2, decode_bytes=10**9)
    assert (decode_threads(large), large.measured) == (2, 1)
    monkeypatch.setenv("AWQ_EDGE_KERNELS", "reference")
    assert decode_threads(FakeModel(4)) == 4
    assert len(json.loads(cache_path().read_text())) == 3


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"a": ', "null", "[" * 200_000, "1" * 10_000, '{"a": ' + "9" * 500 + "}", "\x00"],
    ids=range(8),
)
def test_damaged_cache_is_replaced(content: str) -> None:
    path = cache_path()
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert decode_threads(FakeModel(3)) == 3
    assert list(json.loads(path.read_text()).values()) == [3]


@pytest.mark.parametrize("answer", ["true", "2.0", '"2"', "null", "-1", "[2]"])
def test_answers_that_are_no_count_are_measured_again(answer: str) -> None:
    decode_threads(FakeModel(3))
    (key,) = json.loads(cache_path().read_text())
    cache_path().write_text(f"{{{json.dumps(key)}: {answer}}}")
    model = FakeModel(2)
    assert (decode_threads(model), model.measured) == (2, 1)
    assert json.loads(cache_path().read_text()) == {key: 2}


def test_the_cache_does_not_grow_for_ever() -> None:
    cache_path().parent.mkdir()
    cache_path().write_text(json.dumps({f"machine {i}": 1 for i in range(256)}))
    decode_threads(FakeModel(3))
    assert list(json.loads(cache_path().read_text()).values()) == [3]


def test_answer_that_this_machine_cannot_have_is_measured_again() -> None:
    decode_threads(FakeModel(9))
    model = FakeModel(2)
    assert (decode_threads(model), model.measured) == (2, 1)


def test_unwritable_cache_only_means_measuring_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    model = FakeModel(3)
    assert (decode_threads(model), decode_threads(model), model.measured) == (3, 3, 2)


def test_nothing_is_measured_at_a_busy_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread_counts, "_busy", lambda _cpus: True)
    model = FakeModel(3)
    assert (decode_threads(model), model.measured) == (thread_counts.LIBRARY_CHOOSES, 0)
    monkeypatch.setattr(thread_counts, "_busy", lambda _cpus: False)
    assert (decode_threads(model), model.measured) == (3, 1)


def test_one_cpu_needs_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread_counts, "_usable_cpus", lambda: 1)
    model = FakeModel()
    assert (decode_threads(model), model.measured) == (1, 0)


def test_real_model_is_measured_and_given_numbers_win(stories_path: Path) -> None:
    with Model.open(stories_path) as model, model.session() as session:
        assert 1 <= session.threads <= 4
        assert list(json.loads(cache_path().read_text()).values()) == [session.threads]
    with Model.open(stories_path, threads=3, prefill_threads=2) as model:
        session = model.session()
        assert (session.threads, session.prefill_threads) == (3, 2)
