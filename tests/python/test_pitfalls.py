"""Mistakes that other implementations made, each with a name.

A pitfall that another file tests already is named there: groups of one sign, dead channels and odd
sizes in ``test_grouped`` and ``test_awq``, the clip filter and the check of every fold in
``test_awq``, tied embeddings in ``test_conversion``, lists of modules
not to convert in ``test_interchange``. Families with offset norms, experts, fused matrices or gated
queries are refused by name; the last test here sees to that.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tokenizers")
pytest.importorskip("gguf")

import checkpoints  # noqa: E402  (after the checks for the packages of the extra convert)
from decoder_layers import architecture, probe_of, random_weights  # noqa: E402

from awq_edge import stages, torch_decoder  # noqa: E402
from awq_edge.calibration.distributed import Processes  # noqa: E402
from awq_edge.calibration.hidden_states import HiddenStates  # noqa: E402
from awq_edge.calibration.layer_states import LayerStates  # noqa: E402
from awq_edge.calibration.staged import StagedLayer  # noqa: E402
from awq_edge.conversion import Options, convert  # noqa: E402
from awq_edge.errors import UnsupportedError  # noqa: E402
from awq_edge.float_model import open_float_model  # noqa: E402
from awq_edge.model_file import read_dequantised  # noqa: E402
from awq_edge.quantize import gptq, grids, pivots  # noqa: E402
from awq_edge.quantize.grouped import Quantiser  # noqa: E402
from awq_edge.quantize.halves import Half  # noqa: E402
from awq_edge.quantize.probe import Probe  # noqa: E402
from awq_edge.quantize.statistics import Products  # noqa: E402
from awq_edge.stages import Origin, Stage, input_width  # noqa: E402
from awq_edge.torch_decoder import Layer  # noqa: E402


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_zero_point_stays_inside_the_range(bits: int, sign: float) -> None:
    """Searched grids too: a group of one sign must not saturate."""
    weight = sign * (0.5 + 0.1 * torch.rand(8, 64))
    for share in (1.0, 0.9):
        grid = grids.best(weight, torch.ones(64), bits, 32, (share,))
        error = (grid.rounded(weight).dequantise() - weight).abs()
        clipped = (1 - share) * 0.6  # what a narrower grid cannot reach
        assert float(error.max()) <= float(grid.scales.max()) + clipped
        assert bool((grid.zeros >= 0).all() and (grid.zeros <= grid.largest_code).all())


@pytest.mark.parametrize("repeats", [1, 2, 7])
def test_value_to_output_fold_under_grouped_query_attention(repeats: int) -> None:
    torch.manual_seed(repeats)
    a = architecture(heads=2 * repeats, kv_heads=2)
    weights = random_weights(a)
    probe = probe_of(a)
    before = probe.change(weights)
    quantisers = dict.fromkeys(stages.matrices(a, 0), Quantiser(3, 32))
    original = weights["attn_output.weight"].clone()
    pivots.search_and_fold(probe, weights, quantisers, 0.1)
    assert not torch.equal(weights["attn_output.weight"], original)
    torch.testing.assert_close(probe.change(weights), before, rtol=1e-3, atol=1e-3)


def test_probe_gets_what_the_matrix_reads() -> None:
    """The recorded inputs are the normed states, not the residual stream."""
    a = architecture()
    weights, probe = random_weights(a), probe_of(a)
    seen = {}
    plain = torch_decoder.plain_linear(weights)

    def recording(name: str, x: torch.Tensor) -> torch.Tensor:
        seen[name] = x
        return plain(name, x)

    probe.layer(weights, recording).run(probe.hidden)
    squares = probe.hidden.pow(2).mean(-1, keepdim=True)
    normed = probe.hidden / (squares + a.norm_epsilon).sqrt() * weights["attn_norm.weight"]
    torch.testing.assert_close(seen["attn_q"], normed)
    inputs = probe.inputs(weights)
    for stage in probe.stages:
        for name in stage.matrices:
            assert torch.equal(inputs[stage.name], seen[name])


def test_each_stage_sees_what_the_rounded_matrices_before_it_give(tmp_path: Path) -> None:
    a = architecture()
    weights, probe = random_weights(a), probe_of(a)
    hidden = probe.hidden.clone()
    floats = dict(weights)
    seen: dict[str, torch.Tensor] = {}

    def round_matrices(stage: Stage, part: tuple[str, ...], products: Half) -> None:
        for name in part:
            seen[name] = products.rows(slice(0, products.size))
            rounded = Quantiser(2, 32).round_trip(floats[f"{name}.weight"])
            weights[f"{name}.weight"] = rounded

    def place(name: str, width: int) -> HiddenStates:
        return HiddenStates(tmp_path / name, (*hidden.shape[:2], width), torch.device("cpu"))

    walked = Layer(a, 0, weights, probe.positions)
    kept = {
        stage.name: place(stage.name, input_width(a, stage))
        for stage in walked.stages
        if stage.origin is not Origin.STREAM
    }
    before, after = place("before", a.hidden_size), place("after", a.hidden_size)
    before.write(slice(0, 3), hidden)
    states, segments = (
        LayerStates(walked, before, after, kept),
        {0: [slice(0, 2)], 1: [slice(2, 3)]},
    )
    StagedLayer(states, segments, round_matrices, Processes().means).run()
    hidden = after.read(slice(0, 3))

    inputs = {}
    plain = torch_decoder.plain_linear(weights)  # rounded by now

    def recording(name: str, x: torch.Tensor) -> torch.Tensor:
        inputs[name] = x.reshape(-1, x.shape[-1]).double()
        return plain(name, x)

    exact = probe.layer(weights, recording).run(probe.hidden)
    torch.testing.assert_close(hidden, exact, rtol=1e-4, atol=1e-4)
    assert seen.keys() == inputs.keys()
    for name, products in seen.items():
        x = inputs[name]
        torch.testing.assert_close(products, x.T @ x / len(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e4])
def test_statistics_in_float32_survive_dead_and_extreme_channels(size: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = size * torch.randn(200, 64, generator=generator)
    x[:, 3] = 0
    weight = torch.randn(6, 64, generator=generator)
    weight[:, :32] = 0
    products = Products(64, torch.device("cpu"))
    products.add(x)
    hessian = gptq.Hessian.of(products.means())
    choice, found = pivots.search(weight, x, hessian.conditional(), Quantiser(3, 32))
    assert bool(torch.isfinite(found).all() and (found > 0).all()), choice
    assert bool(torch.isfinite(hessian.conditional()).all())


def test_a_large_input_leaves_its_neighbours_their_digits() -> None:
    """The runtime rounds a token's group with one step: an outlier of SmoothQuant takes it all."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(400, 128, generator=generator)
    x[:, [5, 77]] *= 60
    weight = torch.randn(64, 128, generator=generator)
    products = Products(128, torch.device("cpu"))
    products.add(x)
    costs = gptq.Hessian.of(products.means()).conditional()
    quantiser = Quantiser(8, 64)
    choice, found = pivots.search(weight, x, costs, quantiser)

    def error(scales: torch.Tensor) -> float:
        read = (x / scales).reshape(-1, 2, 64)
        steps = read.abs().amax(dim=2, keepdim=True) / 127
        rounded = ((read / steps).round() * steps).reshape(-1, 128)
        outputs = rounded @ quantiser.round_trip(weight * scales).T
        return float((outputs - x @ weight.T).square().mean())

    assert choice.size_exponent > 0
    assert error(found) < 0.1 * error(torch.ones(128))


