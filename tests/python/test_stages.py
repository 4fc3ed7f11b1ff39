"""What a layer consists of: the description holds together, and is what is computed."""

from __future__ import annotations

import dataclasses

import pytest

torch = pytest.importorskip("torch")

from decoder_layers import (  # noqa: E402  (after the check that torch is there)
    architecture,
    probe_of,
    random_weights,
    statistics_of,
)

from awq_edge import stages, torch_decoder  # noqa: E402
from awq_edge.architecture import Architecture  # noqa: E402
from awq_edge.quantize import awq, methods, pivots, probe  # noqa: E402
from awq_edge.quantize.grouped import Quantiser  # noqa: E402
from awq_edge.stages import Origin, Stage  # noqa: E402


def test_branches_begin_at_the_stream_and_end_in_it() -> None:
    a = architecture(layers=2, sliding_windows=(0, 8), rope_tables=(0, 0))
    for layer in range(2):
        described = stages.stages(a, layer)
        first = None
        for stage in described:
            widths = {stages.tensor_shape(a, f"{name}.weight")[1] for name in stage.matrices}
            assert widths == {stages.input_width(a, stage)}  # they share an input
            if stage.origin is Origin.STREAM:
                first = stage
                assert not stage.made_of and not stage.adds
                assert stage.absorber in (None, stage.norm)
                continue
            assert first is not None and set(stage.made_of) <= set(first.matrices)
            assert stage in stages.fed_by(a, layer, first)
            assert stage.absorber is None or stage.absorber in stage.made_of
            if stage.adds:
                (name,) = stage.matrices
                assert stages.tensor_shape(a, f"{name}.weight")[0] == a.hidden_size
        assert described[-1].adds
        (attention,) = [stage for stage in described if stage.origin is Origin.ATTENTION]
        assert attention.window == a.sliding_windows[layer]


def test_every_tensor_of_a_layer_has_a_place() -> None:
    a = architecture(qkv_bias=True, output_bias=True, feed_forward_bias=True, qk_norm=True)
    names = stages.layer_tensor_names(a, 0)
    assert len(names) == len(set(names))
    matrices = [name for name in names if len(stages.tensor_shape(a, name)) == 2]
    assert matrices == [f"{name}.weight" for name in stages.matrices(a, 0)]
    used: set[str] = set()

    class Watched(dict[str, torch.Tensor]):
        def __getitem__(self, name: str) -> torch.Tensor:
            used.add(name)
            return super().__getitem__(name)

        def get(self, name: str, default: object = None) -> object:
            used.update({name} & self.keys())  # biases are asked for where there are none too
            return super().get(name, default)

    probe_of(a).change(Watched(random_weights(a)))
    assert used == set(names)


def test_steps_multiply_nothing_behind_the_last_input() -> None:
    a = architecture()
    weights, sample = random_weights(a), probe_of(a)
    multiplied: list[str] = []
    plain = torch_decoder.plain_linear(weights)

    def listening(name: str, x: torch.Tensor) -> torch.Tensor:
        multiplied.append(name)
        return plain(name, x)

    layer = sample.layer(weights, listening)
    *_, last = layer.steps(sample.hidden)
    assert multiplied == list(stages.matrices(a, 0))[:-1]
    after = last.stream_after()
    assert multiplied == list(stages.matrices(a, 0))
    assert torch.equal(after, layer.run(sample.hidden))
    first, second = (stage for stage in layer.stages if stage.origin is Origin.STREAM)
    inputs = sample.inputs(weights)
    attended = sample.hidden + layer.branch(first, inputs[first.name])
    assert torch.equal(attended + layer.branch(second, inputs[second.name]), after)


@pytest.mark.parametrize("search", ["outputs", "pivots"])
def test_what_nothing_absorbs_stays_unscaled(monkeypatch: pytest.MonkeyPatch, search: str) -> None:
    """A layer whose branches read the stream as it is, and whose attention hands no scale on."""

    def described(a: Architecture, layer: int) -> tuple[Stage, ...]:
        changes = {"norm": None, "absorber": None}
        return tuple(
            dataclasses.replace(stage, **changes) if stage.name != "down" else stage  # type: ignore[arg-type]
            for stage in stages.stages(a, layer)
        )

    monkeypatch.setattr(probe, "stages", described)
    monkeypatch.setattr(torch_decoder, "stages", described)
    torch.manual_seed(0)
    a = architecture()
    weights, sample = random_weights(a), probe_of(a)
    assert torch.equal(sample.inputs(weights)["qkv"], sample.hidden)
    original, before = dict(weights), sample.change(weights)
    quantiser = Quantiser(3, 32)
    if search == "outputs":
        statistics = statistics_of(sample, weights, 32)
        plan = methods.METHODS["awq"].plan(3)
        choices = awq.search_scales(sample, weights, statistics, quantiser, plan)
    else:
        quantisers = dict.fromkeys(stages.matrices(a, 0), quantiser)
        choices, divided = pivots.search_and_fold(sample, weights, quantisers, 0.1)
        assert divided.keys() == {"ffn_up"}
    assert {name for name, choice in choices.items() if choice.kind != "none"} == {"down"}
    changed = {name for name in weights if not torch.equal(weights[name], original[name])}
    assert changed == {"ffn_up.weight", "ffn_down.weight"}
    torch.testing.assert_close(sample.change(weights), before, rtol=1e-4, atol=1e-4)
