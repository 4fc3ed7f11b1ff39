"""Installs a bundle on a board, so that a cut at any moment leaves the old release or the new one.

Owns what stands below the prefix:

    releases/NAME/      one release: bin/python (a link), packages, models/, files.txt written last
    current             a link to the release in use
    awq-edge            the launcher, which outlives releases
    models/NAME         links to current/models/NAME; files of the user's own stay
    incoming/           deploy's; not touched here
    awq-edge.service    the service, if there is one (``service.py``), and serve.conf, its options

A release is made whole and brought to the medium before ``current`` names it; an old one goes when
the new one has run through that name and nobody uses the old one any more. install.sh runs this
source, behind those of ``release.py`` and ``service.py``, with the board's own Python. Refuses to
judge whether the machine is fit: install.sh has done that.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import sysconfig
import time
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from awq_edge.device.release import (
    LIST_NAME,
    Damaged,
    FileList,
    file_digest,
    read_list,
)
from awq_edge.device.service import Service, ServiceFailure

# What a bundle made by 'awq-edge bundle' calls the model; one put together by hand keeps its name.
_BUNDLED_MODEL = "model.gguf"
_COPY_BYTES = 1 << 20
# How long another installation at the same place may take.
_PATIENCE_SECONDS = 1800.0
_SUM = re.compile(rb"([0-9a-f]{64}) [ *]([!-~][ -~]*)")
# Modules that the commands load late: byte-compiled now, for nothing is written while they run. Two
# lists, for two processors at once: hardly anything of one is loaded by the other.
_COMPILED = (
    "awq_edge.cli.main awq_edge.device.trial awq_edge.tokenizer awq_edge.chat "
    "awq_edge.device.doctor awq_edge.benchmark awq_edge.accuracy.perplexity tokenizers "
    "awq_edge.cli.serve awq_edge.cli.ps awq_edge.serve.start awq_edge.serve.app",
    "numpy.random rich.progress rich.table rich.console jinja2.sandbox jinja2.ext "
    "uvicorn.protocols.http.h11_impl uvicorn.loops.asyncio",
)
_COMPILE = """
import importlib, sys
for name in sys.argv[1:]:
    try: importlib.import_module(name)
    except Exception: pass  # slower to load later, and not wrong
