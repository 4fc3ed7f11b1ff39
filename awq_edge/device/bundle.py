"""Puts together everything that a board needs to run a model, so that the board needs no network.

Owns the bundle's layout, whose names are these and no other, whatever the model and the output are
called: install.sh, SHA256SUMS, README.txt, model.gguf, and in ``wheels/`` the packages with one
list for each Python version. Refuses to copy it anywhere: ``deploy.py`` does.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from awq_edge import __version__
from awq_edge.device.doctor import PYTHON_BYTES
from awq_edge.device.packages import fetch
from awq_edge.device.project import runtime_requirements
from awq_edge.errors import AwqEdgeError, BuildError, FileUnreadableError, InvalidArgumentError
from awq_edge.model import Model
from awq_edge.outputs.place import Place, check_name, check_room, sync, sync_tree
from awq_edge.outputs.workplace import Workplace, is_ours
from awq_edge.profiles import Profile
from awq_edge.quantities import size_text

# A conversation of this length must fit before a bundle is installed; longer ones are checked when
# they are asked for.
_CONTEXT = 2048
# Compiled Python files and file system blocks, on top of what the archives hold.
_DISK_FACTOR = 1.4
# Packages of one Python version before they have been fetched.
_PACKAGES_BYTES = 250_000_000
_COPY_BYTES = 1 << 20
_MODEL = "model.gguf"
# The folder in an archive.
_TOP = "awq-edge-bundle"
_WHEEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]*\.whl")
# The longest file name of the file systems in use, less what install.sh puts before it.
_NAME_BYTES = 255
_ARCHIVES = (".tar", ".tar.gz", ".tgz")
_EXISTS = "{path} exists already: delete it, or choose another name."

Progress = Callable[[int], None]

_README = """\
awq-edge {version} with the model {model}, for {title}.

On the board, in this folder:

    sh install.sh

No network, no root and no compiler are needed. 'sh install.sh --check' only looks whether the
board is fit.
"""


@dataclass(frozen=True)
class ServicePlan:
    """A service that a board is to have.

    Attributes:
        kind: "user", one of the user's own; or "system", which needs sudo there.
        memory_max_bytes: What it may take; None does not limit it.
    """

    kind: str
    memory_max_bytes: int | None = None

    def __post_init__(self) -> None:
        """Refuses other kinds."""
        if self.kind not in ("user", "system"):
            raise InvalidArgumentError(f"--service {self.kind!r} is none of user, system.")


@dataclass(frozen=True)
class Requirements:
    """What install.sh compares the board with, and what it installs there."""

    model: Path
    profile: Profile
    pythons: tuple[str, ...]
    memory_bytes: int
    disk_bytes: int
    context: int
    service: ServicePlan | None = None

    def script(self) -> str:
        """install.sh with the values of this bundle."""
        values = {
            "VERSION": __version__,
            "TARGET": self.profile.name,
            "MACHINE": self.profile.machine,
            "PYTHONS": " ".join(self.pythons),
            "MODEL": self.model.name,
            "CONTEXT": self.context,
            "MEMORY_KB": -(-self.memory_bytes // 1024),
            "DISK_KB": -(-self.disk_bytes // 1024),
            "SERVICE": "" if self.service is None else self.service.kind,
            "MEMORY_MAX": (self.service and self.service.memory_max_bytes) or "",
        }
        lines = "\n".join(f"{name}={shlex.quote(str(value))}" for name, value in values.items())
        release = own_text("release.py")
        parts = {
            "VALUES": lines,
            "LAUNCHER": own_text("launch.sh"),
            "RELEASE": release,
            # One program of three sources: each says what it needs, and the others are no modules
            # there.
            "INSTALLER": "\n".join(
                (
                    release,
                    _without_imports(own_text("service.py")),
                    _without_imports(own_text("installer.py")),
                )
            ),
        }
        text = own_text("install.sh")
        for name, part in parts.items():
            before, after = text.split(f"#{name}#", 1)
            text = f"{before}{part.rstrip()}{after}"
        return text


def own_text(name: str) -> str:
    """A file of this folder, which goes to a board as it is."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _without_imports(source: str) -> str:
    """A source of this package without what it takes from its neighbours and from the future."""
    own = re.compile(r"^from (?:__future__|awq_edge[\w.]*) import (?:\([^)]*\)|.*)\n", re.MULTILINE)
    return own.sub("", source)


def requirements(
    model: Path,
    profile: Profile,
    pythons: Iterable[str],
    packages_bytes: int = _PACKAGES_BYTES,
    service: ServicePlan | None = None,
) -> Requirements:
    """Opens the model, and so checks it, and works out what a board must have."""
    name = model.name
    if not name.isprintable() or name.startswith(("-", ".")) or len(name.encode()) > _NAME_BYTES:
        raise InvalidArgumentError(f"{name!r} cannot be a file name on a board: rename it.")
    with Model.open(model) as opened:
        context = min(_CONTEXT, opened.info.context_length)
        memory = opened.memory(context).total_bytes + opened.encoding_bytes() + PYTHON_BYTES
    limit = None if service is None else service.memory_max_bytes
    if limit is not None and limit < memory:
        raise InvalidArgumentError(
            f"--memory-max {size_text(limit)} is less than the {size_text(memory)} that the model "
            f"takes with {context} tokens of context."
        )
    disk = model.stat().st_size + int(packages_bytes * _DISK_FACTOR)
    return Requirements(model, profile, tuple(pythons), memory, disk, context, service)


