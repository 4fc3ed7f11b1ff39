"""How the virtual boards judge a disk after a cut (``tests/board/cuts.py``), on small disks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from stand_in import stand_in_bundle

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "board"))
from cuts import judge, release_in
from machine import BoardFailure

PATH = f"{os.defpath}:/sbin:/usr/sbin"
TOOLS = [tool for tool in ("mke2fs", "e2fsck", "debugfs") if shutil.which(tool, path=PATH) is None]
pytestmark = pytest.mark.skipif(bool(TOOLS), reason=f"{', '.join(TOOLS)} not installed (e2fsprogs)")


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """An installation of a stand-in, in a folder that becomes a disk."""
    stubs, home = tmp_path / "stubs", tmp_path / "root/home/pi"
    stubs.mkdir()
    home.mkdir(parents=True)
    (stubs / "python3").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (stubs / "python3").chmod(0o755)
    script = stand_in_bundle(tmp_path / "bundle")
    environment = {"HOME": str(home), "PATH": f"{stubs}:{os.defpath}"}
    subprocess.run(["sh", str(script)], env=environment, capture_output=True, check=True)
    return home / ".local/share/awq-edge"


def disk(prefix: Path) -> Path:
    """The disk of a board whose user is pi."""
    root = prefix.parents[4]
    image = root.with_suffix(".img")
    image.unlink(missing_ok=True)
    command = ["mke2fs", "-q", "-t", "ext4", "-d", str(root), str(image), "64M"]
    subprocess.run(command, env={"PATH": PATH}, capture_output=True, check=True)
    return image


def test_old_new_or_none_is_told(prefix: Path) -> None:
    image = disk(prefix)
    name = release_in(image)
    assert name == os.readlink(prefix / "current").removeprefix("releases/")  # noqa: PTH115
    assert judge(image, "") == "with the new release"
    assert judge(image, name) == "with the old release"
    (prefix / "current").unlink()
    assert judge(disk(prefix), "") == "with no release"
    with pytest.raises(BoardFailure, match="no release is in use any more"):
        judge(disk(prefix), name)


@pytest.mark.parametrize("damage", [lambda _: b"", lambda data: data[:-1] + b"?", None])
@pytest.mark.parametrize("pattern", ["awq_edge_stand_in.py", "*.gguf", "files.txt", "METADATA"])
def test_a_release_that_is_not_whole_is_found(
    pattern: str, damage: Callable[[bytes], bytes] | None, prefix: Path
) -> None:
    path = next((prefix / "releases").rglob(pattern))
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    if path.suffix == ".gguf" and damage is None:
        with pytest.raises(BoardFailure, match=r"gguf|no model is left"):
            judge(disk(prefix), "")
        return
    with pytest.raises(BoardFailure, match="of the release in use is not as it was installed"):
        judge(disk(prefix), "")


def test_a_file_of_the_copy_has_its_name_last(prefix: Path) -> None:
    incoming = prefix / "incoming"
    incoming.mkdir()
    (incoming / "SHA256SUMS").write_text(f"{'0' * 64}  model.gguf\n")
    assert judge(disk(prefix), "") == "with the new release"
    (incoming / f"model.gguf.{'0' * 64}.part").write_bytes(b"part of it")
    assert judge(disk(prefix), "") == "with the new release"
    (incoming / "model.gguf").write_bytes(b"")
    with pytest.raises(BoardFailure, match="has its name and not its contents"):
        judge(disk(prefix), "")


def test_a_disk_that_cannot_be_read_is_none_without_a_release(tmp_path: Path) -> None:
    image = tmp_path / "root.img"
    image.write_bytes(bytes(1 << 20))
    with pytest.raises(BoardFailure, match="debugfs cannot"):
        release_in(image)