"""


class Failure(Exception):
    """The installation cannot go on; the text is the sentence."""


class Installation:
    """One run."""

    def __init__(self, bundle: str, prefix: str, version: str, model: str) -> None:
        """Touches nothing.

        Args:
            bundle: The folder of install.sh.
            prefix: Where to install, absolute.
            version: What the release is called after.
            model: The file name that the model gets.
        """
        self.bundle = bundle
        self.prefix = prefix
        self.version = version
        self.model = model
        self.sums: dict[str, str] = {}
        self.wheels: list[str] = []
        self.release = ""
        self.listed = FileList("")
        self.folders: set[str] = set()  # that were made for files of wheels
        self.launcher_program = ""

    # ---- the bundle --------------------------------------------------------------------------

    def read_sums(self) -> None:
        """Reads SHA256SUMS strictly, and the list of wheels for this Python."""
        try:
            data = self._bundled("SHA256SUMS")
        except OSError:
            raise Failure(
                f"SHA256SUMS is not in {self.bundle}: copy the whole bundle again."
            ) from None
        for line in data.split(b"\n")[:-1]:
            match = _SUM.fullmatch(line)
            name = match.group(2).decode("ascii") if match else ""
            if match is None or name in self.sums or not _is_inside(name):
                raise Failure("SHA256SUMS is damaged: copy the bundle again.")
            self.sums[name] = match.group(1).decode("ascii")
        if not data.endswith(b"\n"):
            raise Failure("SHA256SUMS is cut off: copy the bundle again.")
        if _BUNDLED_MODEL not in self.sums:
            self.bundled_model = self.model
        else:
            self.bundled_model = _BUNDLED_MODEL
        names = f"wheels/{sys.version_info[0]}.{sys.version_info[1]}.txt"
        for name in (self.bundled_model, names):
            self._need(name)
        try:
            self.wheels = self._bundled(names).decode("ascii").split()
        except (OSError, UnicodeDecodeError):
            raise Failure(f"{names} is damaged or missing: copy the bundle again.") from None
        for name in self.wheels:
            self._need(f"wheels/{name}")
        if not self.wheels:
            raise Failure(f"{names} is empty: copy the bundle again.")

    def check_sums(self, kept: set[str]) -> None:
        """Compares every file of the bundle; those in ``kept`` are on the board otherwise."""
        for name, digest in self.sums.items():
            if name in kept and not os.path.lexists(f"{self.bundle}/{name}"):
                continue
            try:
                same = file_digest(f"{self.bundle}/{name}") == digest
            except OSError:
                same = False
            if not same:
                raise Failure(f"{name} is damaged or missing: copy the bundle again.")

    def _need(self, name: str) -> None:
        if name not in self.sums:
            raise Failure(f"{name} is not listed in SHA256SUMS: copy the bundle again.")

    def _bundled(self, name: str) -> bytes:
        with open(f"{self.bundle}/{name}", "rb") as source:
            return source.read()

    # ---- a new release -----------------------------------------------------------------------

    def build(self, *, link_model: bool) -> None:
        """Makes the release, complete but for its list.

        Args:
            link_model: The bundle is a copy that goes away: its model gets a second name.
        """
        name = f"{self.version}-{time.strftime('%Y%m%d%H%M%S')}-{os.getpid()}"
        self.release = f"{self.prefix}/releases/{name}"
        os.mkdir(self.release)
        self._add_model(link_model=link_model)
        self._keep_models()
        self._make_environment()
        entry = ""
        for wheel in self.wheels:
            try:
                entry = self._unpack(wheel) or entry
            except (
                zipfile.BadZipFile,
                zlib.error,
                EOFError,
                KeyError,
                NotImplementedError,
                UnicodeError,
                RuntimeError,
                ValueError,
            ):
                raise Failure(
                    f"the packages cannot be installed: {wheel} is damaged: make the bundle again."
                ) from None
        if not entry:
            raise Failure("no package of the bundle has the command awq-edge: make it again.")
        self.listed.entry = entry

    def _add_model(self, *, link_model: bool) -> None:
        source = f"{self.bundle}/{self.bundled_model}"
        folder = f"{self.release}/models"
        os.mkdir(folder)
        target = f"{folder}/{self.model}"
        if link_model:
            with contextlib.suppress(OSError):  # another disk, or one without second names
                os.link(source, target, follow_symlinks=False)
        if not os.path.lexists(target):
            with open(source, "rb") as reading, open(target, "xb") as writing:
                shutil.copyfileobj(reading, writing, _COPY_BYTES)
        digest = self.sums[self.bundled_model]
        self.listed.models[self.model] = digest, os.stat(target).st_size

    def _keep_models(self) -> None:
        """Models of the release in use whose names the user has not removed."""
        old = self.current()
        if old is None:
            return
        known: dict[str, tuple[str, int]] = {}
        with contextlib.suppress(Damaged):
            known = read_list(old).models
        for name in _names(f"{old}/models"):
            link, source = f"{self.prefix}/models/{name}", f"{old}/models/{name}"
            if name == self.model or not os.path.islink(link) or os.path.islink(source):
                continue
            os.link(source, f"{self.release}/models/{name}")
            entry = known.get(name)
            self.listed.models[name] = entry or (file_digest(source), os.stat(source).st_size)

    def _make_environment(self) -> None:
        """A virtual environment by hand: what ``venv`` makes of it, without its module."""
        base = os.path.abspath(getattr(sys, "_base_executable", None) or sys.executable)
        # A name with the version stays when the system gets a newer Python.
        exact = f"{os.path.dirname(base)}/python{sys.version_info[0]}.{sys.version_info[1]}"
        if os.path.exists(exact) and os.path.samefile(exact, base):
            base = exact
        os.mkdir(f"{self.release}/bin")
        os.symlink(base, f"{self.release}/bin/python")
        os.symlink("python", f"{self.release}/bin/python3")
        os.symlink("../../../awq-edge", f"{self.release}/bin/awq-edge")
        version = ".".join(str(part) for part in sys.version_info[:3])
        text = (
            f"home = {os.path.dirname(base)}\ninclude-system-site-packages = false\n"
            f"version = {version}\n"
        )
        self._write("pyvenv.cfg", text.encode("utf-8", "surrogateescape"))
        places = {"base": self.release, "platbase": self.release}
        site = sysconfig.get_path("purelib", "posix_prefix", places)
        self.site = os.path.relpath(site, self.release)

    def _unpack(self, wheel: str) -> str:
        """Unpacks one wheel; gives its command awq-edge as "module:function", or nothing."""
        paths = self.listed.wheels.setdefault(self.sums[f"wheels/{wheel}"], [])
        with zipfile.ZipFile(f"{self.bundle}/wheels/{wheel}") as archive:
            placed = [
                (info, path)
                for info in archive.infolist()
                if not info.is_dir() and (path := self._place(info.filename)) is not None
            ]
            paths += [path for _, path in placed]

            def write(entry: tuple[zipfile.ZipInfo, str]) -> str:
                data = archive.read(entry[0])
                self._write(entry[1], data)
                if entry[0].filename.endswith(".dist-info/entry_points.txt"):
                    return _command(data.decode("utf-8"))
                return ""

            # Inflating and checksums, most of the work, leave the interpreter to other threads.
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                return "".join(pool.map(write, placed))

    def _place(self, name: str) -> str | None:
        """Where a wheel's file goes, relative to the release; None for what no command needs."""
        if not _is_inside(name):
            raise Failure(f"the packages cannot be installed: one holds the name {name!a}.")
        top, _, rest = name.partition("/")
        if not top.endswith(".data"):
            return f"{self.site}/{name}"
        scheme, _, rest = rest.partition("/")
        if scheme in ("purelib", "platlib"):
            return f"{self.site}/{rest}"
        return rest if scheme == "data" else None  # programs and headers of packages

    def _write(self, path: str, data: bytes) -> None:
        import hashlib

        target = f"{self.release}/{path}"
        folder = os.path.dirname(target)
        if folder not in self.folders:
            os.makedirs(folder, exist_ok=True)
            self.folders.add(folder)
        try:
            with open(target, "xb") as sink:
                sink.write(data)
        except FileExistsError:
            raise Failure(
                f"the packages cannot be installed: two of them hold {path}: make the bundle again."
            ) from None
        self.listed.files[path] = hashlib.sha256(data).hexdigest(), len(data)

    def complete(self) -> None:
        """Byte-compiles what commands load, writes the list, and brings all to the medium."""
        python = f"{self.release}/bin/python"
        commands = [[python, "-I", "-c", _COMPILE, *names.split()] for names in _COMPILED]
        with ThreadPoolExecutor() as pool:
            list(pool.map(_run, commands))
        owners = {path: paths for paths in self.listed.wheels.values() for path in paths}
        for path in _walk(self.release):
            if path in self.listed.files or path.startswith("models/"):
                continue
            full = f"{self.release}/{path}"
            self.listed.files[path] = file_digest(full), os.stat(full).st_size
            # lib/a/__pycache__/b.cpython-311.pyc comes from lib/a/b.py
            folder, _, name = path.rpartition("/")
            owner = f"{os.path.dirname(folder)}/{name.partition('.')[0]}.py"
            if owner in owners:
                owners[owner].append(path)
        with open(f"{self.release}/{LIST_NAME}", "xb") as sink:
            sink.write(self.listed.text())
        _sync(self.prefix)

    def try_release(self, *, selftest: bool) -> None:
        """Compares all kernels, or at least starts the command from the new release.

        A self-test that passes has started everything but the launcher, whose start is saved.
        """
        if selftest:
            _say("Self-test: every kernel against the reference")
            if not _run(self._selftest(), loud=True):
                return
        # Not --version, which answers without the packages that a command loads.
        if _run([*self._launch(self.release), "targets", "--json"]):
            raise Failure("the installed program does not start.")
        if selftest:
            raise Failure("the self-test failed: what it said stands above.")

    def _launch(self, release: str) -> list[str]:
        return [f"{release}/bin/python", "-I", "-B", "-c", self.launcher_program, release]

    def _selftest(self) -> list[str]:
        """The command past the launcher, which would compare every file a second time.

        The CPU alone: a GPU whose memory others hold is no reason to refuse an installation.
        """
        options = ["selftest", "--device", "cpu", "--quiet"]
        module, _, function = self.listed.entry.partition(":")
        program = f"import sys, {module} as m; sys.argv[0] = 'awq-edge'; sys.exit(m.{function}())"
        return [f"{self.release}/bin/python", "-I", "-B", "-c", program, *options]

    # ---- from the old one to the new one -----------------------------------------------------

    def write_launcher(self, template: str) -> None:
        """Writes the launcher if it is not there as it should be; every release can use it."""
        text = template.replace("#PREFIX#", shlex.quote(self.prefix), 1)
        data = text.replace("#PROGRAM#", shlex.quote(self.launcher_program), 1).encode(
            "utf-8", "surrogateescape"
        )
        target = f"{self.prefix}/awq-edge"
        with contextlib.suppress(OSError), open(target, "rb") as source:
            if not os.path.islink(target) and source.read() == data:
                return
        partial = f"{self.prefix}/.launcher.{os.getpid()}"
        with open(partial, "xb") as sink:
            sink.write(data)
            os.fchmod(sink.fileno(), 0o755)
            sink.flush()
            os.fsync(sink.fileno())
        os.replace(partial, target)

    def switch(self) -> None:
        """Makes the new release the one in use, in one rename, and starts it by that name."""
        old = self.current()
        for name in _names(f"{self.release}/models"):
            if not os.path.lexists(f"{self.prefix}/models/{name}"):
                self._link_model(name)
        _sync_folder(f"{self.prefix}/models")
        self._point(self.release)
        try:
            if _run([f"{self.prefix}/awq-edge", "--version"]):
                raise Failure("the installed program does not start.")
            for name in _names(f"{self.release}/models"):
                self._link_model(name)
            _sync(self.prefix)
        except BaseException:
            if old is not None:
                self._point(old)
            else:
                os.unlink(f"{self.prefix}/current")
            raise

    def _link_model(self, name: str) -> None:
        link, partial = f"{self.prefix}/models/{name}", f"{self.prefix}/models/.link.{os.getpid()}"
        os.symlink(f"../current/models/{name}", partial)
        os.replace(partial, link)

    def _point(self, release: str) -> None:
        partial = f"{self.prefix}/.current.{os.getpid()}"
        os.symlink(f"releases/{os.path.basename(release)}", partial)
        os.replace(partial, f"{self.prefix}/current")
        _sync_folder(self.prefix)

    def current(self) -> str | None:
        """The release in use, or None."""
        path = os.path.realpath(f"{self.prefix}/current")
        inside = os.path.dirname(path) == os.path.realpath(f"{self.prefix}/releases")
        return path if inside and os.path.isdir(path) else None

    def remove_broken(self) -> None:
        """What interrupted runs have left: releases without a list, links under a first name."""
        current = self.current()
        for name in _names(f"{self.prefix}/releases"):
            path = f"{self.prefix}/releases/{name}"
            if path != current and not os.path.isfile(f"{path}/{LIST_NAME}"):
                if not _users(path):
                    _remove(path)
        for name in _names(self.prefix):
            if re.fullmatch(r"\.(current|launcher)\.\d+", name):
                os.unlink(f"{self.prefix}/{name}")
        for name in _names(f"{self.prefix}/models"):
            path = f"{self.prefix}/models/{name}"
            ours = os.path.islink(path) and os.readlink(path).startswith("../current/models/")
            if re.fullmatch(r"\.link\.\d+", name) or (ours and not os.path.exists(path)):
                os.unlink(path)

    def remove_old(self) -> None:
        """Releases that nothing runs from."""
        for name in _names(f"{self.prefix}/releases"):
            path = f"{self.prefix}/releases/{name}"
            if path == self.release:
                continue
            if _users(path):
                _say(f"A program still runs from {path}: the next installation removes it.")
            else:
                _remove(path)

    def undo(self) -> None:
        """Takes away what was not finished."""
        if self.release and self.current() != self.release:
            _remove(self.release)
        for name in _names(f"{self.prefix}/models"):
            path = f"{self.prefix}/models/{name}"
            if os.path.islink(path) and os.readlink(path).startswith("../current/models/"):
                if not os.path.exists(path):
                    os.unlink(path)
        unfinished = [f"{self.prefix}/{name}.{os.getpid()}" for name in (".current", ".launcher")]
        unfinished.append(f"{self.prefix}/models/.link.{os.getpid()}")
        if self.current() is None:
            unfinished.append(f"{self.prefix}/awq-edge")
        for path in unfinished:
            if os.path.lexists(path):
                os.unlink(path)


