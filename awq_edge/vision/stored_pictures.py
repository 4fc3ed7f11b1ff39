"""Encoded pictures on disk, so that a tower reads none of them again after a restart.

A file holds the rows of one picture behind a hash of itself. Its name is a hash of the picture's
key, which stands for content, settings and model, and of the release, whose arithmetic made them.
A file appears whole or not at all; one that is damaged or foreign is removed, told of, and costs
an encoding.

Owns the folder and its limit. Several processes may use one folder: nothing of it is remembered
here. Refuses pixels.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import struct
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from awq_edge import __version__
from awq_edge.errors import FileUnreadableError
from awq_edge.user_cache import open_own, write_own

_log = logging.getLogger("awq_edge.vision")

_MAGIC = b"AWQEPICT"
_HEAD = struct.Struct("<8sII32s")  # magic, rows, numbers in a row, SHA-256 of what follows
_SUFFIX = ".picture"
_NAME_DIGITS = 40
# After so long nobody is still writing a file.
_ABANDONED_SECONDS = 3600.0


class StoredPictures:
    """A folder of encoded pictures. Any thread may ask."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        """Makes the folder if it is not there; nobody else can read it.

        Args:
            folder: Where.
            most_bytes: Of all files together; the ones that were not used for longest go.

        Raises:
            FileUnreadableError: The folder cannot be used.
        """
        self.folder = folder
        self._most_bytes = most_bytes
        self._warned = False
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._make_room(0)
        except OSError as error:
            raise FileUnreadableError(
                f"Cannot use the cache {folder}: {error.strerror}."
            ) from error

    def read(self, key: bytes, shape: tuple[int, int]) -> npt.NDArray[np.float32] | None:
        """The rows of a picture, float32 [shape]; None where there is no sound file of them."""
        path = self._path(key)
        size = 4 * shape[0] * shape[1]
        try:
            with open_own(path) as file:
                content = file.read(_HEAD.size + size + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._refuse(path, error.strerror or "it cannot be read")
            return None
        head = _HEAD.pack(_MAGIC, *shape, hashlib.sha256(content[_HEAD.size :]).digest())
        if len(content) != _HEAD.size + size or content[: _HEAD.size] != head:
            self._refuse(path, "it is damaged")
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        rows = np.frombuffer(content, "<f4", offset=_HEAD.size).astype(np.float32)
        return rows.reshape(shape)

    def write(self, key: bytes, rows: npt.NDArray[np.float32]) -> None:
        """Keeps the rows of a picture, float32 [rows, hidden], if there is room."""
        content = rows.astype("<f4").tobytes()
        head = _HEAD.pack(_MAGIC, *rows.shape, hashlib.sha256(content).digest())
        size = len(head) + len(content)
        if size > self._most_bytes:
            return
        try:
            self._make_room(size)
            write_own(self._path(key), head, content)
        except OSError as error:
            if not self._warned:  # a full disk would say it again and again
                self._warned = True
                _log.warning("pictures cannot be kept in %s: %s", self.folder, error.strerror)

    @property
    def total_bytes(self) -> int:
        """Of all files."""
        return sum(found.st_size for _, found in self._files())

    def _path(self, key: bytes) -> Path:
        name = hashlib.sha256(f"{__version__} ".encode() + key).hexdigest()[:_NAME_DIGITS]
        return self.folder / (name + _SUFFIX)

    def _files(self) -> list[tuple[Path, os.stat_result]]:
        """Ours, those that were not used for longest first."""
        found = []
        for path in self.folder.iterdir():
            if path.name.endswith(_SUFFIX):
                with contextlib.suppress(OSError):  # another process has removed it
                    found.append((path, path.lstat()))
        return sorted(found, key=lambda one: one[1].st_mtime)

    def _make_room(self, size: int) -> None:
        files, now = self._files(), time.time()
        total = size + sum(found.st_size for _, found in files)
        for path, found in files:
            # What begins with a dot is being written, or was when its process was killed.
            written = not path.name.startswith(".")
            abandoned = not written and now - found.st_mtime > _ABANDONED_SECONDS
            if abandoned or (written and total > self._most_bytes):
                total -= found.st_size
                with contextlib.suppress(OSError):
                    path.unlink()

    def _refuse(self, path: Path, reason: str) -> None:
        _log.warning("the kept picture %s is not used: %s", path.name, reason)
        with contextlib.suppress(OSError):
            path.unlink()
