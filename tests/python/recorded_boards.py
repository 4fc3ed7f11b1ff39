"""The boards in ``tests/data/boards``: what Linux tells on them, laid out as its files."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).resolve().parents[1] / "data/boards"
NAMES = sorted(path.stem for path in FOLDER.glob("*.toml"))


def record(name: str) -> dict[str, Any]:
    """One board's facts."""
    return tomllib.loads((FOLDER / f"{name}.toml").read_text("utf-8"))


def lay_out(board: dict[str, Any], root: Path) -> Path:
    """Writes the files that the board would have below ``root``."""
    files = dict(board.get("files", {}))
    files["proc/cpuinfo"] = "".join(_cpuinfo(board))
    if "meminfo" in board:
        lines = (f"{key + ':':<16}{value:>8} kB\n" for key, value in board["meminfo"].items())
        files["proc/meminfo"] = "".join(lines)
    number = 0
    for cores in board["cores"]:
        for _ in range(cores["count"]):
            folder = f"sys/devices/system/cpu/cpu{number}"
            if "capacity" in cores:
                files[f"{folder}/cpu_capacity"] = f"{cores['capacity']}\n"
            if "max_khz" in cores:
                files[f"{folder}/cpufreq/cpuinfo_max_freq"] = f"{cores['max_khz']}\n"
            number += 1
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def _cpuinfo(board: dict[str, Any]) -> Iterator[str]:
    number = 0
    for cores in board["cores"]:
        for _ in range(cores["count"]):
            yield f"processor\t: {number}\n"
            if "model_name" in cores:
                yield f"model name\t: {cores['model_name']}\n"
            yield f"Features\t: {cores['features']}\n"
            yield f"CPU implementer\t: {cores['implementer']}\nCPU architecture: 8\n"
            yield f"CPU variant\t: 0x0\nCPU part\t: {cores['part']}\nCPU revision\t: 1\n\n"
            number += 1
    for key, value in board.get("cpuinfo", {}).items():
        yield f"{key}\t: {value}\n"
