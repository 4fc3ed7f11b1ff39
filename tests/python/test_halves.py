"""Matrices of which one half is kept, against whole ones."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from awq_edge.quantize.halves import Half  # noqa: E402

K = 23


def symmetric() -> torch.Tensor:
    values = torch.randn(K, K, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return values + values.T


@pytest.mark.parametrize("rows", [1, 4, 22, 23, 40])
def test_rows_and_products_are_those_of_the_whole(rows: int) -> None:
    whole = symmetric()
    half = Half.of(whole, rows)
    assert half.size == K
    assert torch.equal(half.diagonal(), whole.diagonal())
    numbers = torch.tensor([22, 0, 7, 7])
    assert torch.equal(half.rows_at(numbers), whole[numbers])
    for part in (slice(0, K), slice(3, 9), slice(21, 23)):
        assert torch.equal(half.rows(part), whole[part])
        found = half.triangle(part, torch.float32)
        assert torch.equal(
            found.tril(part.start), whole[part, : part.stop].float().tril(part.start)
        )
    torch.testing.assert_close(half.times(whole[:, :5]), whole @ whole[:, :5])
    half.add_to_diagonal(torch.arange(float(K)))
    assert torch.equal(half.diagonal(), whole.diagonal() + torch.arange(float(K)))


@pytest.mark.parametrize("rows", [1, 4, 22, 40])
@pytest.mark.parametrize("seed", range(5))
def test_another_order_is_that_of_the_whole(rows: int, seed: int) -> None:
    whole, half = symmetric(), Half.of(symmetric(), rows)
    order = torch.randperm(K, generator=torch.Generator().manual_seed(seed))
    half.reorder(order)
    assert torch.equal(half.rows(slice(0, K)), whole[order][:, order])
    half.reorder(torch.arange(K))
    assert torch.equal(half.rows(slice(0, K)), whole[order][:, order])
