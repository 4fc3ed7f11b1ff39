"""Outputs that make up for each other: against a textbook loop, and where nothing may change."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from awq_edge.quantize import coupling, gptq, grids, grouped  # noqa: E402
from awq_edge.quantize.halves import Half  # noqa: E402

G = 32


def covariance(n: int, seed: int, tokens: int = 2000) -> torch.Tensor:
    """Of correlated vectors, some of which are large, float64 [n, n]."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(n, n, generator=generator) / n**0.5
    x = torch.randn(tokens, n, generator=generator) @ (torch.eye(n) + 2 * mixing)
    x[:, :: max(n // 5, 1)] *= 4
    return x.T.double() @ x.double() / tokens


def hessian_of(k: int) -> gptq.Hessian:
    return gptq.Hessian.of(Half.of(covariance(k, 0), 64))


def weight(n: int, k: int) -> torch.Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(1))


def in_runs(moments: torch.Tensor) -> torch.Tensor:
    """The blocks on the diagonal of moments [n, n], as float32 [runs, outputs, outputs]."""
    n = len(moments)
    count, length = coupling.runs(n)
    blocks = torch.zeros(count, length, length)
    for run in range(count):
        inside = slice(run * length, min((run + 1) * length, n))
        size = inside.stop - inside.start
        blocks[run, :size, :size] = moments[inside, inside].float()
    return blocks


def loss(
    rounded: grouped.Quantised, target: torch.Tensor, g: torch.Tensor, h: torch.Tensor
) -> float:
    """tr(G E H E^T), in float64."""
    errors = (rounded.dequantise() - target).double()
    return float(((g.double() @ errors @ h.double()) * errors).sum())


def spanning(part: torch.Tensor) -> grids.Grid:
    return grids.spanning(part, 3, G)


@pytest.mark.parametrize(("n", "k"), [(40, 64), (97, 96), (13, 50)])
def test_coupling_lowers_the_loss_that_gradients_measure(n: int, k: int) -> None:
    hessian, moments = hessian_of(k), covariance(n, 3)
    target = weight(n, k)
    alone = grouped.joined(list(gptq.quantise(target, hessian, lambda p, _: spanning(p), 0)))
    together = coupling.quantise([target], hessian, [in_runs(moments)], spanning, 0)[0]
    assert together.codes.shape == (n, k)
    before, after = (
        loss(q, target, moments, hessian.matrix.rows(slice(0, k))) for q in (alone, together)
    )
    assert after < 0.8 * before


@pytest.mark.parametrize("n", [1, 3, 7, 40, 41, 130])
@pytest.mark.parametrize("rounds", [0, 1])
def test_outputs_of_independent_gradients_are_rounded_alone(
    n: int, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows come back in their order, from several runs of which the last is shorter."""
    monkeypatch.setattr(coupling, "_LONGEST_RUN", 50)
    hessian, target = hessian_of(64), weight(n, 64)
    diagonal = torch.rand(n, generator=torch.Generator().manual_seed(5)) + 0.1
    alone = grouped.joined(list(gptq.quantise(target, hessian, lambda p, _: spanning(p), rounds)))
    moments = in_runs(diagonal.diag())
    together = coupling.quantise([target], hessian, [moments], spanning, rounds)[0]
    assert torch.equal(together.codes, alone.codes)
    assert torch.equal(together.scales, alone.scales)
    assert torch.equal(together.zeros, alone.zeros)


def test_rows_are_those_of_the_textbook(monkeypatch: pytest.MonkeyPatch) -> None:
    """One row at a time: each is rounded for the target that the rows before it leave."""
    n, k = 12, 40
    monkeypatch.setattr(coupling, "_PARTS", n)
    hessian, moments, target = hessian_of(k), covariance(n, 3), weight(n, k)
    damped = moments + 0.1 * moments.diagonal().mean() * torch.eye(n)
    left = torch.argsort(moments.diagonal(), descending=True, stable=True).tolist()
    wanted, expected = target.double().clone(), torch.empty(n, k)
    while left:
        row, inverse = left[0], torch.linalg.inv(damped[left][:, left])
        part = wanted[row : row + 1].float()
        rounded = gptq.rounded(part, hessian, spanning(part), 0).dequantise()
        expected[row] = rounded[0]
        error = (wanted[row] - rounded[0].double()) / inverse[0, 0]
        wanted[left] -= inverse[0][:, None] * error
        left = left[1:]
    actual = coupling.quantise([target], hessian, [in_runs(moments)], spanning, 0)[0].dequantise()
    # float32 against float64 may round a tie otherwise, and the rows behind it then differ.
    assert (actual - expected).abs().lt(1e-5).float().mean() > 0.9


def test_few_rows_at_once_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    hessian, moments, target = hessian_of(64), covariance(97, 3), weight(97, 64)
    (whole,) = coupling.quantise([target], hessian, [in_runs(moments)], spanning, 1)
    monkeypatch.setattr(gptq, "_WEIGHTS_AT_ONCE", {"cpu": 4 * 64})
    (some,) = coupling.quantise([target], hessian, [in_runs(moments)], spanning, 1)
    # Sums over more rows may be taken in another order.
    assert (some.codes == whole.codes).float().mean() > 0.98


def test_outputs_without_gradients_are_rounded_too() -> None:
    hessian, target = hessian_of(64), weight(9, 64)
    together = coupling.quantise([target], hessian, [torch.zeros(1, 9, 9)], spanning, 0)[0]
    alone = grouped.joined(list(gptq.quantise(target, hessian, lambda p, _: spanning(p), 0)))
    assert torch.equal(together.codes, alone.codes)


def test_moments_follow_the_scales_of_outputs() -> None:
    gradients = torch.randn(300, 7, generator=torch.Generator().manual_seed(2)).double()
    factors = torch.linspace(0.5, 2.0, 7).double()
    moments = (gradients.T @ gradients).unsqueeze(0)
    grown = gradients * factors
    torch.testing.assert_close(coupling.scaled(moments, factors)[0], grown.T @ grown)


def test_matrices_rounded_together_are_what_they_are_alone() -> None:
    hessian, sizes = hessian_of(64), (40, 13, 1)
    targets = [weight(n, 64) * (n + 1) for n in sizes]
    moments = [in_runs(covariance(n, n)) for n in sizes]
    together = coupling.quantise([*targets], hessian, [*moments], spanning, 1)  # uses lists up
    assert len(together) == len(targets)
    for target, by_output, actual in zip(targets, moments, together):
        (alone,) = coupling.quantise([target], hessian, [by_output], spanning, 1)
        # Sums over more rows may be taken in another order.
        assert (actual.codes == alone.codes).float().mean() > 0.98
        assert actual.codes.shape == target.shape
