"""Decode and prefill speed of awq-edge and llama.cpp side by side, on random weights or real files.

    pip install llama-cpp-python
    python benchmarks/compare_llama_cpp.py --shape tinyllama-1.1b --threads 1 2
    python benchmarks/compare_llama_cpp.py --shape tinyllama-1.1b opt-1.3b gemma-3-1b falcon-7b
    python benchmarks/compare_llama_cpp.py --bits 3.44 --head-bits 5
    python benchmarks/compare_llama_cpp.py --files OURS.awq.gguf THEIRS.gguf --prompt 512 2048 8192

Both systems run in turn, several times, in this one process, so that a noisy machine disturbs
both; what counts is the ratio of the medians. The share of the read bandwidth is a median too, of
every decoding by what reading gave right before and after it. Both files are read from the disk
anew, as after a start of the machine: what the page cache holds of a file just written lies in
small pages.
Of a shape: awq-edge has 4 bits (or --bits; of 3.44, some matrices have 3 and some 4), groups of
128, head and embedding at 8 bits (or --head-bits); llama.cpp Q4_0 with a Q6_K head, what
llama-quantize makes, with its own defaults (repacking, flash attention). Shapes of families that
llama.cpp has not run alone. Decoding goes on behind --prompt tokens.

Of several shapes a second table says which reach what is asked of them: dense ones 90 % of the
share of the read bandwidth that TinyLlama's shape reaches in the same run, mixtures of experts 80 %
of the speed that the bytes of the chosen experts allow.
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
from typing import Any, Protocol

import numpy as np
from peer_shapes import peer_family, write_llama_cpp
from rich.console import Console
from rich.table import Table
from shapes import SHAPES, architecture, write_awq_edge

from awq_edge import Model, __version__
from awq_edge._native import read_bandwidth
from awq_edge.layouts import BITS

BANDWIDTH_BYTES = 512 << 20  # far more than any cache
PEER = "llama.cpp"
YARDSTICK = "tinyllama-1.1b"
LEAST_OF_YARDSTICK = 0.9  # of a dense shape's share of the read bandwidth
LEAST_OF_ACTIVE = 0.8  # of what a token's bytes of a mixture of experts allow


class Runner(Protocol):
    """One system with one file."""

    def prefill(self) -> float:
        """Tokens per second of the prompt; it is the context afterwards."""

    def decode(self) -> float:
        """Tokens per second behind the prompt, which stays the context."""


def cpu_name() -> str:
    """The processor's name, as the kernel tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


class AwqEdge:
    """awq-edge."""

    def __init__(self, path: Path, threads: int, prompt: list[int], steps: int, kv: str) -> None:
        """Opens the file."""
        model = Model.open(path, threads=threads, kv=kv)
        self._session = model.session(context_length=len(prompt) + steps)
        self._prompt, self._steps = prompt, steps

    def prefill(self) -> float:
        """Tokens per second of the prompt."""
        self._session.truncate(0)
        return timed(len(self._prompt), lambda: self._session.evaluate(self._prompt))

    def decode(self) -> float:
        """Tokens per second behind it."""
        self._session.truncate(len(self._prompt))
        ids = [self._prompt[i % len(self._prompt)] for i in range(self._steps)]
        return timed(self._steps, lambda: [self._session.evaluate([token]) for token in ids])


class LlamaCpp:
    """The same through llama.cpp's C API."""

    def __init__(self, path: Path, threads: int, prompt: list[int], steps: int) -> None:
        """Opens the file."""
        import llama_cpp

        self._library: Any = llama_cpp
        # The callback must outlive the context.
        self._quiet = llama_cpp.llama_log_callback(lambda _level, _text, _user: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        if not self._model:
            sys.exit(f"llama.cpp does not open {path}.")
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = len(prompt) + steps
        parameters.n_batch = len(prompt)
        parameters.n_threads = parameters.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, parameters)
        self._ids = (llama_cpp.llama_token * len(prompt))(*prompt)
        self._steps = steps

    def prefill(self) -> float:
        """Tokens per second of the prompt."""
        self._library.llama_memory_clear(self._memory(), True)
        return timed(len(self._ids), lambda: self._evaluate(0, len(self._ids)))

    def decode(self) -> float:
        """Tokens per second behind it."""
        self._library.llama_memory_seq_rm(self._memory(), 0, len(self._ids), -1)
        at = [i % len(self._ids) for i in range(self._steps)]
        return timed(self._steps, lambda: [self._evaluate(i, 1) for i in at])

    def _memory(self) -> Any:
        return self._library.llama_get_memory(self._context)

    def _evaluate(self, first: int, count: int) -> None:
        token = ctypes.POINTER(self._library.llama_token)
        at = ctypes.cast(ctypes.byref(self._ids, first * 4), token)
        if self._library.llama_decode(self._context, self._library.llama_batch_get_one(at, count)):
            raise RuntimeError("llama_decode failed")
        self._library.llama_synchronize(self._context)


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


