"""Several processes write what one writes: the segments' arithmetic, and whole conversions."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tokenizers")
pytest.importorskip("gguf")

import checkpoints  # noqa: E402  (after the checks for the packages of the extra convert)
from conftest import ROOT  # noqa: E402

from awq_edge import conversion  # noqa: E402
from awq_edge.calibration.distributed import Processes  # noqa: E402
from awq_edge.conversion import LayerReport  # noqa: E402
from awq_edge.conversion.work_directory import WorkDirectory  # noqa: E402


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("blocks", [1, 5, 8, 16, 37, 128])
def test_every_block_belongs_to_one_segment_of_one_process(count: int, blocks: int) -> None:
    single = dict(Processes().segments(blocks))
    seen: list[int] = []
    for rank in range(count):
        process = Processes(rank, count)
        segments = process.segments(blocks)
        assert all(single[number] == part for number, part in segments)
        mine = [block for _, part in segments for block in range(part.start, part.stop)]
        part = process.blocks(blocks)
        assert mine == list(range(part.start, part.stop))
        seen += mine
    assert seen == list(range(blocks))


def test_sum_is_taken_in_the_order_of_segments() -> None:
    # In float32 the order decides: 2^24 + 1 + 1 differs from 1 + 1 + 2^24.
    parts = {0: torch.tensor([1.0]), 3: torch.tensor([1.0]), 6: torch.tensor([2.0**24])}
    swapped = {6: parts[6], 3: parts[3], 0: parts[0]}
    like = torch.zeros(1)
    assert float(Processes().total(parts, like)) == 2.0**24 + 2
    assert float(Processes().total(swapped, like)) == 2.0**24 + 2
    backwards = {0: parts[6], 3: parts[3], 6: parts[0]}
    assert float(Processes().total(backwards, like)) == 2.0**24


_LAUNCHER = (
    *("-m", "torch.distributed.run", "--master-port=0"),
    *("--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"),
)
_PROGRAM = """
import sys
from pathlib import Path
from awq_edge.conversion import Options, convert
from awq_edge.errors import AwqEdgeError

method, bits, text, source, output = sys.argv[1:]
options = Options(
    method=method, bits=float(bits), group_size=32, samples=10, sequence_length=24,
    calibration=Path(text), head_bits=4,
)
convert(source, Path(output), options)
"""


def convert(tmp_path: Path, name: str, processes: int, method: str, bits: str) -> bytes:
    program = tmp_path / "program.py"
    program.write_text(_PROGRAM)
    launcher = [sys.executable]
    if processes > 1:
        launcher += [*_LAUNCHER, f"--nproc-per-node={processes}"]
    output = tmp_path / name
    paths = [str(tmp_path / "text.txt"), str(tmp_path / "checkpoint"), str(output)]
    search = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    subprocess.run(
        [*launcher, str(program), method, bits, *paths],
        check=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": search},
    )
    assert not list(tmp_path.glob("*.partial"))
    return output.read_bytes()


@pytest.mark.parametrize(
    ("method", "bits"), [("auto", "3"), ("awq", "4"), ("awq+gptq", "3"), ("auto", "3.5")]
)
def test_two_processes_write_the_bytes_of_one(tmp_path: Path, method: str, bits: str) -> None:
    checkpoints.save(checkpoints.random_model("llama"), tmp_path / "checkpoint")
    checkpoints.save_tokenizer(tmp_path / "checkpoint")
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 20)
    one = convert(tmp_path, "one", 1, method, bits)
    assert convert(tmp_path, "two", 2, method, bits) == one


def test_one_of_the_processes_exports(tmp_path: Path) -> None:
    """To nearest: that several processes search as one does is what the others show."""
    for directory, count in (("one", 1), ("two", 2)):
        (tmp_path / directory).mkdir()
        launcher = [*_LAUNCHER, f"--nproc-per-node={count}"] if count > 1 else []
        subprocess.run(
            [
                sys.executable, *launcher,
                "-m", "awq_edge.cli.main", "convert", str(ROOT / "examples/novels-7m"),
                "-o", f"{directory}/m", "--method", "rtn",
                "--export", "gguf", f"{directory}/x",
            ],
            check=True,
            timeout=300,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    for name in ("m", "x"):
        one, two = (tmp_path / directory / name for directory in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()
    assert sorted(entry.name for entry in (tmp_path / "two").iterdir()) == ["m", "x"]


def test_interrupted_work_of_several_processes_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not resumed, so it must not stay."""

    class Stopped:
        def __init__(self, *parts: Any) -> None:
            self._work = next(part for part in parts if isinstance(part, WorkDirectory))

        def run(self, blocks: object) -> None:
            self._work.layer_done(LayerReport(0, None, None, {}))
            raise KeyboardInterrupt

    checkpoints.save(checkpoints.random_model("llama"), tmp_path / "checkpoint")
    two = contextlib.nullcontext(Processes(rank=0, count=2))
    monkeypatch.setattr("awq_edge.calibration.distributed.joined", lambda device: two)
    monkeypatch.setattr(Processes, "agreed", lambda self, answer, device: answer)
    monkeypatch.setattr("awq_edge.conversion.pipeline.Walk", Stopped)
    with pytest.raises(KeyboardInterrupt):
        conversion.convert(
            str(tmp_path / "checkpoint"), tmp_path / "m", conversion.Options(method="rtn")
        )
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint"]
