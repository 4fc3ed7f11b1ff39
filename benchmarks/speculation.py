"""Guessing ahead against plain decoding: tokens per second of one and the same text.

    python benchmarks/speculation.py FILE PROMPT.txt --lookup
    python benchmarks/speculation.py FILE PROMPT.txt --draft SMALLER_FILE
    python benchmarks/speculation.py tinyllama-1.1b --lookup
    python benchmarks/speculation.py tinyllama-1.1b --draft stranger

The third takes random weights of a shape of ``shapes.py`` whose layers weigh little: each token
decides on the next one, so that the text goes in circles. The prompt holds one circle, and the
answer copies it: what lookup gains there is what it can gain at most. The last asks a model of two
such layers that is never right: what a smaller model can lose. Both ways take turns in each round;
what counts is the ratio of the medians, and of the first texts, when nothing was known of guesses.
Only tokens behind the first are timed.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from pathlib import Path

from compare_llama_cpp import cpu_name
from shapes import SHAPES, architecture, write_awq_edge

from awq_edge import GenerationConfig, Model, __version__

STRANGER = "stranger"
CIRCLES = 768  # tokens: more than a way into a circle and once around


def generated(
    model: Model, prompt: str | list[int], config: GenerationConfig
) -> tuple[list[int], float]:
    """The ids of a text and its tokens per second, the first apart."""
    with model.session() as session:
        generation = session.generate(prompt, config)
        next(generation)
        before = len(generation.tokens)
        began = time.perf_counter()
        for _piece in generation:
            pass
        seconds = time.perf_counter() - began
        return list(generation.tokens), (len(generation.tokens) - before) / seconds


def main() -> int:
    """Measures; fails if the texts differ."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", help="a packed file, or one of " + ", ".join(SHAPES))
    parser.add_argument("prompt", nargs="?", type=Path, help="a text file")
    parser.add_argument("--lookup", action="store_true")
    parser.add_argument("--draft", help="a packed file, or stranger")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", type=Path, default=Path("build/benchmarks"))
    options = parser.parse_args()
    if not options.lookup and options.draft is None:
        parser.error("say --lookup or --draft FILE")
    file = Path(options.file)
    if options.file in SHAPES:
        file = options.models / f"{options.file}.circles.awq.gguf"
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            write_awq_edge(architecture(options.file), file, size=2.0**-6)
    draft = None if options.draft is None else Path(options.draft)
    if options.draft == STRANGER:
        if options.file not in SHAPES:
            parser.error(f"--draft {STRANGER} is for " + ", ".join(SHAPES))
        draft = options.models / f"{options.file}.stranger.awq.gguf"
        if not draft.exists():
            a = architecture(options.file)
            windows, tables = a.sliding_windows[:2], a.rope_tables[:2]
            small = dataclasses.replace(a, layers=2, sliding_windows=windows, rope_tables=tables)
            write_awq_edge(small, draft)
    config = GenerationConfig(max_tokens=options.tokens, temperature=0)
    speeds: dict[str, list[float]] = {"plain": [], "guessing": []}
    with (
        Model.open(file, threads=options.threads) as plain,
        Model.open(file, threads=options.threads, lookup=options.lookup, draft=draft) as guessing,
    ):
        models = {"plain": plain, "guessing": guessing}
        prompt: str | list[int]
        if options.prompt is None:
            circles = GenerationConfig(max_tokens=CIRCLES, temperature=0)
            prompt = generated(plain, [3], circles)[0]
        else:
            prompt = options.prompt.read_text(encoding="utf-8")
        expected, _ = generated(plain, prompt, config)
        for _ in range(options.rounds):
            for name, model in models.items():
                tokens, speed = generated(model, prompt, config)
                if tokens != expected:
                    sys.exit("the texts differ: this is a bug of awq-edge")
                speeds[name].append(speed)
    first = speeds["guessing"][0] / speeds["plain"][0]
    shared = guessing.speculation
    assert shared is not None
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    print(
        f"{file.name}, {cpu_name()}, awq-edge {__version__}, {options.threads} threads, "
        f"{len(expected)} tokens, the same: plain {medians['plain']:.1f}, guessing "
        f"{medians['guessing']:.1f} tokens/s, {medians['guessing'] / medians['plain']:.2f} times "
        f"(median of {options.rounds}; {first:.2f} the first)"
    )
    print(f"{shared.right} of {shared.guessed} guesses were right, {shared.rests} rests")
    return 0


if __name__ == "__main__":
    sys.exit(main())
