"""A release on a board: the list of its files, and whether they are what was installed.

Owns the list's format and the comparison. install.sh carries this source twice: for the installer,
and for the launcher, which runs ``start`` before anything of the release itself is loaded. So it
needs nothing but Python's own modules, and works on every Python that a board may have.

The list, ``files.txt`` in the release's folder, is written last. Its lines:

    awq-edge release 1
    entry MODULE:FUNCTION
    model SHA256 SIZE NAME          a file in models/; a user may delete it
    wheel SHA256 NAME               the files below came out of it, up to the next such line
    SHA256 SIZE PATH
    end CRC32                       of all bytes before this line, eight hexadecimal digits
"""

from __future__ import annotations

import os
import sys
import zlib

LIST_NAME = "files.txt"
_FIRST = "awq-edge release 1"
_READ_BYTES = 1 << 20


class Damaged(Exception):
    """A file is not what was installed; the text is its path in the release."""


class FileList:
    """What a release was made of.

    Attributes:
        entry: "module:function", the command.
        models: SHA-256 and size in bytes of each file in ``models/``.
        wheels: SHA-256 of each wheel and the paths that came out of it.
        files: SHA-256 and size in bytes of each path, models excepted.
    """

    def __init__(self, entry: str) -> None:
        """An empty list."""
        self.entry = entry
        self.models: dict[str, tuple[str, int]] = {}
        self.wheels: dict[str, list[str]] = {}
        self.files: dict[str, tuple[str, int]] = {}

    def text(self) -> bytes:
        """The list as it is stored."""
        lines = [_FIRST, f"entry {self.entry}"]
        lines += [
            f"model {digest} {size} {name}" for name, (digest, size) in sorted(self.models.items())
        ]
        listed = set()
        for wheel, paths in self.wheels.items():
            lines.append(f"wheel {wheel}")
            for path in paths:
                lines.append("{} {} {}".format(*self.files[path], path))
                listed.add(path)
        lines.append("wheel -")
        for path, (digest, size) in self.files.items():
            if path not in listed:
                lines.append(f"{digest} {size} {path}")
        data = "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")
        return data + b"end %08x\n" % zlib.crc32(data)


def is_release(folder: str) -> bool:
    """Whether a Python's own folder is a release that install.sh made."""
    return os.path.basename(os.path.dirname(folder)) == "releases" and os.path.lexists(
        f"{folder}/../../awq-edge"
    )


def read_list(release: str) -> FileList:
    """Reads a release's list.

    Raises:
        Damaged: It is missing, cut, changed or of another format.
    """
    lines = [line.decode("utf-8", "surrogateescape") for line in _lines(release)]
    found = FileList(lines[1][len("entry ") :])
    paths: list[str] = []
    for line in lines[2:]:
        word, _, rest = line.partition(" ")
        if word == "wheel":
            paths = found.wheels.setdefault(rest, [])
        elif word == "model":
            digest, size, name = rest.split(" ", 2)
            found.models[name] = digest, int(size)
        else:
            size, _, path = rest.partition(" ")
            found.files[path] = word, int(size)
            paths.append(path)
    found.wheels.pop("-", None)
    return found


def _lines(release: str) -> list[bytes]:
    """The lines of a release's list but for its end, which says that they are as written."""
    try:
        with open(f"{release}/{LIST_NAME}", "rb") as source:
            data = source.read()
    except OSError:
        raise Damaged(LIST_NAME) from None
    body, last = data[:-13], data[-13:]
    lines = body.split(b"\n")
    if last != b"end %08x\n" % zlib.crc32(body) or lines[0] != _FIRST.encode():
        raise Damaged(LIST_NAME)
    return lines[:-1]


def compare_sizes(release: str) -> str:
    """Compares the size of every file; before each command, so in as few steps as there can be.

    Returns:
        "module:function", the command.

    Raises:
        Damaged: One is missing, or longer or shorter; or the list is.
    """
    lines = _lines(release)
    folder = os.fsencode(f"{release}/")
    stat = os.stat
    path = b""
    try:
        for line in lines:
            if line[64:65] == b" ":  # SHA256 SIZE PATH; "model" and "wheel" lines have none there
                size, path = line[65:].split(b" ", 1)
                if stat(folder + path).st_size != int(size):
                    raise Damaged(os.fsdecode(path))
    except OSError:
        raise Damaged(os.fsdecode(path)) from None
    return os.fsdecode(lines[1][len("entry ") :])


def compare_contents(release: str, listed: FileList) -> None:
    """Compares the checksum of every file, and of the models that are still there.

    Raises:
        Damaged: One differs.
    """
    models = {
        f"models/{name}": entry
        for name, entry in listed.models.items()
        if os.path.lexists(f"{release}/models/{name}")
    }
    for path, (digest, _) in {**listed.files, **models}.items():
        try:
            if file_digest(f"{release}/{path}") != digest:
                raise Damaged(path)
        except OSError:
            raise Damaged(path) from None


def file_digest(path: str) -> str:
    """SHA-256 of a file, hexadecimal."""
    import hashlib

    digest = hashlib.sha256()
    with open(path, "rb") as source:
        while True:
            part = source.read(_READ_BYTES)
            if not part:
                return digest.hexdigest()
            digest.update(part)


def sentence(release: str, path: str) -> str:
    """What a user is told of a damaged file."""
    return (
        f"{path} of the installation in {release} is damaged or missing: install it again, with "
        "the same 'awq-edge deploy' on the workstation or with the bundle's install.sh."
    )


def start(release: str, arguments: list[str]) -> object:
    """Runs the command of a release whose files have the right sizes; gives its exit status."""
    try:
        entry = compare_sizes(release)
        if arguments[:1] == ["selftest"]:
            # Before anything of the release is loaded: a wrong byte may end Python itself.
            compare_contents(release, read_list(release))
    except Damaged as error:
        sys.stderr.write(f"awq-edge: {sentence(release, str(error))}\n")
        return 1
    sys.argv = ["awq-edge", *arguments]
    try:
        import importlib

        module, _, function = entry.partition(":")
        return getattr(importlib.import_module(module), function)()
    except Exception:
        # Right sizes and wrong bytes may end anywhere: a look at all of them tells which it is.
        try:
            compare_contents(release, read_list(release))
        except Damaged as error:
            sys.stderr.write(f"awq-edge: {sentence(release, str(error))}\n")
            return 1
        raise
