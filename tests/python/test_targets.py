"""``awq-edge targets`` and what it reads: every folder of targets/ is complete and named."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from conftest import Command

from awq_edge.profiles import load_profiles, targets_directory

EXPECTED = ["aarch64-generic", "jetson-orin", "rpi4b", "rpi5", "x86_64-linux"]


def test_every_target_has_a_profile_and_a_toolchain_file() -> None:
    folders = sorted(path.name for path in targets_directory().iterdir() if path.is_dir())
    assert [name for name in folders if not name.startswith("__")] == EXPECTED
    for name in EXPECTED:
        assert (targets_directory() / name / "toolchain.cmake").is_file()
        assert (targets_directory() / name / "profile.toml").is_file()


def test_targets_of_one_machine_share_a_baseline() -> None:
    """One build folder serves them all (awq_edge/device/library.py)."""
    for profile in load_profiles():
        text = (targets_directory() / profile.name / "toolchain.cmake").read_text("utf-8")
        if profile.machine == "aarch64":
            assert "/../aarch64.cmake" in text
            assert "AWQE_ZIG_CPU" not in text
        else:
            assert profile.name == "x86_64-linux"


def test_the_list_names_all(command: Command) -> None:
    result = command("targets")
    assert result.status == 0
    for name in EXPECTED:
        assert re.search(rf"^ *{name} ", result.out, re.MULTILINE)
    assert "not a measured" in result.out


def test_json_has_every_key_of_a_profile(command: Command) -> None:
    document = json.loads(command("targets", "--json").out)
    assert [entry["name"] for entry in document] == EXPECTED
    (pi,) = (entry for entry in document if entry["name"] == "rpi4b")
    assert pi["machine"] == "aarch64"
    assert pi["kernels"] == "neon"
    assert pi["read_gb_s"] == pytest.approx(4.4)
    assert pi["read_source"]
    assert "Raspberry Pi 4" in pi["boards"]


def test_each_figure_of_a_profile_says_where_it_is_from() -> None:
    for profile in load_profiles():
        assert (profile.read_gb_s is None) == (profile.read_source is None)
        assert profile.pythons
        assert Path(targets_directory() / profile.name).is_dir()


def test_an_unknown_target_is_one_sentence(command: Command, tmp_path: Path) -> None:
    result = command("build", "--target", "rpi3", "-o", tmp_path / "dist")
    result.assert_one_sentence("'rpi3'", "rpi4b", "x86_64-linux")
    assert not (tmp_path / "dist").exists()
