"""Second moments of gradients: against autograd through the whole model, and what noise may do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import checkpoints  # noqa: E402

from awq_edge import stages, torch_decoder  # noqa: E402
from awq_edge.calibration import gradients  # noqa: E402
from awq_edge.calibration.distributed import Processes  # noqa: E402
from awq_edge.calibration.hidden_states import HiddenStates  # noqa: E402
from awq_edge.float_model import FloatModel, open_float_model  # noqa: E402
from awq_edge.quantize import coupling  # noqa: E402
from awq_edge.torch_decoder import Layer, Positions  # noqa: E402

TOKENS = torch.tensor([[1, 5, 9, 2, 60, 33], [1, 44, 3, 3, 17, 8], [1, 90, 7, 21, 2, 2]])
NUMBERS = [4, 9, 11]


def measured(source: FloatModel, directory: Path) -> dict[str, torch.Tensor]:
    """What the walk gives, by "blk.0.attn_q" and so on."""

    def layers(numbers: Iterable[int]) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
        for layer in numbers:
            yield layer, source.layer(layer)

    a = source.architecture
    shape = (*TOKENS.shape, a.hidden_size)
    states = [
        HiddenStates(directory / str(number), shape, torch.device("cpu"))
        for number in range(a.layers + 1)
    ]
    segments = {0: [0], 1: [1, 2]}
    walk = gradients.Gradients(source, layers, states, segments, Processes(), lambda note: None)
    return {
        f"blk.{layer}.{name}": values
        for layer, moments in walk.measure(TOKENS, NUMBERS, [0, 1, 0])
        for name, values in moments.items()
    }


def expected(source: FloatModel) -> dict[str, torch.Tensor]:
    """The same from one backward pass through the whole model, halves added."""
    a = source.architecture
    found: dict[str, torch.Tensor] = {}
    positions = Positions.of(a, TOKENS.shape[1], source)
    for block, number in zip(TOKENS, NUMBERS):
        hidden = source("token_embd.weight")[block[None]].requires_grad_()
        for layer in range(a.layers):
            weights = source.layer(layer)

            def linear(
                name: str,
                x: torch.Tensor,
                layer: int = layer,
                weights: dict[str, torch.Tensor] = weights,
            ) -> torch.Tensor:
                bias = weights.get(f"{name}.bias")
                y = torch.nn.functional.linear(x, weights[f"{name}.weight"], bias)

                def hear(gradient: torch.Tensor) -> None:
                    g = gradient.flatten(0, 1)
                    full = f"blk.{layer}.{name}"
                    found[full] = found.get(full, 0) + g.T @ g

                y.register_hook(hear)
                return y

            hidden = Layer(a, layer, weights, positions, linear).run(hidden)
        hidden = torch_decoder.ended(a, source, hidden)
        head = "token_embd.weight" if a.tied_head else "output.weight"
        logits = torch.nn.functional.linear(hidden, source(head))
        generator = torch.Generator().manual_seed(number)
        p = torch.softmax(logits.detach(), dim=-1)
        logits.backward(gradients.logit_gradients(p, generator))
    return found


@pytest.mark.parametrize(
    "family", ["llama", "llama-biases", "llama-wide-heads", "mistral-window", "qwen2", "qwen3"]
)
def test_moments_are_those_of_a_backward_pass_through_the_model(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_float_model(
        str(checkpoints.save(checkpoints.random_model(family), tmp_path / "model"))
    )
    monkeypatch.setattr(gradients, "shrunk", lambda first, second: first + second)
    actual = measured(source, tmp_path)
    wanted = expected(source)
    assert actual.keys() == wanted.keys()
    assert {name.split(".")[2] for name in actual} == set(stages.matrices(source.architecture, 0))
    for name, moments in wanted.items():
        n = len(moments)
        assert coupling.runs(n) == (1, n)
        torch.testing.assert_close(
            actual[name][0], moments, rtol=1e-3, atol=1e-4 * float(moments.diagonal().max())
        )


def test_outputs_that_lie_apart_are_not_coupled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moments are those of runs of neighbours; the last run may be shorter."""
    source = open_float_model(
        str(checkpoints.save(checkpoints.random_model("llama"), tmp_path / "model"))
    )
    monkeypatch.setattr(gradients, "shrunk", lambda first, second: first + second)
    whole = {name: moments[0] for name, moments in measured(source, tmp_path).items()}
    monkeypatch.setattr(coupling, "_LONGEST_RUN", 11)
    assert any(len(moments) % coupling.runs(len(moments))[1] for moments in whole.values())
    for name, moments in measured(source, tmp_path).items():
        count, length = coupling.runs(len(whole[name]))
        assert count > 1
        assert moments.shape == (count, length, length)
        for run, actual in enumerate(moments):
            inside = slice(run * length, (run + 1) * length)
            wanted = whole[name][inside, inside]
            size = len(wanted)
            torch.testing.assert_close(actual[:size, :size], wanted)
            assert not bool(actual[size:].any() or actual[:, size:].any())


