"""Where commands keep what a tower made of pictures, so that the next one encodes none again."""

# No `from __future__ import annotations` here: on Python 3.9 typer reads annotations as they stand.

from pathlib import Path
from typing import TYPE_CHECKING, Optional

from awq_edge.errors import FileUnreadableError

if TYPE_CHECKING:
    from awq_edge.model import Model

# A quarter of what serve keeps by default: both have their pictures in one folder.
_MOST_BYTES = 250_000_000


def keep_pictures(
    model: "Model", folder: Optional[Path] = None, most_bytes: int = _MOST_BYTES
) -> None:
    """Keeps a model's encoded pictures on disk, if it sees any and there is a place for them.

    Args:
        model: An open one.
        folder: Where; None is the user's cache, and none there is no error.
        most_bytes: Of all pictures.
    """
    if not model.sees_pictures:
        return
    from awq_edge.user_cache import own_folder
    from awq_edge.vision.stored_pictures import StoredPictures

    try:
        place = own_folder("pictures") if folder is None else folder
        model.pictures.stored = StoredPictures(place, most_bytes)
    except FileUnreadableError:
        if folder is not None:
            raise