@dataclass(frozen=True)
class Bundle:
    """Files by their names in the bundle, with their SHA-256; the model stays where it is.

    Attributes:
        needs: What the board must have.
        files: Name with "/" in the bundle, file here; in the order in which they are copied.
        digests: Name in the bundle, 64 hexadecimal digits.
    """

    needs: Requirements
    files: Mapping[str, Path]
    digests: Mapping[str, str]

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.files.values())


def collect(
    model: Path,
    profile: Profile,
    wheel: Path,
    pythons: Iterable[str],
    work: Path,
    status: Callable[[str], None],
    service: ServicePlan | None = None,
) -> Bundle:
    """Fetches the packages and writes everything but the model into ``work``.

    Args:
        model: The packed model.
        profile: The target.
        wheel: awq-edge's own wheel for it.
        pythons: Python versions that the board may have.
        work: An empty folder of the caller.
        status: Told what is being done.
        service: Whether the board is to serve the model; its packages come too then.
    """
    wheels = work / "wheels"
    wheels.mkdir(parents=True)
    shutil.copyfile(wheel, wheels / wheel.name)
    sizes = []
    versions = tuple(pythons)
    needed = runtime_requirements(() if service is None else ("serve",))
    for python in versions:
        status(f"Fetching the packages for Python {python} on {profile.machine}")
        fetched = fetch(needed, profile.machine, python, work / "fetched" / python)
        for path in fetched:
            if _WHEEL_NAME.fullmatch(path.name) is None:
                raise BuildError(f"A package has the file name {path.name!a}: it cannot be sent.")
            os.replace(path, wheels / path.name)  # noqa: PTH105  # over one of another version
        names = sorted([wheel.name, *(path.name for path in fetched)])
        (wheels / f"{python}.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
        sizes.append(sum(_unpacked_bytes(wheels / name) for name in names))
    shutil.rmtree(work / "fetched")
    needs = requirements(model, profile, versions, max(sizes), service)
    (work / "install.sh").write_text(needs.script(), encoding="utf-8", newline="\n")
    text = _README.format(version=__version__, model=model.name, title=profile.title)
    (work / "README.txt").write_text(text, encoding="utf-8", newline="\n")
    own = {path.relative_to(work).as_posix(): path for path in work.rglob("*") if path.is_file()}
    files = {**dict(sorted(own.items())), _MODEL: model}
    digests = {name: file_digest(path) for name, path in files.items()}
    # In the format of sha256sum -c.
    sums = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
    (work / "SHA256SUMS").write_text(sums, encoding="utf-8", newline="\n")
    files = {"SHA256SUMS": work / "SHA256SUMS", **files}
    digests["SHA256SUMS"] = hashlib.sha256(sums.encode()).hexdigest()
    return Bundle(needs, files, digests)


def write(bundle: Bundle, output: Path, progress: Progress | None = None) -> None:
    """Writes a folder, or, if the name ends in .tar, .tar.gz or .tgz, one file.

    Args:
        bundle: What ``collect`` put together.
        output: Must not exist yet. What a killed process left beside it is deleted.
        progress: Called with bytes as they are written.

    Raises:
        FileUnreadableError: It exists, or cannot be written. Nothing is left of it then.
    """
    check_place(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        check_room([(output, bundle.size_bytes)])
        with Workplace(output) as work:
            if output.name.endswith(_ARCHIVES):
                place = Place(output, exists=_EXISTS)
                with work.new_file("archive") as file:
                    _write_tar(bundle, file, output.name, progress)
                    sync(file)
                place.appear(work.path / "archive")
            else:
                _write_folder(bundle, work.path, progress)
                sync_tree(work.path)
                check_place(output)
                work.leave(output)
    except OSError as error:
        if isinstance(error, AwqEdgeError):
            raise
        raise FileUnreadableError(f"{output} cannot be written: {error.strerror}.") from error


def check_place(output: Path) -> None:
    """Refuses a place where no bundle can appear, before any work.

    Raises:
        InvalidArgumentError: No file can have that name.
        FileUnreadableError: Something is there already, or another bundle is being written there.
    """
    check_name(output)
    if is_ours(output):  # a killed process gave it its name and did not get any further
        left = Workplace(output, output)
        left.take({})
        left.remove()
    if os.path.lexists(output):
        raise FileUnreadableError(_EXISTS.format(path=output))


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as source:
        while part := source.read(_COPY_BYTES):
            digest.update(part)
    return digest.hexdigest()


def _unpacked_bytes(wheel: Path) -> int:
    with zipfile.ZipFile(wheel) as archive:
        return sum(entry.file_size for entry in archive.infolist())


def _write_folder(bundle: Bundle, folder: Path, progress: Progress | None) -> None:
    for name, path in bundle.files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as source, target.open("xb") as sink:
            while part := source.read(_COPY_BYTES):
                sink.write(part)
                if progress is not None:
                    progress(len(part))
    (folder / "install.sh").chmod(0o755)


def _write_tar(bundle: Bundle, target: BinaryIO, name: str, progress: Progress | None) -> None:
    """Everything in one folder of a fixed name; no dates, owners or other accidents."""
    mode = "w" if name.endswith(".tar") else "w:gz"
    # Weights and wheels hardly shrink: the quickest level.
    options = {} if mode == "w" else {"compresslevel": 1}
    with tarfile.open(  # type: ignore[call-overload]  # mode decides
        fileobj=target, mode=mode, format=tarfile.PAX_FORMAT, **options
    ) as archive:
        for entry_name, path in bundle.files.items():
            entry = tarfile.TarInfo(f"{_TOP}/{entry_name}")
            entry.size = path.stat().st_size
            entry.mode = 0o755 if entry_name == "install.sh" else 0o644
            with path.open("rb") as source:
                archive.addfile(entry, source)
            if progress is not None:
                progress(entry.size)
