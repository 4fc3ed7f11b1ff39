"""The user's cache directory: small answers that are costly to find again, and builds.

Owns where it is, and how its files are read and written: by nobody else's hand, never through a
link, never waiting, never more than a limit. A cache may be damaged, foreign or missing: that costs
another measurement and is no error. Refuses what the files mean.
"""

from __future__ import annotations

import os
import stat
import sys
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from awq_edge.errors import FileUnreadableError

_OWN = "awq-edge"
# Of a file; longer, and it is not ours.
_MOST_BYTES = 1 << 20
# A pipe is opened without waiting for its other end, and a link not at all. (0: no such flag here.)
_CAREFUL = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)


def cache_directory() -> Path | None:
    """Where ours lie: AWQ_EDGE_CACHE, or a folder in the user's cache; None without a home."""
    forced = os.environ.get("AWQ_EDGE_CACHE")
    if forced:
        return Path(forced)
    base = caches_of_all_programs()
    return None if base is None else base / _OWN


def caches_of_all_programs() -> Path | None:
    """The user's cache directory; None without a home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # noqa: PTH117  # the rule of XDG: a relative one does not count
        return Path(base)
    home = os.path.expanduser("~")  # noqa: PTH111  # pathlib raises where there is no home
    if not os.path.isabs(home):  # noqa: PTH117
        return None
    return Path(home) / ("Library/Caches" if sys.platform == "darwin" else ".cache")


def read_cached(name: str) -> bytes | None:
    """A file of the cache; None if there is none that can be trusted."""
    try:
        folder = _open_folder(make=False)
        try:
            descriptor = os.open(name, os.O_RDONLY | _CAREFUL, dir_fd=folder)
        finally:
            os.close(folder)
        with os.fdopen(descriptor, "rb") as file:
            if not _is_own(os.fstat(descriptor), stat.S_ISREG):
                return None
            content = file.read(_MOST_BYTES + 1)
    except OSError:
        return None
    return content if len(content) <= _MOST_BYTES else None


def write_cached(name: str, content: bytes) -> None:
    """Replaces a file of the cache as a whole, or leaves everything as it is."""
    if len(content) > _MOST_BYTES:
        return
    with suppress(OSError):
        folder = _open_folder(make=True)
        try:
            _replace(folder, name, content)
        finally:
            os.close(folder)


def own_folder(*parts: str) -> Path:
    """A folder of the cache for a program's own files, made if it is not there.

    Raises:
        FileUnreadableError: There is none that only this user can change.
    """
    folder = cache_directory()
    if folder is None:
        raise FileUnreadableError(
            "There is no home directory for a cache: name a folder with AWQ_EDGE_CACHE."
        )
    for part in ("", *parts):
        folder = folder / part
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # The cache itself may be a link to a larger disk; what is inside is no link.
            found = folder.lstat() if part else folder.stat()
        except OSError as error:
            raise FileUnreadableError(
                f"Cannot use the cache {folder}: {error.strerror}."
            ) from error
        if not _is_own(found, stat.S_ISDIR):
            raise FileUnreadableError(
                f"{folder} is no folder that only you can change, and nothing in it can be "
                "trusted: remove it, or name another cache with AWQ_EDGE_CACHE."
            )
    return folder


def open_own(path: Path) -> BinaryIO:
    """A regular file that only this user can change, never through a link.

    Raises:
        OSError: It is none.
    """
    descriptor = os.open(path, os.O_RDONLY | _CAREFUL)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        os.close(descriptor)
        raise PermissionError(1, "it is not a file of this user")
    return os.fdopen(descriptor, "rb")


def lock_file(path: Path) -> BinaryIO:
    """A file without contents, made if it is not there, for its lock alone.

    Raises:
        FileUnreadableError: There is something else, or it cannot be made.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _CAREFUL, 0o600)
    except OSError as error:
        raise FileUnreadableError(f"Cannot use the cache {path}: {error.strerror}.") from error
    return os.fdopen(descriptor, "r+b")


def write_own(path: Path, *parts: bytes | bytearray) -> None:
    """Writes a file that appears whole or not at all; until then its name begins with a dot.

    Raises:
        OSError: It cannot be written; what was there stays.
    """
    beside = path.with_name(f".{os.urandom(8).hex()}{path.suffix}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _CAREFUL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(descriptor)
        beside.replace(path)
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise


def is_sound(folder: Path) -> bool:
    """Whether a folder and everything in it are kept, and can be changed, by this user alone."""
    try:
        if not _is_own(folder.lstat(), stat.S_ISDIR):
            return False
        for directory, folders, files in os.walk(folder, onerror=_fail):
            for names, kind in ((folders, stat.S_ISDIR), (files, stat.S_ISREG)):
                for name in names:
                    if not _is_own(Path(directory, name).lstat(), kind):
                        return False
    except OSError:
        return False
    return True


def _fail(error: OSError) -> None:
    raise error


def _open_folder(*, make: bool) -> int:
    """A descriptor of the cache directory; OSError if it cannot be trusted."""
    path = cache_directory()
    if path is None:
        raise FileNotFoundError
    if make:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    if not _is_own(os.fstat(descriptor), stat.S_ISDIR):
        os.close(descriptor)
        raise PermissionError
    return descriptor


def _replace(folder: int, name: str, content: bytes) -> None:
    beside = f".{name}.{os.urandom(8).hex()}"
    descriptor = os.open(
        beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _CAREFUL, 0o600, dir_fd=folder
    )
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        os.replace(beside, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with suppress(OSError):
            os.unlink(beside, dir_fd=folder)
        raise


def _is_own(found: os.stat_result, kind: object) -> bool:
    """Of the right kind, this user's, and closed to the world."""
    mode = found.st_mode
    return bool(
        kind(mode)  # type: ignore[operator]  # one of stat.S_IS…
        and found.st_uid == os.geteuid()
        and not mode & stat.S_IWOTH
    )
