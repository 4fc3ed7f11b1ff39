"""Right answers of scenes-8m about test scenes, by method and bits, in one table.

    pip install -e '.[convert,vision]'
    python benchmarks/vision.py --results build/vision --jobs 2

Converts ``examples/scenes-8m`` with the command line, the decoder alone at 4 and 3 bits and then
with tower and connector, asks the packed files about every scene one question of each type that it
has and for its caption, and writes ``benchmarks/vision.md``. Every row is kept in ``--results`` as
soon as it is measured: an interrupted run continues there.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import json
import math
import multiprocessing
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "examples" / "scenes-8m"
sys.path.insert(0, str(MODEL))

from scenes import evaluate, layout, pixels, questions, words  # noqa: E402  (their folder)
from scenes.cider import cider_d_each  # noqa: E402
from scenes.sequences import question_tokens  # noqa: E402

OUTPUT = Path(__file__).with_suffix(".md")
# Method, bits of the decoder, bits of tower and connector.
ROWS = tuple(
    (method, bits, tower)
    for bits in (4, 3)
    for tower in (8, bits)
    for method in ("rtn", "gptq", "awq", "auto")
)
# Of conversations without their pictures, from the seeds that are there for it.
CALIBRATION_SCENES = 512
CALIBRATION = ("--samples", "160", "--sequence-length", "128")
SHARD = 50  # scenes that a process asks about at a time
DIVERGENCE_SCENES = 40
CAPTION = "describe the picture ."
LONGEST_CAPTION = 80  # tokens

Right = dict[str, str]  # of each type a "1" or a "0" for every question, in the order of scenes
Said = tuple[Right, list[str]]  # with a caption of each scene


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


def name_of(method: str, bits: int, tower: int) -> str:
    """What a row is called in ``--results``."""
    return f"{method}-{bits}-{tower}"


def convert(name: str, results: Path) -> Path:
    """The packed file of a row."""
    file = results / f"{name}.awq.gguf"
    if not file.exists():
        method, bits, tower = name.split("-")
        command = [sys.executable, "-m", "awq_edge.cli.main", "convert", str(MODEL), "--quiet"]
        command += ["--method", method, "--bits", bits, "--output", str(file)]
        command += ["--vision-bits", tower]
        command += ["--calibration", str(results / "calibration.txt"), *CALIBRATION]
        subprocess.run(command, check=True)
    return file


def scenes_from(first: int, count: int) -> layout.Scenes:
    """So many test scenes."""
    return layout.draw_scenes(layout.seeds_from(layout.TEST_SEEDS + first, count))


def ask_packed(file: Path, first: int, count: int) -> Said:
    """Which answers of a packed file are right, and its captions; one thread."""
    from awq_edge import Model

    torch.set_num_threads(1)
    scenes = scenes_from(first, count)
    pictures = pixels.paint(scenes, pixels.TEST_NOISE).permute(0, 2, 3, 1).numpy()
    every = {kind: questions.ask(scenes, kind) for kind in questions.TYPES}
    texts = {kind: (text_of(q.question), text_of(q.answer)) for kind, q in every.items()}
    found, captions = dict.fromkeys(questions.TYPES, ""), []
    with Model.open(file, threads=1) as model:
        for n in range(count):
            for kind, (asked, right) in texts.items():
                if not every[kind].valid[n]:
                    continue
                message = [{"role": "user", "content": asked[n]}]
                answer = model.chat(message, images=[pictures[n]], temperature=0, max_tokens=6)
                found[kind] += str(int(answer.text().strip() == right[n]))
            message = [{"role": "user", "content": CAPTION}]
            said = model.chat(
                message, images=[pictures[n]], temperature=0, max_tokens=LONGEST_CAPTION
            )
            captions.append(said.text().strip())
    return found, captions


@torch.no_grad()
def ask_float(first: int, count: int) -> Said:
    """The same of the checkpoint in float32."""
    from transformers import LlavaForConditionalGeneration

    torch.set_num_threads(1)
    model = LlavaForConditionalGeneration.from_pretrained(MODEL, dtype=torch.float32).eval()
    scenes = scenes_from(first, count)
    pictures = pixels.paint(scenes, pixels.TEST_NOISE)
    found = {}
    for kind in questions.TYPES:
        rows, some = valid_of(questions.ask(scenes, kind))
        right = evaluate.right_answers(model, pictures[rows], some)
        found[kind] = "".join(str(int(one)) for one in right.tolist())
    tokenizer = words.make_tokenizer()
    said, _ = evaluate.captions(model, scenes, pictures)
    return found, [tokenizer.decode(ids) for ids in said]


def valid_of(asked: questions.Questions) -> tuple[torch.Tensor, questions.Questions]:
    """Which scenes have a question, and these questions."""
    rows = asked.valid.nonzero()[:, 0]
    return rows, questions.Questions(asked.question[rows], asked.answer[rows], asked.valid[rows])


@torch.no_grad()
def divergence(file: Path) -> list[float]:
    """Of every token of right answers, from the float model, in nats: each question's mean.

    The packed weights as floats, in the float tower and decoder.
    """
    from awq_edge import torch_decoder, torch_tower
    from awq_edge.float_model import open_float_model, open_vision_part
    from awq_edge.model_file import PackedFile
    from awq_edge.torch_decoder import WeightSource

    source = open_float_model(str(MODEL))
    vision, _ = open_vision_part(source)
    packed = PackedFile(file)
    assert vision is not None
    scenes = scenes_from(0, DIVERGENCE_SCENES)
    pictures = pixels.paint(scenes, pixels.TEST_NOISE).permute(0, 2, 3, 1).contiguous()

    @functools.cache
    def weights(name: str) -> torch.Tensor:
        return torch.from_numpy(packed.floats(name))

    def told(
        rows: torch.Tensor, tokens: torch.Tensor, decoder: WeightSource, tower: WeightSource
    ) -> torch.Tensor:
        """Logarithms of probabilities [questions, tokens, vocabulary]."""
        shown = torch_tower.encoded(vision.architecture, tower, pictures[rows]).flatten(0, 1)
        where = tokens == vision.part.placeholder
        return torch_decoder.logits(
            decoder, source.architecture, tokens, pictures=(where, shown)
        ).log_softmax(2)

    found: list[float] = []
    for kind in questions.TYPES:
        rows, asked = valid_of(questions.ask(scenes, kind))
        tokens, said = question_tokens(asked)
        theirs = told(rows, tokens, source, vision)
        ours = told(rows, tokens, weights, weights)
        each = (theirs.exp() * (theirs - ours)).sum(2)[:, :-1] * said[:, 1:]
        found += (each.sum(1) / said[:, 1:].sum(1)).tolist()
    return found


def measure(name: str, args: argparse.Namespace, pool: Any) -> None:
    """One row, unless it is there."""
    place = args.results / f"{name}.json"
    found = json.loads(place.read_text()) if place.exists() else {}
    # A row of a program that kept other things is made anew.
    if found.get("scenes") == args.scenes and "captions" in found:
        return
    starts = range(0, args.scenes, SHARD)
    sizes = [min(SHARD, args.scenes - first) for first in starts]
    from_float: list[float] = []
    if name == "float":
        parts = list(pool.map(ask_float, starts, sizes))
    else:
        file = convert(name, args.results)
        parts = list(pool.map(ask_packed, [file] * len(sizes), starts, sizes))
        from_float = divergence(file)
    right = {kind: "".join(part[kind] for part, _ in parts) for kind in questions.TYPES}
    captions = [text for _, said in parts for text in said]
    kept = {
        "scenes": args.scenes,
        "right": right,
        "captions": captions,
        "divergence": from_float,
    }
    place.write_text(json.dumps(kept))
    print(name, f"{100 * answers(right).mean():.2f}", flush=True)


def answers(right: Right) -> np.ndarray[Any, np.dtype[np.float64]]:
    """1 for every right answer, 0 for the others, of all types."""
    return np.array([float(one) for kind in questions.TYPES for one in right[kind]])


def mean_and_error(values: Any) -> tuple[float, float]:
    """A mean with its standard error."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))


