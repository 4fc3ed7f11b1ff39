"""The AWQ search: every pitfall of other implementations that applies here, by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch")

from awq_edge import torch_decoder  # noqa: E402  (after the check that torch is there)
from awq_edge.architecture import Architecture  # noqa: E402
from awq_edge.errors import InternalError  # noqa: E402
from awq_edge.quantize import awq, grouped, methods  # noqa: E402
from awq_edge.quantize.calibration import InputStatistics  # noqa: E402

QUANTISER = awq.Quantiser(3, 32)
PLAN = methods.plan("awq", 3)


def architecture(**changes: object) -> Architecture:
    plain = Architecture(
        layers=1,
        hidden_size=72,  # no multiple of any group size
        vocabulary_size=11,
        context_length=64,
        heads=6,
        kv_heads=2,
        head_size=12,
        feed_forward_size=100,
        norm_epsilon=1e-5,
        rope_theta=1000.0,
    )
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def random_weights(a: Architecture) -> awq.Weights:
    weights = {}
    for name in torch_decoder.layer_tensor_names(a):
        shape = torch_decoder.tensor_shape(a, name)
        weights[name] = (
            torch.randn(shape) / shape[-1] ** 0.5 if len(shape) == 2 else torch.randn(shape)
        )
        if "norm" in name:
            weights[name] = 1 + 0.3 * torch.randn(shape)
    return weights


def probe_of(a: Architecture, blocks: int = 3, tokens: int = 20) -> awq.Probe:
    """Hidden states with a few large channels, as trained models have them."""
    hidden = torch.randn(blocks, tokens, a.hidden_size)
    hidden[..., ::17] *= 12.0
    positions = torch_decoder.Positions.first(tokens, torch.from_numpy(a.inverse_frequencies()))
    return awq.Probe(a, 0, hidden, positions)


def statistics_of(probe: awq.Probe, weights: awq.Weights) -> dict[str, InputStatistics]:
    a = probe.architecture
    plain = torch_decoder.plain_linear(weights)
    statistics: dict[str, InputStatistics] = {}

    def recording(name: str, x: torch.Tensor) -> torch.Tensor:
        if name in set(awq.INPUT_OF.values()):
            statistics[name] = InputStatistics(x.shape[-1], 32, torch.device("cpu"))
            statistics[name].update(x)
        return plain(name, x)

    torch_decoder.decoder_layer(a, 0, weights, recording, probe.hidden, probe.positions)
    return statistics


def output_error(
    probe: awq.Probe, target: torch.Tensor, weights: awq.Weights, clip: bool, scale: bool
) -> float:
    weights = dict(weights)
    statistics = statistics_of(probe, weights)
    if scale:
        awq.search_scales(probe, weights, statistics, QUANTISER, PLAN)
    for name in torch_decoder.LINEARS:
        limits = None
        if clip and name not in awq.NEVER_CLIPPED:
            products = statistics[awq.INPUT_OF[name]].mean_products()
            limits = awq.clip_limits(weights[f"{name}.weight"], products, QUANTISER)
        weights[f"{name}.weight"] = QUANTISER.round_trip(weights[f"{name}.weight"], limits)
    return float((awq.layer_output(probe, weights) - target).square().mean())


def test_scale_and_clip_beat_rounding_to_nearest() -> None:
    torch.manual_seed(0)
    a = architecture()
    weights, probe = random_weights(a), probe_of(a)
    target = awq.layer_output(probe, weights)
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
    before = awq.layer_output(probe, weights)
    original = {name: tensor.clone() for name, tensor in weights.items()}
    choices = awq.search_scales(probe, weights, statistics_of(probe, weights), QUANTISER, PLAN)
    assert set(choices) == {"qkv", "output", "gate_up", "down"}
    assert any(choice.kind != "none" for choice in choices.values())
    assert any(not torch.equal(weights[name], original[name]) for name in weights)
    after = awq.layer_output(probe, weights)
    assert float((after - before).abs().max()) < 1e-5 * float(before.abs().max())


def test_every_fold_is_checked() -> None:
    torch.manual_seed(1)
    a = architecture()
    weights, probe = random_weights(a), probe_of(a)
    before = awq.layer_output(probe, weights)
    awq.check_fold(probe, weights, before, "qkv")
    # A fold that forgets one of the norm's readers.
    scales = 1 + torch.rand(a.hidden_size)
    awq.fold_norm(weights, "ffn_norm", ("ffn_gate",), scales)
    with pytest.raises(InternalError, match="group gate_up changed the output of layer 0"):
        awq.check_fold(probe, weights, before, "gate_up")


def test_a_fold_that_gives_nan_is_refused() -> None:
    a = architecture()
    weights, probe = random_weights(a), probe_of(a)
    before = awq.layer_output(probe, weights)
    weights["attn_norm.weight"] = weights["attn_norm.weight"] * torch.nan
    with pytest.raises(InternalError, match="group qkv"):
        awq.check_fold(probe, weights, before, "qkv")


def candidates_of(
    magnitudes: torch.Tensor, weight: torch.Tensor
) -> Iterator[tuple[awq.Choice, torch.Tensor]]:
    return awq._candidates(magnitudes, weight, 32, awq._EXPONENTS, duo=True)


def test_identity_comes_first_and_wins_ties() -> None:
    """Where scaling cannot help (every candidate is as good), nothing is scaled."""
    candidates = list(candidates_of(torch.rand(72) + 0.1, torch.randn(5, 72)))
    assert candidates[0][0].kind == "none"
    assert torch.equal(candidates[0][1], torch.ones(72))
    kinds = {(choice.kind, choice.exponent) for choice, _ in candidates}
    assert len(kinds) == len(candidates) == 1 + 19 + 20
    for joint in (False, True):
        for error in (1.0, torch.nan):
            choice, scales = awq._best(
                lambda exponents: iter(candidates), lambda *_, error=error: error, joint, False
            )
            assert choice.kind == "none" and torch.equal(scales, torch.ones(72))


def test_joint_search_judges_scales_by_clipped_weights() -> None:
    """The best scale without clipping is not the best one with it."""
    candidates = [
        (awq.Choice("plain", step / 20), torch.full((8,), 1.0 + step)) for step in range(9)
    ]
    candidates[0] = (awq.Choice("none", 0.0), torch.ones(8))

    def error(scales: torch.Tensor, clipped: bool) -> float:
        return abs(float(scales[0]) - (6.0 if clipped else 4.0)) + 1.0

    alone, jointly = (
        awq._best(lambda exponents: iter(candidates), error, joint, finer=False)[0]
        for joint in (False, True)
    )
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
    target = awq.layer_output(probe, weights)
    assert output_error(probe, target, weights, clip=True, scale=True) < output_error(
        probe, target, weights, clip=False, scale=False
    )


def test_one_token_is_enough_to_run() -> None:
    torch.manual_seed(5)
    a = architecture()
    weights, probe = random_weights(a), probe_of(a, blocks=1, tokens=1)
    awq.search_scales(probe, weights, statistics_of(probe, weights), QUANTISER, PLAN)


def searched(
    seed: int, plan: methods.Plan, quantiser: awq.Quantiser = QUANTISER, **changes: object
) -> tuple[awq.Probe, awq.Weights, awq.Weights, dict[str, awq.Choice]]:
    """A random layer's probe, its weights before and after a search, and what was chosen."""
    torch.manual_seed(seed)
    a = architecture(**changes)
    weights, probe = random_weights(a), probe_of(a, blocks=4)
    original = {name: tensor.clone() for name, tensor in weights.items()}
    choices = awq.search_scales(probe, weights, statistics_of(probe, weights), quantiser, plan)
    return probe, original, weights, choices


