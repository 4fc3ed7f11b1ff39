"""Pictures for one open model: prepared, encoded once, and known again.

Owns the cache of what was encoded. Its key is a picture's content and everything that is done to
it, never where it came from or when. Refuses text: ``picture_prompt.py`` puts both together.
"""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from awq_edge.errors import UnsupportedError
from awq_edge.vision.decoding import Source, read_picture
from awq_edge.vision.preprocessing import METADATA_KEY, Preprocessing
from awq_edge.vision.prompt import METADATA_KEY as PROMPT_KEY
from awq_edge.vision.prompt import PromptRules
from awq_edge.vision.tilings import Tiled

if TYPE_CHECKING:
    from awq_edge.model import Model

Rows = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]

# Of rows of the decoder's: 64 pictures of LLaVA 1.5's 576 rows at a width of 2048.
_CACHE_BYTES = 288 << 20


@dataclasses.dataclass(frozen=True)
class PreparedPicture:
    """A picture as a model's tower reads it.

    Attributes:
        key: Stands for its content, for all that was done to it, and for the model.
        tiled: What the tower reads.
        notices: What a user should know, each a sentence.
    """

    key: bytes
    tiled: Tiled
    notices: tuple[str, ...] = ()


class PictureReader:
    """Pictures of one model; may be shared by threads.

    Attributes:
        rules: How they stand in a text.
        rows: Of the decoder's, for each tile.
        whole: Whether a picture's rows see each other, so that a session reads all or none.
        encodings: How many tiles the tower has read.
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
        self._identity = hashlib.sha256(
            f"{model.metadata.get('awq_edge.sha256')} {self._preprocessing.to_json()}".encode()
        ).digest()
        self.rules = PromptRules.from_json(model.metadata.get(PROMPT_KEY))
        self.rows = vision.tokens
        self.whole = vision.bidirectional
        self._side = vision.image_size
        self._width = vision.embedding_size
        self.encodings = 0
        self._cache: OrderedDict[bytes, Rows] = OrderedDict()
        self._lock = threading.Lock()

    def prepare(
        self, source: Source | PreparedPicture, detail: str = "high", channels: str | None = None
    ) -> PreparedPicture:
        """Reads a picture and makes tiles of it; encodes nothing.

        Args:
            source: A path, the bytes of a file, a picture of Pillow's, an array; or what this
                method gave before.
            detail: "low": one tile; "high": as many as the model was trained on.
            channels: Of an array, "first" or "last", where its shape does not tell.
        """
        if isinstance(source, PreparedPicture):
            return source
        picture = read_picture(source, channels=channels)
        digest = hashlib.sha256(self._identity)
        digest.update(f"{detail} {picture.rgb.shape}".encode())
        digest.update(picture.rgb.tobytes())
        tiled = self._preprocessing.tiles(picture.rgb, detail)
        return PreparedPicture(digest.digest(), tiled, picture.notices)

    def encoded(self, picture: PreparedPicture, progress: Progress | None = None) -> Rows:
        """What the decoder reads of a picture, float32 [tiles * rows, hidden].

        Args:
            picture: A prepared one.
            progress: Called with the steps done and their number; may raise to stop.
        """
        with self._lock:  # two who ask for the same picture wait for one encoding
            if picture.key in self._cache:
                self._cache.move_to_end(picture.key)
                return self._cache[picture.key]
            tiles = np.ascontiguousarray(picture.tiled.tiles)
            found = np.empty((len(tiles), self.rows, self._width), np.float32)
            self._model.native.encode_pictures(tiles, found, progress=progress)
            self.encodings += len(tiles)
            rows = found.reshape(-1, self._width)
            rows.flags.writeable = False
            self._cache[picture.key] = rows
            while sum(one.nbytes for one in self._cache.values()) > _CACHE_BYTES:
                self._cache.popitem(last=False)
            return rows
