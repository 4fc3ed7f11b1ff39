"""How often the answers are right, type by type, and how good the captions are.

Usage: python -m scenes.evaluate DIRECTORY [--scenes 2000] [--noise 12 12] [--device cuda]

An answer is right if the model's likeliest tokens are those of the right answer and then the end of
its turn. One pass over question and answer says that: as long as every likeliest token is the next
one of the answer, greedy decoding would have said the same.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from transformers import LlavaForConditionalGeneration

from scenes.cider import cider_d
from scenes.layout import TEST_SEEDS, Scenes, draw_scenes, seeds_from
from scenes.model import PREFIX, normalise
from scenes.pixels import TEST_NOISE, blank, paint
from scenes.questions import TYPES, Questions, ask, describe, packed
from scenes.sequences import question_tokens
from scenes.words import ASSISTANT, EOS, ID, PAD

BATCH = 128


@torch.no_grad()
def right_answers(
    model: LlavaForConditionalGeneration, pictures: torch.Tensor, questions: Questions
) -> torch.Tensor:
    """Which questions are answered rightly, bool [b].

    Args:
        model: In any precision, on the device of the others.
        pictures: uint8 [b, 3, SIDE, SIDE].
        questions: All of them valid.
    """
    tokens, said = question_tokens(questions)
    pixels = normalise(pictures).to(model.dtype)
    logits = model(input_ids=tokens, pixel_values=pixels, use_cache=False).logits
    likeliest = logits[:, :-1].argmax(2)
    return ((likeliest == tokens[:, 1:]) | ~said[:, 1:]).all(1)


def test_scenes(kind: str, count: int, device: str) -> Scenes:
    """The first test scenes that can be asked a question of this type."""
    found: list[Scenes] = []
    have, first = 0, TEST_SEEDS
    while have < count:
        scenes = draw_scenes(seeds_from(first, 1024, device))
        first += 1024
        valid = ask(scenes, kind).valid
        found.append(scenes.rows(valid.nonzero()[:, 0][: count - have]))
        have += len(found[-1].seeds)
    names = list(vars(found[0]))
    return Scenes(*(torch.cat([getattr(part, name) for part in found]) for name in names))


def accuracy(
    model: LlavaForConditionalGeneration,
    kind: str,
    count: int,
    noise: tuple[float, float],
    *,
    without_picture: bool = False,
) -> float:
    """The share of right answers to questions of one type."""
    scenes = test_scenes(kind, count, str(model.device))
    right = 0
    for rows in torch.arange(count, device=model.device).split(BATCH):
        part = scenes.rows(rows)
        pictures = blank(len(rows), model.device) if without_picture else paint(part, noise)
        right += int(right_answers(model, pictures, ask(part, kind)).sum())
    return right / count


@torch.no_grad()
def captions(
    model: LlavaForConditionalGeneration, scenes: Scenes, pictures: torch.Tensor
) -> tuple[list[list[int]], list[list[int]]]:
    """What the model says and what is right, token ids without the end."""
    request = [ID[word] for word in "describe the picture .".split()]
    prompt = torch.tensor([*PREFIX, *request, ID[ASSISTANT]], device=model.device)
    output = model.generate(
        input_ids=prompt.expand(len(pictures), -1).contiguous(),
        attention_mask=torch.ones(len(pictures), len(prompt), device=model.device).long(),
        pixel_values=normalise(pictures).to(model.dtype),
        max_new_tokens=80,
        do_sample=False,
        pad_token_id=ID[PAD],
    )
    ends = (ID[EOS], ID[PAD])
    said = [[id for id in row if id not in ends] for row in output[:, len(prompt) :].tolist()]
    right = [
        [id for id in row if id != ID[PAD]] for row in packed(describe(scenes), ID[PAD]).tolist()
    ]
    return said, right


def caption_score(
    model: LlavaForConditionalGeneration, count: int, noise: tuple[float, float]
) -> tuple[float, float]:
    """CIDEr-D of 10 against the one right caption, and the share of captions that equal it."""
    said: list[list[int]] = []
    right: list[list[int]] = []
    for seeds in seeds_from(TEST_SEEDS, count, str(model.device)).split(BATCH):
        scenes = draw_scenes(seeds)
        ours, theirs = captions(model, scenes, paint(scenes, noise))
        said += ours
        right += theirs
    same = sum(ours == theirs for ours, theirs in zip(said, right))
    return cider_d(said, [[caption] for caption in right]), same / count


def main() -> None:
    """Print the table as Markdown and, if wanted, write it as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--scenes", type=int, default=2000, help="per type")
    parser.add_argument("--captions", type=int, default=500)
    parser.add_argument("--noise", type=float, nargs=2, default=TEST_NOISE)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    model = LlavaForConditionalGeneration.from_pretrained(args.directory, dtype=torch.float32)
    model = model.to(args.device).eval()
    noise = tuple(args.noise)
    table: dict[str, dict[str, float]] = {}
    print("| type | right | without the picture |\n|---|---|---|", flush=True)
    for kind in TYPES:
        row = {
            "right": accuracy(model, kind, args.scenes, noise),
            "blank": accuracy(model, kind, args.scenes, noise, without_picture=True),
        }
        table[kind] = row
        print(f"| {kind} | {row['right']:.1%} | {row['blank']:.1%} |", flush=True)
    score, same = caption_score(model, args.captions, noise)
    table["caption"] = {"cider_d": score, "same": same}
    print(f"| caption | CIDEr-D {score:.2f} of 10, {same:.1%} word for word | |", flush=True)
    if args.json:
        args.json.write_text(json.dumps({"noise": noise, **table}, indent=2) + "\n")


if __name__ == "__main__":
    main()
