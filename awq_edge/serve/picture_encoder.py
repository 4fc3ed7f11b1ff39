"""Pictures that are encoded beside the engine: one at a time, so that nobody's stream stands still.

Owns one thread and the giving up of what nobody waits for any more. The library gives a tower's
layers and the steps of the engine their turns, or works on both at once where there are cores for
both. Refuses to choose: the engine asks for what a text needs next.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from awq_edge.errors import CancelledError
from awq_edge.serve.texts import TimedOutError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from awq_edge.serve.texts import Text
    from awq_edge.vision.reader import PreparedPicture


class Encoding:
    """A picture that a text waits for.

    Attributes:
        rows: What the decoder reads of it, float32 [rows, hidden].
        given_up: Set when nobody waits any more.
    """

    def __init__(self, picture: PreparedPicture, text: Text) -> None:
        """Has not begun."""
        self.picture = picture
        self.text = text
        self.rows: Future[NDArray[np.float32]] = Future()
        self.given_up = threading.Event()

    def check(self, _done: int = 0, _total: int = 0) -> None:
        """Raises where it is no longer wanted."""
        if self.given_up.is_set():
            raise CancelledError("Nobody waits for the picture any more.")
        deadline = self.text.deadline
        if deadline is not None and time.monotonic() > deadline:
            raise TimedOutError("The text took longer than this server allows.")


class PictureEncoder:
    """A thread that encodes pictures in the order in which they are asked for.

    Attributes:
        tiles: That towers have read.
        seconds: Their time.
        from_disk: Pictures that were read from there instead.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        """Starts no thread before the first picture.

        Args:
            changed: Is called when a picture is done.
        """
        self._changed = changed
        self._thread = ThreadPoolExecutor(1, "awq-edge encodes pictures")
        self._lock = threading.Lock()
        self._all: set[Encoding] = set()
        self.tiles = 0
        self.seconds = 0.0
        self.from_disk = 0

    @property
    def waiting(self) -> int:
        """Pictures that are being encoded or wait for it."""
        return len(self._all)

    def encode(self, text: Text, picture: PreparedPicture, threads: Callable[[], int]) -> Encoding:
        """Begins to encode a picture, unless it is known.

        Args:
            text: Which waits for it.
            picture: What its model's tower reads.
            threads: Asked before each tile: how many may compute.
        """
        encoding = Encoding(picture, text)
        with self._lock:
            self._all.add(encoding)
        self._thread.submit(self._run, encoding, threads)
        return encoding

    def close(self) -> None:
        """Gives everything up and ends the thread."""
        with self._lock:
            for encoding in self._all:
                encoding.given_up.set()
        self._thread.shutdown(wait=True)

    def _run(self, encoding: Encoding, threads: Callable[[], int]) -> None:
        try:
            encoding.check()
            encoding.rows.set_result(self._encoded(encoding, threads))
        except BaseException as error:  # whoever waits must know
            encoding.rows.set_exception(error)
        finally:
            with self._lock:
                self._all.discard(encoding)
            self._changed()

    def _encoded(self, encoding: Encoding, threads: Callable[[], int]) -> NDArray[np.float32]:
        reader, began = encoding.text.model.pictures, time.monotonic()
        tiles, from_disk = reader.encodings, reader.from_disk
        try:
            return reader.encoded(encoding.picture, encoding.check, threads)
        finally:
            self.from_disk += reader.from_disk - from_disk
            self.tiles += reader.encodings - tiles
            if reader.encodings > tiles:
                self.seconds += time.monotonic() - began
