"""A bundle for tests of the installation: a package of one module stands for awq-edge.

Its command prints a version, waits for its input's end if asked to, and its self-test may fail.
Everything else is as 'awq-edge bundle' makes it, so what install.sh and deploy do with it is real,
and takes a second.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

from boards import STORIES

from awq_edge.device.bundle import Bundle, Requirements, ServicePlan, file_digest, requirements
from awq_edge.profiles import load_profile

HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"


# What 'awq-edge ps --json' says of a service that runs.
_SERVERS = json.dumps(
    {
        "servers": [
            {
                "address": "http://127.0.0.1:8080",
                "models": [STORIES.name.removesuffix(".gguf").removesuffix(".awq")],
                "health": {"status": "ok"},
            }
        ]
    }
)


def needs() -> Requirements:
    """What this machine fulfils."""
    machine = "x86_64-linux" if platform.machine() == "x86_64" else "aarch64-generic"
    return requirements(STORIES, load_profile(machine), [HERE], packages_bytes=1_000_000)


def write_script(folder: Path, wanted: Requirements) -> Path:
    """install.sh alone."""
    path = folder / "install.sh"
    path.write_text(wanted.script())
    return path


def to_deploy(folder: Path) -> Bundle:
    """A folder that ``stand_in_bundle`` made, as ``deploy`` takes it."""
    own = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    files = {"SHA256SUMS": own.pop("SHA256SUMS"), **dict(sorted(own.items()))}
    return Bundle(needs(), files, {name: file_digest(path) for name, path in files.items()})


def write_wheel(path: Path, version: str, selftest: int = 0, *, starts: bool = True) -> Path:
    """A package that stands for awq-edge: prints a version; may fail its self-test, or to start."""
    info = f"awq_edge-{version}.dist-info"
    body = (
        "import sys\n"
        "def main():\n"
        "    if sys.argv[1:2] == ['wait']: print('waits', flush=True); sys.stdin.read()\n"
        f"    if sys.argv[1:2] == ['selftest']: sys.exit({selftest})\n"
        f"    if sys.argv[1:2] == ['ps']: print({_SERVERS!r}); return\n"
        f"    print('awq-edge {version}')\n"
    )
    files = {
        "awq_edge_stand_in.py": body if starts else "raise SystemExit(3)\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: awq-edge\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\nawq-edge = awq_edge_stand_in:main\n",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in files))
    return path


def stand_in_bundle(
    folder: Path,
    *,
    version: str = "1.0",
    selftest: int = 0,
    starts: bool = True,
    model: Path = STORIES,
    service: ServicePlan | None = None,
) -> Path:
    """A bundle with a stand-in for the package, and the small model."""
    wheels = folder / "wheels"
    wheels.mkdir(parents=True)
    name = f"awq_edge-{version}-py3-none-any.whl"
    own = write_wheel(wheels / name, version, selftest, starts=starts)
    (wheels / f"{HERE}.txt").write_text(f"{own.name}\n")
    shutil.copy(model, folder)
    write_script(folder, replace(needs(), model=model, service=service))
    write_sums(folder)
    return folder / "install.sh"


def write_sums(folder: Path) -> None:
    (folder / "SHA256SUMS").unlink(missing_ok=True)
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    sums = (f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in names)
    (folder / "SHA256SUMS").write_text("".join(sums))
