"""The AWQ search: every pitfall of other implementations that applies here, by name."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch")

from decoder_layers import (  # noqa: E402  (after the check that torch is there)
    architecture,
    probe_of,
    random_weights,
    statistics_of,
)

from awq_edge import stages  # noqa: E402
from awq_edge.quantize import awq, grouped, methods  # noqa: E402
from awq_edge.quantize.grouped import Quantiser  # noqa: E402
from awq_edge.quantize.probe import Probe, Weights  # noqa: E402
from awq_edge.quantize.scales import Choice  # noqa: E402
from awq_edge.quantize.statistics import InputStatistics  # noqa: E402

QUANTISER = Quantiser(3, 32)
AWQ = methods.METHODS["awq"]
PLAN = AWQ.plan(3)


def output_error(
    probe: Probe, target: torch.Tensor, weights: Weights, clip: bool, scale: bool
) -> float:
    weights = dict(weights)
    statistics = statistics_of(probe, weights, 32)
    if scale:
        awq.search_scales(probe, weights, statistics, QUANTISER, PLAN)
    for stage in probe.stages:
        products = statistics[stage.name].mean_products()
        for name in stage.matrices:
            limits = None
            if clip and name not in awq.NEVER_CLIPPED:
                limits = awq.clip_limits(weights[f"{name}.weight"], products, QUANTISER)
            weights[f"{name}.weight"] = QUANTISER.round_trip(weights[f"{name}.weight"], limits)
    return float((probe.change(weights) - target).square().mean())


def test_scale_and_clip_beat_rounding_to_nearest() -> None:
    torch.manual_seed(0)
    a = architecture()
    weights, probe = random_weights(a), probe_of(a)
    target = probe.change(weights)
    rtn = output_error(probe, target, weights, clip=False, scale=False)
    scaled = output_error(probe, target, weights, clip=False, scale=True)
    both = output_error(probe, target, weights, clip=True, scale=True)
    assert scaled < 0.9 * rtn
    assert both < scaled


@pytest.mark.parametrize("kv_heads", [6, 3, 1])
@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_search_keeps_the_float_function(kv_heads: int, biases: bool, qk_norm: bool) -> None:
    """1, 2 and 6 query heads to a value head; biases of v and up are divided like their rows."""
    torch.manual_seed(kv_heads)
    a = architecture(
        kv_heads=kv_heads,
        qkv_bias=biases,
        output_bias=biases,
        feed_forward_bias=biases,
        qk_norm=qk_norm,
    )
    weights, probe = random_weights(a), probe_of(a)
    before = probe.change(weights)
    original = {name: tensor.clone() for name, tensor in weights.items()}
    choices = awq.search_scales(probe, weights, statistics_of(probe, weights, 32), QUANTISER, PLAN)
    assert set(choices) == {"qkv", "output", "gate_up", "down"}
    assert any(choice.kind != "none" for choice in choices.values())
    assert any(not torch.equal(weights[name], original[name]) for name in weights)
    after = probe.change(weights)
    assert float((after - before).abs().max()) < 1e-5 * float(before.abs().max())


def candidates_of(
    magnitudes: torch.Tensor, weight: torch.Tensor
) -> Iterator[tuple[Choice, torch.Tensor]]:
    return awq._candidates(magnitudes, weight, 32, duo=True)


def test_identity_comes_first_and_wins_ties() -> None:
    """Where scaling cannot help (every candidate is as good), nothing is scaled."""
    candidates = list(candidates_of(torch.rand(72) + 0.1, torch.randn(5, 72)))
    assert candidates[0][0].kind == "none"
    assert torch.equal(candidates[0][1], torch.ones(72))
    kinds = {(choice.kind, choice.exponent) for choice, _ in candidates}
    assert len(kinds) == len(candidates) == 1 + 19 + 20
    for joint in (False, True):
        for error in (1.0, torch.nan):
            choice, scales = awq._best(iter(candidates), lambda *_, error=error: error, joint)
            assert choice.kind == "none" and torch.equal(scales, torch.ones(72))


def test_joint_search_judges_scales_by_clipped_weights() -> None:
    """The best scale without clipping is not the best one with it."""
    candidates = [(Choice("plain", step / 20), torch.full((8,), 1.0 + step)) for step in range(9)]
    candidates[0] = (Choice("none", 0.0), torch.ones(8))

    def error(scales: torch.Tensor, clipped: bool) -> float:
        return abs(float(scales[0]) - (6.0 if clipped else 4.0)) + 1.0

    alone, jointly = (awq._best(iter(candidates), error, joint)[0] for joint in (False, True))
    assert (alone.exponent, jointly.exponent) == (3 / 20, 4 / 20)  # of the best four without
    assert jointly.gain == pytest.approx(1 - 2 / 6)  # beside identity, clipped too


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e4])
def test_scales_do_not_depend_on_the_activations_unit(size: float) -> None:
    torch.manual_seed(2)
    magnitudes, weight = torch.rand(64) + 0.1, torch.randn(6, 64)
    for (choice, scales), (_, resized) in zip(
        candidates_of(magnitudes, weight), candidates_of(size * magnitudes, weight)
    ):
        assert torch.allclose(scales, resized, rtol=1e-3), choice


def test_dead_channels_and_zero_groups_give_finite_scales() -> None:
    torch.manual_seed(3)
    magnitudes = torch.rand(96)
    magnitudes[:40] = 0.0
    weight = torch.randn(4, 96)
    weight[:, 32:64] = 0.0
    for _, scales in candidates_of(magnitudes, weight):
        assert bool(torch.isfinite(scales).all()) and float(scales.min()) > 0
        assert torch.equal(scales[:40], torch.ones(40))
    assert len(list(candidates_of(torch.zeros(96), weight))) == 1


def test_layer_with_dead_channels_converts() -> None:
    torch.manual_seed(4)
    a = architecture()
    weights, probe = random_weights(a), probe_of(a)
    weights["attn_norm.weight"][:5] = 0.0
    weights["ffn_gate.weight"][:, 32:64] = 0.0
    weights["ffn_up.weight"][7] = 0.0
    weights["attn_v.weight"][3] = 0.0
    target = probe.change(weights)
    assert output_error(probe, target, weights, clip=True, scale=True) < output_error(
        probe, target, weights, clip=False, scale=False
    )


def test_one_token_is_enough_to_run() -> None:
    torch.manual_seed(5)
    a = architecture()
    weights, probe = random_weights(a), probe_of(a, blocks=1, tokens=1)
    awq.search_scales(probe, weights, statistics_of(probe, weights, 32), QUANTISER, PLAN)


def searched(
    seed: int, plan: methods.Plan, quantiser: Quantiser = QUANTISER, **changes: object
) -> tuple[Probe, Weights, Weights, dict[str, Choice]]:
    """A random layer's probe, its weights before and after a search, and what was chosen."""
    torch.manual_seed(seed)
    a = architecture(**changes)
    weights, probe = random_weights(a), probe_of(a, blocks=4)
    original = {name: tensor.clone() for name, tensor in weights.items()}
    choices = awq.search_scales(probe, weights, statistics_of(probe, weights, 32), quantiser, plan)
    return probe, original, weights, choices


