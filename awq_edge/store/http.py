"""Bytes of a file behind an address, from a place in it on.

Owns redirects, what a server says of a file's length and version, and the way from its faults to
sentences. Refuses to write: ``download.py`` does. A server is another's: nothing that it says is
believed without a limit.
"""

from __future__ import annotations

import contextlib
import email.message
import http.client
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urljoin, urlsplit

from awq_edge import __version__
from awq_edge.errors import AwqEdgeError

# A line that carries nothing for so long is broken.
_SILENCE_SECONDS = 30.0
_MOST_REDIRECTS = 10
_REDIRECTS = (301, 302, 303, 307, 308)
# Servers that are busy, or that a proxy does not reach.
_TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
_MOST_WAIT_SECONDS = 60.0


class DownloadError(AwqEdgeError):
    """A model cannot be fetched; trying again does not help."""


class BrokenError(Exception):
    """The line broke, or the server is busy: trying again may help.

    Attributes:
        wait_seconds: How long the server asks to wait; 0 if it does not.
    """

    def __init__(self, reason: str, wait_seconds: float = 0.0) -> None:
        """Takes the reason, a few words."""
        super().__init__(reason)
        self.wait_seconds = wait_seconds


@dataclass(frozen=True)
class Version:
    """What tells one version of a file from another.

    Attributes:
        size_bytes: Of the whole file.
        etag: The server's mark, as it writes it; "" without one.
        modified: Its date; "" without one.
    """

    size_bytes: int
    etag: str
    modified: str


@dataclass
class Answer:
    """What a server sends.

    Attributes:
        version: Of the file.
        offset: Where in the file the bytes begin.
        body: The bytes.
    """

    version: Version
    offset: int
    body: IO[bytes]

    def read(self, size: int) -> bytes:
        """Some bytes; none at the end.

        Raises:
            BrokenError: The line broke.
        """
        try:
            return self.body.read(size)
        except (http.client.HTTPException, OSError) as error:
            raise BrokenError(_reason(error)) from error


@contextlib.contextmanager
def open_at(
    address: str, offset: int, end: int | None, headers: Mapping[str, str]
) -> Iterator[Answer]:
    """The bytes of a file from ``offset`` on.

    Args:
        address: http, https or file.
        offset: Where to begin; a server that cannot do that begins at 0.
        end: Where to end; None is the end of the file.
        headers: For the address's own host.

    Raises:
        DownloadError: There is no such file, or the server may not or cannot give it.
        BrokenError: It may be tried again.
    """
    wanted = {**headers, "Range": f"bytes={offset}-{'' if end is None else end - 1}"}
    with _open(address, wanted) as answer:
        yield _read_head(address, offset, answer)


def get_small(address: str, headers: Mapping[str, str], most_bytes: int) -> bytes:
    """A short answer as a whole.

    Raises:
        DownloadError: There is none, or it is long.
    """
    try:
        with _open(address, headers) as answer:
            content: bytes = answer.read(most_bytes + 1)
    except (BrokenError, http.client.HTTPException, OSError) as error:
        reason = str(error) if isinstance(error, BrokenError) else _reason(error)
        raise DownloadError(f"{host_of(address)} does not answer ({reason}).") from error
    if len(content) > most_bytes:
        raise DownloadError(f"{host_of(address)} answers with more than {most_bytes} bytes.")
    return content


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Redirects are followed here: urllib would hand the key of one host to the next."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _open(address: str, headers: Mapping[str, str]) -> Any:
    """Follows redirects; gives an answer with status 200 or 206."""
    opener = urllib.request.build_opener(_NoRedirect)
    first = urlsplit(address)
    seen = set()
    for _ in range(_MOST_REDIRECTS + 1):
        parts = urlsplit(address)
        sent = {"User-Agent": f"awq-edge/{__version__}", "Accept-Encoding": "identity", **headers}
        if (parts.scheme, parts.netloc) != (first.scheme, first.netloc):
            sent.pop("Authorization", None)
        if parts.scheme == "file":
            _refuse_what_is_no_file(address)
        try:
            return opener.open(
                urllib.request.Request(address, headers=sent), timeout=_SILENCE_SECONDS
            )
        except urllib.error.HTTPError as error:
            with error:
                if error.code not in _REDIRECTS:
                    _raise_for(address, error)
                target = urljoin(address, error.headers.get("Location", ""))
        except (http.client.HTTPException, OSError, ValueError) as error:
            _raise_unreachable(address, error)
        scheme = urlsplit(target).scheme
        if scheme not in ("http", "https") or (parts.scheme == "https" and scheme == "http"):
            raise DownloadError(
                f"{host_of(address)} leads on to an address that is not safe: {target[:200]}."
            )
        if target in seen:
            break
        seen.add(target)
        address = target
    raise DownloadError(f"{host_of(address)} leads in a circle: check the address.")


