"""The float stream beside the rounded one, and the targets that it gives."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from test_awq import architecture, probe_of, random_weights  # noqa: E402  (after the check)

from awq_edge import torch_decoder  # noqa: E402
from awq_edge.quantize import awq, gptq, staged  # noqa: E402
from awq_edge.quantize.calibration import Products  # noqa: E402
from awq_edge.quantize.distributed import Processes  # noqa: E402
from awq_edge.quantize.hidden_states import HiddenStates  # noqa: E402
from awq_edge.quantize.propagation import FloatBlocks, Propagation, States  # noqa: E402

CPU = torch.device("cpu")


def test_every_second_block_has_float_states_behind_the_others() -> None:
    blocks = FloatBlocks(slice(0, 5))
    assert blocks.count == 3
    assert blocks.of(slice(0, 5)) == (slice(0, None, 2), slice(5, 8))
    assert blocks.of(slice(1, 2))[1] == slice(6, 6)  # none


@pytest.mark.parametrize("cut", [1, 2, 3, 4])
def test_the_choice_of_blocks_does_not_depend_on_who_has_them(cut: int) -> None:
    whole = set(range(0, 5, 2))
    chosen = []
    for mine in (slice(0, cut), slice(cut, 5)):
        blocks, places = FloatBlocks(mine), []
        numbers = list(range(mine.start, mine.stop))
        for at in range(len(numbers)):
            inside, place = blocks.of(slice(at, at + 1))
            chosen += numbers[at : at + 1][inside]
            places += range(place.start, place.stop)
        assert places == list(range(len(numbers), len(numbers) + blocks.count))
    assert set(chosen) == whole and len(chosen) == len(whole)


@pytest.mark.parametrize("in_memory", [False, True])
def test_targets_are_half_of_the_least_squares_correction(tmp_path: Path, in_memory: bool) -> None:
    """Rounds a layer that reads disturbed states, and computes every correction once more.

    In memory, as beside a GPU, what is read changes with what is written to the same place.
    """
    torch.manual_seed(0)
    a = architecture()
    weights, probe = random_weights(a), probe_of(a, blocks=5)
    floats = dict(weights)
    exact = probe.hidden[::2]
    disturbed = probe.hidden + 0.1 * torch.randn_like(probe.hidden)
    blocks = FloatBlocks(slice(0, 5))

    def states(name: str, count: int, width: int) -> HiddenStates:
        made = HiddenStates(tmp_path / name, (count, probe.hidden.shape[1], width), CPU)
        made._memory = torch.empty(made.shape) if in_memory else None
        return made

    before, after = states("before", 8, a.hidden_size), states("after", 8, a.hidden_size)
    mixed = states("mixed", 8, a.heads * a.head_size)
    gated = states("gated", 8, a.feed_forward_size)
    before.write(slice(0, 5), disturbed)
    before.write(slice(5, 8), exact)
    corrections = Propagation(
        a, 0, weights, probe.positions, blocks, States(before, mixed, gated, after), Processes()
    )
    targets: awq.Weights = {}
    hessians: dict[str, gptq.Hessian] = {}

    def round_matrices(names: tuple[str, ...], products: torch.Tensor) -> awq.Weights:
        hessian = gptq.Hessian.of(products)
        stage = {f"{name}.weight": weights[f"{name}.weight"] for name in names}
        found = corrections.targets(stage, hessian)
        targets.update(found)
        hessians.update({name: hessian for name in names})
        return {name: awq.Quantiser(3, 32).round_trip(target) for name, target in found.items()}

    def means(parts: object, empty: Products) -> torch.Tensor:
        return Processes().means(parts, empty)  # type: ignore[arg-type]

    layer = staged.StagedLayer(
        a, 0, weights, probe.positions, round_matrices, means, corrections.take
    )
    layer.run(before, mixed, gated, after, {0: [slice(0, 2)], 1: [slice(2, 3), slice(3, 5)]})

    def walked(tensors: awq.Weights, hidden: torch.Tensor) -> tuple[awq.Weights, torch.Tensor]:
        seen: awq.Weights = {}
        plain = torch_decoder.plain_linear(tensors)

        def recording(name: str, x: torch.Tensor) -> torch.Tensor:
            seen[name] = x.flatten(0, 1)
            return plain(name, x)

        attended = torch_decoder.attention(
            a,
            0,
            tensors,
            recording,
            torch_decoder.rms_norm(hidden, tensors["attn_norm.weight"], a.norm_epsilon),
            probe.positions,
        )
        seen["stream"] = (hidden + attended).flatten(0, 1)
        after = torch_decoder.decoder_layer(a, 0, tensors, recording, hidden, probe.positions)
        return seen, after

    wanted, output = walked(floats, exact)
    read, _ = walked(weights, disturbed[::2])
    torch.testing.assert_close(after.read(slice(5, 8)), output, rtol=1e-4, atol=1e-4)
    drifts = {
        "attn_output": (exact - disturbed[::2]).flatten(0, 1),
        "ffn_down": wanted["stream"] - read["stream"],
    }
    for name in torch_decoder.LINEARS:
        weight = floats[f"{name}.weight"]
        lost = (wanted[name] - read[name]) @ weight.T + drifts.get(name, 0.0)
        damped = hessians[name].matrix.double()
        correction = torch.linalg.solve(damped, (lost.T @ read[name]).T.double() / len(lost)).T
        expected = weight + 0.5 * correction.float()
        assert float((expected - weight).norm()) > 0.01 * float(weight.norm())
        torch.testing.assert_close(targets[f"{name}.weight"], expected, rtol=1e-3, atol=2e-3)
