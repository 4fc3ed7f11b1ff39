"""A mixture of experts on its way into a model file: routing, folds, calibration, few tokens."""

from __future__ import annotations

import dataclasses
import weakref
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from decoder_layers import (  # noqa: E402  (after the check that torch is there)
    architecture,
    probe_of,
    random_weights,
    statistics_of,
)

from awq_edge import stages, torch_decoder, torch_router  # noqa: E402
from awq_edge.architecture import Architecture  # noqa: E402
from awq_edge.errors import UnsupportedError  # noqa: E402
from awq_edge.quantize import awq, methods, pivots, scales  # noqa: E402
from awq_edge.quantize.grouped import Quantiser  # noqa: E402
from awq_edge.quantize.probe import Probe, Weights  # noqa: E402


def mixture(**changes: object) -> Architecture:
    fields = dict(
        experts=5,
        experts_per_token=2,
        expert_size=40,
        shared_expert_size=33,
        shared_router=True,
        routing="softmax_renormalised",
    )
    return architecture(**{**fields, **changes})


def mixture_weights(a: Architecture) -> Weights:
    weights = random_weights(a)
    for name in ("ffn_router.weight", "shared_router.weight"):
        if name in weights:
            weights[name] = weights[name] / a.hidden_size**0.5
    return weights


def plainly_routed(a: Architecture, logits: torch.Tensor) -> list[dict[int, float]]:
    """The shares of each row's experts, one number at a time."""
    found = []
    for row in logits.double().tolist():
        left = list(range(a.experts))
        shares: dict[int, float] = {}
        weights = torch.softmax(torch.tensor(row), 0).tolist()
        for _ in range(a.experts_per_token):
            best = max(left, key=lambda e: (row[e], -e))
            if a.routing == "sparsemixer":
                near = [
                    e
                    for e in left
                    if row[best] - row[e] <= 2 * a.router_epsilon * max(abs(row[e]), row[best])
                ]
                total = sum(torch.tensor(row[e]).exp().item() for e in near)
                shares[best] = torch.tensor(row[best]).exp().item() / total
            else:
                shares[best] = weights[best]
            left.remove(best)
        if a.routing == "softmax_renormalised":
            whole = sum(shares.values())
            shares = {expert: share / whole for expert, share in shares.items()}
        found.append(shares)
    return found


@pytest.mark.parametrize("routing", ["softmax", "softmax_renormalised", "sparsemixer"])
def test_routing_follows_the_rules(routing: str) -> None:
    epsilon = 0.2 if routing == "sparsemixer" else 0.0
    a = mixture(routing=routing, router_epsilon=epsilon)
    torch.manual_seed(3)
    logits = torch.randn(50, a.experts).round(decimals=1)  # some are equal
    logits[0] = 1.0
    logits[1] = torch.tensor([-3.0, -1.0, -1.1, -5.0, -1.0])
    shares = torch_router.shares_of(a, logits)
    for row, expected in zip(shares, plainly_routed(a, logits)):
        assert {e for e in range(a.experts) if row[e] > 0} == set(expected)
        for expert, share in expected.items():
            assert float(row[expert]) == pytest.approx(share, rel=1e-5)


def test_a_mixture_is_the_weighted_sum_of_its_experts() -> None:
    torch.manual_seed(4)
    a = mixture()
    weights, sample = mixture_weights(a), probe_of(a)
    layer = sample.layer(weights)
    first = next(stage for stage in layer.stages if stage.routers)
    x = torch.randn(2, 7, a.hidden_size)
    rows = x.flatten(0, 1)

    def gated(name: str) -> torch.Tensor:
        gate, up, down = (weights[f"{name}.ffn_{part}.weight"] for part in ("gate", "up", "down"))
        return (torch.nn.functional.silu(rows @ gate.T) * (rows @ up.T)) @ down.T

    logits = rows @ weights["ffn_router.weight"].view(a.experts, -1).T
    shares = torch_router.shares_of(a, logits)
    expected = sum(shares[:, e, None] * gated(f"expert.{e}") for e in range(a.experts))
    share = (rows @ weights["shared_router.weight"]).sigmoid()
    expected = expected + share[:, None] * gated("shared")
    torch.testing.assert_close(layer.branch(first, x), expected.view(x.shape), rtol=1e-4, atol=1e-4)
    # A row's result is its own.
    alone = layer.branch(first, x[:1, 3:4])
    torch.testing.assert_close(alone, layer.branch(first, x)[:1, 3:4], rtol=1e-5, atol=1e-5)


