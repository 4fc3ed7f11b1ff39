"""The place of an output: what can be known of it before the work, and its name in the end.

Owns the refusals (a name that cannot be, a link, a device, one of the inputs, a directory that
takes no files, a disk without room), that they are looked at again before the last rename, and the
sentence for a write that failed. Refuses to make anything: ``workplace`` has the unfinished.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import secrets
import shutil
import stat
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

from awq_edge.errors import AwqEdgeError, FileUnreadableError, InvalidArgumentError
from awq_edge.quantities import size_text

# What is appended to an output's name meanwhile, at its longest: see ``workplace``.
_LONGEST_ADDITION = f"..partial.{secrets.token_hex(8)}"
_LONGEST_INSIDE = "x" * 96  # names inside a directory beside the output
_EXISTS = "{path} exists already; add --force to replace it."


@dataclasses.dataclass(frozen=True)
class Identity:
    """What stays the same while a file is renamed: a later process knows it again by this.

    Attributes:
        inode: Its number.
        size_bytes: Of a file; 0 for a directory.
        mtime_ns: Of a file; 0 for a directory, where it changes with what is inside.
    """

    inode: int
    size_bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> Identity | None:
        """Of what has this name now, links not followed; None for nothing, links and devices."""
        try:
            found = os.lstat(path)
        except (OSError, ValueError):
            return None
        if stat.S_ISDIR(found.st_mode):
            return cls(found.st_ino, 0, 0)
        return cls._of_file(found) if stat.S_ISREG(found.st_mode) else None

    @classmethod
    def _of_file(cls, found: os.stat_result) -> Identity:
        return cls(found.st_ino, found.st_size, found.st_mtime_ns)


class Place:
    """Where one file will appear."""

    def __init__(
        self,
        path: Path,
        *,
        replace: bool = False,
        exists: str = _EXISTS,
        announce: Callable[[Identity], None] | None = None,
    ) -> None:
        """Looks at the place, before any work.

        Args:
            path: The name that the file will have.
            replace: Whether a file may be there already.
            exists: The sentence if it may not and is; ``{path}`` is filled in.
            announce: Told by what the file can be known, right before it appears.

        Raises:
            InvalidArgumentError: No file can or may be written by that name.
            FileUnreadableError: There is no such directory, or it takes no files.
        """
        self.path = path
        self._replace = replace
        self._exists = exists
        self._announce = announce
        self._inputs: list[tuple[str, tuple[int, int]]] = []
        check_name(path)
        self._found = self._look()
        check_directory(path)

    def refuse_inputs(self, inputs: Mapping[str, Iterable[Path]]) -> None:
        """Refuses an output that is one of the files that are read, whatever it is called.

        Args:
            inputs: Files by what they are, such as "the checkpoint"; looked at again in the end.
        """
        for what, paths in inputs.items():
            for path in paths:
                with contextlib.suppress(OSError, ValueError):
                    found = path.stat()
                    self._inputs.append((what, (found.st_dev, found.st_ino)))
        self._refuse_inputs()

    def check(self) -> None:
        """Looks once more.

        Raises:
            InvalidArgumentError: Something else has come to this place since.
        """
        found = self._look()
        self._refuse_inputs()
        if found is not None and found != self._found:
            raise InvalidArgumentError(
                f"{self.path} was written by somebody else meanwhile; move it away, or run the "
                "same command again with --force to replace it."
            )

    def appear(self, finished: Path) -> None:
        """Gives a finished and synced file its name, if what was true at the beginning still is.

        Whoever made the file syncs the directory: ``Workplace.remove`` does.

        Args:
            finished: A file on the same file system; it is gone afterwards.

        Raises:
            InvalidArgumentError: Something else has come to this place since; nothing is changed.
        """
        self.check()
        if self._announce is not None:
            identity = Identity.of(finished)
            assert identity is not None
            self._announce(identity)
        if self._found is not None and os.path.lexists(self.path):
            os.replace(finished, self.path)  # noqa: PTH105  # the error names both
        else:
            self._appear_new(finished)

    def _appear_new(self, finished: Path) -> None:
        """A link is refused by the system if there is a file by now; a rename would replace it."""
        try:
            os.link(finished, self.path)
        except FileExistsError as error:
            raise InvalidArgumentError(self._exists.format(path=self.path)) from error
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            os.replace(finished, self.path)  # noqa: PTH105  # the error names both
        else:
            finished.unlink()

    def _look(self) -> Identity | None:
        """What is there, if it may be there."""
        try:
            found = os.lstat(self.path)
        except OSError:
            return None
        if stat.S_ISLNK(found.st_mode):
            raise InvalidArgumentError(
                f"{self.path} is a link to {self.path.readlink()}; give the name of the file "
                "itself."
            )
        if stat.S_ISDIR(found.st_mode):
            raise InvalidArgumentError(
                f"{self.path} is a directory; give the name of a file in it."
            )
        if not stat.S_ISREG(found.st_mode):
            raise InvalidArgumentError(
                f"{self.path} is no regular file, but a {_kind(found.st_mode)}; choose another "
                "output."
            )
        if not self._replace:
            raise InvalidArgumentError(self._exists.format(path=self.path))
        parent = self.path.parent.stat()
        user = os.geteuid() if hasattr(os, "geteuid") else 0
        if parent.st_mode & stat.S_ISVTX and user not in (0, found.st_uid, parent.st_uid):
            raise FileUnreadableError(
                f"{self.path} belongs to another user and can only be replaced by them; choose "
                "another output."
            )
        return Identity._of_file(found)

    def _refuse_inputs(self) -> None:
        try:
            found = self.path.stat()
        except OSError:
            return
        for what, identity in self._inputs:
            if identity == (found.st_dev, found.st_ino):
                raise InvalidArgumentError(
                    f"{self.path} is a file of {what} and would be overwritten; choose another "
                    "output."
                )


# What the system says where a file can have one name only: FAT, some network file systems.
_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def check_name(path: Path) -> None:
    """Refuses a name that no file can have, or that programs which read it would trip over.

    Raises:
        InvalidArgumentError: It is empty, a directory's, too long, or holds control characters.
    """
    if path.name in ("", ".", ".."):
        raise InvalidArgumentError(f"{path} is a directory; give the name of a file in it.")
    text = str(path)
    if "\0" in text or any(unicodedata.category(letter) == "Cc" for letter in path.name):
        raise InvalidArgumentError(
            f"The name {text!r} holds a line break or another control character; choose another."
        )
    for derived in (path, path.with_name(f"{path.name}{_LONGEST_ADDITION}") / _LONGEST_INSIDE):
        try:
            os.lstat(derived)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise InvalidArgumentError(
                    f"The name {_shortened(text)} is too long: with what is added to it while it "
                    "is written, the file system cannot hold it."
                ) from error


def check_directory(path: Path) -> None:
    """Refuses a place whose directory is missing or takes no files, before any work.

    Raises:
        FileUnreadableError: There is no such directory, or it takes no files.
    """
    if not path.parent.is_dir():
        raise FileUnreadableError(f"There is no directory {path.parent} to write into.")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise FileUnreadableError(
            f"Cannot write into the directory {path.parent.resolve()}: {error.strerror}."
        ) from error


def check_folder(path: Path) -> None:
    """Refuses a folder that is none, or that cannot be made or written into, before any work.

    Raises:
        InvalidArgumentError: Its path is no name.
        FileUnreadableError: Something else is in its place or on the way to it, or it takes no
            files.
    """
    if "\0" in str(path):
        raise InvalidArgumentError(f"The name {str(path)!r} holds a NUL character; choose another.")
    there = next(part for part in (path, *path.absolute().parents) if os.path.lexists(part))
    if not there.is_dir():
        raise FileUnreadableError(f"{there} is no folder; choose another for what is written.")
    check_directory(there / "file")


def check_new(path: Path, exists: str) -> None:
    """Refuses a place where no new file or directory can be made, before any work.

    Args:
        path: The name that it will have.
        exists: The sentence if something is there; ``{path}`` is filled in.
    """
    check_name(path)
    if os.path.lexists(path):
        raise InvalidArgumentError(exists.format(path=path))
    check_directory(path)


def check_room(needs: Iterable[tuple[Path, int]]) -> None:
    """Refuses work that would fill a disk in the end.

    Args:
        needs: Outputs and the bytes that they and everything beside them need; those on one file
            system are added up.

    Raises:
        FileUnreadableError: There is not as much room.
    """
    disks: dict[int, list[tuple[Path, int]]] = {}
    for path, size in needs:
        disks.setdefault(path.parent.stat().st_dev, []).append((path, size))
    for entries in disks.values():
        path, needed = entries[0][0], sum(size for _, size in entries)
        free = shutil.disk_usage(path.parent).free
        if free < needed:
            raise FileUnreadableError(
                f"The disk that holds {path} is too full: the work needs {size_text(needed)}, "
                f"{size_text(free)} are free."
            )


def checkpoint_files(directory: Path) -> list[Path]:
    """The files of a checkpoint, which no output may be; a GGUF file beside them is an output."""
    return [path for path in directory.iterdir() if path.is_file() and not _is_gguf(path)]


def write_error(path: Path, error: OSError) -> AwqEdgeError:
    """One sentence for a failed write to ``path``."""
    if isinstance(error, AwqEdgeError):
        return error
    # numpy tells a short write, "8 requested and 4 written", without a number.
    short = error.errno is None and str(error).endswith(" written")
    if short or error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FileUnreadableError(
            f"The disk that holds {path} is full; free some space and run the same command again."
        )
    return FileUnreadableError(f"Cannot write {path}: {error.strerror or error}.")


def sync(file: BinaryIO) -> None:
    """Puts what was written to a file onto the medium."""
    file.flush()
    os.fsync(file.fileno())


def sync_directory(directory: Path) -> None:
    """Makes a rename durable; file systems that cannot sync a directory do without."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_tree(directory: Path) -> None:
    """Puts every file below a directory onto the medium, and every directory's list of names."""
    for folder, _, files in os.walk(directory):
        for name in files:
            descriptor = os.open(Path(folder) / name, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_directory(Path(folder))


def _is_gguf(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False


def _kind(mode: int) -> str:
    kinds = ((stat.S_ISFIFO, "pipe"), (stat.S_ISSOCK, "socket"))
    return next((name for test, name in kinds if test(mode)), "device")


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:40]}…{text[-16:]}"
