"""Many sequences together: tokens per second of 1, 2, 4, 8 and 16 of them in one pass.

    python benchmarks/batch.py MODEL [--threads 2] [--context 128] [--sequences 1 2 4 8 16] [--json]

MODEL is a packed file, or the name of a shape of benchmarks/shapes.py, which is then written with
random weights beside the current directory. Every sequence holds `--context` tokens and decodes
`--tokens` more with ``Model.evaluate_together``; the counts take turns in each round, so that what
disturbs the machine disturbs all of them, and the median round counts. The ratio is to one sequence
in the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

from shapes import SHAPES, architecture, write_awq_edge

from awq_edge import Model, Session


def decode(model: Model, sessions: list[Session], tokens: int) -> float:
    """Seconds that the sessions take together for so many tokens each; forgets them again."""
    begin = sessions[0].position
    started = time.perf_counter()
    for step in range(tokens):
        model.evaluate_together((session, [1 + step]) for session in sessions)
    seconds = time.perf_counter() - started
    for session in sessions:
        session.truncate(begin)
    return seconds


def measure(
    model: Model, counts: list[int], context: int, tokens: int, rounds: int
) -> dict[int, float]:
    """Tokens per second of all sequences together, for each number of sequences."""
    room = context + tokens
    sessions = [model.session(context_length=room, check_memory=False) for _ in range(max(counts))]
    for index, session in enumerate(sessions):
        session.evaluate([(7 * index + 3 * i) % 500 for i in range(context)])
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    for count in counts:
        decode(model, sessions[:count], 2)  # memory that is touched for the first time
    for _ in range(rounds):
        for count in counts:
            seconds[count].append(decode(model, sessions[:count], tokens))
    return {count: count * tokens / statistics.median(seconds[count]) for count in counts}


def main() -> None:
    """Measures and prints a table, or a document."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="a packed file, or one of " + ", ".join(SHAPES))
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    path = Path(options.model)
    if options.model in SHAPES:
        path = Path(f"{options.model}-{options.bits}bit.awq.gguf")
        if not path.exists():
            write_awq_edge(architecture(options.model), path, options.bits)
    with Model.open(path, threads=options.threads, check_memory=False) as model:
        rates = measure(model, options.sequences, options.context, options.tokens, options.rounds)
    first = rates[options.sequences[0]] / options.sequences[0]
    if options.json:
        print(
            json.dumps({"model": str(path), "threads": options.threads, "tokens_per_second": rates})
        )
        return
    print(f"{path}, {options.threads} threads, {options.context} tokens of context")
    for count, rate in rates.items():
        print(f"{count:3d} together  {rate:8.1f} tokens/s  {rate / first:5.2f} times one")


if __name__ == "__main__":
    main()
