"""Folds: legal ones keep the layer's function, and every one is checked."""

from __future__ import annotations

import dataclasses

import pytest

torch = pytest.importorskip("torch")

from decoder_layers import architecture, probe_of, random_weights  # noqa: E402  (after the check)

from awq_edge.errors import UnsupportedError  # noqa: E402
from awq_edge.quantize import scales  # noqa: E402


def test_every_fold_is_checked() -> None:
    torch.manual_seed(1)
    a = architecture()
    weights, probe = random_weights(a), probe_of(a)
    before = probe.change(weights)
    scales.check_fold(probe, weights, before, "qkv")
    # A fold that forgets one of the norm's readers.
    (stage,) = [stage for stage in probe.stages if stage.name == "gate_up"]
    forgetful = dataclasses.replace(stage, matrices=("ffn_gate",))
    scales.fold(a, forgetful, weights, 1 + torch.rand(a.hidden_size))
    with pytest.raises(UnsupportedError, match=r"Layer 0 .* inputs of gate_up"):
        scales.check_fold(probe, weights, before, "gate_up")


def test_a_fold_that_gives_nan_is_refused() -> None:
    a = architecture()
    weights, probe = random_weights(a), probe_of(a)
    before = probe.change(weights)
    weights["attn_norm.weight"] = weights["attn_norm.weight"] * torch.nan
    with pytest.raises(UnsupportedError, match="inputs of qkv"):
        scales.check_fold(probe, weights, before, "qkv")


@pytest.mark.parametrize("kv_heads", [6, 3, 1])
@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_any_scales_keep_the_float_function(kv_heads: int, biases: bool, qk_norm: bool) -> None:
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
    original, before = dict(weights), probe.change(weights)
    found = {name: 0.5 + torch.rand(x.shape[-1]) for name, x in probe.inputs(weights).items()}
    by_head = found["output"].view(kv_heads, -1, a.head_size)
    by_head[:] = by_head[:, :1].clone()
    scales.fold_all(probe, weights, found)
    divided = scales.divided_rows(probe, found)
    assert divided.keys() == {"attn_v", "ffn_up"}
    for name, factors in divided.items():
        assert factors.shape == weights[f"{name}.weight"].shape[:1]
    torch.testing.assert_close(
        weights["ffn_up.weight"],
        original["ffn_up.weight"] * found["gate_up"] / divided["ffn_up"][:, None],
    )
    after = probe.change(weights)
    assert float((after - before).abs().max()) < 1e-5 * float(before.abs().max())
    changed = {name for name in weights if not torch.equal(weights[name], original[name])}
    kept = {"attn_q_norm.weight", "attn_k_norm.weight", "attn_q.bias", "attn_k.bias"}
    kept |= {"attn_output.bias", "ffn_gate.bias", "ffn_down.bias"}
    assert changed == weights.keys() - kept
