"""A directory of our own beside an output, where the unfinished lies until it has its name.

Owns the mark that makes a directory ours, the lock that makes it one process's, and that directory
and first contents appear in one rename. A process that is killed leaves it, and the next one for
the same output takes it over. Refuses to touch a directory without the mark, and to follow a link.

The lock is the mark's, ``flock``: the system lets go of it when a process ends in any way. File
systems without locks (and Windows, where it is not there) do without.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from awq_edge.errors import FileUnreadableError
from awq_edge.outputs.place import sync, sync_directory

MARK = ".awq-edge"
_MARK_TEXT = b"awq-edge keeps unfinished work here, and removes this directory when it is done.\n"
# Two processes may undo each other's first steps; neither does so for long.
_TRIES = 100
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF)
_NEW = os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_OLD = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
_BINARY = getattr(os, "O_BINARY", 0)


class Workplace:
    """One such directory. As a context: taken empty, removed in the end, whatever happens.

    Attributes:
        path: The directory.
    """

    def __init__(self, output: Path, path: Path | None = None) -> None:
        """A directory for what will become ``output``.

        Args:
            output: The output.
            path: The directory, beside it; by default a hidden one.
        """
        self._output = output
        self.path = path or output.with_name(f".{output.name}.partial")
        self._contents: tuple[str, ...] = ()  # what tells the next process of the rest
        self._held = False
        self._mark: int | None = None  # its descriptor, where it carries a lock
        self._owner: int | None = None  # of what this process makes here

    def __enter__(self) -> Workplace:
        """Takes it; what a killed process left in it is deleted."""
        if self.take({}):
            self.clear()
        return self

    def __exit__(self, *_: Any) -> None:
        """Removes it with what is still inside."""
        self.remove()

    def take(self, contents: Mapping[str, bytes]) -> bool:
        """Makes the directory, or takes over one whose process is gone.

        Args:
            contents: Files that a new one holds from the moment on when it appears.

        Returns:
            Whether it was there.

        Raises:
            FileUnreadableError: Another process has it, or it is not ours.
        """
        self._contents = tuple(contents)
        self._sweep(contents)
        for _ in range(_TRIES):
            made = self._make(contents)
            if self._seize():
                return not made
        raise self._busy()

    def new_file(self, name: str) -> BinaryIO:
        """Opens a new file of the directory; one of the same name is deleted first."""
        path = self.path / name
        path.unlink(missing_ok=True)
        return _new(path)

    def clear(self, *kept: str) -> None:
        """Deletes everything but the mark and these names."""
        for entry in list(os.scandir(self.path)):
            if entry.name == MARK or entry.name in kept:
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)  # noqa: PTH108  # a path of scandir

    def release(self) -> None:
        """Lets go of the directory and leaves it for another process."""
        self._held = False
        if self._mark is not None:
            os.close(self._mark)
            self._mark = None

    def remove(self) -> None:
        """Deletes the directory: the mark at last, so that it is ours until it is empty.

        Syncs the directory that it lay in, and so the names that were given there.
        """
        if not self._held:
            return
        with contextlib.suppress(OSError):
            self.clear(*self._contents)
            self.clear()
            (self.path / MARK).unlink()
            self.path.rmdir()
        self.release()
        sync_directory(self.path.parent)

    def leave(self, place: Path) -> None:
        """Lets the directory itself become the output, in one rename; the mark goes last.

        Args:
            place: A name where nothing is, or an empty directory.
        """
        os.rename(self.path, place)  # noqa: PTH104  # the error names both
        (place / MARK).unlink()
        sync_directory(place)
        sync_directory(place.parent)
        self.release()

    def _make(self, contents: Mapping[str, bytes]) -> bool:
        """Makes the directory unless there is something."""
        beside = self.path.with_name(f"{self.path.name}.{secrets.token_hex(8)}")
        beside.mkdir()
        try:
            self._owner = os.lstat(beside).st_uid
            for name, data in {**contents, MARK: _MARK_TEXT}.items():
                with _new(beside / name) as file:
                    file.write(data)
                    sync(file)
            sync_directory(beside)
            os.rename(beside, self.path)  # noqa: PTH104  # never over anything but an empty one
        except FileNotFoundError:
            return False  # another process took it for a killed one's
        except OSError as error:
            _delete(beside)
            if os.path.lexists(self.path) and error.errno in _OCCUPIED:
                return False
            raise
        except BaseException:
            _delete(beside)
            raise
        sync_directory(self.path.parent)
        return True

    def _seize(self) -> bool:
        """Locks the directory that is there; False if it is gone meanwhile."""
        try:
            found = os.lstat(self.path)
        except FileNotFoundError:
            return False
        if stat.S_ISLNK(found.st_mode):
            raise FileUnreadableError(
                f"{self.path} is in the way: it is a link to {self.path.readlink()}; remove it, "
                "or choose another output."
            )
        mark = None
        if stat.S_ISDIR(found.st_mode) and found.st_uid == self._owner:
            mark = _open_mark(self.path)
        if mark is None:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                if not any(os.scandir(self.path)):
                    return False  # another process is removing it
            if not os.path.lexists(self.path):
                return False
            raise FileUnreadableError(
                f"{self.path} is in the way and is not a work directory of awq-edge; move it away "
                "or choose another output."
            )
        try:
            if not lock(mark):
                raise self._busy()
            if _is_at(mark, self.path / MARK):
                self._held = True
                if os.name != "nt":  # Windows renames and deletes no open files
                    self._mark, mark = mark, -1
            return self._held
        finally:
            if mark >= 0:
                os.close(mark)

    def _busy(self) -> FileUnreadableError:
        return FileUnreadableError(
            f"Another awq-edge is writing {self._output}; wait until it is done, or choose another "
            "output."
        )

    def _sweep(self, contents: Mapping[str, bytes]) -> None:
        """Deletes directories that killed processes did not get as far as to rename."""
        own = re.compile(re.escape(self.path.name) + r"\.[0-9a-f]{16}")
        for entry in list(os.scandir(self.path.parent)):
            if own.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                with contextlib.suppress(OSError):
                    if set(os.listdir(entry.path)) <= {MARK, *contents}:  # noqa: PTH208
                        _delete(Path(entry.path))


# What the system says of a rename onto something that is no empty directory.
_OCCUPIED = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM)


def resumable_path(output: Path) -> Path:
    """Where work on an output lies that a later process may go on with; a user may see it."""
    return output.parent / f"{output.name}.partial"


def remove_left(output: Path) -> None:
    """Removes the hidden directory that a killed process left beside an output that is whole."""
    left = Workplace(output)
    with contextlib.suppress(OSError):
        left.path.rmdir()  # of which the mark was gone already
    if is_ours(left.path):
        left.take({})
        left.remove()


def remove_rest(output: Path, path: Path) -> None:
    """Removes a directory in which a killed process left nothing, or nothing but the mark."""
    with contextlib.suppress(OSError):
        path.rmdir()
    with contextlib.suppress(OSError):
        if is_ours(path) and os.listdir(path) == [MARK]:  # noqa: PTH208
            rest = Workplace(output, path)
            rest.take({})
            rest.remove()


def is_ours(path: Path) -> bool:
    """Whether a directory carries the mark; links are not followed."""
    try:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            return False
    except (OSError, ValueError):
        return False
    mark = _open_mark(path)
    if mark is not None:
        os.close(mark)
    return mark is not None


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A regular file to read; a link, a pipe or a device is an OSError, at once."""
    descriptor = os.open(path, os.O_RDONLY | _OLD | _BINARY)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        yield file


def _open_mark(directory: Path) -> int | None:
    """The mark's descriptor, if the directory has it."""
    try:
        mark = os.open(directory / MARK, os.O_RDWR | _OLD | _BINARY)
    except OSError:
        return None
    if stat.S_ISREG(os.fstat(mark).st_mode) and os.read(mark, 1024) == _MARK_TEXT:
        return mark
    os.close(mark)
    return None


def _new(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_RDWR | _NEW | _BINARY, 0o666), "w+b")


def lock(descriptor: int) -> bool:
    """Takes the lock of an open file for this process and those that inherit the descriptor.

    Returns:
        Whether it has it; False while another one does.
    """
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return True
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except OSError:
        return False


def _delete(directory: Path) -> None:
    with contextlib.suppress(OSError):
        for name in os.listdir(directory):  # noqa: PTH208
            (directory / name).unlink()
        directory.rmdir()
