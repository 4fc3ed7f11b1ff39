"""Start-up: from the beginning of the process to the first token, and the memory that it takes.

    python benchmarks/startup.py MODEL [--context TOKENS] [--runs 5] [--json]

Runs a fresh interpreter that opens MODEL and reads a prompt of one token, with the file in the page
cache, and prints medians: from the start of the process until the token's logits are there, the
same in processor time, which other programs disturb less, and each step. Python alone is measured
in turn and subtracted: what is left is ours. Memory is what the process holds
apart from mapped files, in all and beyond what Python alone holds. Prompts are token ids, so a file
without a tokenizer serves.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

FIRST_TOKEN = """
import json, sys, time
path, context, threads = sys.argv[1], int(sys.argv[2]) or None, int(sys.argv[3]) or None
steps = {}
last = time.perf_counter()
def step(name):
    global last
    now = time.perf_counter()
    steps[name] = now - last
    last = now
from awq_edge import Model
step("import")
model = Model.open(path, context_length=context, threads=threads)
step("open")
session = model.session()
step("session")
session.evaluate([1])
step("first token")
end = {"end": time.time(), "cpu": time.process_time()}
end["context"] = model.context_length
print(json.dumps({**end, "steps": steps, "status": open("/proc/self/status").read()}))
"""
NOTHING = """
import json, time
end = {"end": time.time(), "cpu": time.process_time()}
print(json.dumps({**end, "status": open("/proc/self/status").read()}))
"""


def run(program: str, *arguments: str) -> dict[str, Any]:
    """What a program says about itself; ``seconds`` from the start of its process to its end."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    started = time.time()
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    )
    document: dict[str, Any] = json.loads(done.stdout)
    return {**document, "seconds": document["end"] - started}


def memory_of_its_own(status: str) -> int:
    """Bytes that a process holds apart from mapped files."""
    for line in status.splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise ValueError("/proc/self/status has no RssAnon")


def read_all(path: Path) -> None:
    """Brings a file into the page cache."""
    with path.open("rb") as file:
        while file.read(1 << 24):
            pass


def measure(path: Path, context: int, runs: int, threads: int) -> dict[str, Any]:
    """Medians over ``runs`` processes of each kind, in turn."""
    read_all(path)
    pairs = [
        (run(NOTHING), run(FIRST_TOKEN, str(path), str(context), str(threads)))
        for _ in range(runs + 1)
    ][1:]  # the first one fills caches: compiled modules, the thread count
    median = statistics.median
    return {
        "model": str(path),
        "context": pairs[0][1]["context"],
        "python_seconds": median(bare["seconds"] for bare, _ in pairs),
        "beyond_python_seconds": median(own["seconds"] - bare["seconds"] for bare, own in pairs),
        "beyond_python_cpu_seconds": median(own["cpu"] - bare["cpu"] for bare, own in pairs),
        "steps": {
            name: median(own["steps"][name] for _, own in pairs) for name in pairs[0][1]["steps"]
        },
        "resident_beside_the_file_bytes": median(
            memory_of_its_own(own["status"]) for _, own in pairs
        ),
        "of_python_alone_bytes": median(memory_of_its_own(bare["status"]) for bare, _ in pairs),
    }


def main() -> None:
    """Prints the measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--context", type=int, default=0, help="0: the model's own, at most 4096")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="0: what is fastest here")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = measure(arguments.model, arguments.context, arguments.runs, arguments.threads)
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    print(f"{result['model']}, context {result['context']}, median of {arguments.runs}")
    print(f"Python alone               {result['python_seconds']:.3f} s")
    print(f"first token, beyond that   {result['beyond_python_seconds']:.3f} s")
    print(f"    processor time         {result['beyond_python_cpu_seconds']:.3f} s")
    for name, seconds in result["steps"].items():
        print(f"    {name:22} {seconds:.3f} s")
    print(f"memory beside the file     {result['resident_beside_the_file_bytes'] / 1e6:.0f} MB")
    print(f"    of Python alone        {result['of_python_alone_bytes'] / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
