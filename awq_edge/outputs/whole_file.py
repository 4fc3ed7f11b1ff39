"""A file that appears whole: written where nobody looks, synced, then renamed.

Owns the order of these steps. Refuses checks of its own: ``place`` makes them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from awq_edge.outputs.place import Place, sync, write_error
from awq_edge.outputs.workplace import Workplace

_NAME = "file"


@contextlib.contextmanager
def whole_file(place: Place) -> Iterator[BinaryIO]:
    """A file to write; it has its name when the context ends without an error, else it is gone.

    Raises:
        FileUnreadableError: The operating system refused, or another awq-edge writes there.
    """
    try:
        with Workplace(place.path) as work:
            with work.new_file(_NAME) as file:
                yield file
                sync(file)
            place.appear(work.path / _NAME)
    except OSError as error:
        raise write_error(place.path, error) from error


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file, or replaces it.

    Raises:
        InvalidArgumentError: What is there is a link, a directory or a device.
        FileUnreadableError: The operating system refused, or another awq-edge writes there.
    """
    with whole_file(Place(path, replace=True)) as file:
        file.write(data)
