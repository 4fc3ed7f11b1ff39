"""``awq-edge build``: the library and the wheel for a board, built on this machine."""

# No `from __future__ import annotations` here: on Python 3.9 typer reads annotations as they stand.

import time
from pathlib import Path
from typing import Annotated, Optional

import typer

from awq_edge.cli._options import Json, Quiet
from awq_edge.cli._output import Output
from awq_edge.cli._targets import Target
from awq_edge.errors import FileUnreadableError, InvalidArgumentError
from awq_edge.outputs.place import check_folder
from awq_edge.profiles import Profile, load_profile
from awq_edge.quantities import duration_text, size_text


def build(
    target: Target,
    directory: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where to put the wheel.")
    ] = Path("dist"),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Cross-compile the library for a board and make a wheel that pip installs there."""
    output = Output(as_json=as_json, quiet=quiet)
    profile = load_profile(target)
    check_folder(directory)
    library, wheel = build_wheel(profile, directory, output)
    size = wheel.stat().st_size
    output.line(f"{wheel} ({size_text(size)})")
    output.status(f"On the board: pip install {wheel.name}")
    output.json(
        {
            "target": profile.name,
            "wheel": str(wheel),
            "library": str(library),
            "wheel_bytes": size,
            "library_bytes": library.stat().st_size,
        }
    )


def build_wheel(profile: Profile, directory: Path, output: Output) -> tuple[Path, Path]:
    """Builds with a bar; gives the library and the wheel."""
    from awq_edge.device.library import LibraryBuild
    from awq_edge.device.wheel import write_wheel

    work = LibraryBuild(profile)
    if work.is_first:
        output.status(
            f"First build for {profile.machine}: the compiler also builds its own C++ library, "
            "which takes about two minutes; later builds, and those for other boards with this "
            "kind of CPU, take seconds."
        )
    with output.progress(f"Building for {profile.machine}", 1) as bar:
        seen = 0.0
        started = time.monotonic()

        def report(done: int, total: int) -> None:
            nonlocal seen
            if done == 0:
                what = "the compiler's C++ library" if work.is_first else "what has changed"
                bar.note(f"{what}, {duration_text(time.monotonic() - started)}")
                return
            bar.advance(done / total - seen, f"{done} of {total} files")
            seen = done / total

        library = work.run(report)
    return library, write_wheel(profile, library, directory)


def wheel_for(profile: Profile, given: Optional[Path], directory: Path, output: Output) -> Path:
    """The wheel that the user named, if it suits the target, otherwise a new one."""
    from awq_edge.device.wheel import wheel_name

    if given is None:
        return build_wheel(profile, directory, output)[1]
    if given.name != wheel_name(profile):
        raise InvalidArgumentError(
            f"{given} is not the wheel for {profile.name}: that is called {wheel_name(profile)}."
        )
    if not given.is_file():
        raise FileUnreadableError(f"{given} does not exist: 'awq-edge build' makes it.")
    return given
