"""Right answers of scenes-8m about test scenes, by method and bits of its decoder, in one table.

    pip install -e '.[convert,vision]'
    python benchmarks/vision.py --results build/vision --jobs 2

Converts ``examples/scenes-8m`` with the command line, asks the packed files about every scene one
question of each type that it has, and writes ``benchmarks/vision.md``. Tower and connector have 8
bits throughout. Every row is kept in ``--results`` as soon as it is measured: an interrupted run
continues there.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import math
import multiprocessing
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "examples" / "scenes-8m"
sys.path.insert(0, str(MODEL))

from scenes import evaluate, layout, pixels, questions, words  # noqa: E402  (their folder)

OUTPUT = Path(__file__).with_suffix(".md")
ROWS = tuple((method, bits) for bits in (4, 3) for method in ("rtn", "gptq", "awq", "auto"))
# Of conversations without their pictures, from the seeds that are there for it.
CALIBRATION_SCENES = 512
CALIBRATION = ("--samples", "160", "--sequence-length", "128")
SHARD = 50  # scenes that a process asks about at a time

Counts = dict[str, Counter[str]]


def text_of(slots: torch.Tensor) -> list[str]:
    """The texts of rows of slots."""
    tokenizer, pad = words.make_tokenizer(), words.ID[words.PAD]
    rows = questions.packed(slots, pad).tolist()
    return [tokenizer.decode([id for id in row if id != pad]) for row in rows]


def write_calibration(path: Path) -> None:
    """Conversations as the chat template writes them, one question of each type per scene."""
    scenes = layout.draw_scenes(layout.seeds_from(layout.CALIBRATION_SEEDS, CALIBRATION_SCENES))
    said = [""] * CALIBRATION_SCENES
    for kind in questions.TYPES:
        asked = questions.ask(scenes, kind)
        pairs = zip(text_of(asked.question), text_of(asked.answer), asked.valid.tolist())
        for n, (question, answer, valid) in enumerate(pairs):
            if valid:
                said[n] += f"{words.USER}{question}{words.ASSISTANT}{answer}{words.EOS}"
    path.write_text("".join(words.BOS + text for text in said), encoding="utf-8")


def convert(method: str, bits: int, results: Path) -> Path:
    """The packed file of a row."""
    file = results / f"{method}-{bits}.awq.gguf"
    if not file.exists():
        command = [sys.executable, "-m", "awq_edge.cli.main", "convert", str(MODEL), "--quiet"]
        command += ["--method", method, "--bits", str(bits), "--output", str(file)]
        command += ["--calibration", str(results / "calibration.txt"), *CALIBRATION]
        subprocess.run(command, check=True)
    return file


def ask_packed(file: Path, first: int, count: int) -> Counter[str]:
    """Counts of ``TYPE right`` and ``TYPE asked`` of a packed file, one thread."""
    from awq_edge import Model

    torch.set_num_threads(1)
    scenes = layout.draw_scenes(layout.seeds_from(layout.TEST_SEEDS + first, count))
    pictures = pixels.paint(scenes, pixels.TEST_NOISE).permute(0, 2, 3, 1).numpy()
    every = {kind: questions.ask(scenes, kind) for kind in questions.TYPES}
    texts = {kind: (text_of(q.question), text_of(q.answer)) for kind, q in every.items()}
    counts: Counter[str] = Counter()
    with Model.open(file, threads=1) as model:
        for n in range(count):
            for kind, (asked, right) in texts.items():
                if not every[kind].valid[n]:
                    continue
                message = [{"role": "user", "content": asked[n]}]
                answer = model.chat(message, images=[pictures[n]], temperature=0, max_tokens=6)
                counts[f"{kind} asked"] += 1
                counts[f"{kind} right"] += answer.text().strip() == right[n]
    return counts


@torch.no_grad()
def ask_float(first: int, count: int) -> Counter[str]:
    """The same of the checkpoint in float32."""
    from transformers import LlavaForConditionalGeneration

    torch.set_num_threads(1)
    model = LlavaForConditionalGeneration.from_pretrained(MODEL, dtype=torch.float32).eval()
    scenes = layout.draw_scenes(layout.seeds_from(layout.TEST_SEEDS + first, count))
    pictures = pixels.paint(scenes, pixels.TEST_NOISE)
    counts: Counter[str] = Counter()
    for kind in questions.TYPES:
        asked = questions.ask(scenes, kind)
        rows = asked.valid.nonzero()[:, 0]
        some = questions.Questions(asked.question[rows], asked.answer[rows], asked.valid[rows])
        counts[f"{kind} asked"] += len(rows)
        counts[f"{kind} right"] += int(evaluate.right_answers(model, pictures[rows], some).sum())
    return counts


def measure(name: str, args: argparse.Namespace, pool: Any) -> None:
    """One row, unless it is there."""
    place = args.results / f"{name}.json"
    if place.exists() and json.loads(place.read_text())["scenes"] == args.scenes:
        return
    starts = range(0, args.scenes, SHARD)
    sizes = [min(SHARD, args.scenes - first) for first in starts]
    if name == "float":
        parts = pool.map(ask_float, starts, sizes)
    else:
        method, bits = name.rsplit("-", 1)
        file = convert(method, int(bits), args.results)
        parts = pool.map(ask_packed, [file] * len(sizes), starts, sizes)
    counts: Counter[str] = sum(parts, Counter())
    place.write_text(json.dumps({"scenes": args.scenes, "counts": counts}))
    print(name, dict(counts), flush=True)


def page(results: Path) -> str:
    """The table as Markdown."""
    kept = {}
    for name in ("float", *(f"{method}-{bits}" for method, bits in ROWS)):
        place = results / f"{name}.json"
        if place.exists():
            kept[name] = json.loads(place.read_text())
    scenes = min(row["scenes"] for row in kept.values())
    asked = {kind: kept["float"]["counts"][f"{kind} asked"] for kind in questions.TYPES}
    total = sum(asked.values())
    lines = [
        "# Answers about pictures",
        "",
        "Made by `python benchmarks/vision.py`. Right answers, in percent, of `examples/scenes-8m` "
        f"to questions about its first {scenes:,} test scenes with a noise of "
        f"{pixels.TEST_NOISE[0]:g} levels: one of each type that a scene has, {total:,} in all; "
        "greedy, the whole answer. Packed files answer through the runtime, pictures included, "
        "tower and connector at 8 bits, groups of 128, calibrated on the text of conversations "
        "about other scenes. The last line has one standard error of each column, "
        f"{100 * 0.5 / math.sqrt(total):.1f} at most of the whole; rows share their questions, so "
        "that they differ by less than it says.",
        "",
        "| | " + " | ".join(questions.TYPES) + " | all |",
        "|---" * (len(questions.TYPES) + 2) + "|",
    ]
    for name, row in kept.items():
        counts = row["counts"]
        right = [counts.get(f"{kind} right", 0) for kind in questions.TYPES]
        shares = [100 * ok / counts[f"{kind} asked"] for kind, ok in zip(questions.TYPES, right)]
        shares.append(100 * sum(right) / total)
        method, _, bits = name.rpartition("-")
        label = f"{bits} bits, {method}" if method else "float"
        lines.append(f"| {label} | " + " | ".join(f"{share:.1f}" for share in shares) + " |")
    errors = []
    for kind, count in asked.items():
        share = kept["float"]["counts"][f"{kind} right"] / count
        errors.append(f"{100 * math.sqrt(share * (1 - share) / count):.1f}")
    lines.append("| standard error | " + " | ".join(errors) + " | |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure what is missing, then write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=2000)
    parser.add_argument("--jobs", type=int, default=1, help="processes of one thread each")
    args = parser.parse_args()
    args.results.mkdir(parents=True, exist_ok=True)
    write_calibration(args.results / "calibration.txt")
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(args.jobs, context) as pool:
        for name in ("float", *(f"{method}-{bits}" for method, bits in ROWS)):
            measure(name, args, pool)
    OUTPUT.write_text(page(args.results), encoding="utf-8")


if __name__ == "__main__":
    main()
