"""docs/raspberry-pi.md: every command of it is run, in order.

The board is a real ssh server on the loopback (ssh_board.py) and this machine stands for it, so
three things are put in place of what the page says: the host, a small checkpoint and a short
calibration, and this machine's own wheel instead of one for Arm.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from boards import ROOT
from ssh_board import SshBoard, running_board

from awq_edge import _native
from awq_edge.device.wheel import write_wheel
from awq_edge.profiles import load_profile

PAGE = ROOT / "docs/raspberry-pi.md"
HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"


def _commands() -> list[tuple[str, str]]:
    """Place and command line, in the page's order; the place is named before a block."""
    found, place, inside = [], "", False
    for line in PAGE.read_text("utf-8").splitlines():
        if line.startswith("```"):
            inside = not inside
        elif inside:
            found.append((place, line))
        else:
            for name in ("On the workstation:", "On the board:"):
                if name in line:
                    place = name
    return found


def test_the_page_has_commands_for_both_places() -> None:
    places = [place for place, _ in _commands()]
    assert places.count("On the workstation:") == 6
    assert places.count("On the board:") == 7


def test_the_extras_that_it_installs_exist() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text("utf-8")
    ((_, line),) = (entry for entry in _commands() if "pip install" in entry[1])
    match = re.fullmatch(r"pip install '\.\[(.+)\]'", line)
    assert match is not None
    for extra in match.group(1).split(","):
        assert f"\n{extra} = [\n" in pyproject


@pytest.mark.skipif(
    platform.machine() != "x86_64", reason="this machine stands for x86_64-linux, and it is another"
)
def test_every_command_works(assets: Path, tmp_path: Path) -> None:
    wheel = write_wheel(load_profile("x86_64-linux"), _native.library_path(), tmp_path / "dist")
    with running_board(tmp_path / "board") as board:
        ran = 0
        for place, line in _commands():
            if line.startswith("pip install"):
                continue  # the tests run in what it makes
            if place == "On the workstation:":
                done = _on_the_workstation(line, board, wheel, assets, tmp_path)
            else:
                done = _on_the_board(line, board, tmp_path)
            if "cannot be fetched" in done.stderr:
                pytest.skip(f"packages cannot be fetched here: {done.stderr[-300:]}")
            assert done.returncode == 0, (line, done.stderr)
            ran += 1
        assert ran == len(_commands()) - 1
        home = board.home / ".local/share/awq-edge/models/llama.awq.gguf"
        assert home.read_bytes() == (tmp_path / "llama.awq.gguf").read_bytes()


def _on_the_workstation(
    line: str, board: SshBoard, wheel: Path, assets: Path, folder: Path
) -> subprocess.CompletedProcess[str]:
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    for name, script in (
        ("awq-edge", f'exec {sys.executable} -m awq_edge.cli.main "$@"'),
        ("ssh", f'exec {shutil.which("ssh")} -F {board.folder}/config "$@"'),
        ("scp", f'exec {shutil.which("scp")} -O -F {board.folder}/config "$@"'),
    ):
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(stat.S_IRWXU)
    line = line.replace("pi@raspberrypi.local", "board")
    line = line.replace("meta-llama/Llama-3.2-1B-Instruct", str(assets / "models/stories260k"))
    line = line.replace("--target rpi4b", f"--target x86_64-linux --python {HERE} --wheel {wheel}")
    if "convert" in line:
        line = f"{line} --samples 8"
    if "deploy" in line:
        line = f"{line} --wheel {wheel}"
    return subprocess.run(
        ["sh", "-c", line],
        cwd=folder,
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def _on_the_board(line: str, board: SshBoard, folder: Path) -> subprocess.CompletedProcess[str]:
    command = ["ssh", "-F", str(board.folder / "config"), "board", f"cd; {line}"]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=folder, timeout=900, check=False
    )
