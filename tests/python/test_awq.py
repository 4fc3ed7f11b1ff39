"""The AWQ search: every pitfall of other implementations that applies here, by name."""

from __future__ import annotations

import dataclasses

import pytest

torch = pytest.importorskip("torch")

from awq_edge import torch_decoder  # noqa: E402  (after the check that torch is there)
from awq_edge.architecture import Architecture  # noqa: E402
from awq_edge.errors import InternalError  # noqa: E402
from awq_edge.quantize import awq, grouped  # noqa: E402
from awq_edge.quantize.calibration import InputStatistics  # noqa: E402

QUANTISER = awq.Quantiser(3, 32)


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
        awq.search_scales(probe, weights, statistics, QUANTISER)
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
    choices = awq.search_scales(probe, weights, statistics_of(probe, weights), QUANTISER)
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


def test_identity_comes_first_and_wins_ties() -> None:
    """Where scaling cannot help (every candidate is as good), nothing is scaled."""
    candidates = list(awq._candidates(torch.rand(72) + 0.1, torch.randn(5, 72), 32))
    assert candidates[0][0].kind == "none"
    assert torch.equal(candidates[0][1], torch.ones(72))
    kinds = {(choice.kind, choice.exponent) for choice, _ in candidates}
    assert len(kinds) == len(candidates) == 1 + 19 + 20
    for joint in (False, True):
        for error in (1.0, torch.nan):
            choice, scales = awq._best(
                iter(candidates), lambda scales, clipped: {}, lambda _, error=error: error, joint
            )
            assert choice.kind == "none" and torch.equal(scales, torch.ones(72))


def test_joint_search_judges_scales_by_clipped_weights() -> None:
    """The best scale without clipping is not the best one with it."""
    candidates = [
        (awq.Choice("plain", step / 20), torch.full((8,), 1.0 + step)) for step in range(9)
    ]
    candidates[0] = (awq.Choice("none", 0.0), torch.ones(8))

    def rounded(scales: torch.Tensor, clipped: bool) -> awq.Weights:
        return {"clipped": torch.tensor(clipped), "scale": scales[0]}

    def error(weights: awq.Weights) -> float:
        best = 6.0 if bool(weights["clipped"]) else 4.0
        return float((weights["scale"] - best).abs()) + 1.0

    alone, _ = awq._best(iter(candidates), rounded, error, joint=False)
    jointly, _ = awq._best(iter(candidates), rounded, error, joint=True)
    assert (alone.exponent, jointly.exponent) == (3 / 20, 4 / 20)  # of the best four without
    assert jointly.gain == pytest.approx(1 - 2 / 6)  # beside identity, clipped too


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e4])
def test_scales_do_not_depend_on_the_activations_unit(size: float) -> None:
    torch.manual_seed(2)
    magnitudes, weight = torch.rand(64) + 0.1, torch.randn(6, 64)
    for (choice, scales), (_, resized) in zip(
        awq._candidates(magnitudes, weight, 32), awq._candidates(size * magnitudes, weight, 32)
    ):
        assert torch.allclose(scales, resized, rtol=1e-3), choice


def test_dead_channels_and_zero_groups_give_finite_scales() -> None:
    torch.manual_seed(3)
    magnitudes = torch.rand(96)
    magnitudes[:40] = 0.0
    weight = torch.randn(4, 96)
    weight[:, 32:64] = 0.0
    for _, scales in awq._candidates(magnitudes, weight, 32):
        assert bool(torch.isfinite(scales).all()) and float(scales.min()) > 0
        assert torch.equal(scales[:40], torch.ones(40))
    assert len(list(awq._candidates(torch.zeros(96), weight, 32))) == 1


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
    awq.search_scales(probe, weights, statistics_of(probe, weights), QUANTISER)


def test_value_heads_get_one_scale_for_all_their_readers() -> None:
    torch.manual_seed(6)
    candidates = awq._candidates(torch.rand(72) + 0.01, torch.randn(8, 72), 32)
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