def test_without_duo_only_inputs_make_scales() -> None:
    plain = methods.plan("awq", 3, ("duo",))
    both = [searched(seed, PLAN)[3] for seed in (20, 21)]
    alone = [searched(seed, plain)[3] for seed in (20, 21)]
    assert "duo" in {choice.kind for choices in both for choice in choices.values()}
    assert {choice.kind for choices in alone for choice in choices.values()} <= {"plain", "none"}
    for choices, fewer in zip(both, alone):
        assert all(choices[group].gain >= fewer[group].gain for group in choices)


@pytest.mark.parametrize("kv_heads", [2, 6])
def test_without_values_those_that_heads_share_stay_unscaled(kv_heads: int) -> None:
    """Unshared values are scaled in the paper too."""
    _, original, weights, choices = searched(
        22, methods.plan("awq", 3, ("values",)), kv_heads=kv_heads
    )
    *_, as_ever, default = searched(22, PLAN, kv_heads=kv_heads)
    shared = kv_heads < 6
    assert (choices["output"].kind == "none") == shared
    assert default["output"].kind != "none"
    assert {**choices, "output": default["output"]} == default
    # The values' own columns are scaled with those of queries and keys: their rows are not.
    assert torch.equal(weights["attn_output.weight"], original["attn_output.weight"]) == shared
    assert torch.equal(weights["attn_v.weight"], as_ever["attn_v.weight"]) != shared


def test_finer_exponents_lie_around_the_best() -> None:
    finer = methods.plan("awq", 3, extra=("exponents",))
    off_the_grid = 0
    for seed in (23, 24):
        *_, coarse = searched(seed, PLAN)
        *_, fine = searched(seed, finer)
        for group, choice in fine.items():
            assert choice.gain >= coarse[group].gain
            assert choice.exponent * 80 == pytest.approx(round(choice.exponent * 80))
            assert abs(choice.exponent - coarse[group].exponent) < 0.04
            off_the_grid += abs(choice.exponent * 20 - round(choice.exponent * 20)) > 0.1
    assert off_the_grid >= 4  # of 8 groups


