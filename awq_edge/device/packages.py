"""Fetches the Python packages that a board needs, as wheels for its CPU and its Python version.

Owns the choice of platform tags and the check that the set is complete: pip evaluates the markers
of a requirement for the machine it runs on, so what it fetches for another machine may lack a
package or hold one too many. Refuses to build from source: every package must have a wheel.
"""

from __future__ import annotations

import email.parser
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from awq_edge.errors import BuildError, UnsupportedError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

# The C library of the oldest system in use: Raspberry Pi OS bullseye and JetPack 5 have 2.31.
_GLIBC_MINORS = range(31, 16, -1)
# Requirements of requirements that pip left out are added in rounds; real sets need two.
_ROUNDS = 6


@dataclass(frozen=True)
class _Wheel:
    path: Path
    name: str
    version: str
    requirements: tuple[str, ...]


def fetch(requirements: Iterable[str], machine: str, python: str, folder: Path) -> list[Path]:
    """Fetches wheels that fulfil ``requirements`` and everything these need in turn.

    Args:
        requirements: As a wheel's metadata has them, markers included.
        machine: What ``uname -m`` prints on the board.
        python: Its Python version, for example "3.11".
        folder: Where the wheels go.

    Returns:
        The wheels, in order of name. Others in ``folder`` are not needed.

    Raises:
        UnsupportedError: The package ``packaging`` is missing here.
        BuildError: pip found no wheel for something; the text says for what.
    """
    from packaging.utils import canonicalize_name

    requirement = _requirement_class()
    environment = _environment(machine, python)
    first = [parsed for parsed in map(requirement, requirements) if _applies(parsed, environment)]
    asked = [_without_marker(parsed) for parsed in first]
    for _ in range(_ROUNDS):
        _pip_download(asked, machine, python, folder)
        wheels = {canonicalize_name(wheel.name): wheel for wheel in _read_folder(folder)}
        needed: dict[str, _Wheel] = {}
        missing: list[str] = []
        waiting = [(parsed, frozenset(parsed.extras)) for parsed in first]
        seen = set()
        while waiting:
            parsed, extras = waiting.pop()
            name = canonicalize_name(parsed.name)
            wheel = wheels.get(name)
            if wheel is None or not parsed.specifier.contains(wheel.version, prereleases=True):
                missing.append(_without_marker(parsed))
                continue
            needed[name] = wheel
            if (name, extras) in seen:
                continue
            seen.add((name, extras))
            for text in wheel.requirements:
                inner = requirement(text)
                if _applies(inner, environment, extras):
                    waiting.append((inner, frozenset(inner.extras)))
        if not missing:
            return sorted(wheel.path for wheel in needed.values())
        asked += missing
    raise BuildError(
        f"The packages for Python {python} on {machine} contradict each other: pip finds no set "
        f"that fulfils {', '.join(sorted(set(missing)))}."
    )


def _requirement_class() -> type[Requirement]:
    try:
        from packaging.requirements import Requirement
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            "Fetching packages for a board needs the package packaging: run "
            "pip install 'awq-edge[build]'."
        ) from error
    return Requirement


def _environment(machine: str, python: str) -> dict[str, str]:
    """What markers see on the board."""
    return {
        "implementation_name": "cpython",
        "implementation_version": f"{python}.0",
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
    }


def _applies(
    parsed: Requirement, environment: dict[str, str], extras: frozenset[str] = frozenset()
) -> bool:
    if parsed.marker is None:
        return True
    return any(
        parsed.marker.evaluate({**environment, "extra": extra}) for extra in (extras or {""})
    )


def _without_marker(parsed: Requirement) -> str:
    extras = f"[{','.join(sorted(parsed.extras))}]" if parsed.extras else ""
    return f"{parsed.name}{extras}{parsed.specifier}"


def _platforms(machine: str) -> list[str]:
    tags = [f"manylinux_2_{minor}_{machine}" for minor in _GLIBC_MINORS]
    tags.append(f"manylinux2014_{machine}")
    if machine == "x86_64":
        tags += ["manylinux2010_x86_64", "manylinux1_x86_64", "manylinux_2_5_x86_64"]
    return tags


def _pip_download(asked: list[str], machine: str, python: str, folder: Path) -> None:
    abi = f"cp{python.replace('.', '')}"
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
        *("--dest", str(folder), "--only-binary", ":all:"),
        *("--python-version", python, "--implementation", "cp"),
        *("--abi", abi, "--abi", "abi3", "--abi", "none"),
    ]
    for platform in _platforms(machine):
        command += ["--platform", platform]
    done = subprocess.run([*command, *asked], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
        if "No module named pip" in done.stderr:
            why = f"{sys.executable} has no pip: install it, or use another Python"
        else:
            why = lines[-1].removeprefix("ERROR:").strip() if lines else "pip gave no reason"
        raise BuildError(
            f"Packages for Python {python} on {machine} cannot be fetched: {why.rstrip('.')}. "
            "Check the network, or give other versions with --python."
        )


def _read_folder(folder: Path) -> list[_Wheel]:
    """The wheels in a folder; of two of one name the one that was fetched last."""
    paths = sorted(folder.glob("*.whl"), key=lambda path: path.stat().st_mtime_ns)
    return [_read_wheel(path) for path in paths]


def _read_wheel(path: Path) -> _Wheel:
    with zipfile.ZipFile(path) as archive:
        name = next(
            name
            for name in archive.namelist()
            if name.endswith(".dist-info/METADATA") and name.count("/") == 1
        )
        message = email.parser.HeaderParser().parsestr(archive.read(name).decode("utf-8"))
    return _Wheel(
        path, message["Name"], message["Version"], tuple(message.get_all("Requires-Dist") or ())
    )
