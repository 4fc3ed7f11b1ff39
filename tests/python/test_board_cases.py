"""``make board`` where virtual boards cannot be tried: a sentence, and no success."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SENTENCE = "no virtual board was tried: qemu-system-aarch64 (qemu-system-arm), "


def without_tools(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, env={"PATH": str(folder)}, capture_output=True, text=True, timeout=120
    )


def test_missing_tools_have_a_status_of_their_own(tmp_path: Path) -> None:
    done = without_tools([sys.executable, "tests/board/cases.py", "--quick"], tmp_path)
    assert done.returncode == 77
    assert done.stdout.startswith(SENTENCE)
    assert done.stdout.endswith(" not installed\n")


def test_make_fails_with_the_same_sentence(tmp_path: Path) -> None:
    make = shutil.which("make")
    assert make is not None
    for name in ("find", "sh"):
        found = shutil.which(name)
        assert found is not None
        (tmp_path / name).symlink_to(found)
    # "-o setup": what is installed here is taken as it is.
    command = [make, "-o", "setup", f"BIN={Path(sys.executable).parent}", "board-quick"]
    done = without_tools(command, tmp_path)
    assert done.returncode != 0
    assert SENTENCE in done.stdout
