"""Training examples: conversations about scenes as token ids, and what their patches show.

Owns which tokens count and how much. Everything is made where the seeds are, on a GPU as on a CPU.
"""

from __future__ import annotations

import dataclasses

import torch

from scenes.draws import Draws
from scenes.layout import SHAPES, SIDE, Scenes, draw_scenes
from scenes.model import PATCH, PREFIX
from scenes.pixels import paint
from scenes.questions import (
    ANSWER_SLOTS,
    CAPTION_SLOTS,
    NOTHING,
    QUESTION_SLOTS,
    Questions,
    ask_any,
    describe,
    packed,
)
from scenes.words import ASSISTANT, EMBEDDED, EOS, ID, PAD, USER

TURNS = 6
# A conversation that is longer loses its end.
LENGTH = 168
# Of the conversations end in a caption; its many tokens count less than the few of an answer.
_CAPTIONS = 0.25
_CAPTION_WEIGHT = 0.25
_CAPTION_TURNS = 3  # whose place it takes
# Classes of a patch for the auxiliary head: nothing, a shape, a digit.
PATCH_CLASSES = 1 + len(SHAPES) + 10
# Added to the id of a token that counts, so that one packing moves both.
_ANSWER, _CAPTION = EMBEDDED, 2 * EMBEDDED


@dataclasses.dataclass(frozen=True)
class Batch:
    """b conversations, each about its own picture."""

    pictures: torch.Tensor  # uint8 [b, 3, SIDE, SIDE]
    tokens: torch.Tensor  # int64 [b, LENGTH]
    weights: torch.Tensor  # float32 [b, LENGTH]: how much predicting the token counts
    patch_class: torch.Tensor  # int64 [b, patches], below PATCH_CLASSES
    patch_colour: torch.Tensor  # int64 [b, patches], index into COLOURS, -100 where nothing is


def make_batch(seeds: torch.Tensor) -> Batch:
    """Conversations of TURNS questions about the scenes of these seeds, int64 [b]."""
    scenes = draw_scenes(seeds)
    tokens, weights = _conversations(scenes)
    patch_class, patch_colour = _patches(scenes)
    return Batch(paint(scenes), tokens, weights, patch_class, patch_colour)


def question_tokens(questions: Questions) -> tuple[torch.Tensor, torch.Tensor]:
    """Conversations of one question each, right answer included, and where the answer is.

    Returns:
        Token ids int64 [b, n], padded on the right, and bool [b, n]: what the model must say, the
        end of its turn included.
    """
    count = len(questions.question)
    prefix = torch.tensor(PREFIX, device=questions.question.device).expand(count, -1)
    answer = torch.where(questions.answer == NOTHING, NOTHING, questions.answer + _ANSWER)
    first = questions.question
    slots = [prefix, first, _column(first, ID[ASSISTANT]), answer]
    return _unmarked(torch.cat([*slots, _column(first, ID[EOS] + _ANSWER)], 1))


def _unmarked(slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    marked = packed(slots, ID[PAD])
    return marked % EMBEDDED, marked >= EMBEDDED


def _column(like: torch.Tensor, id: int) -> torch.Tensor:
    return torch.full((len(like), 1), id, device=like.device)


def _conversations(scenes: Scenes) -> tuple[torch.Tensor, torch.Tensor]:
    count, device = len(scenes.seeds), scenes.seeds.device
    asked = ask_any(scenes, TURNS)
    question = asked.question.view(count, TURNS, QUESTION_SLOTS)
    answer = asked.answer.view(count, TURNS, ANSWER_SLOTS)
    answer = torch.where(answer == NOTHING, NOTHING, answer + _ANSWER)
    ends = _column(scenes.seeds, ID[EOS] + _ANSWER)
    assistant, user = _column(scenes.seeds, ID[ASSISTANT]), _column(scenes.seeds, ID[USER])
    parts = [torch.tensor(PREFIX, device=device).expand(count, -1)]
    # In some the last turns give way to a caption.
    captions = Draws(scenes.seeds, 4).chance(_CAPTIONS, 1)
    for turn in range(TURNS - 1):
        spoken = torch.cat([question[:, turn], assistant, answer[:, turn], ends, user], 1)
        left_out = captions & (turn >= TURNS - _CAPTION_TURNS)
        parts.append(torch.where(left_out, NOTHING, spoken))
    request = torch.full_like(question[:, 0], NOTHING)
    request[:, :4] = torch.tensor([ID[w] for w in "describe the picture .".split()], device=device)
    parts += [torch.where(captions, request, question[:, -1]), assistant]
    caption = describe(scenes)
    caption = torch.where(caption == NOTHING, NOTHING, caption + _CAPTION)
    last = torch.full((count, CAPTION_SLOTS), NOTHING, device=device)
    last[:, :ANSWER_SLOTS] = answer[:, -1]
    parts += [torch.where(captions, caption, last), ends]
    marked = packed(torch.cat(parts, 1), ID[PAD])[:, :LENGTH]
    weights = torch.where(marked >= _CAPTION, _CAPTION_WEIGHT, (marked >= _ANSWER).float())
    return marked % EMBEDDED, weights


def _patches(scenes: Scenes) -> tuple[torch.Tensor, torch.Tensor]:
    """Class and colour of what is at the middle of each patch, int64 [b, patches] both."""
    centre = torch.arange(SIDE // PATCH, device=scenes.seeds.device) * PATCH + PATCH / 2
    x = centre.repeat(len(centre))[None, :, None]
    y = centre.repeat_interleave(len(centre))[None, :, None]
    away = torch.hypot(x - scenes.x[:, None], y - scenes.y[:, None])
    depth = torch.where(scenes.present[:, None], away - scenes.radius[:, None], torch.inf)
    nearest = depth.argmin(2)
    # Less than half a patch from its edge.
    there = depth.amin(2) < PATCH / 4
    classes = torch.where(there, 1 + scenes.shape.gather(1, nearest), 0)
    colour = torch.where(there, scenes.colour.gather(1, nearest), -100)
    # A digit is 5 cells wide, and a cell lies between the two.
    across = (x[:, :, 0] - scenes.number_left[:, None]) / scenes.number_scale[:, None]
    down = (y[:, :, 0] - scenes.number_top[:, None]) / scenes.number_scale[:, None]
    inside = (across > -0.5) & (across < 11.5) & (down > -0.5) & (down < 7.5)
    inside &= scenes.shows_number[:, None]
    tens, units = scenes.number[:, None] // 10, scenes.number[:, None] % 10
    digit = torch.where(across < 5.5, tens, units)
    classes = torch.where(inside, 1 + len(SHAPES) + digit, classes)
    return classes, torch.where(inside, scenes.number_colour[:, None], colour)