def test_packed_values_are_those_that_the_next_layer_was_calibrated_on(tmp_path: Path) -> None:
    """One quantiser for the search and the file: the reported error is the file's own."""
    directory = checkpoints.save(checkpoints.random_model("llama"), tmp_path / "checkpoint")
    checkpoints.save_tokenizer(directory)
    options = Options(bits=3, group_size=32, samples=8, sequence_length=32)
    kept: list[dict[str, torch.Tensor]] = []
    original = Probe.change

    def keeping(
        probe: Probe, weights: dict[str, torch.Tensor], *linear: torch_decoder.Linear
    ) -> torch.Tensor:
        kept.append(dict(weights))
        return original(probe, weights, *linear)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Probe, "change", keeping)
        convert(str(directory), tmp_path / "m", options)
    packed = read_dequantised(tmp_path / "m").tensors
    architecture = open_float_model(str(directory)).architecture
    last = architecture.layers - 1
    for name in stages.matrices(architecture, last):
        stored = torch.from_numpy(packed[f"blk.{last}.{name}.weight"])
        assert torch.equal(stored, kept[-1][f"{name}.weight"])


def test_conversion_loads_no_modelling_code_of_transformers() -> None:
    """Its releases break hooks; what is never loaded cannot break."""
    program = (
        "import sys, awq_edge.conversion\n"
        "print([name for name in sys.modules if name.startswith('transformers.models')])"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, text=True
    ).stdout
    assert output.strip() == "[]"


@pytest.mark.parametrize(
    "family",
    [
        "DeepseekV3ForCausalLM",
        "GptOssForCausalLM",
        "Qwen3NextForCausalLM",
    ],
)
def test_families_whose_folds_are_not_known_are_refused(tmp_path: Path, family: str) -> None:
    """Latent attention, attention sinks, gated queries: folds of their own."""
    directory = checkpoints.save(checkpoints.random_model("llama"), tmp_path / "checkpoint")
    config = json.loads((directory / "config.json").read_text())
    config["architectures"] = [family]
    config["model_type"] = family[: -len("ForCausalLM")].lower()
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError):
        open_float_model(str(directory))
