"""Judges a board: what is well, what is not, and one sentence of advice for each.

Owns thresholds and advice. Refuses to change anything and to print.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from awq_edge.device.board import Board
from awq_edge.quantities import size_text

if TYPE_CHECKING:
    from awq_edge._native import Gpu, GpuMemoryNeed, MemoryNeed
    from awq_edge.device.gpu_sensors import GpuState
    from awq_edge.model import Model

OK, WARNING, PROBLEM = "ok", "warning", "problem"

# Raspberry Pi firmware slows the cores down from 80 degrees on and stops them from speeding up at
# 85; boards without a firmware word are judged by the same figures.
_HOT, _TOO_HOT = 70.0, 80.0
# Oldest C library that the library is linked for.
_GLIBC = (2, 31)
# What Python with tokenizer and libraries takes beside the session.
PYTHON_BYTES = 150_000_000
_SMALLEST_CONTEXT = 128
# By the first number of a Jetson's release; 38 is Thor's alone.
_JETPACKS = {"35": "5", "36": "6", "38": "7", "39": "7"}


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        level: "ok", "warning" or "problem".
        subject: What was looked at, a word or two.
        text: What was found.
        advice: What to do, one sentence; empty if nothing.
    """

    level: str
    subject: str
    text: str
    advice: str = ""


@dataclass(frozen=True)
class Fit:
    """Whether a model fits, and at which context.

    Attributes:
        need: For ``context_length`` tokens.
        available_bytes: What a session may take, beside a tower that encodes a picture.
        context_length: Tokens that were asked for.
        largest_context: Most tokens that fit, 0 if even a short context does not.
        encoding_bytes: What that tower takes; 0: there is none.
    """

    need: MemoryNeed
    available_bytes: int
    context_length: int
    largest_context: int
    encoding_bytes: int = 0


def examine(
    board: Board,
    kernels: list[str],
    gpu: Gpu | str | None = None,
    state: GpuState | None = None,
) -> list[Finding]:
    """Everything but the model.

    Args:
        board: The machine.
        kernels: Kernel tables that it can run, best first.
        gpu: The GPU, or why there is none that can be used; None says nothing of it.
        state: How that GPU is at the moment, if anything is known of that.
    """
    return [
        *_machine(board),
        _kernels(board, kernels),
        *_gpu(board, gpu),
        *_gpu_state(state),
        *_memory(board),
        *_clock(board),
        *_power(board),
    ]


def _gpu(board: Board, gpu: Gpu | str | None) -> Iterator[Finding]:
    if gpu is None:
        return
    if isinstance(gpu, str):
        # A machine without one is well; a Jetson without one is not.
        if any(word in (board.name or "") for word in ("NVIDIA", "Jetson")):
            yield Finding(WARNING, "GPU", gpu, "Until then everything runs on the CPU.")
        return
    version = f"{gpu.driver_version // 1000}.{gpu.driver_version % 1000 // 10}"
    yield Finding(
        OK,
        "GPU",
        f"{gpu.name}, compute capability {gpu.capability // 10}.{gpu.capability % 10}, "
        f"{gpu.multiprocessors} multiprocessors, {size_text(gpu.free_bytes)} of "
        f"{size_text(gpu.memory_bytes)} free, driver for CUDA {version}",
    )
    if gpu.integrated:
        text = "read in place, from the file" if gpu.in_place else f"copied: {gpu.copy_reason}"
        yield Finding(OK, "weights", text)


def _gpu_state(state: GpuState | None) -> Iterator[Finding]:
    if state is None:
        return
    if state.release is not None:
        jetpack = _JETPACKS.get(state.release.partition(".")[0])
        name = "" if jetpack is None else f" (JetPack {jetpack})"
        yield Finding(OK, "Jetson Linux", f"{state.release}{name}")
    facts = gpu_facts(state)
    if not facts:
        return
    mode = state.power_mode
    yield Finding(
        OK,
        "GPU state",
        ", ".join(facts),
        ""
        if mode is None or mode.startswith("MAXN")
        else "This power mode is not the fastest: 'sudo nvpmodel -p --verbose' lists the others.",
    )