def test_few_logits_at_once_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_float_model(
        str(checkpoints.save(checkpoints.random_model("llama"), tmp_path / "model"))
    )
    # The deviates of a token must not depend on how many others are drawn with it.
    monkeypatch.setattr(gradients, "logit_gradients", lambda p, generator: p - p.square())
    at_once = measured(source, tmp_path)
    monkeypatch.setattr(gradients, "_LOGITS", 1)
    for name, moments in measured(source, tmp_path).items():
        torch.testing.assert_close(moments, at_once[name])


def test_deviates_of_logits_have_the_covariance_of_the_loss() -> None:
    p = torch.softmax(torch.tensor([2.0, 0.5, 0.0, -1.0, -3.0]), dim=0)
    generator = torch.Generator().manual_seed(0)
    drawn = gradients.logit_gradients(p.expand(200_000, 5), generator)
    torch.testing.assert_close(
        drawn.T @ drawn / len(drawn), p.diag() - p[:, None] * p, atol=2e-3, rtol=0
    )


def vectors(tokens: int, seed: int, mixing: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, len(mixing), generator=generator) @ mixing
    return (x.T @ x).unsqueeze(0)


def off_diagonal(moments: torch.Tensor) -> torch.Tensor:
    return moments - torch.diag_embed(moments.diagonal(dim1=1, dim2=2))


def test_coupling_that_two_halves_share_stays() -> None:
    half = vectors(50, 0, torch.randn(20, 20, generator=torch.Generator().manual_seed(9)))
    torch.testing.assert_close(gradients.shrunk(half, half), 2 * half)


def test_coupling_by_chance_goes() -> None:
    halves = [vectors(60, seed, torch.eye(40)) for seed in (1, 2)]
    both = halves[0] + halves[1]
    shrunk = gradients.shrunk(*halves)
    torch.testing.assert_close(shrunk.diagonal(dim1=1, dim2=2), both.diagonal(dim1=1, dim2=2))
    assert off_diagonal(shrunk).norm() < 0.2 * off_diagonal(both).norm()


def test_shrunk_moments_are_nearer_to_the_truth() -> None:
    mixing = torch.eye(30) + 0.15 * torch.randn(30, 30, generator=torch.Generator().manual_seed(9))
    halves = [vectors(40, seed, mixing) for seed in (1, 2)]
    truth = 80 * (mixing.T @ mixing).unsqueeze(0)
    both = halves[0] + halves[1]
    before, after = (off_diagonal(m - truth).norm() for m in (both, gradients.shrunk(*halves)))
    assert after < 0.9 * before


@pytest.mark.parametrize("size", [1e-15, 1e-3, 1e3, 1e15])
def test_shrinking_knows_no_scale(size: float) -> None:
    halves = [vectors(40, seed, torch.eye(30) + 0.05) for seed in (1, 2)]
    assert float(off_diagonal(gradients.shrunk(*halves)).abs().max()) > 0
    shrunk = gradients.shrunk(*(size * half for half in halves))
    torch.testing.assert_close(shrunk / size, gradients.shrunk(*halves))


@pytest.mark.parametrize("opposed", [-0.1, -0.3, -1.0])
def test_halves_that_contradict_each_other_couple_nothing(opposed: float) -> None:
    first = torch.tensor([[[1.0, 0.3], [0.3, 1.0]]])
    second = torch.tensor([[[1.0, opposed], [opposed, 1.0]]])
    torch.testing.assert_close(
        gradients.shrunk(1.7 * first, 3.1 * second), 4.8 * torch.eye(2)[None]
    )


def test_moments_of_nothing_are_nothing() -> None:
    assert not bool(gradients.shrunk(torch.zeros(2, 5, 5), torch.zeros(2, 5, 5)).any())


@pytest.mark.parametrize("blocks", [1, 2, 7, 8, 9, 128, 1000])
def test_blocks_are_spread_over_the_text(blocks: int) -> None:
    chosen = gradients.chosen(blocks)
    assert len(chosen) == min(blocks, gradients.BLOCKS)
    assert chosen[0] == 0
    assert chosen[-1] == (blocks - 1 if blocks > 1 else 0)
    assert chosen == sorted(set(chosen))