def written(shape: str, bits: list[float], head_bits: int, directory: Path) -> dict[str, Path]:
    """Files of a shape by the system that reads them; those that are there are not made again."""
    head = "" if head_bits == 8 else f".head{head_bits}"
    files = {
        f"awq-edge {width:g} bits": directory / f"{shape}.{width:g}bit{head}.awq.gguf"
        for width in bits
    }
    for width, file in zip(bits, files.values()):
        if not file.exists():
            write_awq_edge(architecture(shape), file, width, head_bits=head_bits)
    family = peer_family(shape)
    if family is None:
        return files
    peer = directory / f"{shape}.q4_0.gguf"
    if not peer.exists():
        write_llama_cpp(architecture(shape), family, peer)
    return {PEER: peer, **files}


def width(text: str) -> float:
    """Bits of the decoder's matrices, or the mean of two widths."""
    bits = float(text)
    if not BITS[0] <= bits <= BITS[-1]:
        raise argparse.ArgumentTypeError(
            f"{text} is no mean of widths from {BITS[0]} to {BITS[-1]}"
        )
    return bits


def measured(runners: dict[str, Runner], threads: int, rounds: int) -> dict[str, Any]:
    """Medians over rounds, in which the systems take turns.

    Returns:
        Tokens per second of decoding and of prompts by system; bytes per second of reading; and
        "tokens_per_byte": decoded tokens for each byte that could be read meanwhile. For that every
        round's speed stands beside the readings right before and right after it, for a machine that
        others use too is not as fast all the time.
    """
    prefill: dict[str, list[float]] = {name: [] for name in runners}
    decode: dict[str, list[float]] = {name: [] for name in runners}
    per_byte: dict[str, list[float]] = {name: [] for name in runners}
    for runner in runners.values():  # pages in, clocks up
        runner.prefill()
        runner.decode()
    bandwidths = [read_bandwidth(threads, BANDWIDTH_BYTES)]
    for _ in range(rounds):
        for name, runner in runners.items():
            decode[name].append(runner.decode())
            bandwidths.append(read_bandwidth(threads, BANDWIDTH_BYTES))
            per_byte[name].append(decode[name][-1] / statistics.mean(bandwidths[-2:]))
    for _ in range(rounds):
        for name, runner in runners.items():
            prefill[name].append(runner.prefill())
    return {
        "decode": {name: statistics.median(speeds) for name, speeds in decode.items()},
        "prefill": {name: statistics.median(speeds) for name, speeds in prefill.items()},
        "tokens_per_byte": {name: statistics.median(found) for name, found in per_byte.items()},
        "read_bandwidth": statistics.median(bandwidths),
    }


