"""The project's metadata, as a wheel carries it: METADATA, entry_points.txt, the licence.

Owns the way from ``pyproject.toml`` to these files, which a checkout takes; an installed wheel
hands on what it was installed with.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection
from importlib import metadata
from pathlib import Path
from typing import Any

from awq_edge import __version__
from awq_edge.device.sources import is_checkout, package_directory
from awq_edge.errors import UnsupportedError

if sys.version_info >= (3, 11):
    import tomllib
else:  # the standard library has no TOML reader before 3.11
    import tomli as tomllib

_DISTRIBUTION = "awq-edge"
# At the end of a marker: "; extra == 'serve'" or "; python_version < '3.11' and extra == 'serve'".
_EXTRA = re.compile(r"""(?:\band\s+|;\s*)extra\s*==\s*["'](?P<name>[\w-]+)["']\s*$""")


def metadata_files() -> dict[str, bytes]:
    """Contents by name inside ``.dist-info``, without WHEEL and RECORD.

    Raises:
        UnsupportedError: This installation has no metadata to hand on.
    """
    return _of_checkout(package_directory().parent) if is_checkout() else _of_installation()


def runtime_requirements(extras: Collection[str] = ()) -> list[str]:
    """What the package needs on a board, as requirement strings with their markers.

    Args:
        extras: Extras of the package that the board is to have.
    """
    lines = metadata_files()["METADATA"].decode("utf-8").split("\n\n")[0].splitlines()
    requirements = [line.partition(": ")[2] for line in lines if line.startswith("Requires-Dist:")]
    found = []
    for text in requirements:
        extra = _EXTRA.search(text)
        if extra is None:
            found.append(text)
        elif extra["name"] in extras:
            found.append(text[: extra.start()].rstrip(" ;"))
    return found


def _of_installation() -> dict[str, bytes]:
    try:
        distribution = metadata.distribution(_DISTRIBUTION)
    except metadata.PackageNotFoundError as error:
        raise UnsupportedError(
            "awq-edge has no metadata for this Python: install it with pip."
        ) from error
    found: dict[str, bytes] = {}
    for name in ("METADATA", "entry_points.txt"):
        text = distribution.read_text(name)
        if text is None:
            raise UnsupportedError(f"{name} is missing from awq-edge's metadata: install it again.")
        found[name] = text.encode()
    for path in distribution.files or ():
        parts = path.parts
        if len(parts) > 2 and parts[0].endswith(".dist-info") and parts[1] == "licenses":
            found["/".join(parts[1:])] = Path(str(distribution.locate_file(path))).read_bytes()
    return found


def _of_checkout(root: Path) -> dict[str, bytes]:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    scripts = "".join(f"{name} = {target}\n" for name, target in sorted(project["scripts"].items()))
    return {
        "METADATA": _metadata_text(project, (root / project["readme"]).read_text("utf-8")).encode(),
        "entry_points.txt": f"[console_scripts]\n{scripts}".encode(),
        "licenses/LICENSE": (root / "LICENSE").read_bytes(),
    }


def _metadata_text(project: dict[str, Any], readme: str) -> str:
    """METADATA in the version that every pip of a supported Python reads."""
    fields = [
        ("Metadata-Version", "2.1"),
        ("Name", project["name"]),
        ("Version", __version__),
        ("Summary", project["description"]),
        ("License", project["license"]),
        ("Requires-Python", project["requires-python"]),
        *(("Requires-Dist", requirement) for requirement in project["dependencies"]),
    ]
    for extra, requirements in sorted(project["optional-dependencies"].items()):
        fields.append(("Provides-Extra", extra))
        fields += [("Requires-Dist", _with_extra(text, extra)) for text in requirements]
    fields.append(("Description-Content-Type", "text/markdown"))
    return "".join(f"{name}: {value}\n" for name, value in fields) + f"\n{readme}"


def _with_extra(requirement: str, extra: str) -> str:
    name, separator, marker = requirement.partition(";")
    condition = f"({marker.strip()}) and " if separator else ""
    return f'{name.strip()}; {condition}extra == "{extra}"'
