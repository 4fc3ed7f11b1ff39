"""Train the small OpenFlamingo: the whole recipe, from scenes-8m's tower and nothing else.

Usage (one GPU): python -m shots.train --out DIRECTORY --seconds 170

The tower's rows of many scenes are made once and kept on the GPU; episodes are drawn from them.
Each shot of an episode is predicted from those before it, so that one episode trains every number
of shots. The rate of the first steps decides how many steps fit into the time.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from scenes.layout import Scenes
from scenes.model import normalise
from scenes.pixels import TRAINING_NOISE, paint
from scenes.train import MEAN_DECAY, WEIGHT_DECAY, learning_rate
from torch import nn

from shots.episodes import CHUNK, NOTHING, captions, draw_styles, packed, suitable
from shots.model import Shots, save
from shots.words import ID_PICTURE

# Not those that trained the tower, nor those of calibration and tests.
POOL_SEEDS = 1 << 30
PEAK_LEARNING_RATE = 1.2e-3
# Shots of an episode, episodes of a batch, and tokens that a prompt is cut to; the second kind has
# every so many steps.
SHORT, LONG = (9, 320, 112), (33, 80, 384)
LONG_EVERY = 6
RATE_STEPS = (40, 140)


@dataclasses.dataclass(frozen=True)
class Pool:
    """Scenes with the tower's rows of their pictures, bfloat16 [n, 64, 192]."""

    scenes: Scenes
    rows: torch.Tensor


def load_tower(folder: Path) -> nn.Module:
    """The tower of scenes-8m, float32."""
    from transformers import LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    tower: nn.Module = model.model.vision_tower.eval()
    return tower


@torch.no_grad()
def make_pool(tower: nn.Module, count: int, device: str) -> Pool:
    """Draws, paints and reads pictures."""
    scenes = suitable(POOL_SEEDS, count, device)
    parts = []
    for rows in torch.arange(count, device=device).split(2048):
        pixels = normalise(paint(scenes.rows(rows), TRAINING_NOISE))
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            # As the last layer leaves them: OpenFlamingo reads them without a norm.
            states = tower(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]
        parts.append(states.bfloat16())
    return Pool(scenes, torch.cat(parts))


def draw(
    pool: Pool, shape: tuple[int, int, int], generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts [b, length], NOTHING behind their ends, and rows [b, shots, 64, E] of pictures."""
    shots, batch, length = shape
    device = generator.device
    chosen = torch.randint(len(pool.rows), (batch * shots,), generator=generator, device=device)
    styles = draw_styles(batch, generator)
    slots = captions(pool.scenes.rows(chosen), styles, generator).view(batch, shots * CHUNK)
    return packed(slots, length), pool.rows[chosen].unflatten(0, (batch, shots))


def losses(model: Shots, tokens: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
    """Of each next word, float32 [b, t - 1]; 0 where none counts: pictures and what is behind."""
    logits = model(tokens.clamp_min(0), pictures).float()
    wanted = tokens[:, 1:]
    counts = (wanted != NOTHING) & (wanted != ID_PICTURE)
    flat = F.cross_entropy(
        logits[:, :-1].flatten(0, 1), wanted.clamp_min(0).flatten(), reduction="none"
    )
    return flat.view(wanted.shape) * counts


def by_shots(tokens: torch.Tensor, loss: torch.Tensor) -> str:
    """The mean loss of words behind so many shots."""
    shots = (tokens == ID_PICTURE).cumsum(1)[:, :-1] - 1
    counts = (tokens[:, 1:] != NOTHING) & (tokens[:, 1:] != ID_PICTURE)
    found = []
    for k in (0, 1, 2, 4, 8, 16, 31):
        here = counts & (shots == k)
        if bool(here.any()):
            found.append(f"{k}: {loss[here].mean().item():.3f}")
    return ", ".join(found)


def train(
    model: Shots,
    pool: Pool,
    device: str,
    shapes: tuple[tuple[int, int, int], ...],
    steps: int,
    deadline: float,
) -> tuple[list[torch.Tensor], int]:
    """The running mean of the weights, and the number of steps; arguments as in scenes.train."""
    generator = torch.Generator(device).manual_seed(1)
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if (p.dim() >= 2) == decays], "weight_decay": decay}
        for decays, decay in ((True, WEIGHT_DECAY), (False, 0.0))
    ]
    optimizer = torch.optim.AdamW(
        groups, lr=PEAK_LEARNING_RATE, betas=(0.9, 0.95), fused=device == "cuda"
    )
    mean = [parameter.detach().clone() for parameter in parameters]
    started = measured_from = time.time()
    step = 0
    while step < steps:
        tokens, pictures = draw(pool, shapes[step % LONG_EVERY == LONG_EVERY - 1], generator)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(PEAK_LEARNING_RATE, step, steps)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            loss = losses(model, tokens, pictures if device == "cuda" else pictures.float())
        (loss.sum() / (loss > 0).sum()).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            decay = min(MEAN_DECAY, (1 + step) / (10 + step))
            torch._foreach_lerp_(mean, parameters, 1 - decay)
        step += 1
        if step in RATE_STEPS:
            loss.sum().item()  # waits for the GPU
            if step == RATE_STEPS[0]:
                measured_from = time.time()
            else:
                per_step = (time.time() - measured_from) / (RATE_STEPS[1] - RATE_STEPS[0])
                steps = min(steps, step + int(0.97 * (deadline - time.time()) / per_step))
                print(f"{1 / per_step:.2f} steps a second: {steps} steps", flush=True)
        if step % 300 == 0 or step in (1, 20, *RATE_STEPS):
            seconds = time.time() - started
            print(f"step {step}, {seconds:.0f} s, {by_shots(tokens, loss)}", flush=True)
            if time.time() > deadline:
                break
    return mean, step


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=math.inf, help="for everything")
    parser.add_argument("--steps", type=int, default=20_000, help="at most")
    parser.add_argument("--pool", type=int, default=160_000, help="pictures")
    parser.add_argument("--batch", type=int, default=SHORT[1], help="episodes of few shots")
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()

    deadline = time.time() + args.seconds
    torch.manual_seed(1)
    torch.backends.cuda.matmul.allow_tf32 = True
    tower = load_tower(Path(__file__).parents[1]).to(args.device)
    pool = make_pool(tower, args.pool, args.device)
    print(f"{len(pool.rows)} pictures", flush=True)
    model = Shots().to(args.device)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    shapes = tuple((s, max(1, b * args.batch // SHORT[1]), n) for s, b, n in (SHORT, LONG))
    mean, steps = train(model, pool, args.device, shapes, args.steps, deadline)
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), mean):
            parameter.copy_(value)
        generator = torch.Generator(args.device).manual_seed(2)
        tokens, pictures = draw(pool, shapes[1], generator)
        loss = losses(model, tokens, pictures.float())
    print(f"mean weights: {by_shots(tokens, loss)}", flush=True)
    save(model, tower, args.out)
    print(f"{steps} steps, saved to {args.out}", flush=True)


if __name__ == "__main__":
    main()