@contextlib.contextmanager
def _alone(prefix: str) -> Iterator[None]:
    """Makes the prefix's folders, and keeps other installations out of them while the block runs.

    Folders that were made here go again if the block fails.
    """
    import fcntl

    made = _make_folders(prefix)
    folder = os.open(prefix, os.O_RDONLY | os.O_DIRECTORY)
    end = time.monotonic() + _PATIENCE_SECONDS
    told = False
    while True:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not told:
                _say(f"Waiting for another installation into {prefix}")
                told = True
            if time.monotonic() > end:
                raise Failure(
                    f"another installation into {prefix} does not end: end it, and try again."
                ) from None
            time.sleep(0.2)
            continue
        except OSError:  # a file system without locks
            break
        # The other one may have failed, and taken the folder away.
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(folder), os.stat(prefix)):
                break
        os.close(folder)
        made = _make_folders(prefix)
        folder = os.open(prefix, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in ("releases", "models"):
            path = f"{prefix}/{name}"
            if not os.path.lexists(path):
                os.mkdir(path)
                made.append(path)
            elif not stat.S_ISDIR(os.lstat(path).st_mode):
                raise Failure(f"{path} is no folder: move it away.")
        yield
    except BaseException:
        for path in reversed(made):
            with contextlib.suppress(OSError):
                os.rmdir(path)
        raise
    finally:
        os.close(folder)


def _make_folders(path: str) -> list[str]:
    """Makes a folder and those above it; gives the new ones."""
    made = []
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for folder in reversed(missing):
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder)
            made.append(folder)
    return made


