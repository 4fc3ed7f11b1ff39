"""Captions behind 0 to 32 shots by a small OpenFlamingo, by method and bits of its decoder.

    pip install -e '.[convert,vision]'
    (cd examples/scenes-8m && python -m shots.train --out ../../build/scenes-flamingo --seconds 180)
    python benchmarks/few_shots.py --model build/scenes-flamingo --results build/few-shots

The table of AWQ's paper for OpenFlamingo, on a model that anybody can train in three minutes of a
GPU. Converts it with the command line, lets the packed files describe test scenes behind shots that
are the same for every row, and writes ``benchmarks/few_shots.md``. Gated blocks have the decoder's
bits and method, tower and resampler 8 bits throughout. Every row is kept in ``--results``.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "examples" / "scenes-8m"
sys.path.insert(0, str(FOLDER))

from scenes import cider, layout, pixels  # noqa: E402  (their folder)
from scenes.model import normalise  # noqa: E402
from shots import episodes, words  # noqa: E402
from shots import model as shots_model  # noqa: E402

OUTPUT = Path(__file__).with_suffix(".md")
SHOTS = (0, 4, 8, 16, 32)
ROWS = (
    *((method, bits) for bits in (4, 3) for method in ("rtn", "gptq", "awq", "auto")),
    ("rtn", 2),
)
DIVERGENCE_WAYS = 4
QUERIES = 8  # of one way of speaking, behind the same shots
LONGEST = 16  # tokens of a caption
CALIBRATION_CAPTIONS, CALIBRATION_PICTURES = 4096, 64
CALIBRATION = ("--samples", "160", "--sequence-length", "128")

Ids = list[int]


class Tasks:
    """Test scenes: for each way of speaking its shots, then its queries.

    Attributes:
        pictures: uint8 [ways, shots + queries, 96, 96, 3].
        captions: Token ids of each, with the words around them.
    """

    def __init__(self, ways: int) -> None:
        """The same for every row and every machine."""
        count = max(SHOTS) + QUERIES
        scenes = episodes.suitable(layout.TEST_SEEDS, ways * count, "cpu")
        generator = torch.Generator().manual_seed(7)
        styles = episodes.draw_styles(ways, generator)
        shot = episodes.captions(scenes, styles, generator).view(ways, count, -1)
        right = episodes.captions(scenes, styles).view(ways, count, -1)
        painted = [
            pixels.paint(scenes.rows(rows), pixels.TEST_NOISE)
            for rows in torch.arange(ways * count).split(256)
        ]
        self.pictures: npt.NDArray[np.uint8] = (
            torch.cat(painted).permute(0, 2, 3, 1).contiguous().numpy()
        ).reshape(ways, count, layout.SIDE, layout.SIDE, 3)
        self.captions: list[list[Ids]] = [
            [
                [id for id in (right if n >= max(SHOTS) else shot)[way, n].tolist() if id >= 0]
                for n in range(count)
            ]
            for way in range(ways)
        ]

    def shots(self, way: int, count: int) -> range:
        """Which pictures stand before a query: the last ones, so that few are among many."""
        return range(max(SHOTS) - count, max(SHOTS))

    @property
    def queries(self) -> range:
        """Which pictures are described."""
        return range(max(SHOTS), max(SHOTS) + QUERIES)


def text_of(ids: Ids) -> str:
    """A caption with the words around it."""
    spelt = (*words.VOCABULARY, words.END_OF_SHOT, words.PICTURE)
    return " ".join(spelt[id] for id in ids).replace(f"{words.PICTURE} ", words.PICTURE)


def write_calibration(results: Path) -> None:
    """Captions of other scenes in ways of their own, 33 in each, and other pictures."""
    ways = CALIBRATION_CAPTIONS // 33
    scenes = episodes.suitable(layout.CALIBRATION_SEEDS, ways * 33, "cpu")
    generator = torch.Generator().manual_seed(8)
    said = episodes.captions(scenes, episodes.draw_styles(ways, generator), generator)
    texts = [text_of([id for id in row if id >= 0]) for row in said.tolist()]
    (results / "calibration.txt").write_text("".join(texts), encoding="utf-8")
    from PIL import Image

    folder = results / "calibration-images"
    folder.mkdir(exist_ok=True)
    some = scenes.rows(torch.arange(CALIBRATION_PICTURES))
    for n, picture in enumerate(pixels.paint(some).permute(0, 2, 3, 1).numpy()):
        Image.fromarray(picture).save(folder / f"{n}.png")


def convert(model: Path, method: str, bits: int, results: Path) -> Path:
    """The packed file of a row."""
    file = results / f"{method}-{bits}.awq.gguf"
    if not file.exists():
        command = [sys.executable, "-m", "awq_edge.cli.main", "convert", str(model), "--quiet"]
        command += ["--method", method, "--bits", str(bits), "--output", str(file)]
        command += ["--calibration", str(results / "calibration.txt"), *CALIBRATION]
        command += ["--calibration-images", str(results / "calibration-images")]
        subprocess.run(command, check=True)
    return file


def described_packed(file: Path, tasks: Tasks, threads: int) -> dict[int, list[Ids]]:
    """What a packed file says of each query behind so many shots, token ids."""
    from awq_edge import Model
    from awq_edge.generation import GenerationConfig

    config = GenerationConfig(max_tokens=LONGEST, temperature=0.0)
    found: dict[int, list[Ids]] = {count: [] for count in SHOTS}
    with Model.open(file, threads=threads) as model:
        for way, captions in enumerate(tasks.captions):
            for count in SHOTS:
                shown = list(tasks.shots(way, count))
                before = "".join(text_of(captions[n]) for n in shown)
                for query in tasks.queries:
                    images = [tasks.pictures[way, n] for n in (*shown, query)]
                    said = model.generate(before + words.PICTURE, config, images=images).text()
                    found[count].append([words.ID.get(word, -1) for word in said.split()])
    return found


@torch.no_grad()
def described_float(folder: Path, tasks: Tasks) -> dict[int, list[Ids]]:
    """The same of the checkpoint in float32: the right caption, corrected until it is greedy's."""
    from transformers import CLIPVisionModel

    tower = CLIPVisionModel.from_pretrained(folder / "vision_tower", dtype=torch.float32).eval()
    model = shots_model.load(folder)
    found: dict[int, list[Ids]] = {count: [] for count in SHOTS}
    for way, captions in enumerate(tasks.captions):
        pixels_of_way = torch.from_numpy(tasks.pictures[way]).permute(0, 3, 1, 2)
        states = tower(normalise(pixels_of_way), output_hidden_states=True)
        rows = states.hidden_states[-1][:, 1:]
        for count in SHOTS:
            shown = list(tasks.shots(way, count))
            before = [id for n in shown for id in captions[n]]
            pictures = rows[[*shown, *tasks.queries]][None]
            found[count] += greedy(
                model, before, pictures, [captions[query][1:] for query in tasks.queries]
            )
    return found


