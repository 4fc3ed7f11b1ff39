"""The folder of this user's models: what is in it, by which names, and taking it away.

Owns where it is and which entries count: regular files, or a board's links to those of a release,
that nobody else can change. ``deploy`` keeps its models in the same folder, so a board knows them
by name too. Refuses to fetch (``download.py``) and to read models.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from awq_edge.errors import FileUnreadableError, InvalidArgumentError
from awq_edge.outputs.place import sync_directory

_ENDINGS = (".awq.gguf", ".gguf")
# Unfinished downloads: a folder for each, beside the place of the whole file.
PARTIAL_ENDING = ".partial"
# The longest file name of the file systems in use, less what is put around it meanwhile.
_NAME_BYTES = 200


@dataclass(frozen=True)
class Entry:
    """A model of the folder.

    Attributes:
        name: Of its file.
        path: Where it is.
        size_bytes: Of what is there.
    """

    name: str
    path: Path
    size_bytes: int


def models_folder() -> Path | None:
    """Where they lie: AWQ_EDGE_MODELS, or a folder of the user's data; None without a home."""
    forced = os.environ.get("AWQ_EDGE_MODELS")
    if forced:
        return Path(forced)
    base = os.environ.get("XDG_DATA_HOME", "")
    if os.path.isabs(base):  # noqa: PTH117  # the rule of XDG: a relative one does not count
        return Path(base) / "awq-edge" / "models"
    home = os.path.expanduser("~")  # noqa: PTH111  # pathlib raises where there is no home
    if not os.path.isabs(home):  # noqa: PTH117
        return None
    return Path(home) / ".local/share/awq-edge/models"


def own_models_folder() -> Path:
    """The folder, made if it is not there.

    Raises:
        FileUnreadableError: There is none that only this user can change.
    """
    folder = models_folder()
    if folder is None:
        raise FileUnreadableError(
            "There is no home directory for models: name a folder with AWQ_EDGE_MODELS."
        )
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        raise FileUnreadableError(f"Cannot use the folder {folder}: {error.strerror}.") from error
    if not _is_own(found, stat.S_ISDIR):
        raise FileUnreadableError(
            f"{folder} is no folder that only you can change, and no model in it can be trusted: "
            "name another one with AWQ_EDGE_MODELS."
        )
    return folder


def entries() -> list[Entry]:
    """The models that are whole, by name."""
    return [
        Entry(path.name, path, size)
        for path in _listed()
        if path.name.endswith(_ENDINGS) and (size := _trusted_size(path)) is not None
    ]


def partial_folders() -> list[Path]:
    """The folders of unfinished downloads."""
    return [
        path
        for path in _listed(hidden=True)
        if path.name.endswith(PARTIAL_ENDING) and path.is_dir() and not path.is_symlink()
    ]


def partial_folder(folder: Path, name: str) -> Path:
    """Where the download of a model is kept until it is whole."""
    return folder / f".{name}{PARTIAL_ENDING}"


def find(name: str) -> Path | None:
    """A model by its name, with or without the ending; None if there is none."""
    if not name or "/" in name or os.sep in name or name.startswith("."):
        return None
    known = {entry.name: entry.path for entry in entries()}
    names = (name, *(f"{name}{ending}" for ending in _ENDINGS))
    return next((known[spelt] for spelt in names if spelt in known), None)


def remove(name: str) -> int:
    """Takes a model away, or what was fetched of it; gives the bytes that this frees.

    Raises:
        InvalidArgumentError: There is none of that name.
        FileUnreadableError: The operating system refused.
    """
    freed = 0
    found = find(name)
    paths = [] if found is None else [found]
    spelt = (name, *(f"{name}{ending}" for ending in _ENDINGS))
    left = [p for p in partial_folders() if p.name[1:].removesuffix(PARTIAL_ENDING) in spelt]
    if not paths and not left:
        raise InvalidArgumentError(
            f"There is no model {name!r}: 'awq-edge list' tells those there are."
        )
    try:
        for path in paths:
            if path.is_symlink():  # of a release: the link alone would come back with the next one
                release = path.parent / path.readlink()
                if release.parent == path.parent / "../current/models":
                    freed += _only_here(release)
                    release.unlink()
            else:
                freed += _only_here(path)
            path.unlink()
        for folder in left:
            for path in folder.iterdir():
                freed += path.lstat().st_blocks * 512
                path.unlink()
            folder.rmdir()
    except OSError as error:
        raise FileUnreadableError(f"Cannot remove {name}: {error.strerror}.") from error
    for path in (*paths, *left):
        sync_directory(path.parent)
    return freed


def _only_here(path: Path) -> int:
    """Bytes that go with a file's name: none where it has another one."""
    status = path.stat()
    return status.st_size if status.st_nlink == 1 else 0


def check_model_name(name: str) -> str:
    """A file name that a model may have in the folder.

    Raises:
        InvalidArgumentError: It may not.
    """
    bad = not name.isprintable() or "/" in name or "\\" in name or name.startswith((".", "-"))
    if bad or not name.endswith(".gguf") or len(os.fsencode(name)) > _NAME_BYTES:
        raise InvalidArgumentError(
            f"{name!r} cannot be a model's name: give one that ends in .gguf with --name."
        )
    return name


def _listed(*, hidden: bool = False) -> list[Path]:
    folder = models_folder()
    if folder is None:
        return []
    with suppress(OSError):
        if _is_own(folder.stat(), stat.S_ISDIR):
            return sorted(p for p in folder.iterdir() if p.name.startswith(".") == hidden)
    return []


def _trusted_size(path: Path) -> int | None:
    """Bytes of a file, or of the one that a link of deploy leads to, if it is only ours."""
    with suppress(OSError):
        found = path.stat()
        if _is_own(found, stat.S_ISREG):
            return found.st_size
    return None


def _is_own(found: os.stat_result, kind: object) -> bool:
    mode = found.st_mode
    return bool(
        kind(mode)  # type: ignore[operator]  # one of stat.S_IS…
        and found.st_uid == os.geteuid()
        and not mode & stat.S_IWOTH
    )