def _users(release: str) -> bool:
    """Whether a process runs from a release, or maps one of its files.

    A process that was started through ``current`` may run from any release that it has named.
    """
    folder = os.path.dirname(os.path.dirname(release))
    name = os.path.basename(release)
    places = tuple(
        f"{prefix}/{rest}/"
        for prefix in {folder, os.path.realpath(folder)}
        for rest in (f"releases/{name}", "current")
    )
    for number in _names("/proc"):
        if not number.isdigit() or int(number) == os.getpid():
            continue
        process = f"/proc/{number}"
        try:
            with open(f"{process}/cmdline", "rb") as source:
                words = os.fsdecode(source.read()).split("\0")[:2]
        except OSError:
            continue
        try:
            folder = os.readlink(f"{process}/cwd")
        except OSError:  # another user's
            folder = "/"
        for word in words:
            path = os.path.normpath(os.path.join(folder, word)) + "/"
            if path.startswith(places):
                return True
        if f"{folder}/".startswith(places):
            return True
        with contextlib.suppress(OSError), open(f"{process}/maps", "rb") as source:
            if os.fsencode(f"/releases/{name}/") in source.read():
                return True
    return False


def _command(text: str) -> str:
    """The console script awq-edge of an entry_points.txt."""
    section = ""
    for line in text.splitlines():
        line = line.strip()
        if line.startswith("["):
            section = line
        elif section == "[console_scripts]":
            name, _, value = (part.strip() for part in line.partition("="))
            if name == "awq-edge" and re.fullmatch(r"[\w.]+:\w+", value):
                return value
    return ""


