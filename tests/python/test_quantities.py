"""The wording of sizes, counts and durations."""

from __future__ import annotations

import pytest

from awq_edge.quantities import count_text, duration_text, size_text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1500, "1.5 kB"),
        (-1500, "-1.5 kB"),
        (26_500_000, "26.5 MB"),
        (1_234_000_000, "1.23 GB"),
        (5e12, "5000.00 GB"),
    ],
)
def test_sizes(value: float, text: str) -> None:
    assert size_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1500, "1.5 k"),
        (44.6e6, "44.6 M"),
        (7e12, "7000.0 G"),
    ],
)
def test_counts(value: float, text: str) -> None:
    assert count_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.84, "0.8 s"), (125, "2 min 05 s"), (4320, "1 h 12 min")]
)
def test_durations(value: float, text: str) -> None:
    assert duration_text(value) == text