def test_finer_exponents_are_judged_as_the_others() -> None:
    """With clipped weights if the search is joint, and never below 0."""
    tried: list[tuple[float, bool]] = []

    def candidates(
        exponents: tuple[float, ...], best: float
    ) -> Iterator[tuple[awq.Choice, torch.Tensor]]:
        for exponent in exponents:
            kind = "none" if exponent == 0.0 else "plain"
            yield awq.Choice(kind, exponent), torch.tensor([exponent, best])

    def error(scales: torch.Tensor, clipped: bool) -> float:
        tried.append((float(scales[0]), clipped))
        return abs(float(scales[0] - scales[1]))

    for best, around in ((0.61, [0.575, 0.625, 0.5875, 0.6125]), (0.0, [0.025, 0.0125])):
        for joint in (False, True):
            tried.clear()
            choice, _ = awq._best(lambda e, b=best: candidates(e, b), error, joint, finer=True)
            assert choice.exponent == pytest.approx({0.61: 0.6125}.get(best, 0.0))
            assert tried[-len(around) :] == [(pytest.approx(e), joint) for e in around]


def test_rounded_activations_have_a_say_in_the_scales() -> None:
    """Weights that need no scales, being rounded already, get some for their inputs' sake."""
    torch.manual_seed(25)
    a, quantiser = architecture(), awq.Quantiser(8, 32)
    probe = probe_of(a)
    original = {
        name: quantiser.round_trip(tensor) if tensor.dim() == 2 else tensor
        for name, tensor in random_weights(a).items()
    }
    target = awq.layer_output(probe, original)

    def found(extra: tuple[str, ...]) -> tuple[set[str], float]:
        """The kinds of scales, and the layer's error as the runtime computes it."""
        weights, plan = dict(original), methods.plan("awq", 8, extra=extra)
        statistics = statistics_of(probe, weights)
        choices = awq.search_scales(probe, weights, statistics, quantiser, plan)
        for name in torch_decoder.LINEARS:
            weights[f"{name}.weight"] = quantiser.round_trip(weights[f"{name}.weight"])
        linear = torch_decoder.plain_linear(weights)

        def at_run_time(name: str, x: torch.Tensor) -> torch.Tensor:
            return linear(name, torch_decoder.rounded(x, 32))

        error = float((awq.layer_change(probe, weights, at_run_time) - target).norm())
        return {choice.kind for choice in choices.values()}, error

    kinds, error = found(())
    kinds_for_inputs, error_for_inputs = found(("activations",))
    assert kinds == {"none"} and kinds_for_inputs > {"none"}
    assert error_for_inputs < 0.95 * error


def test_more_tokens_reach_the_feed_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """The walk gives the probe more of them; the sample of the feed-forward grows with it."""
    monkeypatch.setattr(awq, "_FEED_FORWARD_TOKENS", 10)
    feed_forward = torch_decoder.feed_forward
    seen: set[int] = set()

    def counting(linear: torch_decoder.Linear, x: torch.Tensor) -> torch.Tensor:
        if x.dim() == 2:
            seen.add(len(x))
        return feed_forward(linear, x)

    monkeypatch.setattr(torch_decoder, "feed_forward", counting)
    for extra, tokens in (((), 10), (("tokens",), 40)):
        seen.clear()
        searched(26, methods.plan("awq", 3, extra=extra))  # 80 tokens
        assert seen == {tokens}


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
    assert awq.NEVER_CLIPPED == {"attn_q", "attn_k"}
    clipped = [name for name in torch_decoder.LINEARS if name not in awq.NEVER_CLIPPED]
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


def test_statistics_of_parts_are_those_of_the_whole() -> None:
    torch.manual_seed(9)
    x = torch.randn(30, 50)
    whole, parts = (InputStatistics(50, 32, torch.device("cpu")) for _ in range(2))
    whole.update(x)
    parts.update(x[:7].reshape(1, 7, 50))
    parts.update(x[7:])
    assert whole.tokens == parts.tokens == 30
    assert torch.allclose(whole.mean_absolute(), parts.mean_absolute(), rtol=1e-5)
    assert torch.allclose(whole.mean_products(), parts.mean_products(), rtol=1e-4, atol=1e-6)
    expected = x[:, 32:].T @ x[:, 32:] / 30
    assert torch.allclose(whole.mean_products()[1, :18, :18], expected, rtol=1e-4, atol=1e-6)
    assert not bool(whole.mean_products()[1, 18:].any())


def test_statistics_follow_a_fold() -> None:
    torch.manual_seed(10)
    x, scales = torch.randn(30, 50), torch.rand(50) + 0.5
    folded, divided = (InputStatistics(50, 32, torch.device("cpu")) for _ in range(2))
    folded.update(x / scales)
    divided.update(x)
    divided.divide_by(scales)
    assert torch.allclose(folded.mean_absolute(), divided.mean_absolute(), rtol=1e-4)
    assert torch.allclose(folded.mean_products(), divided.mean_products(), rtol=1e-3, atol=1e-5)
