"""Codes and scales that learn: what a step does, and whole conversions with ``--effort high``."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("gguf")

import checkpoints  # noqa: E402  (after the checks for the packages of the extra convert)

from awq_edge import Model, model_file, torch_decoder  # noqa: E402
from awq_edge.calibration import distillation  # noqa: E402
from awq_edge.calibration import text as calibration_text  # noqa: E402
from awq_edge.calibration.distillation import Distillation, float_states  # noqa: E402
from awq_edge.calibration.hidden_states import HiddenStates  # noqa: E402
from awq_edge.conversion import Events, Options, convert, training  # noqa: E402
from awq_edge.errors import InvalidArgumentError, UnsupportedError  # noqa: E402
from awq_edge.float_model import FloatModel, open_float_model  # noqa: E402
from awq_edge.hf_tokenizer import tokenizer_of  # noqa: E402
from awq_edge.quantize import grouped, learned  # noqa: E402
from awq_edge.quantize.learned import LearnedMatrix  # noqa: E402
from awq_edge.stages import layer_tensor_names, matrices  # noqa: E402

HIGH = Options(effort="high", bits=2, group_size=32, samples=24, sequence_length=32)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Three rounds of few steps, after which codes turn all the same."""
    monkeypatch.setattr(learned, "_PLACE_RATE", 0.05)
    monkeypatch.setattr(training, "ROUNDS", 3)
    monkeypatch.setattr(training, "STEPS", 12)
    monkeypatch.setattr(training, "_TOKENS", 256)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Writes a random checkpoint with a tokenizer of single characters."""

    def make(family: str = "llama") -> Path:
        directory = tmp_path / "checkpoint"
        checkpoints.save(checkpoints.random_model(family), directory)
        vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
        vocabulary |= {chr(code): code - 29 for code in range(32, 127)}
        tokenizer = tokenizers.Tokenizer(
            tokenizers.models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>")
        )
        tokenizer.save(str(directory / "tokenizer.json"))
        return directory

    return make


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "calibration.txt"
    drawn = random.Random(0)
    words = ["".join(drawn.choices("abcdefghij", k=5)) for _ in range(60)]
    path.write_text(" ".join(drawn.choices(words, k=400)))
    return path


def rounded(n: int, k: int) -> tuple[torch.Tensor, grouped.Quantised]:
    """A float matrix, and the same at 3 bits in groups of 32."""
    weight = torch.randn(n, k, generator=torch.Generator().manual_seed(n + k))
    return weight, grouped.quantise(weight, 3, 32)


@pytest.mark.parametrize("k", [64, 80])  # whole groups, and a short last one
def test_slopes_are_those_of_scales(k: int) -> None:
    """Against what PyTorch derives from the formula of a weight."""
    _, matrix = rounded(4, k)
    gradient = torch.randn(4, k, generator=torch.Generator().manual_seed(1))
    logarithms = matrix.scales.float().log().requires_grad_()
    steps = matrix.codes.float() - matrix.zeros.float().repeat_interleave(32, dim=1)[:, :k]
    weights = steps * logarithms.exp().repeat_interleave(32, dim=1)[:, :k]
    weights.backward(gradient)
    found = learned.slopes(gradient, matrix.dequantise(), 32)
    assert logarithms.grad is not None
    assert torch.allclose(found, logarithms.grad, rtol=1e-4, atol=1e-5)


def test_steps_lower_an_outputs_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes and scales more than scales alone, from a few of many inputs at a time."""
    monkeypatch.setattr(learned, "_PLACE_RATE", 0.01)
    weight, matrix = rounded(16, 128)
    noise = torch.Generator().manual_seed(2)
    x = torch.randn(1000, 128, generator=noise)
    x += torch.randn(1000, 8, generator=noise) @ torch.randn(8, 128, generator=noise)

    def error_after(steps: int) -> float:
        learning = LearnedMatrix.beginning(matrix)
        for step in range(steps):
            some = x[torch.randint(1000, (100,), generator=noise)]
            weights = learning.rounded().dequantise()
            gradient = (weights - weight) @ some.T @ some
            learning.move(gradient, weights, 1.0 - step / steps)
        return float(((learning.rounded().dequantise() - weight) @ x.T).square().mean())

    before, after = error_after(0), error_after(200)
    monkeypatch.setattr(learned, "_PLACE_RATE", 0.0)
    by_scales = error_after(200)
    assert after < 0.75 * by_scales < 0.75 * before


