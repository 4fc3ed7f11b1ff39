"""Seconds that a tower takes for a picture, beside what the decoder of the same file reads with.

    pip install -e '.[convert]'
    python benchmarks/encoding.py smolvlm-256m qwen3-vl-2b --threads 1 2

Files of these shapes with random weights are written, then encoding a picture of 512 x 512 pixels
(a tile of SmolVLM's) and reading a prompt of 512 tokens are timed in turns. GMAC/s counts products
with matrices alone, in the time of everything, the tower's attention included: it says how near a
tower comes to the prefill of its own decoder on this machine.

--a72 FILE takes what ``benchmarks/arm/count.py --picture --json FILE`` counted and derives a
Raspberry Pi 4B's seconds from it: instructions of the whole encoding over cores, clock and the
instructions per cycle of --ipc. Derived figures are called so; nothing was measured on a board.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from vision_shapes import (
    CONFIGS,
    SIDE,
    architectures,
    attention_products,
    linear_products,
    write_seeing,
)

from awq_edge import Model
from awq_edge.stages import tensor_names, tensor_shape

PROMPT = 512  # tokens
_CORES, _HERTZ = 4, 1.8e9  # of a Raspberry Pi 4B as it is sold today


def timed(work: Callable[[], None]) -> float:
    """Seconds that something takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def own_memory() -> int:
    """Bytes of this process in memory that are no file's."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    lines = dict(line.split(":", 1) for line in status.splitlines())
    return int(lines["RssAnon"].split()[0]) << 10


def measure(shape: str, path: Path, threads: int, rounds: int) -> None:
    """Prints the lines of a shape for a number of threads."""
    decoder, tower = architectures(shape)
    rows = (SIDE // tower.step) ** 2
    pixels = np.random.default_rng(0).integers(0, 256, (1, SIDE, SIDE, 3), dtype=np.uint8)
    found = np.empty((1, rows, tower.row_size), np.float32)
    # The head is read once for a prompt, the embedding not at all.
    layers = [tensor_shape(decoder, name) for name in tensor_names(decoder) if name[:4] == "blk."]
    prefill = PROMPT * sum(sizes[0] * sizes[1] for sizes in layers if len(sizes) == 2)
    linear, attention = linear_products(tower), attention_products(tower)
    prompt = [2 + n % 1000 for n in range(PROMPT)]
    with Model.open(path, threads=threads, context_length=PROMPT) as model:
        with model.session() as session:

            def read() -> None:
                session.truncate(0)
                session.evaluate(prompt)

            def encode() -> None:
                model.native.encode_pictures(pixels, found, threads)

            encode()  # touches the file's pages
            memory = own_memory()
            most = 0

            def watch(_done: int, _total: int) -> None:
                nonlocal most
                most = max(most, own_memory())

            model.native.encode_pictures(pixels, found, threads, watch)
            behind = own_memory()
            read()
            turns = [(timed(encode), timed(read)) for _ in range(rounds)]
        scratch = model.native.vision_memory(threads, SIDE, SIDE)
    seconds, reading = (statistics.median(times) for times in zip(*turns))
    ours, theirs = linear / seconds / 1e9, prefill / reading / 1e9
    print(
        f"{shape}, {threads} threads: a picture {seconds:.2f} s ({linear / 1e9:.0f} GMAC of "
        f"products, {attention / 1e9:.0f} of attention, scratch {scratch / 1e6:.1f} MB), "
        f"{ours:.0f} GMAC/s; a prompt of {PROMPT} {reading:.2f} s, {theirs:.0f} GMAC/s; "
        f"ratio {ours / theirs:.2f}; own memory {memory / 1e6:.1f} MB, {most / 1e6:.1f} while "
        f"encoding, {behind / 1e6:.1f} behind it",
        flush=True,
    )


def derive(path: Path, ipc: float) -> None:
    """Prints a Pi's seconds from counted instructions."""
    for row in json.loads(path.read_text(encoding="utf-8"))["counts"]:
        if row["unit"] == "picture, in millions":
            seconds = row["instructions"] * 1e6 / (_CORES * _HERTZ * ipc)
            print(
                f"{row['operation']}: {row['instructions'] / 1e3:.1f} G instructions; derived, on "
                f"{_CORES} cores of {_HERTZ / 1e9:g} GHz at {ipc:g} instructions a cycle: "
                f"{seconds:.1f} s"
            )


def main() -> None:
    """Time every shape."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shapes", nargs="*", metavar="SHAPE", help=", ".join(CONFIGS))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--a72", type=Path, metavar="FILE")
    parser.add_argument("--ipc", type=float, default=1.5)
    args = parser.parse_args()
    for shape in args.shapes:
        if shape not in CONFIGS:
            parser.error(f"{shape} is none of {', '.join(CONFIGS)}")
    for shape in args.shapes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.awq.gguf"
            write_seeing(shape, path)
            for threads in args.threads:
                measure(shape, path, threads, args.rounds)
    if args.a72:
        derive(args.a72, args.ipc)


if __name__ == "__main__":
    main()
