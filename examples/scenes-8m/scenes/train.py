"""Train scenes-8m: the whole recipe of this folder's model, from nothing and without any file.

Usage (one GPU): python -m scenes.train --out scenes-8m --seconds 360

Scenes, pictures and conversations are made on the GPU from consecutive seeds, none twice. The rate
of the first steps decides how many steps fit into the time. The weights that are saved are a
running mean over the last thousands of steps, rounded to bfloat16.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from scenes.layout import COLOURS, TRAINING_SEEDS, seeds_from
from scenes.model import (
    FIRST_PICTURE_TOKEN,
    PICTURE_TOKENS,
    make_model,
    normalise,
    save_processor,
)
from scenes.sequences import PATCH_CLASSES, Batch, make_batch
from scenes.words import save_tokenizer

PEAK_LEARNING_RATE = 1e-3
TOWER_LEARNING_RATE = 5e-4
LAST_LEARNING_RATE = 1e-5
WARM_UP_STEPS = 200
WEIGHT_DECAY = 0.05
MEAN_DECAY = 0.999
# The auxiliary head's share falls from this to nothing within so many steps. Without it the decoder
# learns for its first thousands of steps no more than how often each answer is right.
AUXILIARY_SHARE = 0.5
AUXILIARY_STEPS = 1000
# Steps between which the rate is measured: the first ones compile.
RATE_STEPS = (40, 140)


class Learner(nn.Module):
    """The model and, for the beginning, a head that names what each patch shows."""

    def __init__(self) -> None:
        """Draws the weights."""
        super().__init__()
        self.model = make_model()
        self.patch_head = nn.Linear(192, PATCH_CLASSES + len(COLOURS))

    def forward(
        self,
        pictures: torch.Tensor,
        tokens: torch.Tensor,
        weights: torch.Tensor,
        patch_class: torch.Tensor,
        patch_colour: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean loss per token that counts, and that of the patch head; shapes as in Batch."""
        llava = self.model.model
        patches = llava.vision_tower(normalise(pictures)).last_hidden_state[:, 1:]
        behind = FIRST_PICTURE_TOKEN + PICTURE_TOKENS
        embed = llava.language_model.embed_tokens
        shown = llava.multi_modal_projector(patches)
        before, after = embed(tokens[:, :FIRST_PICTURE_TOKEN]), embed(tokens[:, behind:-1])
        inputs = torch.cat([before.to(shown.dtype), shown, after.to(shown.dtype)], 1)
        hidden = llava.language_model(inputs_embeds=inputs, use_cache=False).last_hidden_state
        # Nothing before the first question counts.
        logits = self.model.lm_head(hidden[:, behind - 1 :]).float()
        wanted, weight = tokens[:, behind:], weights[:, behind:]
        loss = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none")
        loss = (loss * weight.flatten()).sum() / weight.sum()
        named = self.patch_head(patches).float().flatten(0, 1)
        auxiliary = F.cross_entropy(named[:, :PATCH_CLASSES], patch_class.flatten())
        colour = F.cross_entropy(named[:, PATCH_CLASSES:], patch_colour.flatten())
        return loss, auxiliary + colour


def make_optimizer(learner: Learner) -> torch.optim.AdamW:
    """AdamW; the tower learns slower, and vectors do not decay."""
    groups = []
    for in_tower, rate in ((True, TOWER_LEARNING_RATE), (False, PEAK_LEARNING_RATE)):
        for decays in (True, False):
            parameters = [
                parameter
                for name, parameter in learner.named_parameters()
                if ("vision_tower" in name) == in_tower and (parameter.dim() >= 2) == decays
            ]
            decay = WEIGHT_DECAY if decays else 0.0
            groups.append({"params": parameters, "weight_decay": decay, "peak": rate})
    on_gpu = next(learner.parameters()).is_cuda
    return torch.optim.AdamW(groups, lr=PEAK_LEARNING_RATE, betas=(0.9, 0.95), fused=on_gpu)


def learning_rate(peak: float, step: int, steps: int) -> float:
    """Rises over the first steps, then follows half a cosine."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
    return min(1.0, (step + 1) / WARM_UP_STEPS) * (
        LAST_LEARNING_RATE + (peak - LAST_LEARNING_RATE) * cosine
    )


def train(
    learner: Learner, device: str, batch: int, steps: int, deadline: float, compiled: bool
) -> tuple[list[torch.Tensor], int]:
    """The running mean of the weights, and the number of steps.

    Args:
        learner: Where the weights are; it is trained in place.
        device: cuda or cpu.
        batch: Conversations per step.
        steps: At most so many.
        deadline: time.time() at which the last step is to end; the rate decides.
        compiled: Whether torch.compile is used.
    """
    optimizer = make_optimizer(learner)
    parameters = list(learner.parameters())
    mean = [parameter.detach().clone() for parameter in parameters]
    step_of = torch.compile(learner) if compiled else learner
    started = time.time()
    measured_from = started
    step = 0
    while step < steps:
        drawn: Batch = make_batch(seeds_from(TRAINING_SEEDS + step * batch, batch, device))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(group["peak"], step, steps)
        # On most CPUs bfloat16 is emulated, and far slower than float32.
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            loss, auxiliary = step_of(
                drawn.pictures, drawn.tokens, drawn.weights, drawn.patch_class, drawn.patch_colour
            )
        share = AUXILIARY_SHARE * max(0.0, 1 - step / AUXILIARY_STEPS)
        (loss + share * auxiliary).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            # Shorter at first: the beginning is soon forgotten.
            decay = min(MEAN_DECAY, (1 + step) / (10 + step))
            torch._foreach_lerp_(mean, parameters, 1 - decay)
        step += 1
        if step in RATE_STEPS:
            loss.item()  # waits for the GPU
            if step == RATE_STEPS[0]:
                measured_from = time.time()
            else:
                per_step = (time.time() - measured_from) / (RATE_STEPS[1] - RATE_STEPS[0])
                steps = min(steps, step + int(0.97 * (deadline - time.time()) / per_step))
                print(f"{1 / per_step:.2f} steps a second: {steps} steps", flush=True)
        if step % 250 == 0 or step in (1, 20, *RATE_STEPS):
            print(
                f"step {step} loss {loss.item():.4f} auxiliary {auxiliary.item():.4f} "
                f"seconds {time.time() - started:.0f}",
                flush=True,
            )
            if time.time() > deadline:
                break
    return mean, step


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=math.inf, help="for the steps")
    parser.add_argument("--steps", type=int, default=12_000, help="at most")
    parser.add_argument("--batch", type=int, default=768)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()

    deadline = time.time() + args.seconds
    torch.manual_seed(1)
    torch.backends.cuda.matmul.allow_tf32 = True
    learner = Learner().to(args.device)
    count = sum(parameter.numel() for parameter in learner.model.parameters())
    print(f"{count:,} parameters", flush=True)
    mean, steps = train(learner, args.device, args.batch, args.steps, deadline, args.compile)
    with torch.no_grad():
        for parameter, value in zip(learner.parameters(), mean):
            parameter.copy_(value)
    learner.model.to(torch.bfloat16).save_pretrained(args.out)
    save_tokenizer(args.out)
    save_processor(args.out)
    print(f"{steps} steps of {args.batch}, saved to {args.out}", flush=True)


if __name__ == "__main__":
    main()