def folded(search: str, a: Architecture, weights: Weights, sample: Probe) -> set[str]:
    """Names of the stages that were scaled."""
    quantiser = Quantiser(3, 32)
    if search == "outputs":
        plan = methods.METHODS["awq"].plan(3)
        statistics = statistics_of(sample, weights, 32)
        choices = awq.search_scales(sample, weights, statistics, quantiser, plan)
    else:
        quantisers = dict.fromkeys(stages.matrices(a, 0), quantiser)
        choices, _ = pivots.search_and_fold(sample, weights, quantisers, 0.1)
    return {name for name, choice in choices.items() if choice.kind != "none"}


@pytest.mark.parametrize("search", ["outputs", "pivots"])
def test_a_fold_reaches_router_and_shared_router(search: str) -> None:
    torch.manual_seed(5)
    a = mixture()
    weights, sample = mixture_weights(a), probe_of(a)
    original, before = dict(weights), sample.change(weights)
    first = next(stage for stage in sample.stages if stage.routers)

    def logits(held: Weights) -> torch.Tensor:
        layer = sample.layer(held)
        step = next(step for step in layer.steps(sample.hidden) if step.stage is first)
        return layer.router_logits(step.x)

    was = logits(weights)
    scaled = folded(search, a, weights, sample)
    assert {"gate_up", "expert.0.down", "expert.4.down", "shared.down"} <= scaled
    for name in ("ffn_norm.weight", "ffn_router.weight", "shared_router.weight"):
        assert not torch.equal(weights[name], original[name]), name
    assert torch.equal(
        weights["expert.2.ffn_gate.weight"] != 0, original["expert.2.ffn_gate.weight"] != 0
    )
    torch.testing.assert_close(logits(weights), was, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sample.change(weights), before, rtol=1e-3, atol=1e-3)


def test_a_fold_that_leaves_the_router_out_is_refused() -> None:
    torch.manual_seed(6)
    a = mixture()
    weights, sample = mixture_weights(a), probe_of(a)
    found = {
        stage.name: torch.ones(stages.input_width(a, stage)).uniform_(0.5, 2.0)
        if stage.name == "gate_up"
        else torch.ones(stages.input_width(a, stage))
        for stage in sample.stages
    }

    class Forgetful(dict[str, torch.Tensor]):
        def __setitem__(self, name: str, tensor: torch.Tensor) -> None:
            if name != "ffn_router.weight":
                super().__setitem__(name, tensor)

    with pytest.raises(UnsupportedError, match=r"Layer 0 .* inputs of gate_up"):
        scales.fold_all(sample, Forgetful(weights), found)


def test_experts_that_few_tokens_choose_read_the_next_likely_ones() -> None:
    a = mixture(routing="softmax")
    torch.manual_seed(7)
    logits = torch.randn(200, a.experts)
    logits[:, 3] -= 4.0  # hardly ever chosen
    logits[:, 4] = -torch.inf  # by nobody, ever
    chosen = torch_router.shares_of(a, logits) > 0
    floors = torch_router.floors_of(logits, chosen, 30)
    routed = torch_router.routes(a, logits, None, floors)
    assert torch.equal(routed.chosen(), chosen)
    counts = routed.reached.sum(dim=0).tolist()
    assert counts[:3] == chosen.sum(dim=0).tolist()[:3]
    assert counts[3] >= 30 > int(chosen[:, 3].sum())
    likeliest = torch.softmax(logits, dim=-1)[:, 3].topk(30).indices
    assert bool(routed.reached[likeliest, 3].all())
    assert counts[4] == 0 and bool(torch.isinf(floors[4]))
    rows = routed.rows(3)
    assert rows is not None
    extra = [row for row in rows.tolist() if not chosen[row, 3]]
    assert extra and not bool(routed.shares[extra, 3].any())


@pytest.mark.parametrize("search", ["outputs", "pivots"])
def test_an_expert_without_tokens_stays_unscaled(search: str) -> None:
    torch.manual_seed(8)
    a = mixture(routing="softmax")
    weights, sample = mixture_weights(a), probe_of(a)
    router = weights["ffn_router.weight"].view(a.experts, -1)
    router[2] = 0.0
    sample = dataclasses.replace(sample, floors=torch.full((a.experts,), torch.inf))
    # Every other expert is as likely or likelier for all rows.
    router[[0, 1, 3, 4]] = router[[0, 1, 3, 4]].abs()
    hidden = sample.hidden.abs()
    weights["ffn_norm.weight"] = weights["ffn_norm.weight"].abs()
    weights["attn_output.weight"] = weights["attn_output.weight"] * 0
    sample = dataclasses.replace(sample, hidden=hidden)
    assert len(sample.inputs(weights)["expert.2.down"]) == 0
    original = dict(weights)
    scaled = folded(search, a, weights, sample)
    assert "expert.2.down" not in scaled and "expert.1.down" in scaled
    assert torch.equal(weights["expert.2.ffn_down.weight"], original["expert.2.ffn_down.weight"])
    assert bool(torch.isfinite(sample.change(weights)).all())


