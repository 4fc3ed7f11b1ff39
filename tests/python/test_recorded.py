"""Steps as one: on a GPU a recording gives what the steps give, for one matrix after the other."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from awq_edge.quantize import gptq, grids, recorded  # noqa: E402


def steps(given: recorded.Tensors, changed: recorded.Tensors, value: float) -> None:
    for row in range(len(changed[0])):
        changed[0][row] += value * given[0][row]
        changed[1][row] = changed[0][: row + 1].sum(dim=0)


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device"))]  # fmt: skip


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("inference", [False, True])
def test_every_call_works_on_its_own_tensors(device: str, inference: bool) -> None:
    with torch.inference_mode(mode=inference):
        for seed in range(3):
            generator = torch.Generator().manual_seed(seed)
            a, b = torch.randn(2, 4, 6, generator=generator).to(device)
            changed = (b.clone(), torch.empty_like(b))
            recorded.run(steps, (a,), changed, 0.5)
            expected = b + 0.5 * a
            torch.testing.assert_close(changed[0], expected)
            torch.testing.assert_close(changed[1], expected.cumsum(dim=0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("k", [128, 200])
def test_recorded_rounding_gives_the_same_codes(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(500, k, device="cuda")
    target = torch.randn(96, k, device="cuda")
    hessian = gptq.Hessian.of((x.T @ x).double() / 500)
    grid = grids.spanning(target, 3, 32)
    codes = gptq.compensate(target, hessian, grid)
    moved = gptq.descend(codes, target, hessian, grid, 2)
    monkeypatch.setattr(recorded, "run", lambda steps, *arguments: steps(*arguments))
    assert torch.equal(gptq.compensate(target, hessian, grid), codes)
    assert torch.equal(gptq.descend(codes, target, hessian, grid, 2), moved)