def gpu_facts(state: GpuState) -> list[str]:
    """What is known of a GPU at a moment, in a few words each."""
    facts = []
    if state.power_mode is not None:
        facts.append(f"power mode {state.power_mode}")
    if state.mhz is not None:
        most = "" if state.max_mhz is None else f" of {state.max_mhz:.0f}"
        facts.append(f"{state.mhz:.0f}{most} MHz")
    if state.memory_mhz is not None:
        facts.append(f"memory {state.memory_mhz:.0f} MHz")
    if state.temperature is not None:
        facts.append(f"{state.temperature:.0f} °C")
    if state.watts is not None:
        facts.append(f"{state.watts:.1f} W ({state.rails})")
    return facts


def fit(model: Model, board: Board, context_length: int | None) -> Fit:
    """Compares a model's need with the board's free memory, less what Python takes."""
    wanted = context_length or model.context_length
    encoding = model.encoding_bytes()
    free = max(0, (board.memory_available or 0) - PYTHON_BYTES - encoding)
    low, high = 0, model.info.context_length
    while low < high:
        middle = (low + high + 1) // 2
        if model.memory(middle).total_bytes <= free:
            low = middle
        else:
            high = middle - 1
    largest = low if low >= min(_SMALLEST_CONTEXT, model.info.context_length) else 0
    return Fit(model.memory(wanted), free, wanted, largest, encoding)


def gpu_fit(model: Model, context_length: int | None) -> tuple[GpuMemoryNeed, GpuMemoryNeed]:
    """What the whole model needs of the GPU's memory, and what the layers that it has room for.

    Raises:
        UnsupportedError: There is no GPU, or none that computes this model.
    """
    return (
        model.gpu_memory(context_length),
        model.gpu_memory(context_length, gpu_layers="auto"),
    )


def judge_gpu_fit(
    whole: GpuMemoryNeed, divided: GpuMemoryNeed, gpu: Gpu, layers: int, name: str
) -> Finding:
    """One line about a model on the GPU. The CPU has it otherwise, so nothing here is a problem."""
    memory = "the memory that it shares with the CPU" if gpu.integrated else "its memory"
    need = (
        f"{name} needs {size_text(whole.total_bytes)} of {memory} (weights "
        f"{size_text(whole.weight_bytes)}, context {size_text(whole.cache_bytes)}, work "
        f"{size_text(whole.scratch_bytes)}); {size_text(whole.free_bytes)} free"
    )
    if whole.layers:
        return Finding(OK, "GPU model", need)
    if not divided.layers:
        return Finding(OK, "GPU model", need, "It has no room for a layer: the CPU has the model.")
    return Finding(
        OK,
        "GPU model",
        need,
        f"'--gpu-layers auto' gives it {divided.layers} of {layers} layers, "
        f"{size_text(divided.total_bytes)}.",
    )


def judge_fit(result: Fit, name: str) -> Finding:
    """One line about a model."""
    need = f"{size_text(result.need.total_bytes)} with {result.context_length} tokens of context"
    free = f"{size_text(result.available_bytes)} free"
    if result.encoding_bytes:
        free += f" beside {size_text(result.encoding_bytes)} for encoding a picture"
    if result.need.total_bytes <= result.available_bytes:
        return Finding(
            OK, "model", f"{name} needs {need}; {free}, enough for {result.largest_context} tokens"
        )
    if result.largest_context:
        return Finding(
            WARNING,
            "model",
            f"{name} needs {need}; {free}",
            f"Use --context {result.largest_context} or less.",
        )
    return Finding(
        PROBLEM,
        "model",
        f"{name} needs {need}; {free}",
        "Close other programs, or convert the model with fewer bits or take a smaller one.",
    )