def test_experts_are_read_one_by_one(tmp_path: Path) -> None:
    """Weights that do not fit are read again as they were left, changed or not."""
    pytest.importorskip("transformers")
    import checkpoints
    import expert_models

    from awq_edge.conversion.layer_weights import LayerWeights
    from awq_edge.float_model import open_float_model

    model = expert_models.random_model("qwen2_moe-renormalised")
    source = open_float_model(str(checkpoints.save(model, tmp_path / "float")))
    whole = source.layer(0)
    folder = tmp_path / "work"
    folder.mkdir()
    size = whole["expert.0.ffn_up.weight"].nbytes
    weights = LayerWeights(source, 0, torch.device("cpu"), folder, budget_bytes=3 * size)
    assert list(weights) == list(whole) and len(weights) == len(whole)
    for name, tensor in whole.items():
        assert torch.equal(weights[name], tensor)
    assert not list(folder.iterdir())  # nothing has changed
    changed = {name: tensor * 2 for name, tensor in whole.items() if "expert.1" in name}
    changed["attn_norm.weight"] = whole["attn_norm.weight"] + 1
    weights.update(changed)
    for _ in range(2):
        for name, tensor in whole.items():
            assert torch.equal(weights[name], changed.get(name, tensor)), name
    assert 0 < len(list(folder.iterdir())) <= 3
    with pytest.raises(KeyError):
        weights["expert.9.ffn_up.weight"]
    assert "expert.9.ffn_up.weight" not in weights and "expert.5.ffn_up.weight" in weights
    weights.close()
    assert not list(folder.iterdir())


def test_widths_of_experts_are_measured_a_few_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the way back too, which needs all that the way there has read."""
    pytest.importorskip("transformers")
    import checkpoints
    import expert_models

    from awq_edge.calibration import sensitivity
    from awq_edge.conversion import layer_weights
    from awq_edge.conversion.layer_reader import LayerReader
    from awq_edge.float_model import FloatModel, open_float_model

    model = expert_models.random_model("qwen2_moe-renormalised")
    source = open_float_model(str(checkpoints.save(model, tmp_path / "float")))
    cpu, read = torch.device("cpu"), FloatModel.__call__
    blocks = torch.arange(60).reshape(4, 15) * 7 % source.architecture.vocabulary_size
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = 0

    def watched(self: FloatModel, name: str, device: torch.device | None = None) -> torch.Tensor:
        nonlocal most
        tensor = read(self, name, device)
        if ".expert." in name:
            alive.add(tensor)
            most = max(most, len(alive))
        return tensor

    def measured() -> sensitivity.Sensitivity:
        layers = LayerReader(source, cpu, tmp_path)
        return sensitivity.measure(source, layers, blocks, 32, cpu, 0.3)

    expected = measured()
    assert sum(".expert." in name for name in expected.harms) > 20
    monkeypatch.setattr(FloatModel, "__call__", watched)
    monkeypatch.setitem(layer_weights._BUDGET_BYTES, "cpu", 1)
    assert measured() == expected
    assert 0 < most <= 3  # what is read, what was read before, what is multiplied by


def test_what_is_multiplied_is_what_rows_reach() -> None:
    """The matrices of an expert multiply the rows that chose it, and no others."""
    torch.manual_seed(9)
    a = mixture(shared_expert_size=0, shared_router=False)
    weights, sample = mixture_weights(a), probe_of(a)
    plain = torch_decoder.plain_linear(weights)
    counts: dict[str, int] = {}

    def counting(name: str, x: torch.Tensor) -> torch.Tensor:
        counts[name] = counts.get(name, 0) + x[..., 0].numel()
        return plain(name, x)

    sample.layer(weights, counting).run(sample.hidden)
    tokens = sample.hidden[..., 0].numel()
    for part in ("ffn_gate", "ffn_up", "ffn_down"):
        total = sum(counts[f"expert.{e}.{part}"] for e in range(a.experts))
        assert total == a.experts_per_token * tokens
