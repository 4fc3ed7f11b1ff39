"""A Jetson: members of its profile; examples/jetson_chat: figures, commands, the script."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from conftest import Command

from awq_edge.cli.main import application
from awq_edge.profiles import load_profile

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples/jetson_chat"
# Bytes that Llama 3.2 1B reads for a token, docs/families.md's way of counting: 0.77 GB.
LLAMA_BYTES = 770_000_000


@pytest.mark.parametrize(
    ("board", "gib", "title"),
    [
        ("NVIDIA Jetson Orin Nano Developer Kit", 3.3, "Jetson Orin Nano 4 GB"),
        (
            "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
            7.4,
            "Jetson Orin Nano 8 GB",
        ),
        ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit", 7.2, "Jetson Orin NX 8 GB"),
        ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit", 15.3, "Jetson Orin NX 16 GB"),
        ("NVIDIA Jetson AGX Orin Developer Kit", 29.9, "Jetson AGX Orin 32 GB"),
        ("NVIDIA Jetson AGX Orin Developer Kit", 61.4, "Jetson AGX Orin 64 GB"),
        ("NVIDIA Orin NX Developer Kit", 7.2, "Jetson Orin NX 8 GB"),
        ("Jetson AGX Orin", 61.4, "Jetson AGX Orin 64 GB"),
        ("NVIDIA Orin of somebody", 29.9, "Jetson AGX Orin 32 GB"),
        ("NVIDIA Jetson AGX Orin Developer Kit", 120.0, "Jetson Orin Nano"),
    ],
)
def test_a_board_is_a_member(board: str, gib: float, title: str) -> None:
    assert load_profile("jetson-orin").member(board, int(gib * 2**30)).title == title


def test_members_have_what_the_profile_has() -> None:
    orin = load_profile("jetson-orin")
    assert [m.ram_gib for m in orin.members] == [(4,), (8,), (8,), (16,), (32,), (64,)]
    for member in orin.devices():
        assert (member.name, member.kernels, member.gpu_modules) == (
            "jetson-orin",
            "neon_dotprod",
            ("sm_87.cubin",),
        )
        assert member.members == () and member.read_source == orin.read_source
        assert any(board.startswith("NVIDIA Jetson") for board in member.boards)
    assert load_profile("rpi5").devices() == (load_profile("rpi5"),)
    assert load_profile("rpi5").member("Raspberry Pi 5", 1) == load_profile("rpi5")


def test_the_list_shows_each_member(command: Command) -> None:
    text = command("targets").out
    for member in load_profile("jetson-orin").members:
        assert member.title in text
    (orin,) = (
        e for e in json.loads(command("targets", "--json").out) if e["name"] == "jetson-orin"
    )
    assert [m["title"] for m in orin["members"]][-1] == "Jetson AGX Orin 64 GB"


def test_the_table_of_the_page_follows_from_the_profile() -> None:
    rows = re.findall(
        r"^\| (.*Orin.*) \| [\d.]+.* \| (\d+).*\|$", (EXAMPLE / "README.md").read_text(), re.M
    )
    assert len(rows) == 4
    members = {m.title.removeprefix("Jetson "): m for m in load_profile("jetson-orin").members}
    for title, figure in rows:
        member = members[title.replace("8 and 16", "8").replace("32 and 64", "32")]
        limit = member.decode_roofline(LLAMA_BYTES)
        assert limit is not None and round(limit) == pytest.approx(int(figure), abs=1)


def test_every_command_of_the_page_exists() -> None:
    root = typer.main.get_command(application())
    lines = [
        line
        for line in (EXAMPLE / "README.md").read_text().splitlines()
        if line.startswith("awq-edge ")
    ]
    assert len(lines) == 6
    inline = re.findall(r"`(awq-edge [^`]+)`", (EXAMPLE / "README.md").read_text())
    for line in [*lines, *inline]:
        words = line.split()
        command = root.commands[words[1]]  # type: ignore[attr-defined]  # a group
        known = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in words[2:] if word.startswith("-")} <= known, line


def test_the_script_answers(chat_file: Path) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLE / "chat.py", chat_file],
        input="Good morning!\nWhat is your name?\n\n",
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "computed by: " in done.stdout.splitlines()[0]
    assert len(re.findall(r"^\[[\d.]+ pieces/s.*\]$", done.stdout, re.M)) == 2
