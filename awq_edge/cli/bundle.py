"""``awq-edge bundle``: a model with everything that a board needs to run it, without network."""

# No `from __future__ import annotations` here: on Python 3.9 typer reads annotations as they stand.

import re
import tempfile
from pathlib import Path
from typing import Annotated, Optional

import typer

from awq_edge.cli._options import Json, ModelFile, Quiet, place_path
from awq_edge.cli._output import Output
from awq_edge.cli._targets import MemoryMax, Pythons, Service, Target, Wheel, service_plan
from awq_edge.cli.build import wheel_for
from awq_edge.errors import InvalidArgumentError
from awq_edge.profiles import load_profile
from awq_edge.quantities import size_text


def bundle(
    file: ModelFile,
    target: Target,
    destination: Annotated[
        Optional[Path],
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            parser=place_path,
            help="A folder to make, or a .tar or .tar.gz file; by default MODEL-TARGET.tar.",
        ),
    ] = None,
    python: Pythons = None,
    wheel: Wheel = None,
    service: Service = None,
    memory_max: MemoryMax = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Pack FILE, the wheel for a board and all packages it needs; install.sh installs them."""
    from awq_edge.device.bundle import check_place, collect, requirements, write

    output = Output(as_json=as_json, quiet=quiet)
    profile = load_profile(target)
    path = destination or Path(f"{file.name.removesuffix('.gguf')}-{target}.tar")
    check_place(path)
    pythons = python or profile.pythons
    for version in pythons:
        if re.fullmatch(r"3\.\d+", version) is None:
            raise InvalidArgumentError(
                f"There is no Python {version!r} that a board may have: write it as 3.11."
            )
    plan = service_plan(service, memory_max)
    requirements(
        file, profile, pythons, service=plan
    )  # refuses a bad model before two minutes of compiling
    with tempfile.TemporaryDirectory(prefix="awq-edge-") as folder:
        own = wheel_for(profile, wheel, Path(folder) / "wheel", output)
        work = Path(folder) / "bundle"
        result = collect(file, profile, own, pythons, work, output.status, plan)
        with output.progress("Writing", result.size_bytes) as bar:
            write(result, path, bar.advance)
        size = result.size_bytes
    output.line(f"{path} ({size_text(size)}), for Python {', '.join(pythons)}")
    if path.is_dir():
        output.status(f"On the board, in a copy of {path.name}: sh install.sh")
    else:
        output.status(f"On the board: tar -xf {path.name} && sh awq-edge-bundle/install.sh")
    output.json(
        {
            "target": profile.name,
            "path": str(path),
            "bytes": size,
            "pythons": list(pythons),
            "memory_bytes": result.needs.memory_bytes,
            "disk_bytes": result.needs.disk_bytes,
            "files": list(result.files),
        }
    )
