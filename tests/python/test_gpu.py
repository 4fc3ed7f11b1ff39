"""Devices: the logits of the CPU everywhere, a sentence without a GPU, kernels that compile."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import STORIES, Command

from awq_edge import Model, _native
from awq_edge.device.board import read_board
from awq_edge.device.doctor import examine
from awq_edge.errors import InvalidArgumentError, UnsupportedError

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests" / "data" / "tiny.awq.gguf"


def _gpu_is_there() -> bool:
    try:
        _native.gpu()
    except UnsupportedError:
        return False
    return True


def test_auto_gives_the_logits_of_the_cpu() -> None:
    with Model.open(TINY, device="auto") as model, Model.open(TINY, device="cpu") as reference:
        tokens = [1, 2, 3, 4, 5]
        assert (model.logits(tokens) == reference.logits(tokens)).all()
        assert reference.session().kernels != "cuda"


def test_a_gpu_that_is_not_there_is_one_sentence() -> None:
    if _gpu_is_there():
        pytest.skip("this machine has a GPU")
    with (
        Model.open(TINY, device="cuda") as model,
        pytest.raises(UnsupportedError, match=r"built without kernels for GPUs|NVIDIA driver"),
    ):
        model.session()


def test_a_device_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="cpu, auto, cuda"):
        Model.open(TINY, device="tpu")


def test_an_attention_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="exact, tensor"):
        Model.open(TINY, attention="fast")


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_attention_on_tensor_cores_goes_with_a_gpu_alone(device: str) -> None:
    with (
        Model.open(TINY, device=device, attention="tensor") as model,
        pytest.raises(InvalidArgumentError, match="it goes with the device cuda"),
    ):
        model.session()


@pytest.mark.parametrize("layers", [-1, 2**32, 1.5, "all", "2"])
def test_layers_that_do_not_exist_are_refused(layers: object) -> None:
    with pytest.raises(InvalidArgumentError, match="a whole number from 1 on, or 'auto'"):
        Model.open(TINY, gpu_layers=layers)  # type: ignore[arg-type]  # what is refused


@pytest.mark.parametrize("layers", [0, 1, 100, "auto"])
def test_divided_layers_give_the_logits_of_the_cpu(layers: int | str) -> None:
    with Model.open(TINY, gpu_layers=layers) as model, Model.open(TINY, device="cpu") as reference:
        tokens = [1, 2, 3, 4, 5]
        assert (model.logits(tokens) == reference.logits(tokens)).all()
        session = model.session()
        assert session.on_gpu == (layers != 0 and _gpu_is_there())
        if layers == 1 and session.on_gpu:
            assert session.kernels.startswith("1 of 3 layers on cuda, the others on ")


def test_no_layers_are_the_cpu(command: Command) -> None:
    result = command("run", STORIES, "-p", "a", "-n", 1, "--device", "cuda", "--gpu-layers", 0)
    assert result.status == 0, result.err
    command("run", STORIES, "-p", "a", "-n", 1, "--gpu-layers", "two").assert_one_sentence(
        "'two' layers"
    )


def test_a_forced_kernel_table_keeps_auto_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWQ_EDGE_KERNELS", "reference")
    with Model.open(TINY) as model:
        assert model.session().kernels == "reference"


def test_the_doctor_names_a_gpu_and_misses_none_on_a_pc() -> None:
    board, kernels = read_board(), _native.kernel_tables()
    orin = _native.Gpu("Orin", 87, 12060, 8, True, 8 << 30, 5 << 30, True)
    found = {finding.subject: finding for finding in examine(board, kernels, orin)}
    assert "compute capability 8.7, 8 multiprocessors" in found["GPU"].text
    assert "CUDA 12.6" in found["GPU"].text
    assert found["weights"].text == "read in place, from the file"
    copying = replace(orin, in_place=False, copy_reason="its driver registers no read-only memory")
    found = {finding.subject: finding for finding in examine(board, kernels, copying)}
    assert found["weights"].text == "copied: its driver registers no read-only memory"
    card = replace(orin, integrated=False)
    assert not [f for f in examine(board, kernels, card) if f.subject == "weights"]
    assert not [f for f in examine(board, kernels, "none here") if f.subject == "GPU"]


def test_the_kernels_compile_for_a_jetson(tmp_path: Path) -> None:
    # Two products of the thirty-six stand for all: compiling those takes a minute.
    compiler = ROOT / "native" / "cuda" / "compile.py"
    done = subprocess.run(
        [sys.executable, str(compiler), str(tmp_path), "sm_87.cubin"],
        env={**os.environ, "AWQE_FEW_PRODUCTS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    if "NVRTC is missing" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    module = (tmp_path / "sm_87.cubin").read_bytes()
    assert module[:4] == b"\x7fELF"
    for kernel in (b"gemv_u4_g128_gate", b"rows_u8_g128", b"gemm_u4_g128", b"attention_prompt_d64"):
        assert kernel in module