def greedy(
    model: shots_model.Shots, before: Ids, pictures: torch.Tensor, drafts: list[Ids]
) -> list[Ids]:
    """What greedy decoding says of several pictures behind the same shots.

    Args:
        model: In float32.
        before: The shots.
        pictures: Theirs, then one to describe for each draft, as ``Shots.forward`` has them.
        drafts: Captions; one that is right in many places saves passes, and changes nothing.
    """
    end, width = words.ID_END_OF_SHOT, LONGEST + 1
    said = [[*draft, *[end] * LONGEST][:LONGEST] for draft in drafts]
    right, ended = [0] * len(said), [False] * len(said)  # tokens of each that are greedy's
    branches = torch.arange(1, len(said) + 1).repeat_interleave(width)
    branches = torch.cat((torch.zeros(len(before), dtype=torch.int64), branches))
    while not all(ended):
        ends = [id for text in said for id in (words.ID_PICTURE, *text)]
        logits = model(torch.tensor([[*before, *ends]]), pictures, branches)
        likeliest = logits[0, len(before) :].argmax(1).view(len(said), width).tolist()
        for n, (text, best) in enumerate(zip(said, likeliest)):
            while not ended[n] and text[right[n]] == best[right[n]]:
                right[n] += text[right[n]] != end
                ended[n] = right[n] == LONGEST or (text[right[n]] == end and best[right[n]] == end)
            if not ended[n]:
                text[right[n]] = best[right[n]]
    return [text[:count] for text, count in zip(said, right)]


@torch.no_grad()
def divergence(folder: Path, file: Path, tasks: Tasks) -> float:
    """Of the next word behind 4 and more shots, from the float model, in nats.

    The packed weights as floats, in the float decoder, on the right captions.
    """
    from awq_edge import torch_decoder, torch_tower
    from awq_edge.float_model import open_float_model, open_vision_part
    from awq_edge.model_file import PackedFile
    from awq_edge.torch_decoder import LookedAt, WeightSource

    source = open_float_model(str(folder))
    vision, _ = open_vision_part(source)
    packed = PackedFile(file)
    assert vision is not None and source.architecture.cross is not None

    def weights(name: str) -> torch.Tensor:
        return torch.from_numpy(packed.floats(name))

    def words_of(way: int, decoder: WeightSource, tower: WeightSource) -> torch.Tensor:
        """Logarithms of probabilities [words, vocabulary]."""
        ids = torch.tensor([id for caption in tasks.captions[way] for id in caption])
        seen = (ids == words.ID_PICTURE).cumsum(0) - 1
        pictures = torch.from_numpy(tasks.pictures[way])
        rows = torch_tower.encoded(vision.architecture, tower, pictures)
        looked_at = LookedAt.of_rows(source.architecture.cross, rows, seen)
        logits = torch_decoder.logits(decoder, source.architecture, ids[None], looked_at=looked_at)[
            0
        ]
        wanted = (ids[1:] != words.ID_PICTURE) & (seen[:-1] >= 4)
        return logits[:-1][wanted].log_softmax(1)

    found = []
    for way in range(DIVERGENCE_WAYS):
        theirs, ours = words_of(way, source, vision), words_of(way, weights, weights)
        found.append((theirs.exp() * (theirs - ours)).sum(1))
    return float(torch.cat(found).mean())


