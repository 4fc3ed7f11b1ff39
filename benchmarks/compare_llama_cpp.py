"""Decode and prefill speed of awq-edge and llama.cpp on random weights of one shape, side by side.

    pip install llama-cpp-python
    python benchmarks/compare_llama_cpp.py --shape tinyllama-1.1b --threads 1 2

Both systems run in turn, several times, in this one process, so that a noisy machine disturbs
both; what counts is the ratio of the medians. Both files are read from the disk anew, as after a
start of the machine: what the page cache holds of a file just written lies in small pages.
awq-edge: 4 bits (or --bits), groups of 128, head and embedding at 8 bits. llama.cpp: Q4_0 with a
Q6_K head, what llama-quantize makes, with its own defaults (repacking, flash attention).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from shapes import SHAPES, write_awq_edge, write_llama_cpp

from awq_edge import Model, __version__
from awq_edge._native import read_bandwidth

Measure = Callable[[str], float]
BANDWIDTH_BYTES = 512 << 20  # far more than any cache


def cpu_name() -> str:
    """The processor's name, as the kernel tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def awq_edge_runner(path: Path, threads: int, prompt: list[int], steps: int) -> Measure:
    """A function that measures tokens per second of "prefill" or "decode"."""
    model = Model.open(path, threads=threads)
    session = model.session(context_length=len(prompt) + steps)

    def measure(what: str) -> float:
        session.truncate(0)
        if what == "prefill":
            return timed(len(prompt), lambda: session.evaluate(prompt))
        session.evaluate(prompt[:1])
        return timed(steps, lambda: [session.evaluate([token]) for token in prompt[:steps]])

    return measure


def llama_cpp_runner(path: Path, threads: int, prompt: list[int], steps: int) -> Measure:
    """The same for llama.cpp, through its C API."""
    import llama_cpp

    quiet = llama_cpp.llama_log_callback(lambda _level, _text, _user: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(
        str(path).encode(), llama_cpp.llama_model_default_params()
    )
    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx = len(prompt) + steps
    parameters.n_batch = parameters.n_ubatch = len(prompt)
    parameters.n_threads = parameters.n_threads_batch = threads
    context = llama_cpp.llama_init_from_model(model, parameters)
    ids = (llama_cpp.llama_token * len(prompt))(*prompt)

    def evaluate(first: int, count: int) -> None:
        at = ctypes.cast(ctypes.byref(ids, first * 4), ctypes.POINTER(llama_cpp.llama_token))
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(at, count)) != 0:
            raise RuntimeError("llama_decode failed")
        llama_cpp.llama_synchronize(context)

    def measure(what: str) -> float:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        if what == "prefill":
            return timed(len(prompt), lambda: evaluate(0, len(prompt)))
        evaluate(0, 1)
        return timed(steps, lambda: [evaluate(i, 1) for i in range(steps)])

    measure.keep = quiet  # type: ignore[attr-defined]  # the callback must outlive the context
    return measure


def forget(path: Path) -> None:
    """Drops a file from the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def timed(tokens: int, work: Callable[[], object]) -> float:
    """Tokens per second."""
    started = time.perf_counter()
    work()
    return tokens / (time.perf_counter() - started)


def main() -> int:
    """Write the models, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="tinyllama-1.1b")
    parser.add_argument("--bits", type=int, nargs="+", choices=(2, 3, 4, 8), default=[4])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prefill")
    parser.add_argument("--generate", type=int, default=32, help="tokens decoded per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", type=Path, default=Path("build/benchmarks"))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    try:
        import llama_cpp
    except ImportError:
        sys.exit("This needs the peer: pip install llama-cpp-python")

    console = Console(stderr=True)
    shape = SHAPES[arguments.shape]
    arguments.models.mkdir(parents=True, exist_ok=True)
    peer_file = arguments.models / f"{arguments.shape}.q4_0.gguf"
    files = {
        bits: arguments.models / f"{arguments.shape}.{bits}bit.awq.gguf" for bits in arguments.bits
    }
    with console.status("writing random models"):
        if not peer_file.exists():
            write_llama_cpp(shape, peer_file)
        for bits, file in files.items():
            if not file.exists():
                write_awq_edge(shape, file, bits)

    generator = np.random.default_rng(7)
    prompt = generator.integers(3, shape.vocabulary, arguments.prompt).tolist()
    results = []
    for path in (peer_file, *files.values()):
        forget(path)
    for threads in arguments.threads:
        runners = {
            "llama.cpp Q4_0": llama_cpp_runner(peer_file, threads, prompt, arguments.generate)
        }
        for bits, file in files.items():
            runners[f"awq-edge {bits} bits"] = awq_edge_runner(
                file, threads, prompt, arguments.generate
            )
        for what in ("decode", "prefill"):
            speeds: dict[str, list[float]] = {name: [] for name in runners}
            bandwidths = []
            with console.status(f"{what}, {threads} threads"):
                for measure in runners.values():
                    measure(what)  # pages in, clocks up
                for _ in range(arguments.rounds):
                    for name, measure in runners.items():
                        speeds[name].append(measure(what))
                    if what == "decode":
                        bandwidths.append(read_bandwidth(threads, BANDWIDTH_BYTES))
            results.append(
                {
                    "what": what,
                    "threads": threads,
                    "tokens_per_second": {n: statistics.median(s) for n, s in speeds.items()},
                    "read_bandwidth": statistics.median(bandwidths) if bandwidths else None,
                }
            )

    decode_bytes = {}
    for bits, file in files.items():
        with Model.open(file) as model:
            decode_bytes[f"awq-edge {bits} bits"] = model.info.decode_bytes
    table = Table(
        title=f"{arguments.shape}, {cpu_name()}, awq-edge {__version__}, "
        f"llama-cpp-python {llama_cpp.__version__}, median of {arguments.rounds}"
    )
    for column in ("", "threads", "system", "tokens/s", "to llama.cpp", "of read bandwidth"):
        table.add_column(column, justify="right" if column in ("tokens/s",) else "left")
    for row in results:
        peer = row["tokens_per_second"]["llama.cpp Q4_0"]
        for name, speed in row["tokens_per_second"].items():
            share = ""
            if row["read_bandwidth"] and name in decode_bytes:
                share = f"{100 * speed * decode_bytes[name] / row['read_bandwidth']:.0f} % of "
                share += f"{row['read_bandwidth'] / 1e9:.1f} GB/s"
            table.add_row(
                row["what"], str(row["threads"]), name, f"{speed:.1f}", f"{speed / peer:.2f}", share
            )
    if arguments.json:
        print(json.dumps({"shape": arguments.shape, "cpu": cpu_name(), "results": results}))
    else:
        Console(width=140).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
