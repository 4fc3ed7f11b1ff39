"""Layers of every form: a fold of scales changes nothing, and a staged walk is the layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import decoder_forms  # noqa: E402  (after the check that torch is there)
from decoder_layers import probe_of, random_weights, statistics_of  # noqa: E402

from awq_edge import stages  # noqa: E402
from awq_edge.architecture import Architecture  # noqa: E402
from awq_edge.calibration.hidden_states import HiddenStates  # noqa: E402
from awq_edge.calibration.layer_states import LayerStates  # noqa: E402
from awq_edge.calibration.staged import StagedLayer  # noqa: E402
from awq_edge.quantize import awq, methods, pivots, scales, statistics  # noqa: E402
from awq_edge.quantize.grouped import Quantiser  # noqa: E402
from awq_edge.quantize.halves import Half  # noqa: E402
from awq_edge.quantize.statistics import Products  # noqa: E402
from awq_edge.stages import Origin, Stage  # noqa: E402

FORMS = list(decoder_forms.FORMS)
CPU = torch.device("cpu")


def one_layer(form: str) -> Architecture:
    a = decoder_forms.architecture(form)
    number = a.rope_tables.index(max(a.rope_tables))
    inside = slice(number, number + 1)
    return dataclasses.replace(
        a,
        layers=1,
        sliding_windows=a.sliding_windows[inside],
        rope_tables=a.rope_tables[inside],
    )


def absorbers(a: Architecture) -> dict[str, str | None]:
    return {stage.name: stage.absorber for stage in stages.stages(a, 0)}


@pytest.mark.parametrize("form", FORMS)
def test_random_scales_fold_without_a_change(form: str) -> None:
    """Everything that reads a divided vector is in its stage, biases of norms are divided too."""
    torch.manual_seed(0)
    a = one_layer(form)
    weights, probe = random_weights(a), probe_of(a)
    original, before = dict(weights), probe.change(weights)
    chosen = {}
    for stage in probe.stages:
        k = stages.input_width(a, stage)
        found = 0.25 + 4 * torch.rand(k)
        heads = scales.heads_that_share(a, stage)
        if heads is not None:
            found = found.reshape(heads)[:, :1].expand(heads).reshape(-1)
        chosen[stage.name] = found
    scales.fold_all(probe, weights, chosen)  # checks itself; and once more:
    torch.testing.assert_close(probe.change(weights), before, rtol=1e-3, atol=1e-3)
    changed = {name for name in weights if not torch.equal(weights[name], original[name])}
    for stage in probe.stages:
        scaled = stage.absorber is not None
        assert all((f"{name}.weight" in changed) >= scaled for name in stage.matrices)
        if scaled and f"{stage.absorber}.bias" in weights:
            assert f"{stage.absorber}.bias" in changed


def test_absorbers_are_the_legal_ones() -> None:
    every = {"qkv": "attn_norm", "output": "attn_v", "gate_up": "ffn_norm", "down": "ffn_up"}
    assert absorbers(one_layer("parallel")) == every
    assert absorbers(one_layer("norms around branches")) == every
    assert absorbers(one_layer("norms over the width")) == every
    # They read the stream itself, which is added to as well.
    nothing_in_front = {**every, "qkv": None, "gate_up": None}
    assert absorbers(one_layer("norms behind branches")) == nothing_in_front
    assert absorbers(one_layer("norms of the stream")) == nothing_in_front
    assert absorbers(one_layer("clamp")) == {**every, "output": None}
    plain = {"qkv": "attn_norm", "output": "attn_v", "up": "ffn_norm"}
    assert absorbers(one_layer("plain, relu")) == {**plain, "down": "ffn_up"}
    assert absorbers(one_layer("plain, gelu")) == {**plain, "down": None}
    assert absorbers(one_layer("activation scales")) == {**plain, "down": "ffn_act"}


@pytest.mark.parametrize(
    "illegal", [("clamp", "output", "attn_v"), ("plain, gelu", "down", "ffn_up")]
)
def test_an_illegal_fold_would_be_seen(
    illegal: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    form, name, absorber = illegal
    a = one_layer(form)
    torch.manual_seed(0)
    weights, probe = random_weights(a), probe_of(a)
    before = probe.change(weights)
    (stage,) = [stage for stage in probe.stages if stage.name == name]
    scaled = 0.25 + 4 * torch.rand(stages.input_width(a, stage))
    heads = scales.heads_that_share(a, stage)
    if heads is not None:
        scaled = scaled.reshape(heads)[:, :1].expand(heads).reshape(-1)
    scales.fold(a, dataclasses.replace(stage, absorber=absorber), weights, scaled)
    with pytest.raises(scales.UnsupportedError, match="changed its output"):
        scales.check_fold(probe, weights, before, name)


@pytest.mark.parametrize("form", [form for form in FORMS if form.startswith("as ")])
@pytest.mark.parametrize("search", ["outputs", "pivots"])
def test_searches_keep_the_function(form: str, search: str) -> None:
    torch.manual_seed(0)
    a = one_layer(form)
    weights, probe = random_weights(a), probe_of(a)
    before = probe.change(weights)
    quantiser = Quantiser(3, 32)
    if search == "outputs":
        statistics = statistics_of(probe, weights, 32)
        plan = methods.METHODS["awq"].plan(3)
        choices = awq.search_scales(probe, weights, statistics, quantiser, plan)
    else:
        quantisers = dict.fromkeys(stages.matrices(a, 0), quantiser)
        choices, divided = pivots.search_and_fold(probe, weights, quantisers, 0.1)
        assert divided.keys() <= set(stages.matrices(a, 0))
    torch.testing.assert_close(probe.change(weights), before, rtol=1e-3, atol=1e-3)
    unscaled = {name for name, absorber in absorbers(a).items() if absorber is None}
    assert all(choices[name].kind == "none" for name in unscaled)
    assert any(choice.kind != "none" for choice in choices.values())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("strip", [512, 16])
def test_stages_one_by_one_give_the_layer(
    form: str, strip: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the staged walk leaves is what the whole layer gives with the rounded weights.

    Where products are many they are summed in shares: here every strip of 16 rows is one.
    """
    monkeypatch.setattr(statistics, "STRIP_ROWS", strip)
    monkeypatch.setattr(statistics, "_SHARE_BYTES", 1 if strip == 16 else 1 << 28)
    torch.manual_seed(0)
    a = one_layer(form)
    weights, probe = random_weights(a), probe_of(a, blocks=2)
    layer = probe.layer(weights)
    shape = probe.hidden.shape[:2]

    def place(name: str, width: int) -> HiddenStates:
        return HiddenStates(tmp_path / name, (*shape, width), CPU)

    inputs = {
        stage.name: place(stage.name, stages.input_width(a, stage))
        for stage in layer.stages
        if stage.origin is not Origin.STREAM
    }
    before, after = place("before", a.hidden_size), place("after", a.hidden_size)
    before.write(slice(0, 2), probe.hidden)
    seen: dict[str, torch.Tensor] = {}

    def rounded(stage: Stage, part: Sequence[str], products: Half) -> None:
        seen[stage.name] = products.rows(slice(0, products.size))
        for name in part:
            weights[f"{name}.weight"] = Quantiser(3, 32).round_trip(weights[f"{name}.weight"])

    def means(parts: object, empty: Products) -> Half:
        for _, part in parts:  # type: ignore[attr-defined]
            empty.join(part)
        return empty.means()

    states = LayerStates(layer, before, after, inputs)
    StagedLayer(states, {0: [slice(0, 1), slice(1, 2)]}, rounded, means).run()
    whole = probe.layer(weights).run(probe.hidden)
    torch.testing.assert_close(after.read(slice(0, 2)), whole, rtol=1e-4, atol=1e-4)
    normed_behind = {stage.name for stage in layer.stages if stage.post_norm is not None}
    for name, x in probe.inputs(weights).items():
        if name in normed_behind:
            continue  # tokens count by what their norm makes of an error
        x = x.flatten(0, 1).double()
        torch.testing.assert_close(seen[name], x.T @ x / len(x), rtol=1e-3, atol=1e-3)
