"""Pictures in requests, as each protocol writes them: found, and judged before anything is decoded.

Owns what is taken (the bytes of a file in base64), what is refused (addresses, files that a server
would have to keep, other kinds of data) and the limits. Refuses pixels: ``awq_edge/vision`` has
them. What a client says of the file's format does not count; its bytes do.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from awq_edge.errors import InvalidArgumentError, UnsupportedError
from awq_edge.serve.faults import RequestError
from awq_edge.serve.fields import Fields

if TYPE_CHECKING:
    from awq_edge.model import Model
    from awq_edge.vision.reader import PreparedPicture

# Of a file: a telephone's photograph of 12 million pixels has 3 to 6 MB.
MOST_PICTURE_BYTES = 12 << 20
# A conversation sends all of its pictures with each turn.
MOST_PICTURES = 32
# 150 MB while one is decoded; one is at a time.
MOST_PIXELS = 50_000_000

_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)?((?:;[\w.+-]+=[^;,]*)*)(;base64)?,", re.ASCII)
_DETAILS = {"low": "low", "high": "high", "auto": "high", "original": "high"}


@dataclass(frozen=True)
class SentPicture:
    """A picture of a request.

    Attributes:
        data: Base64 of a file.
        path: The field, for sentences.
        detail: "low" or "high".
    """

    data: str
    path: str
    detail: str = "high"

    def prepared(self, model: Model) -> PreparedPicture:
        """What the tower of a model reads.

        Raises:
            RequestError: It is no base64, or no picture that is read.
        """
        # Some encoders write lines.
        data = "".join(self.data.split()) if re.search(r"\s", self.data) else self.data
        try:
            content = base64.b64decode(data, validate=True)
        except ValueError:
            raise RequestError(
                f"{self.path} is no whole base64: send the bytes of a file.", param=self.path
            ) from None
        try:
            return model.pictures.prepare(content, self.detail, most_pixels=MOST_PIXELS)
        except (InvalidArgumentError, UnsupportedError) as error:
            raise RequestError(f"{self.path}: {error}", param=self.path) from error


def picture_of_url(fields: Fields, name: str, detail: str | None) -> SentPicture:
    """A picture that a field has as a data URL.

    Args:
        fields: Around it.
        name: The field.
        detail: What the request says of it.
    """
    url = fields.required_text(name)
    if detail is not None and detail not in _DETAILS:
        raise fields.wrong("detail", "is not one of low, high, auto.")
    found = _DATA_URL.match(url)
    if found is None:
        raise fields.wrong(
            name,
            "is no data URL: this server fetches nothing, send the picture itself as "
            "data:image/jpeg;base64,…",
        )
    kind = (found[1] or "").lower()
    if not kind.startswith("image/") or found[3] is None:
        raise fields.wrong(name, f"is {kind or 'data'!r:.40} and no picture in base64.")
    return _sent(url[found.end() :], fields.path(name), _DETAILS[detail or "high"])


def picture_of_source(block: Fields) -> SentPicture:
    """A picture in Anthropic's form."""
    source = block.inner("source")
    if source is None:
        raise block.wrong("source", "is missing.")
    kind = source.required_text("type")
    if kind != "base64":
        raise source.wrong(
            "type",
            f"is {kind!r:.40}: this server fetches and keeps nothing, send the picture itself as "
            "base64.",
        )
    media = source.text("media_type", "image/jpeg") or ""
    if not media.lower().startswith("image/"):
        raise source.wrong("media_type", f"is {media!r:.40} and no picture.")
    return _sent(source.required_text("data"), source.path("data"), "high")


def pictures_of_list(fields: Fields) -> list[dict[str, Any]]:
    """Parts of Ollama's ``images``: base64, or data URLs as some clients send them."""
    parts = []
    for place, value in enumerate(fields.list_of("images")):
        entry = Fields({"data": value}, f"{fields.path('images')}[{place}]")
        text = entry.required_text("data")
        if text.startswith("data:"):
            parts.append(part_of(picture_of_url(entry, "data", None)))
        else:
            parts.append(part_of(_sent(text, f"{fields.path('images')}[{place}]", "high")))
    return parts


def part_of(picture: SentPicture) -> dict[str, Any]:
    """The part of a message that it becomes."""
    return {"type": "image", "image": picture}


def pictures_in(messages: Sequence[Mapping[str, Any]]) -> Iterator[SentPicture]:
    """Pictures of messages that ``messages.py`` has read, in order."""
    for message in messages:
        if isinstance(message["content"], list):
            for part in message["content"]:
                if part["type"] == "image":
                    yield part["image"]


def check_number(count: int, name: str) -> None:
    """Refuses a request with too many."""
    if count > MOST_PICTURES:
        raise RequestError(
            f"{name} holds {count} pictures: at most {MOST_PICTURES} are read.", param=name
        )


def _sent(data: str, path: str, detail: str) -> SentPicture:
    if len(data) * 3 // 4 > MOST_PICTURE_BYTES:
        raise RequestError(
            f"{path} has {(len(data) * 3 // 4) / 1e6:.1f} MB; pictures of up to "
            f"{MOST_PICTURE_BYTES / 1e6:.1f} MB are read: scale it down.",
            param=path,
            status=413,
        )
    return SentPicture(data, path, detail)