def _is_inside(name: str) -> bool:
    """Whether a name with "/" stays in the folder that it is relative to."""
    parts = name.split("/")
    return name.isprintable() and "\\" not in name and not {"", ".", ".."}.intersection(parts)


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _walk(folder: str) -> Iterator[str]:
    """Regular files below a folder, relative to it; links are not followed."""
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = f"{place}/{name}"
            if stat.S_ISREG(os.lstat(path).st_mode):
                yield path[len(folder) + 1 :]  # relpath() takes ten times as long


def _remove(path: str) -> None:
    if os.path.islink(path) or not os.path.isdir(path):
        with contextlib.suppress(OSError):
            os.unlink(path)
        return
    # The list first: what is left after a cut is then known to be no release.
    with contextlib.suppress(OSError):
        os.unlink(f"{path}/{LIST_NAME}")
    shutil.rmtree(path, ignore_errors=True)


def _sync(path: str) -> None:
    """Brings a whole file system to the medium: thousands of files at once."""
    try:
        import ctypes

        syncfs = ctypes.CDLL(None, use_errno=True).syncfs
    except (ImportError, AttributeError, OSError):
        os.sync()
        return
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if syncfs(folder) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), path)
    finally:
        os.close(folder)


def _sync_folder(path: str) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _run(command: list[str], *, loud: bool = False) -> int:
    """Runs a program; what it prints goes to standard error if ``loud``, otherwise nowhere."""
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=2 if loud else subprocess.DEVNULL,
            stderr=2 if loud else subprocess.DEVNULL,
            cwd="/",
            check=False,
        ).returncode
    except OSError:
        return 127