def test_without_duo_only_inputs_make_scales() -> None:
    plain = AWQ.plan(3, ("duo",))
    both = [searched(seed, PLAN)[3] for seed in (20, 21)]
    alone = [searched(seed, plain)[3] for seed in (20, 21)]
    assert "duo" in {choice.kind for choices in both for choice in choices.values()}
    assert {choice.kind for choices in alone for choice in choices.values()} <= {"plain", "none"}
    for choices, fewer in zip(both, alone):
        assert all(choices[group].gain >= fewer[group].gain for group in choices)


@pytest.mark.parametrize("kv_heads", [2, 6])
def test_without_values_those_that_heads_share_stay_unscaled(kv_heads: int) -> None:
    """Unshared values are scaled in the paper too."""
    _, original, weights, choices = searched(22, AWQ.plan(3, ("values",)), kv_heads=kv_heads)
    *_, as_ever, default = searched(22, PLAN, kv_heads=kv_heads)
    shared = kv_heads < 6
    assert (choices["output"].kind == "none") == shared
    assert default["output"].kind != "none"
    assert {**choices, "output": default["output"]} == default
    # The values' own columns are scaled with those of queries and keys: their rows are not.
    assert torch.equal(weights["attn_output.weight"], original["attn_output.weight"]) == shared
    assert torch.equal(weights["attn_v.weight"], as_ever["attn_v.weight"]) != shared


