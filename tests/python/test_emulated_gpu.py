"""The package on the emulated GPU: what commands say of a GPU, without one.

The library and the driver are built by ``make test``: tests/native/CMakeLists.txt.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import STORIES, Command

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests" / "data" / "tiny.awq.gguf"
EMULATED = ROOT / "build" / "release" / "emulated_gpu"
LIBRARY = EMULATED / "libawq_edge.so"

pytestmark = pytest.mark.skipif(not LIBRARY.exists(), reason=f"{LIBRARY} is not built")


def gpu(*settings: str) -> dict[str, str]:
    """An environment with the emulated GPU; settings: those of tests/native/emulated_gpu."""
    return {
        "AWQ_EDGE_LIBRARY": str(LIBRARY),
        "LD_LIBRARY_PATH": str(EMULATED),
        "AWQE_EMULATED_GPU": ",".join(settings),
    }


def _lines(text: str) -> dict[str, str]:
    """The doctor's findings by subject, with their advice."""
    found: dict[str, str] = {}
    last = ""
    for line in text.splitlines():
        match = re.match(r"(?:  ok |WARN |STOP ) (.+?)  +(.*)", line)
        if match:
            last = match[1]
            found[last] = match[2]
        else:
            found[last] += " " + line.strip()
    return found


@pytest.mark.parametrize("shared", [False, True])
def test_the_doctor_tells_what_a_model_needs_of_the_gpu(shared: bool, command: Command) -> None:
    settings = ["memory=4294967296", *(["integrated"] if shared else [])]
    said = command("doctor", TINY, environment=gpu(*settings))
    assert said.status == 0, said.err
    text = _lines(said.out)["GPU model"]
    where = "the memory that it shares with the CPU" if shared else "its memory"
    assert re.search(rf"needs .* of {where} \(weights .*, context .*, work .*\); .* free", text)
    assert "--gpu-layers" not in text
    document = json.loads(command("doctor", TINY, "--json", environment=gpu(*settings)).out)
    whole, divided = document["gpu_fit"]
    assert whole == divided or divided["free_bytes"] != whole["free_bytes"]
    assert whole["layers"] == 3
    assert min(whole["weight_bytes"], whole["cache_bytes"], whole["scratch_bytes"]) > 0


def _needs(memory: int, layers: int | str | None) -> dict[str, int]:
    """``Model.gpu_memory`` where the GPU has so many bytes."""
    program = (
        "import dataclasses, json, sys; from awq_edge import Model\n"
        "with Model.open(sys.argv[1]) as model:\n"
        "    need = model.gpu_memory(64, gpu_layers=json.loads(sys.argv[2]))\n"
        "print(json.dumps({**dataclasses.asdict(need), 'total': need.total_bytes}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(TINY), json.dumps(layers)],
        env={**os.environ, **gpu(f"memory={memory}")},
        capture_output=True,
        text=True,
        check=True,
    )
    needs: dict[str, int] = json.loads(done.stdout)
    return needs


def test_needs_are_those_of_as_many_layers_as_there_is_room_for(command: Command) -> None:
    room = 1 << 32
    whole = _needs(room, None)
    two = _needs(room, 2)
    assert (whole["layers"], two["layers"], whole["free_bytes"]) == (3, 2, room)
    assert whole["cache_bytes"] * 2 == two["cache_bytes"] * 3
    assert two["weight_bytes"] < whole["weight_bytes"]
    # Just too little for what is asked for; a sixteenth stays free where the library chooses.
    for asked, need in ((None, whole), (2, two)):
        assert _needs(need["total"], asked)["layers"] == need["layers"]
        assert _needs(need["total"] - 1, asked)["layers"] == 0
    little = whole["total"]
    divided = _needs(little, "auto")
    assert divided["layers"] < 3
    assert divided["total"] <= little * 15 // 16 or divided["layers"] == 0
    # And a session says the same numbers where it is refused.
    said = command(
        *("run", TINY, "-p", "a", "-n", 1, "--device", "cuda", "--context", 64),
        environment=gpu(f"memory={whole['total'] - 1}"),
    )
    said.assert_one_sentence(f"would take {whole['total'] / 1e9:.2f} GB")


def test_the_doctor_says_how_a_model_is_divided(command: Command) -> None:
    whole = json.loads(command("doctor", STORIES, "--json", environment=gpu()).out)["gpu_fit"][0]
    total = whole["weight_bytes"] + whole["cache_bytes"] + whole["scratch_bytes"]
    said = command("doctor", STORIES, environment=gpu(f"memory={total - 1}"))
    assert said.status == 0, said.err
    text = _lines(said.out)["GPU model"]
    match = re.search(r"'--gpu-layers auto' gives it (\d+) of 5 layers, ", text)
    assert match is not None, text
    assert 1 <= int(match[1]) < 5
    said = command("doctor", STORIES, environment=gpu("memory=65536"))
    assert "no room for a layer" in _lines(said.out)["GPU model"]


def test_the_selftest_has_a_line_for_each_kernel_and_ends_with_one_where_one_is_wrong(
    command: Command,
) -> None:
    said = command(
        *("selftest", "--device", "cuda"),
        environment=gpu("capability=87", "wrong=gemv_u4_g128_store@12"),
    )
    assert said.status == 1, said.err
    lines = said.out.splitlines()
    assert len(lines) > 120
    assert all(line.startswith("cuda, ") for line in lines)
    wrong = [line for line in lines if "DIFFER" in line]
    assert len(wrong) == 1
    assert wrong[0].startswith("cuda, gemv_u4_g128_store: 4 cases, ")
    assert "computes wrong results" in said.err
    right = [line for line in lines if line not in wrong]
    bounded = [line for line in right if line.endswith("within its bound")]
    assert len(bounded) == 2
    assert all("attention_tensor" in line for line in bounded)
    assert sum(line.endswith("the same bits") for line in right) == len(right) - 2


@pytest.mark.parametrize(
    "settings, words", [("capability=75", "compute capability 7.5"), ("devices=0", "no usable GPU")]
)
def test_a_gpu_that_cannot_be_tested_is_one_sentence(
    settings: str, words: str, command: Command
) -> None:
    command("selftest", "--device", "cuda", environment=gpu(settings)).assert_one_sentence(words)
