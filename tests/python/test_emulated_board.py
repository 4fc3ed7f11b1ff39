"""The Python package on Arm, without a board: Debian's own Python under qemu, as three CPUs.

The wheel and the packages are those that ``bundle`` puts together for a Raspberry Pi 4B.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from boards import CPUS, ROOT, STORIES, arm_bundle, arm_root, run_emulated, run_in_root

from awq_edge import GenerationConfig, Model

PROMPT = "Once upon a time"
# Prints a hash over the logits of every token of a prompt, and the ids of a greedy continuation.
REPORT = """
import hashlib, json, sys
from awq_edge import GenerationConfig, Model
with Model.open(sys.argv[1]) as model:
    logits = model.logits(model.tokenize(sys.argv[2]) * 8)
    generation = model.generate(sys.argv[2], GenerationConfig(max_tokens=24, temperature=0))
    text = "".join(generation)
    print(json.dumps({
        "kernels": model.shared_session.kernels,
        "logits": hashlib.sha256(logits.tobytes()).hexdigest(),
        "tokens": list(generation.tokens),
        "text": text,
    }))
"""


def _report_here(path: Path) -> dict[str, object]:
    with Model.open(path) as model:
        logits = model.logits(model.tokenize(PROMPT) * 8)
        assert logits.dtype == np.float32
        generation = model.generate(PROMPT, GenerationConfig(max_tokens=24, temperature=0))
        text = "".join(generation)
        return {
            "logits": hashlib.sha256(logits.tobytes()).hexdigest(),
            "tokens": list(generation.tokens),
            "text": text,
        }


@pytest.fixture(scope="module")
def novels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of the repository, packed here. To nearest: how well it is packed is no matter."""
    path = tmp_path_factory.mktemp("novels") / "novels-7m.awq.gguf"
    command = [sys.executable, "-m", "awq_edge.cli.main", "convert", "examples/novels-7m"]
    command += ["-o", str(path), "--method", "rtn", "-q"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return path


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("model", ["stories260k", "novels-7m"])
def test_same_tokens_and_the_same_logits_as_here(
    model: str, cpu: str, request: pytest.FixtureRequest
) -> None:
    path = STORIES if model == "stories260k" else request.getfixturevalue("novels")
    done = run_emulated(cpu, "-c", REPORT, path, PROMPT)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report.pop("kernels") == CPUS[cpu]
    assert report == _report_here(path)


@pytest.mark.parametrize("cpu", CPUS)
def test_selftest_passes(cpu: str) -> None:
    done = run_emulated(cpu, "-m", "awq_edge.cli.main", "selftest", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["passed"] is True
    assert report["kernels"][0] == CPUS[cpu]
    assert {result["kernels"] for result in report["results"]} == set(report["kernels"])


def test_doctor_and_run_as_the_raspberry_pi_4() -> None:
    done = run_emulated("cortex-a72", "-m", "awq_edge.cli.main", "doctor", STORIES, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["kernels"] == ["neon", "reference"]
    assert report["board"]["machine"] == "aarch64"
    assert report["board"]["userland_bits"] == 64
    assert report["fit"]["largest_context"] == 512

    arguments = ("run", STORIES, "-p", PROMPT, "-n", "24", "--temperature", "0", "--json", "-q")
    done = run_emulated("cortex-a72", "-m", "awq_edge.cli.main", *arguments)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["text"] == _report_here(STORIES)["text"]
    assert document["kernels"] == "neon"


def test_the_installer_works_for_an_ordinary_user_without_network() -> None:
    """install.sh in the arm64 root as user 1000, then the installed command."""
    home = arm_root() / "home/pi"
    shutil.rmtree(home)
    home.mkdir()
    if os.geteuid() == 0:
        os.chown(home, 1000, 1000)
    bundle = arm_bundle()
    done = run_in_root(1000, ["/bin/sh", "/mnt/install.sh"], "cortex-a72", bundle)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^neon: \d+ operations, \d+ cases, the same bits$", done.stderr, re.M)

    program = "/home/pi/.local/bin/awq-edge"
    model = f"/home/pi/.local/share/awq-edge/models/{STORIES.name}"
    arguments = [program, "run", model, "-p", PROMPT, "-n", "24", "--temperature", "0", "-q"]
    done = run_in_root(1000, arguments, "cortex-a72")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{_report_here(STORIES)['text']}\n"

    # Once more over the first one: one release stays.
    release = _only_release(home)
    command = ["/bin/sh", "/mnt/install.sh", "--check"]
    done = run_in_root(1000, command, "cortex-a72", bundle)
    assert done.returncode == 0, done.stderr
    assert "machine=aarch64" in done.stdout.splitlines()
    assert _only_release(home) == release


def _only_release(home: Path) -> str:
    folder = home / ".local/share/awq-edge"
    (release,) = (path.name for path in (folder / "releases").iterdir())
    assert str((folder / "current").readlink()) == f"releases/{release}"
    return release


def test_the_library_for_boards_links_as_boards_need_it() -> None:
    """The gates of tests/checks on the very library that the bundle carries."""
    import zipfile

    from test_arm_emulated import check_arm_library

    bundle = arm_bundle()
    (wheel,) = bundle.glob("wheels/awq_edge-*.whl")
    library = bundle.parent / "libawq_edge.so"
    with zipfile.ZipFile(wheel) as archive:
        library.write_bytes(archive.read("awq_edge/libawq_edge.so"))
    try:
        problems = [
            *check_arm_library.linking_problems(library),
            *check_arm_library.export_problems(library),
        ]
    except check_arm_library.MissingTool as error:
        pytest.skip(str(error))
    assert problems == []
