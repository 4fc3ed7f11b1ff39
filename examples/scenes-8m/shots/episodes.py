"""Episodes: pictures with captions that have one way of speaking, which nobody tells.

Owns the ways (``Styles``), what they make of a scene, and prompts of many shots as token ids over a
batch. A way is which of its four words every size, colour and shape has, in which order these are
said, whether sizes and places are said at all, and the word between two objects. A shot shows the
words of what is in its picture, so that many shots show more than few.
"""

from __future__ import annotations

import dataclasses

import torch
from scenes.layout import COLOURS, SHAPES, SIDE, SIZES, Scenes, draw_scenes, seeds_from

from shots import words
from shots.words import ID, ID_END_OF_SHOT, ID_PICTURE

# Objects of a scene that a caption is about; scenes with more, or with a number, are left out.
MOST_OBJECTS = 2
# Of the sizes and places that a way says, a caption leaves out so many.
_LEFT_OUT = 0.1
NOTHING = -1
# What a caption is at its longest: two objects of size, colour, shape, "at", row and column, a word
# between them, and the words for the picture and for the end.
CHUNK = 2 * 6 + 1 + 2

_ORDERS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
_KINDS = (words.SIZES, words.COLOURS, words.SHAPES)


@dataclasses.dataclass(frozen=True)
class Styles:
    """Ways of speaking, b of them.

    Attributes:
        chosen: Which of its words each size, colour and shape has, int64 [b, values], sizes first.
        order: Of sizes, colours and shapes in a caption, int64 [b, 3].
        says_size: bool [b].
        says_place: bool [b].
        between: Which word, int64 [b].
    """

    chosen: torch.Tensor
    order: torch.Tensor
    says_size: torch.Tensor
    says_place: torch.Tensor
    between: torch.Tensor


def draw_styles(count: int, generator: torch.Generator) -> Styles:
    """Ways, all as likely."""
    device = generator.device

    def below(limit: int, *shape: int) -> torch.Tensor:
        return torch.randint(limit, (count, *shape), generator=generator, device=device)

    orders = torch.tensor(_ORDERS, device=device)
    values = len(SIZES) + len(COLOURS) + len(SHAPES)
    return Styles(
        chosen=below(words.SYNONYMS, values),
        order=orders[below(len(_ORDERS))],
        says_size=below(2) == 1,
        says_place=below(2) == 1,
        between=below(len(words.CONNECTIVES)),
    )


def suitable(first: int, count: int, device: str) -> Scenes:
    """The first scenes from a seed on that a caption can be about."""
    found: list[Scenes] = []
    have = 0
    while have < count:
        scenes = draw_scenes(seeds_from(first, 65536 if count > 4096 else 4096, device))
        first += len(scenes.seeds)
        objects = scenes.present.sum(1)
        fits = (objects >= 1) & (objects <= MOST_OBJECTS) & ~scenes.shows_number
        found.append(scenes.rows(fits.nonzero()[:, 0][: count - have]))
        have += len(found[-1].seeds)
    names = [field.name for field in dataclasses.fields(Scenes)]
    return Scenes(*(torch.cat([getattr(part, name) for part in found]) for name in names))


def captions(
    scenes: Scenes, styles: Styles, left_out: torch.Generator | None = None
) -> torch.Tensor:
    """What is said of scenes [b * n] in ways [b]: slots int64 [b * n, CHUNK], NOTHING where empty.

    Args:
        scenes: n for each way, those of one side by side.
        styles: b of them.
        left_out: Draws what captions leave out of sizes and places; None: nothing.
    """
    device, total = scenes.seeds.device, len(scenes.seeds)
    of = torch.arange(len(styles.between), device=device).repeat_interleave(
        total // len(styles.between)
    )

    def kept() -> torch.Tensor:
        if left_out is None:
            return torch.ones(total, dtype=torch.bool, device=device)
        return torch.rand(total, generator=left_out, device=device) >= _LEFT_OUT

    says_size, says_place = styles.says_size[of] & kept(), styles.says_place[of] & kept()
    # Objects from left to right.
    order = torch.where(scenes.present, scenes.x, torch.inf).argsort(1)
    objects = scenes.present.sum(1)
    columns = [torch.full((total,), ID_PICTURE, device=device)]
    between = torch.tensor([ID[word] for word in words.CONNECTIVES], device=device)
    for place in range(MOST_OBJECTS):
        i, said = order[:, place], place < objects
        if place:
            columns.append(torch.where(said, between[styles.between[of]], NOTHING))
        spelt = torch.stack(
            [_named(scenes, styles, of, i, kind) for kind in range(len(_KINDS))], dim=1
        )
        spelt[:, 0] = torch.where(says_size, spelt[:, 0], NOTHING)
        spelt = spelt.gather(1, styles.order[of])
        where = torch.where(says_place[:, None], _place(scenes, i), NOTHING)
        whole = torch.cat([spelt, where], 1)
        columns += torch.where(said[:, None], whole, NOTHING).unbind(1)
    columns.append(torch.full((total,), ID_END_OF_SHOT, device=device))
    return torch.stack(columns, 1)


def _named(
    scenes: Scenes, styles: Styles, of: torch.Tensor, i: torch.Tensor, kind: int
) -> torch.Tensor:
    """The word of object i's size, colour or shape."""
    attribute = (scenes.size, scenes.colour, scenes.shape)[kind]
    value = attribute.gather(1, i[:, None])[:, 0]
    before = sum(len(group) for group in _KINDS[:kind])
    first = ID[_KINDS[kind][0].split()[0]]
    return first + value * words.SYNONYMS + styles.chosen[of, before + value]


def _place(scenes: Scenes, i: torch.Tensor) -> torch.Tensor:
    """Where object i is, in ninths of the picture: slots [b, 3]."""
    x, y = (axis.gather(1, i[:, None])[:, 0] for axis in (scenes.x, scenes.y))
    column, row = ((axis * 3 / SIDE).long().clamp(0, 2) for axis in (x, y))
    across = torch.tensor([ID["left"], NOTHING, ID["right"]], device=x.device)[column]
    down = torch.tensor([ID["top"], NOTHING, ID["bottom"]], device=x.device)[row]
    middle = torch.where((column == 1) & (row == 1), ID["centre"], down)
    return torch.stack([torch.full_like(column, ID["at"]), middle, across], 1)


def packed(slots: torch.Tensor, length: int) -> torch.Tensor:
    """Prompts without gaps: slots [b, n] to int64 [b, length], NOTHING behind their ends."""
    order = (slots == NOTHING).to(torch.uint8).argsort(dim=1, stable=True)
    closed = slots.gather(1, order)[:, :length]
    short = length - closed.shape[1]
    return torch.nn.functional.pad(closed, (0, short), value=NOTHING) if short > 0 else closed
