"""The innermost loops: kernels do what slow loops in PyTorch do."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from awq_edge.quantize import columns  # noqa: E402


def block(count: int, n: int) -> tuple[columns.BlockGrid, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A grid with an empty group, a factor, a Hessian and weights, of ``count`` inputs."""
    generator = torch.Generator().manual_seed(count)
    scales = 0.05 + 0.1 * torch.rand(count, n, generator=generator)
    zeros = torch.randint(0, 16, (count, n), generator=generator).float()
    scales[:, 0] = zeros[:, 0] = 0.0
    x = torch.randn(300, count + 9, generator=generator)
    hessian = x.T @ x / 300
    upper = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True).contiguous()
    inside = slice(3, 3 + count)
    weights = 0.3 * torch.randn(count, n, generator=generator)
    grid = columns.BlockGrid(scales, zeros, 15.0)
    return grid, upper[inside, inside], hessian[inside, inside], weights


def slow_compensate(
    grid: columns.BlockGrid, upper: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and errors, one input's weights after the other's, in PyTorch."""
    weights, codes, errors = weights.clone(), torch.empty_like(weights), torch.empty_like(weights)
    for index, (scale, zero) in enumerate(zip(grid.scales, grid.zeros)):
        steps = torch.where(scale == 0, 0.0, weights[index] / scale)
        steps = torch.minimum(torch.maximum(steps.round(), -zero), grid.largest_code - zero)
        codes[index] = steps + zero
        errors[index] = (weights[index] - steps * scale) / upper[index, index]
        weights[index + 1 :] -= torch.outer(upper[index, index + 1 :], errors[index])
    return codes, errors


def slow_descend(
    grid: columns.BlockGrid, matrix: torch.Tensor, weights: torch.Tensor, slopes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and moves, as above."""
    slopes, codes, moves = slopes.clone(), torch.empty_like(weights), torch.empty_like(weights)
    for index, (scale, zero) in enumerate(zip(grid.scales, grid.zeros)):
        wanted = weights[index] - slopes[index] / matrix[index, index]
        steps = torch.where(scale == 0, 0.0, wanted / scale)
        steps = torch.minimum(torch.maximum(steps.round(), -zero), grid.largest_code - zero)
        codes[index] = steps + zero
        moves[index] = steps * scale - weights[index]
        slopes[index + 1 :] += torch.outer(matrix[index, index + 1 :], moves[index])
    return codes, moves


@pytest.mark.parametrize(("count", "n"), [(64, 40), (37, 16), (5, 3), (1, 1)])
def test_steps_stay_on_the_grid_and_errors_are_what_is_left(count: int, n: int) -> None:
    grid, upper, _, weights = block(count, n)
    codes, errors = torch.empty_like(weights), torch.empty_like(weights)
    first = weights[0].clone()
    columns.compensate(grid, upper, weights, codes, errors)
    assert torch.equal(codes, codes.round())
    assert bool(((codes >= 0) & (codes <= 15)).all())
    assert torch.equal(codes[:, 0], grid.zeros[:, 0])
    left = first - (codes[0] - grid.zeros[0]) * grid.scales[0]
    torch.testing.assert_close(errors[0] * upper[0, 0], left)


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
        ),
    ],
)
@pytest.mark.parametrize(("count", "n"), [(64, 40), (64, 1000), (37, 16), (5, 3), (1, 1)])
def test_kernels_do_what_the_loops_do(count: int, n: int, device: str) -> None:
    grid, upper, hessian, weights = block(count, n)
    here = columns.BlockGrid(grid.scales.to(device), grid.zeros.to(device), grid.largest_code)
    codes, errors = (torch.empty_like(weights, device=device) for _ in range(2))
    whole = torch.zeros(count + 9, count + 9, device=device)  # as a block of a larger matrix
    whole[3 : 3 + count, 3 : 3 + count] = upper.to(device)
    used_up = weights.to(device, copy=True)
    columns.compensate(here, whole[3 : 3 + count, 3 : 3 + count], used_up, codes, errors)
    expected = slow_compensate(grid, upper, weights)
    # A tie may be rounded otherwise, and what follows in that row with it.
    for actual, wanted in zip((codes, errors), expected):
        assert torch.isclose(actual.cpu(), wanted, atol=1e-5).float().mean() > 0.99

    values = (expected[0] - grid.zeros) * grid.scales
    slopes = hessian @ (values - weights)
    moved, moves = codes.clone(), torch.empty_like(codes)
    matrix = hessian.to(device).contiguous()
    columns.descend(here, matrix, values.to(device), slopes.to(device, copy=True), moved, moves)
    for actual, wanted in zip((moved, moves), slow_descend(grid, hessian, values, slopes)):
        assert torch.isclose(actual.cpu(), wanted, atol=1e-5).float().mean() > 0.99


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_without_triton_the_cpu_helps_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "gpu_kernels", lambda: None)
    test_kernels_do_what_the_loops_do(37, 16, "cuda")
