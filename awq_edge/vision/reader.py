"""Pictures for one open model: prepared, encoded once, and known again.

Owns the caches in memory, of what was encoded and of files that were decoded. The key of a picture
is its content and everything that is done to it, never where it came from or when. Refuses text,
which ``picture_prompt.py`` puts together with pictures, and the disk: ``stored_pictures.py``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from awq_edge.errors import FileInvalidError, UnsupportedError
from awq_edge.vision.arrangement import Rows, arranged
from awq_edge.vision.decoding import MAX_PIXELS, Source, read_picture
from awq_edge.vision.preprocessing import METADATA_KEY, Preprocessing
from awq_edge.vision.prompt import METADATA_KEY as PROMPT_KEY
from awq_edge.vision.prompt import PromptRules
from awq_edge.vision.tilings import Tiled

if TYPE_CHECKING:
    from awq_edge.model import Model
    from awq_edge.vision.stored_pictures import StoredPictures

Progress = Callable[[int, int], None]

# Of rows of the decoder's: 14 pictures of LLaVA 1.5's 576 rows at a width of 2048. A board's memory
# is small, and what no longer fits is on disk.
_CACHE_BYTES = 64 << 20
# Of tiles: a conversation's pictures come again with each turn, and decoding a photograph takes as
# long as answering.
_TILES_BYTES = 32 << 20


@dataclasses.dataclass(frozen=True)
class PreparedPicture:
    """A picture as a model's tower reads it.

    Attributes:
        key: Stands for its content, for all that was done to it, and for the model.
        tiled: What the tower reads.
        notices: What a user should know, each a sentence.
        beside_others: The same picture in a prompt with more than one; None: it is this.
    """

    key: bytes
    tiled: Tiled
    notices: tuple[str, ...] = ()
    beside_others: PreparedPicture | None = None


class PictureReader:
    """Pictures of one model; may be shared by threads.

    Attributes:
        rules: How they stand in a text.
        rows: Places in a text that a tile takes: as many as the decoder reads rows of it, or one
            that its layers look at it from.
        looked_at: Whether they do.
        whole: Whether a session reads all rows of a picture or none: they see each other, or turn
            by where they stand in it.
        encodings: How many tiles the tower has read.
        stored: Where encoded pictures are kept for other processes; None: nowhere.
        from_disk: How many pictures were read from there.
    """

    def __init__(self, model: Model) -> None:
        """For an open model.

        Raises:
            UnsupportedError: It has no vision part.
            FileInvalidError: What the file says of pictures cannot be used.
        """
        vision = model.native.vision() if model.sees_pictures else None
        if vision is None:
            raise UnsupportedError(
                f"{model.path} has no vision part: it reads text alone, and no pictures."
            )
        self._model = model
        self._preprocessing = Preprocessing.from_json(model.metadata.get(METADATA_KEY))
        described = sorted(
            (name, value)
            for name, value in model.metadata.items()
            if name == "awq_edge.sha256" or name.startswith("awq_edge.vision.")
        )
        self._identity = hashlib.sha256(repr(described).encode()).digest()
        self.rules = PromptRules.from_json(model.metadata.get(PROMPT_KEY))
        if self.rules.layout == "any_resolution" and vision.newline is None:
            raise FileInvalidError(
                f"{model.path} has no tensor mm.image_newline, which ends the lines of its "
                "pictures: convert the model again."
            )
        self.looked_at = vision.session_bytes > 0
        self.rows = 1 if self.looked_at else vision.tokens
        self._tokens = vision.tokens
        self.whole = vision.bidirectional or vision.step > 0
        self._step = vision.step
        self._width = vision.embedding_size
        self._newline = vision.newline
        self.encodings = 0
        self.stored: StoredPictures | None = None
        self.from_disk = 0
        self._cache: OrderedDict[bytes, Rows] = OrderedDict()
        self._lock = threading.Lock()
        self._files: OrderedDict[tuple[bytes, str, int], PreparedPicture] = OrderedDict()
        self._files_lock = threading.Lock()

    def prepare(
        self,
        source: Source | PreparedPicture,
        detail: str = "high",
        channels: str | None = None,
        most_pixels: int = MAX_PIXELS,
    ) -> PreparedPicture:
        """Reads a picture and makes tiles of it; encodes nothing.

        Args:
            source: A path, the bytes of a file, a picture of Pillow's, an array; or what this
                method gave before.
            detail: "low": one tile; "high": as many as the model was trained on.
            channels: Of an array, "first" or "last", where its shape does not tell.
            most_pixels: A larger picture is refused.
        """
        if isinstance(source, PreparedPicture):
            return source
        if not isinstance(source, bytes):
            return self._prepared(source, detail, channels, most_pixels)
        name = (hashlib.sha256(source).digest(), detail, most_pixels)
        with self._files_lock:
            if name in self._files:
                self._files.move_to_end(name)
                return self._files[name]
        prepared = self._prepared(source, detail, channels, most_pixels)
        with self._files_lock:
            self._files[name] = prepared
            while sum(_tile_bytes(one) for one in self._files.values()) > _TILES_BYTES:
                self._files.popitem(last=False)
        return prepared

    def _prepared(
        self, source: Source, detail: str, channels: str | None, most_pixels: int
    ) -> PreparedPicture:
        picture = read_picture(source, channels=channels, most_pixels=most_pixels)
        digest = hashlib.sha256(self._identity)
        digest.update(f"{detail} {picture.rgb.shape}".encode())
        digest.update(picture.rgb.tobytes())
        tiled = self._preprocessing.tiles(picture.rgb, detail)
        notices = (*picture.notices, *self._preprocessing.notices(tiled, detail))
        square = self._preprocessing.beside_others(picture.rgb)
        other = None
        if square is not None:
            key = hashlib.sha256(digest.digest() + b" beside others").digest()
            other = PreparedPicture(key, square, picture.notices)
        return PreparedPicture(digest.digest(), tiled, notices, other)

    def together(
        self,
        sources: Sequence[Source | PreparedPicture],
        detail: str = "high",
    ) -> list[PreparedPicture]:
        """Prepares all pictures of one prompt; arguments as for :meth:`prepare`."""
        pictures = [self.prepare(source, detail) for source in sources]
        if len(pictures) < 2:
            return pictures
        return [one.beside_others or one for one in pictures]

    def columns(self, picture: PreparedPicture) -> int:
        """Rows of a line of a picture, where they turn by lines and columns; 0: they do not."""
        return int(picture.tiled.tiles.shape[2]) // self._step if self._step else 0

    def encoded(
        self,
        picture: PreparedPicture,
        progress: Progress | None = None,
        threads: Callable[[], int] | None = None,
    ) -> Rows:
        """What the decoder reads of a picture, or looks at, float32 [rows, numbers].

        Args:
            picture: A prepared one.
            progress: Called with the steps done and their number; may raise to stop.
            threads: Asked before each tile how many compute; None: as many as read prompts.
        """
        with self._lock:  # two who ask for the same picture wait for one encoding
            if picture.key in self._cache:
                self._cache.move_to_end(picture.key)
                return self._cache[picture.key]
            shape = (sum(self.rules.runs(picture.tiled, self._tokens)), self._width)
            rows = None if self.stored is None else self.stored.read(picture.key, shape)
            if rows is not None:
                self.from_disk += 1
            else:
                rows = self._arranged(self._encode(picture, progress, threads), picture.tiled)
                if self.stored is not None:
                    self.stored.write(picture.key, rows)
            rows.flags.writeable = False
            self._cache[picture.key] = rows
            while sum(one.nbytes for one in self._cache.values()) > _CACHE_BYTES:
                self._cache.popitem(last=False)
            return rows

    def _arranged(self, found: Rows, tiled: Tiled) -> Rows:
        if self.rules.layout != "any_resolution":
            return found.reshape(-1, self._width)
        newline = np.frombuffer(self._newline or b"", np.float32)
        return arranged(found, tiled, newline, self.rules.most_tiles)

    def _encode(
        self,
        picture: PreparedPicture,
        progress: Progress | None,
        threads: Callable[[], int] | None,
    ) -> Rows:
        """Asks the tower, tile by tile: float32 [tiles, rows of each, hidden]."""
        tiles = np.ascontiguousarray(picture.tiled.tiles)
        rows = self.rules.runs(picture.tiled, self.rows)[0] if self._step else self._tokens
        found = np.empty((len(tiles), rows, self._width), np.float32)
        for tile in range(len(tiles)):

            def report(done: int, total: int, tile: int = tile) -> None:
                if progress is not None:
                    progress(tile * total + done, len(tiles) * total)

            count = self._model.prefill_threads if threads is None else threads()
            self._model.native.encode_pictures(
                tiles[tile : tile + 1], found[tile : tile + 1], count, report
            )
            self.encodings += 1
        if not np.isfinite(found).all():
            raise FileInvalidError(
                "The tower makes numbers of the picture that are not finite: the model file is "
                "damaged, check it with awq-edge inspect --verify."
            )
        return found


def _tile_bytes(picture: PreparedPicture) -> int:
    other = 0 if picture.beside_others is None else _tile_bytes(picture.beside_others)
    return int(picture.tiled.tiles.nbytes) + other
