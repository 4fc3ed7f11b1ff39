"""Widths for a byte budget: the solver against all combinations, what is measured against what
rounding does; conversions to a size."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tokenizers")
pytest.importorskip("gguf")

import checkpoints  # noqa: E402  (after the checks for the packages of the extra convert)

from awq_edge import layouts, torch_decoder  # noqa: E402
from awq_edge.calibration import sensitivity  # noqa: E402
from awq_edge.conversion import Options, convert  # noqa: E402
from awq_edge.conversion.layer_reader import LayerReader  # noqa: E402
from awq_edge.errors import InvalidArgumentError  # noqa: E402
from awq_edge.float_model import open_float_model  # noqa: E402
from awq_edge.quantize import grouped  # noqa: E402
from awq_edge.quantize.budget import Item, smallest, solve  # noqa: E402

QUICK = dict(samples=6, sequence_length=24, group_size=32)


def items(seed: int, count: int = 5) -> list[Item]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number in range(count):
        weights = int(torch.randint(200, 5000, (1,), generator=generator))
        harm = float(torch.rand(1, generator=generator)) + 0.01
        made.append(
            Item(
                f"m{number}",
                {bits: weights * bits for bits in layouts.BITS},
                {bits: harm * 4.5**-bits for bits in layouts.BITS},
            )
        )
    return made


def harm(chosen: dict[str, int], of: list[Item]) -> float:
    return sum(item.harms[chosen[item.name]] for item in of)


def size(chosen: dict[str, int], of: list[Item]) -> int:
    return sum(item.sizes[chosen[item.name]] for item in of)


@pytest.mark.parametrize("seed", range(8))
def test_solution_fits_and_is_close_to_the_best_of_all(seed: int) -> None:
    of = items(seed)
    low, high = smallest(of), sum(item.sizes[8] for item in of)
    for part in (0.0, 0.2, 0.5, 0.8, 1.0):
        budget = int(low + part * (high - low))
        chosen = solve(of, budget)
        assert size(chosen, of) <= budget
        best = min(
            harm(widths, of)
            for combination in itertools.product(layouts.BITS, repeat=len(of))
            for widths in [dict(zip((item.name for item in of), combination))]
            if size(widths, of) <= budget
        )
        assert harm(chosen, of) <= 1.03 * best
    assert set(solve(of, high).values()) == {8}
    assert set(solve(of, low).values()) == {2}


def test_the_sensitive_matrix_gets_the_bits() -> None:
    robust = Item("robust", {2: 20, 4: 40}, {2: 0.1, 4: 0.05})
    fragile = Item("fragile", {2: 20, 4: 40}, {2: 9.0, 4: 0.5})
    assert solve([robust, fragile], 60) == {"robust": 2, "fragile": 4}


def test_a_width_that_is_larger_and_no_better_is_not_taken() -> None:
    item = Item("m", {2: 20, 3: 30, 4: 40}, {2: 1.0, 3: 0.2, 4: 0.3})
    assert solve([item], 100) == {"m": 3}


def test_harm_falls_evenly_over_sizes_where_two_tables_are_half_of_the_model() -> None:
    """As of a small model: a step of a table's is many of a matrix's, and none may be left over."""
    of = items(0, 70)
    tables = [
        Item(
            f"table {number}",
            {bits: 60_000 * bits for bits in layouts.BITS},
            {bits: 3.0 * 4.2**-bits for bits in layouts.BITS},
        )
        for number in range(2)
    ]
    whole = [*tables, *of]
    low, high = smallest(whole), sum(item.sizes[8] for item in whole)
    budgets = [int(low + part * (high - low) / 60) for part in range(61)]
    harms = [harm(solve(whole, budget), whole) for budget in budgets]
    assert harms == sorted(harms, reverse=True)
    # Convex but for the last step of a table's: no point lies far above a line beside it.
    for before, here, after in zip(harms, harms[2:], harms[4:]):
        assert here <= 1.06 * (before + after) / 2


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    directory = tmp_path / "checkpoint"
    checkpoints.save(checkpoints.random_model("llama"), directory)
    checkpoints.save_tokenizer(directory)
    return directory


def linear_widths(path: Path) -> list[tuple[int, int]]:
    """Weights and bits of every matrix of the decoder."""
    from gguf import GGUFReader

    return [
        (layout.n * layout.k, layout.bits)
        for tensor in GGUFReader(str(path)).tensors
        if tensor.name.startswith("blk.") and tensor.tensor_type.name == "I8"
        for layout in [layouts.read_header(tensor.data[: layouts.HEADER_BYTES].tobytes())]
    ]


@pytest.mark.parametrize("bits", [2.5, 3.5, 6.25])
def test_fraction_of_bits_is_the_mean_at_most(
    tmp_path: Path, checkpoint: Path, bits: float
) -> None:
    output = tmp_path / "m.gguf"
    convert(str(checkpoint), output, Options(bits=bits, **QUICK))
    widths = linear_widths(output)
    mean = sum(n * width for n, width in widths) / sum(n for n, _ in widths)
    assert bits - 0.5 < mean <= bits
    assert len({width for _, width in widths}) > 1


def test_file_has_at_most_the_size_and_uses_it(tmp_path: Path, checkpoint: Path) -> None:
    output = tmp_path / "m.gguf"
    whole = convert(str(checkpoint), output, Options(bits=8, **QUICK)).file_bytes
    low = convert(
        str(checkpoint),
        output,
        Options(bits=2, head_bits=2, embedding_bits=2, **QUICK),
        force=True,
    ).file_bytes
    for part in (0.3, 0.7):
        wanted = int(low + part * (whole - low))
        report = convert(str(checkpoint), output, Options(size=wanted, **QUICK), force=True)
        assert report.file_bytes <= wanted
        assert report.file_bytes > wanted - 0.25 * (whole - low)


def test_size_that_cannot_be_met_names_the_smallest(tmp_path: Path, checkpoint: Path) -> None:
    output = tmp_path / "m.gguf"
    with pytest.raises(InvalidArgumentError, match=r"smallest possible one has (\d+) bytes") as e:
        convert(str(checkpoint), output, Options(size=1000, **QUICK))
    assert list(tmp_path.glob("m.gguf*")) == []
    named = int(str(e.value).split(" has ")[1].split()[0])
    with pytest.raises(InvalidArgumentError, match="smallest possible"):
        convert(str(checkpoint), output, Options(size=named - 1, **QUICK))
    report = convert(str(checkpoint), output, Options(size=named, **QUICK))
    assert report.file_bytes == named


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bits": 1.5}, "2, 3, 4, 5, 6 or 8, or a number between"),
        ({"bits": 9}, "2, 3, 4, 5, 6 or 8, or a number between"),
        ({"bits": 3.5, "method": "rtn"}, "one width for all"),
        ({"size": 10**9, "method": "awq"}, "one width for all"),
    ],
)
def test_options_that_can_never_work(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        Options(**options)


@pytest.mark.parametrize("family", ["llama", "llama-tied", "gemma"])
def test_measured_harms_are_what_rounding_does_to_the_predictions(
    tmp_path: Path, family: str
) -> None:
    """Against the divergence of the model with one matrix rounded, every prediction made anew."""
    directory = tmp_path / "checkpoint"
    checkpoints.save(checkpoints.random_model(family), directory)
    source = open_float_model(str(directory))
    a = source.architecture
    generator = torch.Generator().manual_seed(1)
    blocks = torch.randint(0, a.vocabulary_size, (8, 48), generator=generator)
    cpu = torch.device("cpu")
    layers = LayerReader(source, cpu, tmp_path)
    measured = sensitivity.measure(source, layers, blocks, 32, cpu, 0.3)
    exact = torch_decoder.logits(source, a, blocks).log_softmax(-1)

    def divergence(name: str) -> float:
        rounded = grouped.round_trip(source(name), 3, 32)

        def weights(wanted: str, *device: torch.device) -> torch.Tensor:
            return rounded if wanted == name else source(wanted, *device)

        other = torch_decoder.logits(weights, a, blocks).log_softmax(-1)
        return float((exact.exp() * (exact - other)).sum(-1).mean())

    names = [name for name in source.tensor_names() if len(source.shape(name)) == 2]
    assert set(measured.harms) == set(names)
    shown = [name for name in names if name.startswith("blk.0.")]
    expected = {name: divergence(name) for name in shown}
    ratios = [measured.harms[name][3] / expected[name] for name in shown]
    # To nearest costs more than with compensation; nothing else lies between the two.
    assert all(0.1 < ratio < 2.5 for ratio in ratios), dict(zip(shown, ratios))
    assert 0 < measured.inputs < min(sum(harm[3] for harm in measured.harms.values()), 1.0)