def caption_scores(captions: list[str]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """CIDEr-D of each scene's caption against the one right caption, 0 to 10."""
    tokenizer = words.make_tokenizer()

    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    right = text_of(questions.describe(scenes_from(0, len(captions))))
    return np.array(cider_d_each([ids(one) for one in captions], [[ids(one)] for one in right]))


def line(name: str, row: dict[str, Any], base: dict[str, Any]) -> str:
    """A row of the table."""
    cells = []
    for kind in questions.TYPES:
        said = row["right"][kind]
        cells.append(f"{100 * said.count('1') / len(said):.1f}")
    ours, theirs = answers(row["right"]), answers(base["right"])
    cells.append(f"{100 * ours.mean():.2f}")
    described = caption_scores(row["captions"])
    if name == "float":
        return "| float | " + " | ".join([*cells, "", f"{described.mean():.2f}", "0"]) + " |"
    less, error = mean_and_error(100 * (ours - theirs))
    changed, changed_error = mean_and_error(described - caption_scores(base["captions"]))
    nats, nats_error = mean_and_error(row["divergence"])
    cells += [
        f"{less:+.2f} ± {error:.2f}",
        f"{described.mean():.2f} ({changed:+.2f} ± {changed_error:.2f})",
        f"{nats:.4f} ± {nats_error:.4f}",
    ]
    method, bits, tower = name.split("-")
    return f"| {method}, {bits} bits, tower {tower} | " + " | ".join(cells) + " |"


def page(results: Path) -> str:
    """The table as Markdown."""
    kept = {}
    for name in ("float", *(name_of(*row) for row in ROWS)):
        place = results / f"{name}.json"
        if place.exists():
            kept[name] = json.loads(place.read_text())
    base = kept["float"]
    total = len(answers(base["right"]))
    lines = [
        "# Answers about pictures",
        "",
        "Made by `python benchmarks/vision.py`. Right answers, in percent, of `examples/scenes-8m` "
        f"to questions about its first {base['scenes']:,} test scenes with a noise of "
        f"{pixels.TEST_NOISE[0]:g} levels: one of each type that a scene has, {total:,} in all; "
        "greedy, the whole answer. Packed files answer through the runtime, pictures included; "
        "groups of 128, calibrated on the text of conversations about other scenes and on the "
        "pictures that everybody has. To float: points more than the float model, with one "
        "standard error of the difference over questions, which all rows share. CIDEr-D: of a "
        "caption of each scene against the one right caption, 10 for the same; in brackets the "
        "difference to the float model, with one standard error over scenes. Divergence: of "
        f"the tokens of right answers about the first {DIVERGENCE_SCENES} scenes from the float "
        "model's, in nats, with the packed weights in the float tower and decoder, with one "
        "standard error over questions. The last line has one standard error of each column.",
        "",
        "| | " + " | ".join(questions.TYPES) + " | all | to float | CIDEr-D | divergence |",
        "|---" * (len(questions.TYPES) + 5) + "|",
    ]
    lines += [line(name, row, base) for name, row in kept.items()]
    every = [base["right"][kind] for kind in questions.TYPES] + ["".join(base["right"].values())]
    errors = [f"{100 * mean_and_error([float(x) for x in said])[1]:.1f}" for said in every]
    spread = mean_and_error(caption_scores(base["captions"]))[1]
    lines.append("| standard error | " + " | ".join(errors) + f" | | {spread:.2f} | |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure what is missing, then write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--jobs", type=int, default=1, help="processes of one thread each")
    args = parser.parse_args()
    args.results.mkdir(parents=True, exist_ok=True)
    write_calibration(args.results / "calibration.txt")
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(args.jobs, context) as pool:
        for name in ("float", *(name_of(*row) for row in ROWS)):
            measure(name, args, pool)
    OUTPUT.write_text(page(args.results), encoding="utf-8")


if __name__ == "__main__":
    main()