def _machine(board: Board) -> Iterator[Finding]:
    cpu = f"{board.cpu or 'unknown CPU'}, {board.cores} usable cores"
    yield Finding(OK, "board", f"{board.name or 'unknown board'}; {cpu}")
    if board.userland_bits == 64:
        yield Finding(OK, "system", f"64-bit {board.machine}, Linux {board.kernel}")
    else:
        yield Finding(
            PROBLEM,
            "system",
            f"{board.userland_bits}-bit programs on a {board.machine} kernel",
            "Install the 64-bit system: a 64-bit kernel alone is not enough.",
        )
    if board.glibc is None:
        yield Finding(
            PROBLEM, "C library", "not glibc", "Use a system with glibc, such as Debian or Ubuntu."
        )
    else:
        version = tuple(int(part) for part in board.glibc.split(".")[:2] if part.isdigit())
        text = f"glibc {board.glibc}, Python {board.python}"
        if version >= _GLIBC:
            yield Finding(OK, "C library", text)
        else:
            yield Finding(
                PROBLEM,
                "C library",
                text,
                "Upgrade the system: glibc 2.31 is the oldest that works.",
            )
    yield Finding(OK, "page size", f"{board.page_bytes // 1024} KiB")


def _kernels(board: Board, kernels: list[str]) -> Finding:
    chosen, others = kernels[0], ", ".join(kernels[1:])
    if chosen != "reference":
        return Finding(OK, "kernels", f"{chosen} (this CPU also runs {others})")
    return Finding(
        WARNING,
        "kernels",
        "reference, the slow ones",
        f"Report this CPU ({board.cpu or board.machine}): there should be faster kernels for it.",
    )


def _memory(board: Board) -> Iterator[Finding]:
    total, available = board.memory_total, board.memory_available
    if total is None or available is None:
        yield Finding(WARNING, "memory", "unknown", "Mount /proc, so that memory can be checked.")
        return
    text = f"{size_text(available)} free of {size_text(total)}"
    if available < total / 4:
        yield Finding(WARNING, "memory", text, "Close other programs before you load a model.")
    else:
        yield Finding(OK, "memory", text)
    if not board.swap_total:
        yield Finding(OK, "swap", "none: a model that does not fit is refused instead of crawling")
    elif board.swap_used and board.swap_used > board.swap_total / 4:
        yield Finding(
            WARNING,
            "swap",
            f"{size_text(board.swap_used)} used of {size_text(board.swap_total)}",
            "Close other programs: a model that is swapped out takes seconds for each token.",
        )
    else:
        yield Finding(
            OK, "swap", f"{size_text(board.swap_total)}, {size_text(board.swap_used or 0)} used"
        )


def _clock(board: Board) -> Iterator[Finding]:
    if board.governor is None:
        return
    clock = "" if board.max_mhz is None else f", up to {board.max_mhz:.0f} MHz"
    text = f"{board.governor}{clock}"
    if board.governor == "powersave":
        yield Finding(
            WARNING,
            "clock",
            text,
            "Choose another governor: echo ondemand | sudo tee "
            "/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor.",
        )
    else:
        yield Finding(OK, "clock", text)


def _power(board: Board) -> Iterator[Finding]:
    if board.temperature is not None:
        text = f"{board.temperature:.0f} °C"
        if board.temperature >= _TOO_HOT:
            yield Finding(
                PROBLEM, "temperature", text, "Cool the board (heat sink, fan): it slows down now."
            )
        elif board.temperature >= _HOT:
            yield Finding(
                WARNING,
                "temperature",
                text,
                "Fit a heat sink or a fan: under load it will slow down.",
            )
        else:
            yield Finding(OK, "temperature", text)
    state = board.throttling
    if state is None:
        return
    if state.under_voltage:
        yield Finding(
            PROBLEM,
            "power",
            "under-voltage now",
            "Use the board's own power supply and a short cable.",
        )
    elif state.under_voltage_since_boot:
        yield Finding(
            WARNING,
            "power",
            "under-voltage since the last start",
            "Use the board's own power supply and a short cable.",
        )
    else:
        yield Finding(OK, "power", "no under-voltage since the last start")
    if state.throttled or state.capped or state.soft_limit:
        yield Finding(
            PROBLEM, "throttling", "slowed down now", "Cool the board, and check its power supply."
        )
    elif state.throttled_since_boot or state.capped_since_boot or state.soft_limit_since_boot:
        yield Finding(
            WARNING,
            "throttling",
            "slowed down since the last start",
            "Cool the board before you trust a measured speed.",
        )
    else:
        yield Finding(OK, "throttling", "none since the last start")
