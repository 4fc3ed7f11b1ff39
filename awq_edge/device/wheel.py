"""Writes the wheel for a board: the Python package of this installation and a cross-built library.

Owns the zip and its metadata: the same files give the same bytes, whatever the folder and the
day. Refuses compiling: ``library.py`` does that.
"""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path

from awq_edge import __version__, _native
from awq_edge.device.library import LIBRARY_NAME
from awq_edge.device.project import metadata_files
from awq_edge.device.sources import package_files
from awq_edge.outputs.place import Place, write_error
from awq_edge.outputs.whole_file import whole_file
from awq_edge.profiles import Profile

# The oldest date that a zip can hold: a wheel's bytes must not depend on when it was made.
_DATE = (1980, 1, 1, 0, 0, 0)
_FILE_MODE, _LIBRARY_MODE = 0o100644, 0o100755


def wheel_name(profile: Profile) -> str:
    """The wheel's file name, whose tag says what the library needs."""
    return f"awq_edge-{__version__}-{_tag(profile)}.whl"


def _tag(profile: Profile) -> str:
    return f"py3-none-manylinux_2_31_{profile.machine}"


def write_wheel(profile: Profile, library: Path, folder: Path) -> Path:
    """Writes the wheel into ``folder``, which is made if it is missing.

    Args:
        profile: The target.
        library: The library that was built for it.
        folder: Where to put the wheel; one of the same name is replaced.

    Returns:
        The wheel.
    """
    contents = {name: path.read_bytes() for name, path in package_files().items()}
    contents[f"awq_edge/{LIBRARY_NAME}"] = library.read_bytes()
    header = contents["awq_edge/include/awq_edge.h"].decode("utf-8")
    parsed = _native.parsed_declarations(_native.declarations(header))
    contents["awq_edge/_declarations.py"] = parsed.encode()
    info = f"awq_edge-{__version__}.dist-info"
    contents.update({f"{info}/{name}": data for name, data in metadata_files().items()})
    contents[f"{info}/WHEEL"] = (
        f"Wheel-Version: 1.0\nGenerator: awq-edge {__version__}\nRoot-Is-Purelib: false\n"
        f"Tag: {_tag(profile)}\n"
    ).encode()
    record = "".join(
        f"{name},sha256={_digest(data)},{len(data)}\n" for name, data in sorted(contents.items())
    )
    record += f"{info}/RECORD,,\n"
    target = folder / wheel_name(profile)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(target, error) from error
    with whole_file(Place(target, replace=True)) as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            # The metadata comes last, as the format recommends.
            for name in sorted(contents, key=lambda name: (name.startswith(info), name)):
                _add(archive, name, contents[name])
            _add(archive, f"{info}/RECORD", record.encode())
    return target


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(name, _DATE)
    entry.create_system = 3  # Unix: the mode below is understood
    entry.external_attr = (_LIBRARY_MODE if name.endswith(".so") else _FILE_MODE) << 16
    entry.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(entry, data)
