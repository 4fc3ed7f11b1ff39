"""One hash over all logits of the small model: the same on every CPU, however they are computed.

The hash changes only with ``native/ARITHMETIC.md`` or with the model file itself.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from awq_edge import Model, Session, _native

# FNV-1a, 64 bits, over the little-endian bytes of float32 [250, 512]: the logits after each of 200
# prompt tokens and of 50 more, each the likeliest (the lowest id on a tie).
GOLDEN_HASH = 0x9060C23FB7B8614C
PROMPT = [1, *((37 * i * i + 11 * i + 5) % 509 + 3 for i in range(199))]
DECODED = 50

KERNELS = ("reference", "avx2", "avx_vnni", "avx512", "neon", "neon_dotprod", "neon_i8mm")
# What /proc/cpuinfo must list for a table to run; names as Linux spells them.
FEATURES: dict[str, set[str]] = {
    "reference": set(),
    "avx2": {"avx2", "fma", "f16c"},
    "avx_vnni": {"avx_vnni", "gfni", "avx2", "fma", "f16c"},
    "avx512": {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "avx2", "fma", "f16c"},
    "neon": {"asimd"},
    "neon_dotprod": {"asimddp"},
    "neon_i8mm": {"i8mm"},
}


def runnable_kernels() -> list[str]:
    """The tables that this CPU has the features for."""
    path = Path("/proc/cpuinfo")
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    flags = {
        flag
        for line in text.splitlines()
        if line.partition(":")[0].strip() in ("flags", "Features")
        for flag in line.partition(":")[2].split()
    }
    if platform.machine() == "aarch64":
        flags.add("asimd")
    return [name for name in KERNELS if FEATURES[name] <= flags]


def fnv1a(data: bytes) -> int:
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


def prompt_in_chunks(session: Session, size: int) -> NDArray[np.float32]:
    parts = [session.logits(PROMPT[i : i + size]) for i in range(0, len(PROMPT), size)]
    return np.concatenate(parts)


def all_logits(session: Session, chunk: int) -> NDArray[np.float32]:
    rows = [prompt_in_chunks(session, chunk)]
    for _ in range(DECODED):
        rows.append(session.logits([int(rows[-1][-1].argmax())]))
    return np.concatenate(rows)


@pytest.fixture(scope="module")
def golden_logits(stories_path: Path) -> Iterator[NDArray[np.float32]]:
    """What every other way of computing must equal; by whatever table is the default here."""
    with Model.open(stories_path, threads=1) as model, model.session() as session:
        yield all_logits(session, len(PROMPT))


def test_hash_of_the_logits(golden_logits: NDArray[np.float32]) -> None:
    assert golden_logits.shape == (250, 512)
    assert np.isfinite(golden_logits).all()
    assert fnv1a(golden_logits.astype("<f4").tobytes()) == GOLDEN_HASH


def test_library_offers_what_the_cpu_can_run() -> None:
    assert sorted(_native.kernel_tables()) == sorted(runnable_kernels())


def test_fnv1a_is_the_published_function() -> None:
    assert fnv1a(b"") == 0xCBF29CE484222325
    assert fnv1a(b"foobar") == 0x85944171F73967E8


@pytest.mark.parametrize("kernels", runnable_kernels())
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("chunk", [len(PROMPT), 1, 7])
def test_every_way_gives_the_same_bits(
    stories_path: Path,
    golden_logits: NDArray[np.float32],
    monkeypatch: pytest.MonkeyPatch,
    kernels: str,
    threads: int,
    chunk: int,
) -> None:
    monkeypatch.setenv("AWQ_EDGE_KERNELS", kernels)
    with Model.open(stories_path, threads=threads) as model, model.session() as session:
        assert session.kernels == kernels
        assert (session.threads, session.prefill_threads) == (threads, threads)
        found = all_logits(session, chunk)
    assert np.array_equal(found.view(np.uint32), golden_logits.view(np.uint32))


class TorchModel:
    """The torch decoder on the file's dequantised weights."""

    def __init__(self, path: Path) -> None:
        self.torch = pytest.importorskip("torch", reason="needs the extra [convert]")
        pytest.importorskip("gguf", reason="needs the extra [convert]")
        from awq_edge import model_file

        self.model = model_file.read_dequantised(path)

    def logits(self, prompts: Sequence[Sequence[int]], *, rounded: bool) -> NDArray[np.float32]:
        """float32 [prompts, tokens, vocabulary]; rounded as the runtime does, or in floats."""
        from awq_edge import torch_decoder

        result: NDArray[np.float32] = torch_decoder.logits(
            lambda name: self.torch.from_numpy(self.model.tensors[name]),
            self.model.architecture,
            self.torch.tensor(prompts),
            activation_group_size=self.model.group_sizes if rounded else None,
            kv_fp16=rounded,
        ).numpy()
        return result


@pytest.fixture(scope="module")
def torch_model(stories_path: Path) -> TorchModel:
    return TorchModel(stories_path)


@pytest.mark.parametrize(("length", "share"), [(1, 0.85), (4, 0.7), (16, 0.4)])
def test_runtime_equals_the_torch_decoder(
    stories: Model, torch_model: TorchModel, length: int, share: float
) -> None:
    """On short prompts nearly all logits are equal.

    The two sum floats in different orders, so an activation that lies within 1e-7 of the border
    between two int8 codes may fall to either side, and everything after it differs by that code:
    rare in one token, certain in a long prompt. Equal prompts differ by less than 1e-5, the others
    by what one code is worth; nothing lies between.
    """
    source = np.random.default_rng(7)
    prompts = source.integers(3, 512, (64, length)).tolist()
    expected = torch_model.logits(prompts, rounded=True)
    found = np.stack([stories.logits(prompt) for prompt in prompts])
    differences = np.abs(found - expected).max(axis=(1, 2)) / np.abs(expected).max()
    assert (differences < 1e-5).mean() >= share
    assert differences.max() < 0.05


def test_long_prompt_is_as_near_as_rounding_allows(
    golden_logits: NDArray[np.float32], torch_model: TorchModel
) -> None:
    """The difference is of the size of what rounding the activations changes as a whole.

    Codes that fell to different sides are independent errors of that size: at most sqrt(2) of it.
    """
    tokens = [[*PROMPT, *(int(row.argmax()) for row in golden_logits[len(PROMPT) - 1 : -1])]]
    rounded = torch_model.logits(tokens, rounded=True)[0]
    floats = torch_model.logits(tokens, rounded=False)[0]
    assert _rms(golden_logits - rounded) < 1.42 * _rms(rounded - floats)
    assert _rms(golden_logits - rounded) < 0.02 * _rms(rounded)


def _rms(values: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.square(values, dtype=np.float64).mean()))
