"""Finds the C library, declares it to cffi, and turns a status into an exception.

The rest of this folder reaches the library through ``load``, ``call`` and ``call_with_progress``;
nothing outside it touches cffi. Callbacks never raise into C.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from awq_edge import errors, unreadable_files

LIBRARY_NAME = "libawq_edge.so"
HEADER_NAME = "awq_edge.h"
_BEGIN, _END = "/* cffi begin */", "/* cffi end */"

# One exception per awqe_status, in the order of the enum; 0 is success.
_EXCEPTIONS: tuple[type[errors.AwqEdgeError], ...] = (
    errors.InvalidArgumentError,
    errors.FileUnreadableError,
    errors.FileInvalidError,
    errors.UnsupportedError,
    errors.OutOfMemoryError,
    errors.ContextFullError,
    errors.CancelledError,
    errors.InternalError,
    errors.DeviceLostError,
)

Progress = Callable[[int, int], None]


def header_path() -> Path:
    """The C header: beside the installed package, or in the checkout this file belongs to."""
    package = Path(__file__).parent.parent
    for path in (
        package / "include" / HEADER_NAME,
        package.parent / "native/include" / HEADER_NAME,
    ):
        if path.is_file():
            return path
    raise errors.InternalError(
        f"{HEADER_NAME} is missing from {package}: install awq-edge again (pip install awq-edge)."
    )


def library_path() -> Path:
    """The shared library: AWQ_EDGE_LIBRARY, or the package's directory."""
    forced = os.environ.get("AWQ_EDGE_LIBRARY")
    if forced:
        return Path(forced)
    import awq_edge

    # An editable install has two directories: the sources and the place of the built library.
    for directory in awq_edge.__path__:
        path = Path(directory) / LIBRARY_NAME
        if path.is_file():
            return path
    raise errors.UnsupportedError(
        f"The library {LIBRARY_NAME} is not in {Path(__file__).parent.parent}: install a wheel for "
        "this machine, or build it in a checkout with 'make setup'."
    )


def declarations(header: str) -> str:
    """The part of ``awq_edge.h`` that cffi reads: the text between the two markers."""
    try:
        return header[header.index(_BEGIN) + len(_BEGIN) : header.index(_END)]
    except ValueError as error:
        raise errors.InternalError(f"{HEADER_NAME} has no cffi markers.") from error


def parsed_declarations(text: str) -> str:
    """A Python module with what cffi makes of declarations, which takes it longer than all else.

    Wheels and installed packages carry it as ``_declarations.py``; see ``_declared``.
    """
    import tempfile

    import cffi

    ffi = cffi.FFI()
    ffi.set_source("awq_edge._declarations", None)
    ffi.cdef(text)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "declarations.py"
        with contextlib.redirect_stdout(io.StringIO()):  # it tells what it writes
            ffi.emit_python_code(str(path))
        return f"{path.read_text(encoding='utf-8')}\nSOURCE = {zlib.crc32(text.encode()):#x}\n"


def _declared(text: str) -> Any:
    """What cffi makes of declarations: as it was made before, if it was made of the same."""
    try:
        made = importlib.import_module("awq_edge._declarations")
    except ImportError:  # a checkout that was not installed
        pass
    else:
        if zlib.crc32(text.encode()) == made.SOURCE:
            return made.ffi
    import cffi

    ffi = cffi.FFI()
    ffi.cdef(text)
    return ffi


@functools.cache
def load() -> tuple[Any, Any]:
    """The ffi and the library.

    Raises:
        UnsupportedError: The library is missing, of another machine or of another ABI.
    """
    ffi = _declared(declarations(header_path().read_text(encoding="utf-8")))
    path = library_path()
    try:
        library = ffi.dlopen(str(path))
    except OSError as error:
        raise errors.UnsupportedError(
            f"The library {path} cannot be loaded ({error}): install a wheel for this machine."
        ) from error
    found = library.awqe_abi_version()
    if found != library.AWQE_ABI_VERSION:
        raise errors.UnsupportedError(
            f"{path} has ABI {found}, this package needs {library.AWQE_ABI_VERSION}: "
            "install both from one release, or build the library again."
        )
    unreadable_files.install(ffi, library)
    return ffi, library


def call(function: Callable[..., int], *arguments: object) -> None:
    """Calls a function of the library and raises what its status says."""
    ffi, _ = load()
    error = ffi.new("awqe_error*")
    status = int(function(*arguments, error))
    del arguments  # an exception that somebody keeps would keep these objects open
    if status != 0:
        text = ffi.string(error.message).decode("utf-8", "replace")
        kind = _EXCEPTIONS[status - 1] if status <= len(_EXCEPTIONS) else errors.InternalError
        raise kind(text or f"status {status}")


def call_with_progress(
    function: Callable[..., int], *arguments: object, progress: Progress | None
) -> None:
    """Calls a function whose last arguments are an ``awqe_progress``, its user and the error."""
    ffi, _ = load()
    raised: list[BaseException] = []

    def keep(_kind: object, error: BaseException, _traceback: object) -> None:
        raised.append(error)

    # Also what makes Ctrl-C work in a long prompt: Python looks for signals in here. An exception
    # goes to `keep` and never into C; the callback then returns false.
    def report(_user: object, done: int, total: int) -> bool:
        if progress is not None:
            progress(done, total)
        return True

    callback = ffi.callback("bool(void*, size_t, size_t)", report, error=False, onerror=keep)
    try:
        call(function, *arguments, callback, ffi.NULL)
    except errors.CancelledError:
        if raised:
            raise raised[0] from None
        raise
    if raised:
        raise raised[0]


def structure(name: str) -> Any:
    """A new structure of the header, with its size filled in."""
    ffi, _ = load()
    structure = ffi.new(f"{name}*")
    structure.struct_size = ffi.sizeof(name)
    return structure


def text_at(ffi: Any, pointer: Any) -> str:
    """The C string at a pointer."""
    return str(ffi.string(pointer).decode("utf-8", "replace"))
