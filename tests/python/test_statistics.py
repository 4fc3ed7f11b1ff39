"""Sums over tokens: batches of any size give the same, and folds are followed."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from awq_edge.quantize import statistics  # noqa: E402  (after the check that torch is there)
from awq_edge.quantize.statistics import InputStatistics, Products  # noqa: E402


def test_statistics_of_parts_are_those_of_the_whole() -> None:
    torch.manual_seed(9)
    x = torch.randn(30, 50)
    whole, parts = (InputStatistics(50, 32, torch.device("cpu")) for _ in range(2))
    whole.update(x)
    parts.update(x[:7].reshape(1, 7, 50))
    parts.update(x[7:])
    assert whole.tokens == parts.tokens == 30
    assert torch.allclose(whole.mean_absolute(), parts.mean_absolute(), rtol=1e-5)
    assert torch.allclose(whole.mean_products(), parts.mean_products(), rtol=1e-4, atol=1e-6)
    expected = x[:, 32:].T @ x[:, 32:] / 30
    assert torch.allclose(whole.mean_products()[1, :18, :18], expected, rtol=1e-4, atol=1e-6)
    assert not bool(whole.mean_products()[1, 18:].any())


def test_statistics_follow_a_fold() -> None:
    torch.manual_seed(10)
    x, scales = torch.randn(30, 50), torch.rand(50) + 0.5
    folded, divided = (InputStatistics(50, 32, torch.device("cpu")) for _ in range(2))
    folded.update(x / scales)
    divided.update(x)
    divided.divide_by(scales)
    assert torch.allclose(folded.mean_absolute(), divided.mean_absolute(), rtol=1e-4)
    assert torch.allclose(folded.mean_products(), divided.mean_products(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("strip", [16, 40])
def test_products_of_parts_are_those_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, strip: int
) -> None:
    """Batches of unequal length: none is dropped and none counts twice."""
    monkeypatch.setattr(statistics, "STRIP_ROWS", strip)
    x = torch.randn(50, 40)
    parts, last = Products(40, torch.device("cpu")), Products(40, torch.device("cpu"))
    parts.add(x[:7])
    parts.add(x[7:8])
    last.add(x[8:])
    parts.join(last)
    assert parts.tokens == 50
    exact = x.T.double() @ x.double() / 50
    torch.testing.assert_close(parts.means().rows(slice(0, 40)), exact, rtol=1e-5, atol=1e-6)


def test_an_output_error_is_that_of_the_tokens() -> None:
    torch.manual_seed(11)
    x, difference = torch.randn(20, 12), torch.randn(5, 12)
    error = statistics.output_error(difference, x.T @ x)
    assert error == pytest.approx(float((x @ difference.T).square().sum()), rel=1e-4)