def test_value_heads_get_one_scale_for_all_their_readers() -> None:
    torch.manual_seed(6)
    candidates = candidates_of(torch.rand(72) + 0.01, torch.randn(8, 72))
    seen = set()
    for choice, scales in awq._shared_among_heads(candidates, 2, 3, 12):
        by_head = scales.reshape(2, 3, 12)
        assert torch.equal(by_head, by_head[:, :1].expand_as(by_head))
        seen.add(choice.sharing)
    assert seen == {"", "max", "mean"}


def clip_error(weight: torch.Tensor, x: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
    """The definition: mean over tokens of the squared partial dot product, per row and group."""
    difference = QUANTISER.round_trip(weight, limits) - weight
    groups = [slice(at, at + 32) for at in range(0, weight.shape[1], 32)]
    parts = [(x[:, g] @ difference[:, g].T).square().mean(dim=0) for g in groups]
    return torch.stack(parts, dim=1)


def clip_case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights, inputs and the inputs' mean products; groups lean to one side."""
    torch.manual_seed(7)
    weight, x = torch.randn(9, 100) + 0.3, torch.randn(50, 100)
    weight[:, ::13] *= 4.0
    statistics = InputStatistics(100, 32, torch.device("cpu"))
    statistics.update(x)
    return weight, x, statistics.mean_products()


def test_clip_minimises_each_groups_share_of_the_output() -> None:
    weight, x, products = clip_case()
    limits = awq.clip_limits(weight, products, QUANTISER, apart=False)
    assert torch.equal(limits[..., 0], -limits[..., 1])
    largest = grouped.group_maxima(weight, 32)
    both = torch.stack([-largest, largest], dim=2)
    best = clip_error(weight, x, limits)
    for step in range(10):
        assert bool((best <= clip_error(weight, x, both * (1 - step / 20)) * 1.0001).all())
    assert bool((limits[..., 1] < largest).any())
    assert bool((limits[..., 1] >= 0.55 * largest * 0.999).all())


def test_limits_chosen_apart_are_better() -> None:
    weight, x, products = clip_case()
    whole = grouped.group_ranges(weight, 32)
    limits = awq.clip_limits(weight, products, QUANTISER)
    best = clip_error(weight, x, limits)
    for low in awq._COARSE_SHARES:
        for high in awq._COARSE_SHARES:
            shares = torch.tensor([low, high])
            assert bool((best <= clip_error(weight, x, whole * shares) * 1.0001).all())
    together = clip_error(weight, x, awq.clip_limits(weight, products, QUANTISER, apart=False))
    assert float(best.sum()) < 0.97 * float(together.sum())
    inside = limits.abs() <= whole.abs() * 1.0001
    assert bool((inside & (limits.abs() >= 0.5499 * whole.abs())).all())
    assert bool((limits[..., 0] * whole[..., 1] != limits[..., 1] * whole[..., 0]).any())


def test_clip_is_skipped_for_queries_and_keys_by_exact_name() -> None:
    assert awq.NEVER_CLIPPED == {"attn_q", "attn_k", "cross_attn_q"}
    clipped = [name for name in stages.matrices(architecture(), 0) if name not in awq.NEVER_CLIPPED]
    assert clipped == ["attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]


def test_tiny_activations_still_choose_a_clip() -> None:
    """In fp16 their squares would vanish and no clip would win every tie."""
    torch.manual_seed(8)
    weight, x = torch.randn(6, 64), torch.randn(40, 64)
    limits = []
    for size in (1.0, 1e-6):
        statistics = InputStatistics(64, 32, torch.device("cpu"))
        statistics.update(size * x)
        limits.append(awq.clip_limits(weight, statistics.mean_products(), QUANTISER))
    assert torch.equal(limits[0], limits[1])
