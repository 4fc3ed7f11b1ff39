"""Where a model is fetched from: an address, or a hub id and what the hub lists for it.

Owns the way from what a person types to one address and one file name. Refuses to fetch files.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote, urlsplit

from awq_edge.errors import InvalidArgumentError
from awq_edge.limited_json import parse_json
from awq_edge.store.folder import check_model_name
from awq_edge.store.http import get_small

_HUB = "https://huggingface.co"
# owner/name, perhaps with a file in it and a branch or commit behind an @.
_HUB_ID = re.compile(
    r"(?P<id>[\w][\w.-]*/[\w][\w.-]*)(?:/(?P<file>[^@]+))?(?:@(?P<revision>[\w./-]+))?"
)
_LISTING_BYTES = 16 << 20


@dataclass(frozen=True)
class Source:
    """One file somewhere.

    Attributes:
        address: http, https or file.
        name: What the model is called here.
        headers: For the address's own host alone, never for where it leads on to.
    """

    address: str
    name: str
    headers: dict[str, str] = field(default_factory=dict)


def find_source(text: str, name: str | None = None) -> Source:
    """The file that a person means.

    Args:
        text: An address, or a hub id as owner/name, owner/name/file.gguf, with @revision.
        name: What the model is to be called; None takes the file's own name.

    Raises:
        InvalidArgumentError: It is neither, or the hub has no packed file there, or several.
        DownloadError: The hub does not answer.
    """
    scheme = urlsplit(text).scheme.lower() if "://" in text else ""
    if scheme in ("http", "https", "file"):
        path = unquote(urlsplit(text).path)
        found = Source(_quoted(text), name or PurePosixPath(path).name)
    elif scheme:
        raise InvalidArgumentError(
            f"An address that begins with {scheme}:// cannot be fetched: use http, https or file."
        )
    else:
        found = _on_hub(text, name)
    check_model_name(found.name)
    return found


def _on_hub(text: str, name: str | None) -> Source:
    match = _HUB_ID.fullmatch(text)
    if match is None or Path(text).is_file():
        hint = " It is a file: use it as it is." if Path(text).is_file() else ""
        raise InvalidArgumentError(
            f"{text!r} is no address and no hub id such as owner/name.{hint}"
        )
    hub = os.environ.get("HF_ENDPOINT", _HUB).rstrip("/")
    revision, headers = quote(match["revision"] or "main", safe=""), _hub_headers()
    file = match["file"] or _only_packed_file(hub, match["id"], revision, headers)
    address = f"{hub}/{match['id']}/resolve/{revision}/{quote(file)}"
    return Source(address, name or PurePosixPath(file).name, headers)


def _only_packed_file(hub: str, model: str, revision: str, headers: dict[str, str]) -> str:
    """The file of a hub's repository that awq-edge has packed."""
    answer = get_small(f"{hub}/api/models/{model}/revision/{revision}", headers, _LISTING_BYTES)
    try:
        listed = parse_json(answer)["siblings"]
        names = [str(entry["rfilename"]) for entry in listed]
    except (ValueError, KeyError, TypeError):
        raise InvalidArgumentError(
            f"The hub's list of files for {model} cannot be read: give the file's address."
        ) from None
    packed = [name for name in names if name.endswith(".awq.gguf")]
    if len(packed) == 1:
        return packed[0]
    if packed:
        shown = ", ".join(f"{model}/{name}" for name in packed[:8])
        raise InvalidArgumentError(f"{model} holds several packed files; name one: {shown}.")
    raise InvalidArgumentError(
        f"{model} holds no packed file (*.awq.gguf): 'awq-edge convert {model}' makes one on a "
        "workstation; name the file if it has another ending."
    )


def _hub_headers() -> dict[str, str]:
    """The user's own key for the hub, as its client keeps it."""
    token = os.environ.get("HF_TOKEN", "")
    if not token:
        home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface")
        try:
            token = (home.expanduser() / "token").read_text("ascii").strip()
        except (OSError, RuntimeError, UnicodeDecodeError):
            return {}
    return {"Authorization": f"Bearer {token}"} if re.fullmatch(r"[!-~]+", token) else {}


def _quoted(address: str) -> str:
    """An address with spaces and other letters as the protocol wants them."""
    return quote(address, safe="%/:=&?~#+!$,;'@()*[]")