def measure(name: str, args: argparse.Namespace, tasks: Tasks) -> None:
    """One row, unless it is there."""
    place = args.results / f"{name}.json"
    if place.exists() and json.loads(place.read_text())["ways"] == args.ways:
        return
    from_float = 0.0
    if name == "float":
        said = described_float(args.model, tasks)
    else:
        method, bits = name.rsplit("-", 1)
        file = convert(args.model, method, int(bits), args.results)
        said = described_packed(file, tasks, args.threads)
        from_float = divergence(args.model, file, tasks)
    right = [captions[n][1:-1] for captions in tasks.captions for n in tasks.queries]
    scores = {
        str(count): [10 * score for score in cider.cider_d_each(ours, [[one] for one in right])]
        for count, ours in said.items()
    }
    same = {
        str(count): [ours == theirs for ours, theirs in zip(each, right)]
        for count, each in said.items()
    }
    kept = {"ways": args.ways, "scores": scores, "same": same, "divergence": from_float}
    place.write_text(json.dumps(kept))
    print(name, {k: round(sum(v) / len(v), 1) for k, v in scores.items()}, flush=True)


def _cell(row: dict[str, list[float]], base: dict[str, list[float]], count: int) -> str:
    """A mean, and what it has less than the float's with one standard error over ways."""
    ours, theirs = (np.array(x[str(count)]).reshape(-1, QUERIES).mean(1) for x in (row, base))
    less = ours - theirs
    error = less.std(ddof=1) / math.sqrt(len(less))
    return f"{ours.mean():.1f} ({less.mean():+.1f} ± {error:.1f})"


def page(results: Path) -> str:
    """The table as Markdown."""
    names = ["float", *(f"{method}-{bits}" for method, bits in ROWS)]
    kept = {
        name: json.loads((results / f"{name}.json").read_text())
        for name in names
        if (results / f"{name}.json").exists()
    }
    base = kept["float"]
    total = base["ways"] * QUERIES
    exact = [100 * sum(base["same"][str(count)]) / total for count in SHOTS]
    lines = [
        "# Captions behind shots",
        "",
        "Made by `python benchmarks/few_shots.py`. CIDEr-D, 100 for the one right caption, of the "
        "small OpenFlamingo of `examples/scenes-8m/shots` on "
        f"{total} pictures: {base['ways']} ways of speaking with {QUERIES} queries each, behind 0 "
        "to 32 shots that are the same for every row, the few among the many. Greedy. Packed files "
        "describe through the runtime, pictures included; decoder and gated blocks have the row's "
        "bits and method in groups of 128, tower and resampler 8 bits; calibrated on captions and "
        "pictures of other scenes. In brackets: the difference to the float model, with one "
        "standard error over ways. The float model says the right caption word for word in "
        + ", ".join(f"{share:.0f}" for share in exact)
        + " % of the pictures; without shots it cannot know the way. Divergence: of the next word "
        "behind 4 and more shots from the float model's, in nats, with the packed weights in the "
        f"float decoder, {DIVERGENCE_WAYS} ways.",
        "",
        "| | " + " | ".join(f"{count} shots" for count in SHOTS) + " | divergence |",
        "|---" * (len(SHOTS) + 2) + "|",
    ]
    for name, row in kept.items():
        method, _, bits = name.rpartition("-")
        if not method:
            cells = [f"{np.mean(base['scores'][str(count)]):.1f}" for count in SHOTS]
        else:
            cells = [_cell(row["scores"], base["scores"], count) for count in SHOTS]
        label = f"{bits} bits, {method}" if method else "float"
        cells.append(f"{row['divergence']:.4f}" if method else "0")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure what is missing, then write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="of python -m shots.train")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--ways", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    args.results.mkdir(parents=True, exist_ok=True)
    write_calibration(args.results)
    tasks = Tasks(args.ways)
    for name in ("float", *(f"{method}-{bits}" for method, bits in ROWS)):
        measure(name, args, tasks)
    OUTPUT.write_text(page(args.results), encoding="utf-8")


if __name__ == "__main__":
    main()
