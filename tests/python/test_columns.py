"""The innermost loops: on a GPU its kernels do what the loops in PyTorch do."""

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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("count", "n"), [(64, 40), (64, 1000), (37, 16), (5, 3), (1, 1)])
def test_kernels_do_what_the_loops_do(count: int, n: int) -> None:
    grid, upper, hessian, weights = block(count, n)

    def run(device: str) -> tuple[torch.Tensor, ...]:
        here = columns.BlockGrid(grid.scales.to(device), grid.zeros.to(device), grid.largest_code)
        codes, errors = (torch.empty_like(weights, device=device) for _ in range(2))
        whole = torch.zeros(count + 9, count + 9, device=device)  # as a block of a larger matrix
        whole[3 : 3 + count, 3 : 3 + count] = upper.to(device)
        factor = whole[3 : 3 + count, 3 : 3 + count]
        used_up = weights.to(device, copy=True)
        columns.compensate(here, factor, used_up, codes, errors)
        moved, moves = codes.clone(), torch.empty_like(codes)
        values = (codes - here.zeros) * here.scales
        slopes = hessian.to(device) @ (values - weights.to(device))
        columns.descend(here, hessian.to(device).contiguous(), values, slopes, moved, moves)
        return tuple(values.cpu() for values in (codes, errors, moved, moves))

    for actual, expected in zip(run("cuda"), run("cpu")):
        # A tie may be rounded otherwise, and what follows in that row with it.
        assert torch.isclose(actual, expected, atol=1e-5).float().mean() > 0.99
