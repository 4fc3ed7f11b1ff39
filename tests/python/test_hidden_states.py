"""Hidden states in a file: batches in any order, and a later process that takes them up."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from awq_edge.calibration.hidden_states import HiddenStates  # noqa: E402

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device"))]  # fmt: skip


@pytest.mark.parametrize("device", DEVICES)
def test_batches_come_back_and_survive_the_process(tmp_path: Path, device: str) -> None:
    shape = (7, 3, 5)
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    states = HiddenStates(tmp_path / "states", shape, torch.device(device))
    for batch in (slice(4, 7), slice(0, 1), slice(1, 4)):
        states.write(batch, values[batch].to(device))
    assert torch.equal(states.read(slice(2, 6)).cpu(), values[2:6])
    before = states.read(slice(2, 3))
    states.write(slice(2, 3), 2 * before)
    assert torch.equal(before.cpu(), values[2:3])
    values[2] *= 2
    states.keep()
    states.close()
    assert (tmp_path / "states").stat().st_size == values.nbytes

    later = HiddenStates(tmp_path / "states", shape, torch.device(device))
    later.take_up()
    assert torch.equal(later.read(slice(0, 7)).cpu(), values)


def test_a_file_that_is_too_short_is_an_error(tmp_path: Path) -> None:
    states = HiddenStates(tmp_path / "states", (2, 3, 5), torch.device("cpu"))
    states.write(slice(0, 1), torch.zeros(1, 3, 5))
    with pytest.raises(OSError, match="too short"):
        states.read(slice(0, 2))
