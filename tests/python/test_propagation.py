"""The float stream beside the rounded one, and the targets that it gives."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from decoder_layers import architecture, probe_of, random_weights  # noqa: E402  (after the check)

from awq_edge import stages  # noqa: E402
from awq_edge.calibration.distributed import Processes  # noqa: E402
from awq_edge.calibration.hidden_states import HiddenStates  # noqa: E402
from awq_edge.calibration.layer_states import LayerStates  # noqa: E402
from awq_edge.calibration.propagation import FloatBlocks, Propagation  # noqa: E402
from awq_edge.calibration.staged import StagedLayer  # noqa: E402
from awq_edge.quantize import gptq  # noqa: E402
from awq_edge.quantize.grouped import Quantiser  # noqa: E402
from awq_edge.quantize.halves import Half  # noqa: E402
from awq_edge.quantize.probe import Weights  # noqa: E402
from awq_edge.quantize.statistics import Products  # noqa: E402
from awq_edge.stages import Stage  # noqa: E402
from awq_edge.torch_decoder import Layer  # noqa: E402

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


@pytest.mark.parametrize(("in_memory", "places"), [(False, "before"), (True, "both")])
def test_targets_are_half_of_the_least_squares_correction(
    tmp_path: Path, in_memory: bool, places: str
) -> None:
    """Rounds a layer that reads disturbed states, and computes every correction once more.

    In memory, as beside a GPU, what is read changes with what is written to the same place. With a
    norm behind a branch, tokens count by what that multiplies them by.
    """
    torch.manual_seed(0)
    a = architecture(norm_places=places)
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
    layer = Layer(a, 0, weights, probe.positions)
    states_of_layer = LayerStates(layer, before, after, {"output": mixed, "down": gated})
    corrections = Propagation(states_of_layer, blocks, Processes())
    targets: Weights = {}
    hessians: dict[str, gptq.Hessian] = {}

    def round_matrices(stage: Stage, part: tuple[str, ...], products: Half) -> None:
        hessian = gptq.Hessian.of(products)
        found = corrections.targets(stage, hessian)
        targets.update(found)
        hessians.update({name: hessian for name in stage.matrices})
        for name, target in found.items():
            weights[name] = Quantiser(3, 32).round_trip(target)

    def means(parts: object, empty: Products) -> Half:
        return Processes().means(parts, empty)  # type: ignore[arg-type]

    segments = {0: [slice(0, 2)], 1: [slice(2, 3), slice(3, 5)]}
    StagedLayer(states_of_layer, segments, round_matrices, means, corrections.take).run()

    def walked(tensors: Weights, hidden: torch.Tensor) -> tuple[Weights, torch.Tensor]:
        seen: Weights = {}
        walked_layer = Layer(a, 0, tensors, probe.positions)
        for step in walked_layer.steps(hidden):
            seen.update({name: step.x.flatten(0, 1) for name in step.stage.matrices})
        seen["stream"] = step.stream.flatten(0, 1)  # what the last stage adds to
        return seen, step.stream_after()

    wanted, output = walked(floats, exact)
    read, _ = walked(weights, disturbed[::2])
    torch.testing.assert_close(after.read(slice(5, 8)), output, rtol=1e-4, atol=1e-4)
    drifts = {
        "attn_output": (exact - disturbed[::2]).flatten(0, 1),
        "ffn_down": wanted["stream"] - read["stream"],
    }
    for name in stages.matrices(a, 0):
        weight = floats[f"{name}.weight"]
        seen, factor, drift = read[name], torch.ones(1), drifts.get(name, 0.0)
        if name in drifts and places == "both":
            output = seen @ weight.T + floats.get(f"{name}.bias", torch.zeros(1))
            factor = (output.square().mean(dim=-1, keepdim=True) + a.norm_epsilon).rsqrt()
            norm = floats[f"{name.split('_')[0]}_post_norm.weight"]
            drift = drift * norm / (norm.square() + 0.09 * norm.square().mean())
        lost = factor * ((wanted[name] - seen) @ weight.T) + drift
        damped = hessians[name].matrix.rows(slice(0, hessians[name].size)).double()
        moved = (lost.T @ (factor * seen)).T.double() / len(lost)
        correction = torch.linalg.solve(damped, moved).T
        expected = weight + 0.5 * correction.float()
        assert float((expected - weight).norm()) > 0.01 * float(weight.norm())
        torch.testing.assert_close(targets[f"{name}.weight"], expected, rtol=1e-3, atol=2e-3)
