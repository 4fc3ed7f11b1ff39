"""Where the package's own files are, so that a wheel can be built of them again.

Owns the two layouts: a checkout, and an installed wheel, which carries the native sources in
``native_source/``. Both give the same files under the same names.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from awq_edge.errors import UnsupportedError

# Made by running or building; never part of a wheel.
_LEFT_OUT_SUFFIXES = (".so", ".pyc", ".partial")
_LEFT_OUT_FOLDERS = frozenset(("__pycache__",))


def package_directory() -> Path:
    """The folder of the Python package."""
    return Path(__file__).resolve().parent.parent


def is_checkout() -> bool:
    """Whether the package is used in place, in a checkout of the repository."""
    root = package_directory().parent
    return (root / "CMakeLists.txt").is_file() and (root / "native/include").is_dir()


def native_source_directory() -> Path:
    """The folder with CMakeLists.txt and ``native/``.

    Raises:
        UnsupportedError: This installation carries no native sources.
    """
    folder = package_directory().parent if is_checkout() else package_directory() / "native_source"
    if not (folder / "CMakeLists.txt").is_file():
        raise UnsupportedError(
            f"The native sources are not in {folder}: install awq-edge from a wheel of its "
            "release, or use a checkout."
        )
    return folder


def package_files() -> dict[str, Path]:
    """Every file of a wheel except the library and the metadata: name in the wheel, file here."""
    package = package_directory()
    files = dict(_walk(package, "awq_edge"))
    if is_checkout():
        root = package.parent
        for folder, name in (
            ("converters", "awq_edge/converters"),
            ("targets", "awq_edge/targets"),
            ("native", "awq_edge/native_source/native"),
        ):
            files.update(_walk(root / folder, name))
        files["awq_edge/native_source/CMakeLists.txt"] = root / "CMakeLists.txt"
        files["awq_edge/include/awq_edge.h"] = root / "native/include/awq_edge.h"
    return dict(sorted(files.items()))


def _walk(folder: Path, name: str) -> Iterator[tuple[str, Path]]:
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        left_out = _LEFT_OUT_FOLDERS.intersection(relative.parts)
        if path.is_file() and not left_out and path.suffix not in _LEFT_OUT_SUFFIXES:
            yield f"{name}/{relative.as_posix()}", path
