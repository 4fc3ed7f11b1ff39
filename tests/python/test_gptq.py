"""Rounding with compensation: against a textbook loop, and where exact minimisation must end."""

from __future__ import annotations

import dataclasses

import pytest

torch = pytest.importorskip("torch")

from awq_edge.quantize import gptq, grids, grouped  # noqa: E402
from awq_edge.quantize.halves import Half  # noqa: E402
from awq_edge.quantize.statistics import Products  # noqa: E402

G = 32


def inputs(k: int, tokens: int = 400, seed: int = 0) -> torch.Tensor:
    """Correlated activations with a few large channels, [tokens, k]."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(k, k, generator=generator) / k**0.5
    x = torch.randn(tokens, k, generator=generator) @ (torch.eye(k) + mixing)
    x[:, :: max(k // 5, 1)] *= 6
    return x


def products(x: torch.Tensor) -> torch.Tensor:
    return x.T.double() @ x.double() / len(x)


def hessian_of(matrix: torch.Tensor, damping: float = gptq.DAMPING) -> gptq.Hessian:
    return gptq.Hessian.of(Half.of(matrix, 48), damping)


def whole(half: Half) -> torch.Tensor:
    return half.rows(slice(0, half.size))


def weight(n: int, k: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed))


def loss(
    codes: torch.Tensor, target: torch.Tensor, hessian: gptq.Hessian, grid: grids.Grid
) -> torch.Tensor:
    """The error that is minimised, of each row, in float64."""
    difference = grid.with_codes(codes).dequantise().double() - target.double()
    return ((difference @ whole(hessian.matrix).double()) * difference).sum(dim=1)


def textbook(target: torch.Tensor, matrix: torch.Tensor, grid: grids.Grid) -> torch.Tensor:
    """Codes of GPTQ with the inverse updated after every input, in float64."""
    w = target.double().clone()
    codes = torch.empty_like(w)
    left = torch.argsort(matrix.diagonal(), descending=True, stable=True).tolist()
    while left:
        inverse = torch.linalg.inv(matrix.double()[left][:, left])
        j = left[0]
        scale = grid.scales[:, j // grid.group_size].double()
        zero = grid.zeros[:, j // grid.group_size].double()
        codes[:, j] = torch.round(w[:, j] / scale + zero).clamp(0, grid.largest_code)
        error = (w[:, j] - (codes[:, j] - zero) * scale) / inverse[0, 0]
        w[:, left] -= error[:, None] * inverse[0]
        left = left[1:]
    return codes.float()


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize(("n", "k"), [(7, 96), (5, 150), (3, 31)])
def test_codes_are_those_of_the_textbook(bits: int, n: int, k: int) -> None:
    hessian = hessian_of(products(inputs(k)))
    target = weight(n, k)
    grid = grids.spanning(target, bits, G)
    codes = gptq.compensate(target, hessian, grid)
    expected = textbook(target, whole(hessian.matrix), grid)
    # float32 against float64 may round a tie otherwise, and later codes of that row then differ.
    assert (codes == expected).float().mean() > 0.98
    torch.testing.assert_close(
        loss(codes, target, hessian, grid).sum(),
        loss(expected, target, hessian, grid).sum(),
        rtol=0.02,
        atol=0,
    )


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_every_step_lowers_the_error(bits: int) -> None:
    hessian = hessian_of(products(inputs(128)))
    target = weight(16, 128)
    grid = grids.spanning(target, bits, G)
    nearest = grouped.quantise(target, bits, G).codes.float()
    compensated = gptq.compensate(target, hessian, grid)
    moved = gptq.descend(compensated, target, hessian, grid, 1)
    refitted = gptq.refit_scales(moved, target, hessian, grid)
    losses = [
        loss(nearest, target, hessian, grid).sum(),
        loss(compensated, target, hessian, grid).sum(),
        loss(moved, target, hessian, grid).sum(),
        loss(moved, target, hessian, refitted).sum(),
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[1] < 0.9 * losses[0]
    assert losses[3] < 0.99 * losses[1]


def test_compensation_of_independent_inputs_is_rounding_to_nearest() -> None:
    target = weight(9, 100)
    hessian = hessian_of(torch.eye(100).double(), damping=0.0)
    codes = gptq.compensate(target, hessian, grids.spanning(target, 4, G))
    assert torch.equal(codes.to(torch.uint8), grouped.quantise(target, 4, G).codes)


def test_a_few_large_inputs_do_not_hide_the_others() -> None:
    """Damped by the plain mean of squares, the others would look independent of each other."""
    x = inputs(100)
    usual = gptq.DAMPING * products(x).diagonal().mean()
    x[:, 7] *= 1000
    added = (whole(hessian_of(products(x)).matrix).double() - products(x)).diagonal()
    assert bool((added[:7] > 0.2 * usual).all())
    assert bool((added[:7] < 2 * usual).all())


def test_inputs_that_are_nearly_nothing_do_not_stop_the_factorisation() -> None:
    """Twice the same inputs, and most of the others so small that damping must not be like them."""
    x = inputs(96).repeat(1, 2)
    x[:, 8:96] *= 1e-18
    x[:, 104:] *= 1e-18
    hessian = hessian_of(products(x))
    assert bool(torch.isfinite(hessian.upper(slice(0, 192))).all())


def test_descent_ends_where_no_single_code_can_improve() -> None:
    hessian = hessian_of(products(inputs(40)))
    target = weight(4, 40)
    grid = grids.spanning(target, 3, G)
    codes = gptq.descend(gptq.compensate(target, hessian, grid), target, hessian, grid, 50)
    smallest = loss(codes, target, hessian, grid)
    for column in range(40):
        for step in (-1.0, 1.0):
            tried = codes.clone()
            tried[:, column] = (tried[:, column] + step).clamp(0.0, grid.largest_code)
            assert bool((loss(tried, target, hessian, grid) >= smallest * (1 - 1e-5)).all())


def test_refitted_scales_are_the_best_ones() -> None:
    hessian = hessian_of(products(inputs(96)))
    target = weight(6, 96)
    grid = grids.spanning(target, 2, G)
    codes = gptq.compensate(target, hessian, grid)
    fitted = gptq.refit_scales(codes, target, hessian, grid)
    smallest = loss(codes, target, hessian, fitted)
    assert bool((smallest <= loss(codes, target, hessian, grid)).all())
    for group in range(3):
        for factor in (0.98, 1.02):
            scales = fitted.scales.clone()
            scales[:, group] *= factor
            tried = dataclasses.replace(fitted, scales=grids.to_half(scales))
            assert bool((loss(codes, target, hessian, tried) > smallest).all())


@pytest.mark.parametrize("bits", [2, 4])
def test_dead_inputs_and_zero_groups(bits: int) -> None:
    x = inputs(96)
    x[:, 5] = 0
    x[:, 64:] = 0
    target = weight(6, 96)
    target[:, :32] = 0
    target[:, 40] = 0
    hessian = hessian_of(products(x))
    for choose in (
        lambda part, rows: grids.spanning(part, bits, G),
        lambda part, rows: grids.best(part, hessian.conditional(), bits, G, (1.0, 0.8)),
    ):
        (quantised,) = gptq.quantise(target, hessian, choose, 2)
        result = quantised.dequantise()
        assert bool(torch.isfinite(result).all())
        assert bool((result[:, :32] == 0).all())
        # What nothing is known about is rounded to nearest, not thrown away.
        step = quantised.scales[:, 2:].float()
        assert bool(((result - target)[:, 64:].abs() <= 2 * step).all())


def test_one_token_and_no_token() -> None:
    target = weight(6, 64)
    for matrix in (products(inputs(64, tokens=1)), torch.zeros(64, 64).double()):
        hessian = hessian_of(matrix)
        grid = grids.spanning(target, 4, G)
        assert bool(torch.isfinite(gptq.compensate(target, hessian, grid)).all())


@pytest.mark.parametrize("size", [1e-6, 1e4])
def test_the_activations_unit_does_not_matter(size: float) -> None:
    target = weight(6, 64)
    one = hessian_of(products(inputs(64)))
    other = hessian_of(products(inputs(64)) * size**2)
    grid = grids.spanning(target, 3, G)
    same = gptq.compensate(target, one, grid) == gptq.compensate(target, other, grid)
    assert same.float().mean() > 0.98


def test_threads_and_places_in_memory_change_no_bit() -> None:
    """Wide enough that products are shared out; where in memory tensors begin is chance."""

    def placed(values: torch.Tensor, behind: int) -> torch.Tensor:
        """The same so many elements behind a boundary of 64 bytes."""
        room = torch.empty(values.numel() + 32)
        first = -(room.data_ptr() // 4) % 16 + behind
        return room[first : first + values.numel()].view(values.shape).copy_(values)

    def results(threads: int, behind: int) -> list[torch.Tensor]:
        torch.set_num_threads(threads)
        read, target = placed(inputs(300, 900), behind), placed(weight(600, 300), behind)
        sums = Products(300, read.device)
        sums.add(read)
        hessian = gptq.Hessian.of(sums.means())
        grid = grids.best(target, hessian.conditional(), 4, G, (1.0, 0.9))
        codes = gptq.compensate(target, hessian, grid)
        moved = gptq.descend(codes, target, hessian, grid, 1)
        refitted = gptq.refit_scales(moved, target, hessian, grid)
        gradient = read @ target.T
        return [hessian.solve(target), gradient, grid.scales, codes, moved, refitted.scales]

    before = torch.get_num_threads()
    try:
        expected = results(1, 0)
        for threads, behind in ((1, 1), (2, 0), (2, 5), (3, 0)):
            assert all(map(torch.equal, results(threads, behind), expected)), (threads, behind)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("strip", [16, 32, 64])
def test_what_is_kept_in_strips_solves_as_a_whole(
    monkeypatch: pytest.MonkeyPatch, strip: int
) -> None:
    """Strips are so high in real models that only their widest matrices have several."""
    target = weight(9, 150)

    def results() -> list[torch.Tensor]:
        hessian = hessian_of(products(inputs(150)))
        grid = grids.spanning(target, 3, G)
        codes = gptq.compensate(target, hessian, grid)
        moved = gptq.descend(codes, target, hessian, grid, 2)
        refitted = gptq.refit_scales(moved, target, hessian, grid)
        return [hessian.conditional(), hessian.solve(target), codes, moved, refitted.scales]

    expected = results()
    monkeypatch.setattr(gptq, "_STRIP", strip)
    monkeypatch.setattr(gptq, "_BLOCK", 16)
    costs, solved, codes, moved, scales = results()
    torch.testing.assert_close(costs, expected[0])
    torch.testing.assert_close(solved, expected[1], rtol=1e-4, atol=1e-5)
    for found, other in zip((codes, moved, scales), expected[2:]):
        assert (found == other).float().mean() > 0.98


@pytest.mark.parametrize("strip", [7, 16, 40, 64])
def test_the_factor_does_not_depend_on_strips(monkeypatch: pytest.MonkeyPatch, strip: int) -> None:
    matrix = products(inputs(40))
    monkeypatch.setattr(gptq, "_STRIP", strip)
    hessian = gptq.Hessian.of(Half.of(matrix, strip))
    ordered = whole(hessian.matrix).double()[hessian.order][:, hessian.order]
    upper = hessian.upper(slice(0, 40)).double()
    assert torch.equal(upper, upper.triu())
    torch.testing.assert_close(upper.T @ upper @ ordered, torch.eye(40).double(), rtol=0, atol=1e-5)


def test_rows_do_not_know_of_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    target = weight(10, 64)
    hessian = hessian_of(products(inputs(64)))

    def rounded() -> torch.Tensor:
        def choose(part: torch.Tensor, rows: slice) -> grids.Grid:
            return grids.spanning(part, 3, G)

        return torch.cat([q.dequantise() for q in gptq.quantise(target, hessian, choose, 1)])

    whole = rounded()
    monkeypatch.setitem(gptq._WEIGHTS_AT_ONCE, "cpu", 4 * 64)
    assert (rounded() == whole).float().mean() > 0.98


def test_conditional_costs_are_what_remains_after_the_best_repair() -> None:
    matrix = products(inputs(20))
    hessian = hessian_of(matrix, damping=0.0)
    costs = hessian.conditional()
    order = hessian.order.tolist()
    for position, j in enumerate(order):
        later = order[position + 1 :]
        repaired = matrix[j, j]
        if later:
            inside = matrix[later][:, later]
            repaired = repaired - matrix[j, later] @ torch.linalg.solve(inside, matrix[later, j])
        assert float(costs[j]) == pytest.approx(float(repaired), rel=1e-3)
    assert torch.equal(gptq.conditional(Half.of(matrix, 48), damping=0.0), costs)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_best_grid_is_no_worse_than_the_widest(bits: int) -> None:
    target = weight(32, 150)
    costs = torch.rand(150, generator=torch.Generator().manual_seed(2)) + 0.1

    def error(grid: grids.Grid) -> torch.Tensor:
        s = grid.scales.repeat_interleave(G, dim=1)[:, :150]
        z = grid.zeros.repeat_interleave(G, dim=1)[:, :150]
        codes = (torch.round(target / s) + z).clamp(0, grid.largest_code)
        square = ((codes - z) * s - target).square() * costs
        return torch.nn.functional.pad(square, (0, -150 % G)).reshape(32, -1, G).sum(dim=2)

    wide = error(grids.spanning(target, bits, G))
    best = error(grids.best(target, costs, bits, G, (1.0, 0.9, 0.8, 0.7)))
    assert bool((best <= wide * (1 + 1e-5)).all())
    assert best.sum() < 0.98 * wide.sum()