def _say(text: str) -> None:
    # Whoever started this may have gone: the installation goes on to its end.
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def _link_command(prefix: str, home: str, search: list[str]) -> str:
    """~/.local/bin/awq-edge, unless that is another program; gives what a user types."""
    program = f"{prefix}/current/bin/awq-edge"
    if not home.startswith("/"):
        return program
    folder = f"{home}/.local/bin"
    link = f"{folder}/awq-edge"
    if os.path.lexists(link):
        if not os.path.islink(link):
            return program
        named = os.path.join(folder, os.readlink(link))
        ours = named.endswith("/current/bin/awq-edge") or os.path.isdir(
            f"{os.path.dirname(named)}/releases"
        )
        if not ours:
            return program
    try:
        os.makedirs(folder, exist_ok=True)
        partial = f"{folder}/.awq-edge.{os.getpid()}"
        os.symlink(f"{prefix}/awq-edge", partial)
        os.replace(partial, link)
    except OSError:
        return program
    return "awq-edge" if folder in search else program


def _install(arguments: list[str]) -> None:
    bundle, prefix, version, model, link_model, selftest, service, memory_max = arguments
    work = Installation(bundle, prefix, version, model)
    work.launcher_program = (
        os.environ["AWQ_EDGE_RELEASE_SOURCE"] + "\nsys.exit(start(sys.argv[1], sys.argv[2:]))\n"
    )
    work.read_sums()
    work.check_sums(set())
    python = ".".join(str(part) for part in sys.version_info[:2])
    with _alone(prefix):
        try:
            work.remove_broken()
            _say(f"Installing awq-edge {version} for Python {python} into {prefix}")
            work.build(link_model=link_model == "yes")
            work.complete()
            work.try_release(selftest=selftest == "yes")
            work.write_launcher(os.environ["AWQ_EDGE_LAUNCHER"])
            work.switch()
        except BaseException:
            work.undo()
            raise
        search = os.environ.get("PATH", "").split(":")
        program = _link_command(prefix, os.environ.get("HOME", ""), search)
        _sync(prefix)
        if service:
            _serve(Service(prefix, model, service, memory_max))
        work.remove_old()
        _sync(prefix)
    _say(f"Done. Try: {program} run {prefix}/models/{model} -p 'Once upon a time'")


def _serve(service: Service) -> None:
    """Installs the service and starts it, so that no program runs from the old release."""
    try:
        service.install(_say)
    except (ServiceFailure, OSError) as error:
        why = (
            str(error)
            if isinstance(error, ServiceFailure)
            else f"{error.filename}: {error.strerror}."
        )
        raise Failure(f"awq-edge is installed, and its service is not: {why}") from error


def _stop(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def main(arguments: list[str]) -> int:
    """Runs one installation; a failure is one sentence on standard error."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    try:
        _install(arguments)
    except Failure as error:
        _say(f"install.sh: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        why = f"{where}{error.strerror}"
        why = f"{where}{error.strerror}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            why = f"the disk is full: make room below {arguments[1]}"
        _say(f"install.sh: {why}; everything is as it was.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