def test_scales_keep_their_signs_and_stay_where_nothing_tells_of_them() -> None:
    matrix = grouped.Quantised(
        codes=torch.ones(1, 96, dtype=torch.uint8),
        scales=torch.tensor([[0.5, 0.25, 0.0]]).half(),
        zeros=torch.zeros(1, 3, dtype=torch.uint8),
        bits=3,
        group_size=32,
    )
    learning = LearnedMatrix.beginning(matrix)
    gradient = torch.cat([torch.full((1, 32), 1e3), torch.zeros(1, 32), torch.ones(1, 32)], dim=1)
    for _ in range(50):
        learning.move(gradient.clone(), learning.rounded().dequantise(), 20.0)
    assert learning.scales[0, 1:].tolist() == [0.25, 0.0]
    assert 0 < float(learning.scales[0, 0]) < 0.5
    codes = learning.rounded().codes[0]
    assert (codes[:32] == 0).all() and (codes[32:] == 1).all()


def test_a_code_turns_by_one_where_gradients_agree_and_stays_on_its_grid() -> None:
    codes = torch.tensor([[0, 3, 4, 7]], dtype=torch.uint8)
    ones = torch.ones(1, 1)
    matrix = grouped.Quantised(codes, ones.half(), ones.to(torch.uint8), 3, 32)
    for sign, turned in ((1.0, [0, 2, 3, 6]), (-1.0, [1, 4, 5, 7])):
        agreed, torn = LearnedMatrix.beginning(matrix), LearnedMatrix.beginning(matrix)
        for step in range(200):
            agreed.move(torch.full((1, 4), sign), torch.zeros(1, 4), 1.0)
            torn.move(torch.full((1, 4), sign * (-1) ** step), torch.zeros(1, 4), 1.0)
        assert agreed.rounded().codes[0].tolist() == turned
        assert torn.rounded().codes[0].tolist() == codes[0].tolist()
        assert torch.equal(agreed.rounded().zeros, matrix.zeros)