def main() -> int:
    """Write the models, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["tinyllama-1.1b"])
    parser.add_argument("--files", nargs=2, type=Path, metavar=("OURS", "THEIRS"))
    parser.add_argument("--bits", type=width, nargs="+", default=[4.0], help="2 to 8, or a mean")
    parser.add_argument("--head-bits", type=int, choices=BITS, default=8, help="embedding's too")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--prompt", type=int, nargs="+", default=[512], help="tokens")
    parser.add_argument("--generate", type=int, default=32, help="tokens decoded per round")
    parser.add_argument("--kv", choices=("fp16", "int8"), default="fp16", help="of ours")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", type=Path, default=Path("build/benchmarks"))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    try:
        import llama_cpp
    except ImportError:
        sys.exit("This needs the peer: pip install llama-cpp-python")

    console = Console(stderr=True)
    arguments.models.mkdir(parents=True, exist_ok=True)
    table = Table(
        title=f"{cpu_name()}, awq-edge {__version__}, llama-cpp-python {llama_cpp.__version__}, "
        f"median of {arguments.rounds}"
    )
    for column in ("model", "threads", "", "behind", "system", "tokens/s", "to llama.cpp"):
        table.add_column(column, justify="right" if column == "tokens/s" else "left")
    table.add_column("of read bandwidth")
    results = []
    for shape in ["files"] if arguments.files else arguments.shape:
        if arguments.files:
            files = {PEER: arguments.files[1], "awq-edge": arguments.files[0]}
        else:
            with console.status(f"writing {shape}"):
                files = written(shape, arguments.bits, arguments.head_bits, arguments.models)
        decode_bytes = {}
        vocabulary = 0 if arguments.files else architecture(shape).vocabulary_size
        for name, file in files.items():
            forget(file)
            if name != PEER:
                with Model.open(file) as model:
                    decode_bytes[name] = model.info.decode_bytes
                    vocabulary = model.info.vocabulary_size
        generator = np.random.default_rng(7)
        for threads in arguments.threads:
            for length in arguments.prompt:
                prompt = generator.integers(3, vocabulary, length).tolist()
                runners: dict[str, Runner] = {}
                for name, file in files.items():
                    runners[name] = (
                        LlamaCpp(file, threads, prompt, arguments.generate)
                        if name == PEER
                        else AwqEdge(file, threads, prompt, arguments.generate, arguments.kv)
                    )
                with console.status(f"{shape}, {threads} threads, {length} tokens"):
                    found = measured(runners, threads, arguments.rounds)
                found["shares"] = {
                    name: found["tokens_per_byte"][name] * size
                    for name, size in decode_bytes.items()
                }
                results.append({"model": shape, "threads": threads, "prompt": length, **found})
                _add_rows(table, results[-1])
    if arguments.json:
        print(json.dumps({"cpu": cpu_name(), "results": results}))
    else:
        Console(width=140).print(table)
        asked = asked_of(results)
        if asked.row_count:
            Console(width=140).print(asked)
    return 0


def asked_of(results: list[dict[str, Any]]) -> Table:
    """What is asked of every shape beside the yardstick, and whether it is reached."""
    table = Table(title="decoding, shares of the read bandwidth")
    for column in ("model", "threads", "behind", "system", "share", "asked", ""):
        table.add_column(column)
    yardsticks = {
        (result["threads"], result["prompt"], name): share
        for result in results
        if result["model"] == YARDSTICK
        for name, share in result["shares"].items()
    }
    for result in results:
        at = result["threads"], result["prompt"]
        for name, share in result["shares"].items():
            if result["model"] not in SHAPES or result["model"] == YARDSTICK:
                continue
            if architecture(result["model"]).experts:
                least, words = LEAST_OF_ACTIVE, f"{LEAST_OF_ACTIVE:.0%}"
            elif (*at, name) in yardsticks:
                yardstick = yardsticks[(*at, name)]
                least = LEAST_OF_YARDSTICK * yardstick
                words = f"{least:.1%}, {LEAST_OF_YARDSTICK:.0%} of {YARDSTICK}'s {yardstick:.1%}"
            else:
                continue
            reached = "reached" if share >= least else "MISSED"
            table.add_row(result["model"], *map(str, at), name, f"{share:.1%}", words, reached)
    return table


def _add_rows(table: Table, result: dict[str, Any]) -> None:
    for what in ("decode", "prefill"):
        speeds = result[what]
        for name, speed in speeds.items():
            share = ""
            if what == "decode" and name in result["shares"]:
                rate = result["read_bandwidth"]
                share = f"{result['shares'][name]:.0%} of {rate / 1e9:.1f} GB/s"
            table.add_row(
                result["model"],
                str(result["threads"]),
                what,
                str(result["prompt"]) if what == "decode" else "",
                name,
                f"{speed:.1f}",
                f"{speed / speeds[PEER]:.2f}" if PEER in speeds else "no such family",
                share,
            )


if __name__ == "__main__":
    sys.exit(main())
