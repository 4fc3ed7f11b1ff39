"""What the library says of the machine: kernels, their self-test, memory's speed, the GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from awq_edge import errors
from awq_edge._native.library import call, load, structure, text_at


@dataclass(frozen=True)
class Gpu:
    """The GPU that the device "cuda" computes on.

    Attributes:
        name: Its maker's.
        capability: Compute capability, 10 * major + minor; 87 is a Jetson Orin.
        driver_version: Of CUDA that the driver supports, 1000 * major + 10 * minor.
        multiprocessors: How many are switched on.
        integrated: CPU and GPU share one memory.
        memory_bytes: All of its memory.
        free_bytes: What of it is free.
        in_place: It reads weights where the file is mapped, without a copy.
        copy_reason: Why it does not although CPU and GPU share one memory, a few words.
    """

    name: str
    capability: int
    driver_version: int
    multiprocessors: int
    integrated: bool
    memory_bytes: int
    free_bytes: int
    in_place: bool = False
    copy_reason: str = ""


@dataclass(frozen=True)
class SelftestResult:
    """One operation of one kernel table: cases run, and those whose bits were wrong."""

    kernels: str
    operation: str
    cases: int
    differing: int


def read_bandwidth(threads: int, size_bytes: int) -> float:
    """Bytes per second that ``threads`` threads read from memory, the best of several passes."""
    ffi, library = load()
    result = ffi.new("double*")
    call(library.awqe_read_bandwidth, threads, size_bytes, result)
    return float(result[0])


def gpu() -> Gpu:
    """Asks for the GPU.

    Raises:
        UnsupportedError: There is none that this library can use; the text says why.
    """
    ffi, library = load()
    found = structure("awqe_gpu")
    call(library.awqe_gpu_get, found)
    return Gpu(
        name=ffi.string(found.name).decode("utf-8", "replace"),
        integrated=bool(found.integrated),
        in_place=bool(found.in_place),
        copy_reason=ffi.string(found.copy_reason).decode("utf-8", "replace"),
        **{
            name: int(getattr(found, name))
            for name in (
                "capability",
                "driver_version",
                "multiprocessors",
                "memory_bytes",
                "free_bytes",
            )
        },
    )


def gpu_read_bandwidth() -> float:
    """Bytes per second that the GPU reads from its memory; 0 where the driver measures no time.

    Raises:
        UnsupportedError: There is no GPU that this library can use.
    """
    ffi, library = load()
    result = ffi.new("double*")
    call(library.awqe_gpu_read_bandwidth, result)
    return float(result[0])


def kernel_tables() -> list[str]:
    """The kernel tables that this CPU can run, best first; the last one is ``reference``."""
    ffi, library = load()
    names: list[str] = []
    while True:
        name = library.awqe_kernels(len(names))
        if name == ffi.NULL:
            return names
        names.append(text_at(ffi, name))


def selftest(report: Callable[[SelftestResult], None]) -> None:
    """Runs every kernel that this CPU can run against the reference, bit for bit.

    Args:
        report: called for each operation of each table; may raise, which ends the self-test and
            comes out of it.
    """
    _, library = load()
    _walk(library.awqe_selftest, report)


def gpu_selftest(report: Callable[[SelftestResult], None]) -> None:
    """Runs every kernel of the GPU against the reference; ``operation`` is the kernel's name.

    Args:
        report: as that of ``selftest``, called for each kernel.

    Raises:
        UnsupportedError: There is no GPU that this library can use.
    """
    _, library = load()
    _walk(library.awqe_gpu_selftest, report)


def _walk(function: Any, report: Callable[[SelftestResult], None]) -> None:
    ffi, _ = load()
    raised: list[BaseException] = []

    def keep(_kind: object, error: BaseException, _traceback: object) -> None:
        raised.append(error)

    def tell(_user: object, result: Any) -> bool:
        report(
            SelftestResult(
                text_at(ffi, result.kernels),
                text_at(ffi, result.operation),
                int(result.cases),
                int(result.differing),
            )
        )
        return True

    signature = "bool(void*, const awqe_selftest_result*)"
    callback = ffi.callback(signature, tell, error=False, onerror=keep)
    try:
        call(function, callback, ffi.NULL)
    except errors.CancelledError:
        if raised:
            raise raised[0] from None
        raise