class Floats:
    """A float model as if it were packed, for comparisons with autograd."""

    def __init__(self, source: FloatModel, noise: float) -> None:
        generator = torch.Generator().manual_seed(0)
        self.tensors = {name: source(name) for name in source.tensor_names()}
        for name, values in self.tensors.items():
            if name.startswith("blk.") and values.dim() == 2:
                values += noise * torch.randn(values.shape, generator=generator)
        self._source = source

    def vector(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    def rows(self, name: str, numbers: torch.Tensor) -> torch.Tensor:
        return self.tensors[name][numbers]

    def head(self) -> torch.Tensor:
        return self.tensors["output.weight"]

    def layer(self, number: int) -> dict[str, torch.Tensor]:
        names = layer_tensor_names(self._source.architecture, number)
        return {name: self.tensors[f"blk.{number}.{name}"] for name in names}


@pytest.mark.parametrize("floats", [1 << 24, 1])  # blocks go through a layer together, and alone
def test_divergence_and_gradients_are_those_of_a_whole_graph(
    tmp_path: Path, checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, floats: int
) -> None:
    """Layer by layer and back, against one graph of PyTorch's; inputs not rounded in either."""
    monkeypatch.setitem(distillation._BATCH_FLOATS, "cpu", floats)
    monkeypatch.setattr(torch_decoder, "rounded", lambda x, group_size: x)
    source = open_float_model(str(checkpoint()))
    a = source.architecture
    packed = Floats(source, 0.02)
    blocks = torch.randint(3, 90, (3, 20), generator=torch.Generator().manual_seed(4))
    positions = source.positions(20)
    exact = HiddenStates(tmp_path / "exact", (3, 20, a.hidden_size), torch.device("cpu"))
    with torch.no_grad():
        float_states(source, blocks, positions, exact, lambda note: None)
    sizes = {name: 32 for name in source.tensor_names()}
    compared = Distillation(source, packed, sizes, blocks, positions, exact)
    heard: dict[str, torch.Tensor] = {}

    def hear(layer: int, name: str, gradient: torch.Tensor) -> None:
        heard[f"blk.{layer}.{name}.weight"] = gradient.clone()

    found = compared.learn([0, 2], hear)
    assert compared.divergence([0, 2]) == pytest.approx(found, rel=1e-5)

    moving = [f"blk.{n}.{name}.weight" for n in range(a.layers) for name in matrices(a, n)]
    for name in moving:
        packed.tensors[name].requires_grad_()
    monkeypatch.setattr(torch_decoder, "multiply", torch.nn.functional.linear)
    tokens = blocks[[0, 2]]
    states = packed.tensors["token_embd.weight"][tokens]
    for number in range(a.layers):
        layer = torch_decoder.Layer(a, number, packed.layer(number), positions)
        states = layer.run(states)
    normed = torch_decoder.ended(a, packed.vector, states)
    q = (normed @ packed.head().T).log_softmax(dim=-1)
    p = torch_decoder.logits(source, a, tokens).clone().log_softmax(dim=-1)
    expected = (p.exp() * (p - q)).sum(dim=-1).mean()
    expected.backward()
    assert found == pytest.approx(float(expected.detach()), rel=1e-5)
    for name in moving:
        reference = packed.tensors[name].grad
        assert reference is not None
        assert float((heard[name] - reference).norm()) < 1e-4 * float(reference.norm()), name


def test_high_effort_is_nearer_to_the_float_model_and_runs(
    tmp_path: Path, checkpoint: Callable[..., Path], text: Path
) -> None:
    source = str(checkpoint())
    options = dataclasses.replace(HIGH, calibration=text)
    steps: list[int] = []
    events = Events(step_done=lambda done, of, divergence: steps.append(done))
    report = convert(source, tmp_path / "high", options, events=events)
    convert(source, tmp_path / "auto", dataclasses.replace(options, effort="normal"))
    assert steps == list(range(1, 37))
    assert len(report.rounds) == 4
    assert min(report.rounds) < 0.99 * report.rounds[0]

    high, auto = (model_file.PackedFile(tmp_path / name) for name in ("high", "auto"))
    assert high.metadata["awq_edge.quantization.effort"] == "high"
    assert "awq_edge.quantization.effort" not in auto.metadata
    codes_turned = 0
    for name in high.names():
        if not name.startswith("blk.") or not high.is_packed(name):
            assert np.array_equal(high.floats(name), auto.floats(name)), name
            continue
        ours, theirs = high.matrix(name), auto.matrix(name)
        assert high.layout(name) == auto.layout(name)
        turned = np.abs(ours.codes.astype(int) - theirs.codes.astype(int))
        assert turned.max() <= 1, name
        codes_turned += int(turned.sum())
        assert np.array_equal(ours.zeros, theirs.zeros)
        assert not np.array_equal(ours.scales, theirs.scales), name
    assert codes_turned

    # What the runtime computes is what the rounds measured, but for the cache's fp16.
    floats = open_float_model(source)
    tokenizer = tokenizer_of(floats.checkpoint)
    assert tokenizer is not None
    words = calibration_text.read_text(text)
    blocks = calibration_text.token_blocks(tokenizer, words, 24 * training.TIMES, 32, 0)
    judged = blocks[training.divided(blocks)[0]]
    assert len(judged) == len(blocks) // 10
    exact = torch_decoder.logits(floats, floats.architecture, judged)
    for name, expected in (("auto", report.rounds[0]), ("high", min(report.rounds))):
        assert divergence(tmp_path / name, judged, exact) == pytest.approx(expected, rel=0.02)


def divergence(path: Path, blocks: torch.Tensor, exact: torch.Tensor) -> float:
    """Of what the runtime gives for blocks [b, t] from logits [b, t, v]; the mean over tokens."""
    with Model.open(path) as model:
        logits = np.stack([model.session().logits(block) for block in blocks.tolist()])
    p, q = exact.double().log_softmax(-1), torch.from_numpy(logits).double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_an_interrupted_round_goes_on_to_the_same_file(
    tmp_path: Path, checkpoint: Callable[..., Path], text: Path
) -> None:
    source = str(checkpoint())
    options = dataclasses.replace(HIGH, calibration=text)
    whole = convert(source, tmp_path / "whole", options)

    for at in (1, 17, 36):  # in the first round, in the second, behind the last step
        seen: list[int] = []

        def interrupt(done: int, steps: int, divergence: float, at: int = at) -> None:
            if done == at:
                raise KeyboardInterrupt

        output = tmp_path / f"resumed.{at}"
        with pytest.raises(KeyboardInterrupt):
            convert(source, output, options, events=Events(step_done=interrupt))
        assert not output.exists()

        def see(done: int, steps: int, divergence: float, seen: list[int] = seen) -> None:
            seen.append(done)

        report = convert(source, output, options, events=Events(step_done=see))
        assert seen[0] == (at - 1) // 12 * 12 + 1  # rounds that were done are not done again
        assert report.rounds == whole.rounds
        assert output.read_bytes() == (tmp_path / "whole").read_bytes()
        assert not Path(f"{output}.partial").exists()


def test_what_gains_nothing_is_what_auto_gave(
    tmp_path: Path,
    checkpoint: Callable[..., Path],
    text: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(learned, "_SCALE_RATE", 3.0)  # far beyond
    monkeypatch.setattr(training, "STEPS", 2)
    source = str(checkpoint())
    options = dataclasses.replace(HIGH, calibration=text)
    report = convert(source, tmp_path / "high", options)
    convert(source, tmp_path / "auto", dataclasses.replace(options, effort="normal"))
    assert min(report.rounds) == report.rounds[0]
    high, auto = (model_file.PackedFile(tmp_path / name) for name in ("high", "auto"))
    for name in high.names():
        assert np.array_equal(high.floats(name), auto.floats(name)), name


def test_widths_of_8_bits_stay(tmp_path: Path, checkpoint: Callable[..., Path], text: Path) -> None:
    options = dataclasses.replace(HIGH, calibration=text, bits=7.5)
    source = str(checkpoint())
    convert(source, tmp_path / "high", options)
    convert(source, tmp_path / "auto", dataclasses.replace(options, effort="normal"))
    high, auto = (model_file.PackedFile(tmp_path / name) for name in ("high", "auto"))
    packed = [name for name in high.names() if name.startswith("blk.") and high.is_packed(name)]
    widths = {high.layout(name).bits for name in packed}
    assert 8 in widths and len(widths) > 1
    for name in packed:
        if high.layout(name).bits == 8:
            assert np.array_equal(high.floats(name), auto.floats(name)), name


def test_blocks_that_judge_are_not_learned_from() -> None:
    blocks = torch.arange(30).repeat_interleave(2)[:, None] + torch.arange(5)  # each one twice
    judging, learning = training.divided(blocks)
    assert len(judging) == 6
    seen = {tuple(blocks[at].tolist()) for at in learning}
    assert not seen & {tuple(blocks[at].tolist()) for at in judging}
    assert len(learning) == 60 - 2 * len({tuple(blocks[at].tolist()) for at in judging})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"effort": "low"}, "none of normal, high"),
        ({"effort": "high", "method": "awq"}, "goes on from what the method auto gives, not awq"),
        ({"effort": "high", "bits": 8}, "gains nothing at 8 bits"),
    ],
)
def test_efforts_that_can_never_work(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        Options(**options)


def test_one_block_is_too_little(
    tmp_path: Path, checkpoint: Callable[..., Path], text: Path
) -> None:
    text.write_text(text.read_text()[: HIGH.sequence_length + 8])
    options = dataclasses.replace(HIGH, calibration=text)
    with pytest.raises(InvalidArgumentError, match="at least two different blocks"):
        convert(str(checkpoint()), tmp_path / "m", options)
    assert not (tmp_path / "m.partial").exists()


def test_experts_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="does not reach models with experts"):
        training.check_learnable(SimpleNamespace(experts=4), torch.zeros(2, 3))  # type: ignore[arg-type]
