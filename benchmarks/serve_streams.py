"""What clients of a server wait for: streams together, and the first token of one who comes later.

    python benchmarks/serve_streams.py tinyllama-1.1b --threads 2
    python benchmarks/serve_streams.py tinyllama-1.1b --threads 2 --peer PATH/OF/llama-server

Random weights of a shape of ``shapes.py``, behind ``awq-edge serve`` and, where its program is
named, behind llama-server, asked through the same interface (``/v1/completions``, prompts as ids).
Both servers are up at once and asked in turn, so that a noisy machine disturbs both. Every prompt
is new: no cache helps. Prints the medians of some rounds.
"""

from __future__ import annotations

import argparse
import dataclasses
import http.client
import json
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from compare_llama_cpp import cpu_name
from peer_shapes import peer_family, write_llama_cpp
from rich.console import Console
from rich.table import Table
from shapes import SHAPES, architecture, write_awq_edge

from awq_edge import __version__


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is asked of a server in each round."""

    streams: int
    prompt: int  # tokens of a prompt
    tokens: int  # of each answer
    vocabulary: int


class Stream:
    """One request: when its pieces came."""

    def __init__(self, port: int, asked: Asked, random_: random.Random, tokens: int) -> None:
        """Asks nothing yet."""
        self._port = port
        self._body = {
            "model": "model",
            "prompt": [random_.randrange(3, asked.vocabulary) for _ in range(asked.prompt)],
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
        }
        self.pieces: list[float] = []
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=600)
        self.began = time.perf_counter()
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(self._body), headers)
        response = connection.getresponse()
        if response.status != 200:
            raise SystemExit(f"the server answers {response.status}: {response.read().decode()}")
        for line in response:
            if line.startswith(b"data: {") and json.loads(line[6:])["choices"][0].get("text"):
                self.pieces.append(time.perf_counter())
        connection.close()

    @property
    def first(self) -> float:
        """Seconds to the first token."""
        return self.pieces[0] - self.began


def _together(port: int, asked: Asked, count: int, random_: random.Random) -> float:
    """Tokens per second of so many streams while all of them stream."""
    streams = [Stream(port, asked, random_, asked.tokens) for _ in range(count)]
    for stream in streams:
        stream.thread.start()
    for stream in streams:
        stream.thread.join()
    begin = max(stream.pieces[0] for stream in streams)
    end = min(stream.pieces[-1] for stream in streams)
    if end <= begin:
        raise SystemExit("one stream ended before another began: ask for more --tokens")
    tokens = sum(begin < piece <= end for stream in streams for piece in stream.pieces)
    return tokens / (end - begin)


def _later(port: int, asked: Asked, random_: random.Random) -> float:
    """Seconds to the first token of one who comes while the others stream."""
    others = [Stream(port, asked, random_, asked.tokens) for _ in range(asked.streams)]
    for stream in others:
        stream.thread.start()
    while any(len(stream.pieces) < 2 for stream in others):
        time.sleep(0.01)
    late = Stream(port, asked, random_, 2)
    late.thread.start()
    for stream in [late, *others]:
        stream.thread.join()
    return late.first


def measured(port: int, asked: Asked, random_: random.Random) -> dict[str, float]:
    """One round."""
    alone = Stream(port, asked, random_, 2)
    alone.thread.start()
    alone.thread.join()
    return {
        "one": _together(port, asked, 1, random_),
        "together": _together(port, asked, asked.streams, random_),
        "first alone": alone.first,
        "first beside": _later(port, asked, random_),
    }


def _ours(path: Path, threads: int, asked: Asked, cache: Path) -> tuple[subprocess.Popen[str], int]:
    room = asked.prompt + asked.tokens + 8
    command = [sys.executable, "-m", "awq_edge.cli.main", "serve", str(path), "--port", "0"]
    command += ["--threads", str(threads), "--parallel", str(asked.streams + 1)]
    command += ["--context", str(room), "--cache-dir", str(cache)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        found = re.search(r" at http://[\d.]+:(\d+),", line)
        if found:
            threading.Thread(target=process.stderr.read, daemon=True).start()
            return process, int(found[1])
    raise SystemExit("awq-edge serve did not start")


def _theirs(
    program: Path, path: Path, threads: int, asked: Asked
) -> tuple[subprocess.Popen[str], int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    slots = asked.streams + 1
    room = slots * (asked.prompt + asked.tokens + 8)
    command = [str(program), "-m", str(path), "--port", str(port), "-np", str(slots)]
    command += ["-c", str(room), "-t", str(threads), "-tb", str(threads)]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True
    )
    for _ in range(600):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return process, port
        except OSError:
            pass
        time.sleep(0.2)
    raise SystemExit(f"{program} did not start")


def main() -> int:
    """Starts the servers, asks them in turn, prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--peer", type=Path, help="the program llama-server")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=128, help="tokens")
    parser.add_argument("--tokens", type=int, default=128, help="of each answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", type=Path, default=Path("build/benchmarks"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    a = architecture(options.shape)
    asked = Asked(options.streams, options.prompt, options.tokens, a.vocabulary_size)
    options.models.mkdir(parents=True, exist_ok=True)
    ours = options.models / f"{options.shape}.4bit.awq.gguf"
    if not ours.exists():
        write_awq_edge(a, ours)
    kept = tempfile.TemporaryDirectory()  # what a server keeps by default, where nobody misses it
    servers = {"awq-edge": _ours(ours, options.threads, asked, Path(kept.name))}
    try:
        family = peer_family(options.shape)
        if options.peer is not None and family is not None:
            theirs = options.models / f"{options.shape}.q4_0.gguf"
            if not theirs.exists():
                write_llama_cpp(a, family, theirs)
            servers["llama-server"] = _theirs(options.peer, theirs, options.threads, asked)
        random_ = random.Random(1)
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in servers}
        for _ in range(options.rounds):
            for name, (_process, port) in servers.items():
                rounds[name].append(measured(port, asked, random_))
    finally:
        for process, _port in servers.values():
            process.terminate()
            process.wait()
        kept.cleanup()
    found = {
        name: {what: statistics.median(r[what] for r in every) for what in every[0]}
        for name, every in rounds.items()
    }
    if options.json:
        print(json.dumps({"cpu": cpu_name(), "shape": options.shape, "results": found}))
        return 0
    table = Table(
        title=f"{options.shape}, {cpu_name()}, awq-edge {__version__}, {options.threads} threads, "
        f"prompts of {options.prompt} tokens, median of {options.rounds}"
    )
    for column in (
        "server",
        "one stream, tokens/s",
        f"{options.streams} together",
        "to one",
        "first token, alone",
        f"beside {options.streams}",
        "to alone",
    ):
        table.add_column(column, justify="left" if column == "server" else "right")
    for name, row in found.items():
        table.add_row(
            name,
            f"{row['one']:.1f}",
            f"{row['together']:.1f}",
            f"{row['together'] / row['one']:.2f}",
            f"{row['first alone']:.2f} s",
            f"{row['first beside']:.2f} s",
            f"{row['first beside'] / row['first alone']:.2f}",
        )
    Console(width=140).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
