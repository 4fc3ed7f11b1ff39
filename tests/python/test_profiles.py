"""Every device folder has a profile that loads, and says what a device needs to be judged by."""

from __future__ import annotations

import pytest

from awq_edge.errors import InvalidArgumentError
from awq_edge.profiles import load_profile, load_profiles, targets_directory

DEVICES = ["aarch64-generic", "jetson-orin", "rpi4b", "rpi5", "x86_64-linux"]


def test_every_folder_is_a_device_with_a_toolchain_and_a_profile() -> None:
    folders = sorted(
        p.name
        for p in targets_directory().iterdir()
        if p.is_dir() and (p / "profile.toml").exists()
    )
    assert folders == DEVICES == [profile.name for profile in load_profiles()]
    for name in folders:
        assert (targets_directory() / name / "toolchain.cmake").is_file()


@pytest.mark.parametrize("name", ["rpi4b", "rpi5", "jetson-orin"])
def test_boards_state_their_memory_and_its_source(name: str) -> None:
    board = load_profile(name)
    assert board.ram_gib and board.read_gb_s and board.read_source
    assert board.decode_threads and board.prefill_threads


def test_roofline_is_bandwidth_over_bytes() -> None:
    assert load_profile("rpi4b").decode_roofline(440_000_000) == pytest.approx(10.0)
    assert load_profile("x86_64-linux").decode_roofline(1) is None


def test_unknown_target_names_the_known_ones() -> None:
    with pytest.raises(InvalidArgumentError, match=r"'rpi3'.*rpi4b"):
        load_profile("rpi3")