def _refuse_what_is_no_file(address: str) -> None:
    """A pipe would be waited for, and a device has no end."""
    path = Path(urllib.request.url2pathname(urlsplit(address).path))
    if path.exists() and not path.is_file():
        raise DownloadError(f"{address[:200]} is no regular file.")


def _read_head(address: str, offset: int, answer: Any) -> Answer:
    """What the head of an answer says."""
    head: email.message.Message = answer.headers
    if head.get("Content-Encoding", "identity") not in ("", "identity"):
        raise DownloadError(
            f"{host_of(address)} sends the file in another encoding than asked for."
        )
    length = head.get("Content-Length", "")
    if answer.status == 206:
        match = _RANGE.fullmatch(head.get("Content-Range", "").strip())
        if match is None or int(match[1]) != offset or int(match[2]) >= int(match[3]):
            raise DownloadError(
                f"{host_of(address)} answers with other bytes than it was asked for."
            )
        begin, size = offset, int(match[3])
    elif length.isascii() and length.isdigit() and len(length) < 19:
        begin, size = 0, int(length)
    else:
        raise DownloadError(f"{host_of(address)} does not tell how long the file is.")
    etag = head.get("ETag", "").strip()
    # A weak mark says that two versions mean the same, not that their bytes are equal.
    version = Version(size, "" if etag.startswith("W/") else etag, head.get("Last-Modified", ""))
    return Answer(version, begin, answer)


def _raise_for(address: str, error: urllib.error.HTTPError) -> None:
    """An answer that is no file."""
    host, code = host_of(address), error.code
    if code in _TRY_AGAIN:
        after = error.headers.get("Retry-After", "")
        wait = float(after) if after.isascii() and after.isdigit() else 0.0
        raise BrokenError(f"{host} answers {code}", min(wait, _MOST_WAIT_SECONDS))
    if code == 416:
        raise BrokenError("the file has become shorter")
    sentences = {
        401: f"{host} wants to know who asks: for the hub, set HF_TOKEN to a key of yours.",
        403: f"{host} does not give you this file: on the hub, accept its licence first.",
        404: f"{host} has no file at {urlsplit(address).path[:200]}: check the address.",
        410: f"{host} no longer has the file at {urlsplit(address).path[:200]}.",
    }
    raise DownloadError(sentences.get(code, f"{host} answers {code} and no file."))


def _raise_unreachable(address: str, error: BaseException) -> None:
    """There was no answer at all."""
    cause = getattr(error, "reason", error)
    if urlsplit(address).scheme == "file":
        why = getattr(cause, "strerror", None) or str(cause)
        raise DownloadError(f"{address} cannot be read: {why}.") from error
    if isinstance(cause, ssl.SSLCertVerificationError):
        raise DownloadError(
            f"The certificate of {host_of(address)} cannot be trusted ({cause.verify_message}): is "
            "this machine's clock right?"
        ) from error
    if isinstance(error, (ValueError, http.client.InvalidURL)):
        raise DownloadError(f"{address[:200]!r} is no address that can be fetched.") from error
    raise BrokenError(_reason(error)) from error


def _reason(error: BaseException) -> str:
    cause = getattr(error, "reason", error)
    if isinstance(cause, TimeoutError):
        return "nothing came for a while"
    if isinstance(cause, http.client.IncompleteRead):
        return "the line broke"
    return str(getattr(cause, "strerror", None) or cause or type(cause).__name__)


def host_of(address: str) -> str:
    """The host of an address, without keys that stand in it."""
    return urlsplit(address).hostname or address[:200]
