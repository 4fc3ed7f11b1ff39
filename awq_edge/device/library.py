"""Cross-compiles the shared library for a target with tools that pip installs: cmake, ninja, zig.

Owns finding the tools, the build folder in the user's cache, which one build has at a time, and the
reading of ninja's progress.
Refuses compiler flags: the toolchain files in ``targets/`` and CMakeLists.txt hold them.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from awq_edge.device.sources import native_source_directory
from awq_edge.errors import BuildError, UnsupportedError
from awq_edge.outputs.workplace import lock
from awq_edge.profiles import Profile, targets_directory
from awq_edge.user_cache import caches_of_all_programs, is_sound, lock_file, own_folder

LIBRARY_NAME = "libawq_edge.so"
_INSTALL = "pip install 'awq-edge[build]'"
_LOG_NAME = "build.log"
# ninja's status line, for example "[12/80] Building CXX object ..."
_STEP = re.compile(r"^\[(\d+)/(\d+)\]")
# How often a build says that it lives: its first step may take two minutes.
_PULSE_SECONDS = 1.0
# How often it asks whether another build of the same folder has ended.
_WAIT_SECONDS = 0.2

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Tools:
    """Programs that a build needs. The compiler is in the ``ziglang`` package of ``python``."""

    cmake: Path
    ninja: Path
    python: Path


def find_tools() -> Tools:
    """The tools, from their pip packages or the PATH.

    Raises:
        UnsupportedError: One is missing; the text has the command that installs it.
    """
    cmake = _program("cmake", "cmake", "CMAKE_BIN_DIR")
    ninja = _program("ninja", "ninja", "BIN_DIR")
    missing = [name for name, path in (("cmake", cmake), ("ninja", ninja)) if path is None]
    if importlib.util.find_spec("ziglang") is None:
        missing.append("ziglang")
    if missing or cmake is None or ninja is None:
        raise UnsupportedError(
            f"Building for a board needs {' and '.join(missing)}, which {sys.executable} does "
            f"not have: run {_INSTALL}."
        )
    return Tools(cmake, ninja, Path(sys.executable))


def _has_nvrtc() -> bool:
    try:
        return importlib.util.find_spec("nvidia.cuda_nvrtc") is not None
    except ModuleNotFoundError:  # not even its outer package
        return False


def _program(package: str, name: str, attribute: str) -> Path | None:
    """The program in the folder that the pip package of the same name tells, or on the PATH."""
    if importlib.util.find_spec(package) is not None:
        folder = getattr(importlib.import_module(package), attribute, None)
        found = shutil.which(name, path=str(folder)) if folder else None
        if found:
            return Path(found)
    found = shutil.which(name)
    return Path(found) if found else None


class LibraryBuild:
    """The library of one CPU architecture, built from this package's native sources."""

    def __init__(self, profile: Profile) -> None:
        """Chooses the build folder; builds nothing."""
        self.profile = profile
        self.source = native_source_directory()
        # All targets of one architecture share a baseline, and so a library. CMake ties a build
        # folder to one source folder.
        origin = hashlib.sha256(str(self.source).encode()).hexdigest()[:12]
        gpu = "-gpu" if profile.gpu_modules else ""
        self.folder = own_folder("build") / f"{profile.machine}{gpu}-{origin}"
        self.library = self.folder / LIBRARY_NAME
        self.log = self.folder / _LOG_NAME
        self._kept: tuple[int, ...] = ()  # descriptors that the tools inherit

    def _gpu_options(self, tools: Tools) -> list[str]:
        """What a board with a GPU needs besides: its kernels, compiled by NVRTC."""
        if not self.profile.gpu_modules:
            return []
        if not _has_nvrtc():
            raise UnsupportedError(
                f"Building for {self.profile.title} compiles kernels for its GPU, and "
                f"{sys.executable} has no nvidia-cuda-nvrtc-cu12: run {_INSTALL}."
            )
        return [
            "-DAWQE_WITH_CUDA=ON",
            f"-DAWQE_CUDA_PYTHON={tools.python}",
            f"-DAWQE_CUDA_MODULES={';'.join(self.profile.gpu_modules)}",
        ]

    @property
    def is_first(self) -> bool:
        """Whether nothing has been built here yet."""
        return not self.library.is_file()

    def run(self, progress: Progress | None = None) -> Path:
        """Compiles what is not up to date; waits for another build of the same folder.

        Args:
            progress: Called with steps done and steps in all, as ninja counts them, and at least
                every second; both are 0 before it has counted, and while it waits.

        Returns:
            The library.

        Raises:
            BuildError: A tool failed; the text names the log.
        """
        tools = find_tools()
        with self._alone(progress):
            return self._build(tools, progress)

    @contextlib.contextmanager
    def _alone(self, progress: Progress | None) -> Iterator[None]:
        """Keeps other builds out of the folder while the block runs.

        The tools inherit the lock: those of a build that was killed work on for a while.
        """
        with lock_file(self.folder.with_name(f"{self.folder.name}.lock")) as file:
            while not lock(file.fileno()):
                if progress is not None:
                    progress(0, 0)
                time.sleep(_WAIT_SECONDS)
            self._kept = (file.fileno(),) if os.name == "posix" else ()
            try:
                yield
            finally:
                self._kept = ()

    def _build(self, tools: Tools, progress: Progress | None) -> Path:
        if self.folder.exists() and not is_sound(self.folder):
            shutil.rmtree(self.folder)  # follows no link
        self.folder.mkdir(exist_ok=True)
        toolchain = targets_directory().resolve() / self.profile.name / "toolchain.cmake"
        configure = [
            *(str(tools.cmake), "-S", str(self.source), "-B", str(self.folder), "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={tools.ninja}",
            f"-DCMAKE_TOOLCHAIN_FILE={toolchain}",
            f"-DAWQE_ZIG_PYTHON={tools.python}",
            "-DCMAKE_BUILD_TYPE=Release",
            "-DAWQE_BUILD_TESTS=OFF",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={self.folder}",
            *self._gpu_options(tools),
        ]
        cache = self.folder / "CMakeCache.txt"
        if cache.is_file() and not _was_configured_by(cache, toolchain, tools.python):
            shutil.rmtree(self.folder)
            self.folder.mkdir()
        with self.log.open("w", encoding="utf-8") as log:
            self._tool(configure, log, None)
            build = [str(tools.cmake), "--build", str(self.folder), "--target", "awq_edge"]
            self._tool(build, log, progress)
        if not self.library.is_file():
            raise BuildError(f"The build made no {LIBRARY_NAME}; its output is in {self.log}.")
        return self.library

    def _tool(self, command: list[str], log: object, progress: Progress | None) -> None:
        environment = dict(os.environ)
        # A compiler or flags of the user's own would end up in a library for another machine.
        for name in ("CC", "CXX", "CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS"):
            environment.pop(name, None)
        environment["NINJA_STATUS"] = "[%f/%t] "
        # The compiler links what lies in its cache: nobody else's hand may have been there.
        usual = caches_of_all_programs()
        if usual is None or (os.path.lexists(usual / "zig") and not is_sound(usual / "zig")):
            environment["ZIG_GLOBAL_CACHE_DIR"] = str(own_folder("zig"))
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=environment,
            pass_fds=self._kept,
        ) as process:
            problem = ""
            done = total = 0
            for line in _lines(process):
                log.write(line)  # type: ignore[attr-defined]  # a text file
                step = _STEP.match(line)
                if step:
                    done, total = int(step.group(1)), int(step.group(2))
                if progress is not None:
                    progress(done, total)
                if not problem and ("error:" in line or line.startswith("CMake Error")):
                    problem = " ".join(line.split())
        if process.returncode != 0:
            what = f" ({problem[:200]})" if problem else ""
            raise BuildError(
                f"Compiling for {self.profile.machine} failed{what}; all of the tools' output is "
                f"in {self.log}."
            )


def _lines(process: subprocess.Popen[str]) -> Iterator[str]:
    """What a program prints, line by line; an empty text for every second without a line."""
    assert process.stdout is not None
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read(stream: IO[str]) -> None:
        for line in stream:
            lines.put(line)
        lines.put(None)

    reader = threading.Thread(target=read, args=(process.stdout,), daemon=True)
    reader.start()
    while True:
        try:
            line = lines.get(timeout=_PULSE_SECONDS)
        except queue.Empty:
            yield ""
            continue
        if line is None:
            break
        yield line
    reader.join()


def _was_configured_by(cache: Path, toolchain: Path, python: Path) -> bool:
    """Whether CMake's cache belongs to this toolchain file's architecture and this interpreter."""
    entries = dict(
        line.split("=", 1)
        for line in cache.read_text(encoding="utf-8", errors="replace").splitlines()
        if "=" in line and not line.startswith(("#", "//"))
    )
    values = {name.split(":")[0]: value for name, value in entries.items()}
    chosen = values.get("CMAKE_TOOLCHAIN_FILE", "")
    return Path(chosen).parent.parent == toolchain.parent.parent and values.get(
        "AWQE_ZIG_PYTHON"
    ) == str(python)
