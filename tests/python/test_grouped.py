"""The group quantiser: every pitfall that costs others accuracy or crashes them, by name."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from awq_edge import layouts  # noqa: E402  (after the check that torch is there)
from awq_edge.errors import UnsupportedError  # noqa: E402
from awq_edge.quantize import grouped  # noqa: E402

BITS = layouts.BITS


def largest_step(quantised: grouped.Quantised) -> float:
    return float(quantised.scales.float().max())


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", (32, 64, 128))
@pytest.mark.parametrize(("n", "k"), [(1, 1), (3, 31), (5, 33), (7, 172), (13, 257), (4, 160)])
def test_packed_codes_dequantise_to_what_the_search_saw(
    n: int, k: int, bits: int, group_size: int
) -> None:
    torch.manual_seed(n + k)
    weight = torch.randn(n, k)
    quantised = grouped.quantise(weight, bits, group_size)
    seen = grouped.round_trip(weight, bits, group_size)
    assert torch.equal(seen, quantised.dequantise())
    packed = layouts.pack(
        quantised.codes.numpy(), quantised.scales.numpy(), quantised.zeros.numpy(), bits, group_size
    )
    assert np.array_equal(layouts.unpack(packed).dequantise(), seen.numpy())


@pytest.mark.parametrize("bits", BITS)
def test_error_is_at_most_half_a_step(bits: int) -> None:
    """Where rounding the scale to fp16 shortens the range, the ends lose up to 2**bits * 2**-11."""
    torch.manual_seed(0)
    weight = torch.randn(64, 256)
    quantised = grouped.quantise(weight, bits, 64)
    steps = quantised.scales.float().repeat_interleave(64, dim=1)
    error = (quantised.dequantise() - weight).abs() / steps
    # The zero-point is rounded too: an end of the range may then lie half a step outside.
    assert float(error.max()) <= 1.0 + 2.0**bits * 2.0**-11
    assert float(error.square().mean().sqrt()) == pytest.approx(12**-0.5, rel=0.05)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("sign", (1.0, -1.0))
def test_groups_of_one_sign_survive(bits: int, sign: float) -> None:
    torch.manual_seed(1)
    weight = sign * (0.5 + 0.1 * torch.rand(8, 128))
    quantised = grouped.quantise(weight, bits, 32)
    assert float((quantised.dequantise() - weight).abs().max()) <= largest_step(quantised)


@pytest.mark.parametrize("bits", BITS)
def test_zero_groups_stay_zero(bits: int) -> None:
    weight = torch.zeros(5, 96)
    weight[1, 40] = 3.0
    quantised = grouped.quantise(weight, bits, 32)
    assert torch.equal(quantised.dequantise() == 0, weight == 0)
    assert float(quantised.dequantise()[1, 40]) == pytest.approx(3.0, rel=1e-3)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("size", (1e-4, 1e-6, 2e-8, 1e-12, 1e-38))
def test_tiny_groups_neither_vanish_nor_divide_by_zero(bits: int, size: float) -> None:
    """An fp16 scale has a smallest step; nothing may be further off than that step."""
    torch.manual_seed(2)
    weight = size * torch.randn(4, 64)
    quantised = grouped.quantise(weight, bits, 32)
    back = quantised.dequantise()
    assert bool(torch.isfinite(back).all())
    assert bool((quantised.scales > 0).all())
    exact_step = float(weight.abs().max()) * 2 / (2**bits - 1)
    assert float((back - weight).abs().max()) <= exact_step + 2.0**-24


def test_weights_too_large_for_the_scale_are_an_error_that_names_the_matrix() -> None:
    weight = torch.full((2, 32), 2.0e6)
    with pytest.raises(UnsupportedError, match=r"blk\.0\.attn_q\.weight reach 2e\+06"):
        grouped.quantise(weight, 4, 32, name="blk.0.attn_q.weight")
    assert not bool(torch.isfinite(grouped.round_trip(weight, 4, 32)).all())


@pytest.mark.parametrize("bits", BITS)
def test_short_last_group_is_quantised_alone(bits: int) -> None:
    torch.manual_seed(3)
    weight = torch.randn(6, 100)
    whole = grouped.quantise(weight, bits, 64)
    tail = grouped.quantise(weight[:, 64:].contiguous(), bits, 64)
    assert torch.equal(whole.scales[:, 1:], tail.scales)
    assert torch.equal(whole.zeros[:, 1:], tail.zeros)
    assert torch.equal(whole.codes[:, 64:], tail.codes)


@pytest.mark.parametrize("bits", BITS)
def test_limits_clamp_before_the_range_is_taken(bits: int) -> None:
    torch.manual_seed(4)
    weight = torch.randn(8, 96)
    limits = grouped.group_ranges(weight, 32) * torch.tensor([0.6, 0.8])
    lowest, highest = (side.repeat_interleave(32, dim=1) for side in limits.unbind(dim=2))
    clamped = torch.minimum(torch.maximum(weight, lowest), highest)
    assert torch.equal(
        grouped.round_trip(weight, bits, 32, limits), grouped.round_trip(clamped, bits, 32)
    )
    assert torch.equal(
        grouped.quantise(weight, bits, 32, limits).dequantise(),
        grouped.round_trip(weight, bits, 32, limits),
    )


def test_row_scaling_leaves_the_codes_alone() -> None:
    """Folding 1/s into the rows of a matrix (v, up) costs no accuracy for powers of two."""
    torch.manual_seed(5)
    weight = torch.randn(6, 128)
    plain = grouped.quantise(weight, 4, 64)
    scaled = grouped.quantise(weight / 4.0, 4, 64)
    assert torch.equal(plain.codes, scaled.codes)
    assert torch.equal(plain.zeros, scaled.zeros)
    assert torch.equal(plain.scales, scaled.scales * 4)


def test_codes_are_chosen_for_the_rounded_scale() -> None:
    """With the exact scale, code 255 of 8 bits would be off by an eighth of a step at both ends."""
    torch.manual_seed(6)
    weight = torch.randn(64, 128)
    quantised = grouped.quantise(weight, 8, 128)
    scales, zeros = quantised.scales.float(), quantised.zeros.float()
    best = torch.round(weight / scales) + zeros
    assert torch.equal(quantised.codes.float(), best.clamp(0, 255))
