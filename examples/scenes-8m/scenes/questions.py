"""Questions about scenes with their answers, and captions, as token ids over a batch of scenes.

Owns what is asked and which answer is right. Every builder works on a whole batch: it draws one
question per scene and says in which scenes there is one. A text is a row of slots, some of them
empty (NOTHING); ``packed`` closes the gaps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from scenes.draws import Draws
from scenes.layout import COLOURS, OBJECTS, SHAPES, SIDE, SIZES, Scenes
from scenes.words import ID, PLURALS, UNITS

NOTHING = -1
QUESTION_SLOTS = 14
ANSWER_SLOTS = 2
CAPTION_SLOTS = 9 * OBJECTS + 10

# Attributes that may name an object, as a bit mask: every way to mention at least one.
_SIZE, _COLOUR, _SHAPE = 1, 2, 4
_MENTIONS = tuple(range(1, 8))
# How likely a count is asked for where several can be: the high ones are rare in scenes.
_COUNT_WEIGHTS = (0.5, 0.6, 1.0, 1.6, 2.5, 3.0, 3.0)
# Pixels from the border of two cells within which a place is not asked for.
_CELL_MARGIN = 1.5
# Pixels by which two centres must differ to be called left or right, above or below.
_APART = 6.0
# Pixels by which two radii must differ to be compared.
_LARGER = 2.0


@dataclasses.dataclass(frozen=True)
class Questions:
    """One question per scene."""

    question: torch.Tensor  # int64 [b, QUESTION_SLOTS], token ids or NOTHING
    answer: torch.Tensor  # int64 [b, ANSWER_SLOTS]
    valid: torch.Tensor  # bool [b]: the scene has such a question


def packed(slots: torch.Tensor, fill: int) -> torch.Tensor:
    """The slots of each row without gaps, the empty ones at the end as ``fill``; int64 [b, n]."""
    order = (slots == NOTHING).to(torch.uint8).argsort(dim=1, stable=True)
    closed = slots.gather(1, order)
    return torch.where(closed == NOTHING, fill, closed)


class _Subjects:
    """A batch of scenes with what the builders need of it."""

    def __init__(self, scenes: Scenes, draws: Draws) -> None:
        self.scenes = scenes
        self.draws = draws
        self.count = len(scenes.seeds)
        self.device = scenes.seeds.device
        self.attributes = torch.stack([scenes.size, scenes.colour, scenes.shape], 2)  # [b, o, 3]
        wanted = self.attributes[:, :, None].expand(-1, -1, len(_MENTIONS), -1)
        # How many objects fit what mention m says of object i; [b, o, m].
        self.fitting = self.matching(wanted, self._mentioned()[None, None])
        self.unique = (self.fitting == 1) & scenes.present[:, :, None]

    def _mentioned(self) -> torch.Tensor:
        """Which attributes each mention has, bool [m, 3]."""
        return torch.tensor([[m & bit > 0 for bit in (1, 2, 4)] for m in _MENTIONS]).to(self.device)

    def matching(self, wanted: torch.Tensor, mentioned: torch.Tensor) -> torch.Tensor:
        """How many objects have these attributes.

        Args:
            wanted: int64 [b, ..., 3], size, colour and shape.
            mentioned: bool, broadcastable to it: the attributes that count.

        Returns:
            int64 [b, ...].
        """
        shape = (self.count,) + (1,) * (wanted.dim() - 2) + (OBJECTS, 3)
        same = self.attributes.view(shape) == wanted[..., None, :]
        fits = (same | ~mentioned[..., None, :]).all(-1)
        present = self.scenes.present.view(shape[:-1])
        return (fits & present).sum(-1)

    def of(self, values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """values[b, index[b], ...] of each scene."""
        return values[torch.arange(self.count, device=self.device), index]

    def reference(self, i: torch.Tensor, avoiding: int = 0) -> torch.Tensor:
        """Words that name object i [b] and no other, slots [b, 3]; attributes to avoid as bits."""
        return self.spelt(self.of(self.attributes, i), self.mention(i, avoiding))

    def nameable(self, avoiding: int = 0) -> torch.Tensor:
        """Which objects have such words, bool [b, o]."""
        return (self.unique & self._without(avoiding)).any(2)

    def mention(self, i: torch.Tensor, avoiding: int) -> torch.Tensor:
        """A mention that fits object i alone, [b]."""
        choice, _ = self.draws.pick(self.of(self.unique, i) & self._without(avoiding))
        return choice + 1

    def _without(self, avoiding: int) -> torch.Tensor:
        return torch.tensor([m & avoiding == 0 for m in _MENTIONS], device=self.device)

    def spelt(self, attributes: torch.Tensor, mention: torch.Tensor) -> torch.Tensor:
        """Size, colour and shape as words where mentioned, slots [b, 3]; "one" for no shape."""
        size = _word(SIZES, attributes[:, 0], mention & _SIZE > 0)
        colour = _word(COLOURS, attributes[:, 1], mention & _COLOUR > 0)
        shape = _word(SHAPES, attributes[:, 2], mention & _SHAPE > 0)
        return torch.stack([size, colour, torch.where(shape == NOTHING, ID["one"], shape)], 1)

    def question(self, *parts: str | torch.Tensor) -> torch.Tensor:
        """A row of slots from words and slots [b] or [b, n]."""
        return self._slots(parts, QUESTION_SLOTS)

    def answer(self, *parts: str | torch.Tensor) -> torch.Tensor:
        return self._slots(parts, ANSWER_SLOTS)

    def caption(self, *parts: str | torch.Tensor) -> torch.Tensor:
        return self._slots(parts, CAPTION_SLOTS)

    def _slots(self, parts: tuple[str | torch.Tensor, ...], width: int) -> torch.Tensor:
        columns: list[torch.Tensor] = []
        for part in parts:
            if isinstance(part, str):
                ids = torch.tensor([ID[word] for word in part.split()], device=self.device)
                columns.append(ids.expand(self.count, -1))
            else:
                columns.append(part if part.dim() == 2 else part[:, None])
        slots = torch.cat(columns, 1)
        rest = torch.full((self.count, width - slots.shape[1]), NOTHING, device=self.device)
        return torch.cat([slots, rest], 1)


def _word(words: tuple[str, ...], index: torch.Tensor, said: torch.Tensor) -> torch.Tensor:
    """The id of words[index] where it is said, NOTHING elsewhere."""
    ids = torch.tensor([ID[word] for word in words], device=index.device)
    return torch.where(said, ids[index], NOTHING)


def _cell(s: _Subjects, i: torch.Tensor) -> torch.Tensor:
    """Where object i [b] is, in ninths of the picture: slots [b, 2]."""
    x, y = s.of(s.scenes.x, i), s.of(s.scenes.y, i)
    column, row = (x * 3 / SIDE).long().clamp(0, 2), (y * 3 / SIDE).long().clamp(0, 2)
    across = torch.tensor([ID["left"], NOTHING, ID["right"]], device=x.device)[column]
    down = torch.tensor([ID["top"], NOTHING, ID["bottom"]], device=x.device)[row]
    middle = (column == 1) & (row == 1)
    return torch.stack([torch.where(middle, ID["centre"], down), across], 1)


# ---- one builder per type ----------------------------------------------------------------------


def _colour(s: _Subjects) -> Questions:
    i, valid = s.draws.pick(s.nameable(_COLOUR))
    question = s.question("what colour is the", s.reference(i, _COLOUR), "?")
    colour = _word(COLOURS, s.of(s.scenes.colour, i), valid)
    return Questions(question, s.answer(colour), valid)


def _shape(s: _Subjects) -> Questions:
    i, valid = s.draws.pick(s.nameable(_SHAPE))
    question = s.question("what shape is the", s.reference(i, _SHAPE), "?")
    return Questions(question, s.answer(_word(SHAPES, s.of(s.scenes.shape, i), valid)), valid)


def _count(s: _Subjects) -> Questions:
    """What can be counted: what any mention says of any object, the same less one thing, all."""
    mentions = torch.tensor(_MENTIONS, device=s.device)
    wanted = s.attributes[:, :, None].expand(-1, -1, len(_MENTIONS), -1).flatten(1, 2)
    mention = mentions.expand(s.count, OBJECTS, -1).flatten(1)
    absent, _ = _altered(s, 8)
    absent_mention = mentions[s.draws.below(len(_MENTIONS), 8)]
    everything = torch.zeros_like(absent[:, :1])
    wanted = torch.cat([wanted, absent, everything], 1)
    mention = torch.cat([mention, absent_mention, torch.zeros_like(mention[:, :1])], 1)
    mentioned = torch.stack([mention & bit > 0 for bit in (_SIZE, _COLOUR, _SHAPE)], 2)
    counts = s.matching(wanted, mentioned)
    possible = torch.stack([(counts == count).any(1) for count in range(OBJECTS + 1)], 1)
    count, valid = s.draws.pick(possible, torch.tensor(_COUNT_WEIGHTS, device=s.device))
    choice, _ = s.draws.pick(counts == count[:, None])
    attributes, mention = s.of(wanted, choice), s.of(mention, choice)
    size = _word(SIZES, attributes[:, 0], mention & _SIZE > 0)
    colour = _word(COLOURS, attributes[:, 1], mention & _COLOUR > 0)
    plural = _word(PLURALS, attributes[:, 2], mention & _SHAPE > 0)
    plural = torch.where(plural == NOTHING, ID["things"], plural)
    question = s.question("how many", size, colour, plural, "?")
    return Questions(question, s.answer(count + ID["0"]), valid)


def _altered(s: _Subjects, tries: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Attributes [b, tries, 3] of present objects with one changed, and whether none has them."""
    i = s.draws.integers(tries) % OBJECTS
    # Objects that are not there serve too, where the scene has few: their attributes are as likely.
    attributes = s.attributes.gather(1, i[:, :, None].expand(-1, -1, 3))
    kinds = torch.tensor([len(SIZES), len(COLOURS), len(SHAPES)], device=s.device)
    moved = (attributes + 1 + (s.draws.integers(tries, 3) % (kinds - 1))) % kinds
    which = s.draws.below(3, tries, 1)
    changed = torch.arange(3, device=s.device) == which
    attributes = torch.where(changed, moved, attributes)
    everything = torch.ones(3, dtype=torch.bool, device=s.device)
    return attributes, s.matching(attributes, everything) == 0


def _exists(s: _Subjects) -> Questions:
    i, any_object = s.draws.pick(s.scenes.present)
    altered, absent = _altered(s, 8)
    choice, any_absent = s.draws.pick(absent)
    yes = s.draws.chance(0.5)
    attributes = torch.where(yes[:, None], s.of(s.attributes, i), s.of(altered, choice))
    said = s.spelt(attributes, torch.full_like(i, _SIZE | _COLOUR | _SHAPE))
    question = s.question("is there a", said, "?")
    return Questions(question, s.answer(_yes_or_no(yes)), any_object & any_absent)


def _yes_or_no(yes: torch.Tensor) -> torch.Tensor:
    return torch.where(yes, ID["yes"], ID["no"])


def _position(s: _Subjects) -> Questions:
    third = SIDE / 3
    clear = torch.ones_like(s.scenes.present)
    for centre in (s.scenes.x, s.scenes.y):
        for border in (third, 2 * third):
            clear &= (centre - border).abs() >= _CELL_MARGIN
    i, valid = s.draws.pick(s.nameable() & clear)
    question = s.question("where is the", s.reference(i), "?")
    return Questions(question, s.answer(_cell(s, i)), valid)


def _pairs(s: _Subjects, allowed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two objects of those that allowed [b, o, o] permits: indices [b], [b] and valid [b]."""
    pair, valid = s.draws.pick(allowed.flatten(1))
    return pair // OBJECTS, pair % OBJECTS, valid


def _relation(s: _Subjects) -> Questions:
    named = s.nameable()
    both = named[:, :, None] & named[:, None]
    sideways = s.draws.chance(0.5)
    place = torch.where(sideways[:, None], s.scenes.x, s.scenes.y)
    further = place[:, None] - place[:, :, None]  # of the second, right or down
    i, j, valid = _pairs(s, both & (further.abs() >= _APART))
    before = s.of(place, i) < s.of(place, j)
    yes = s.draws.chance(0.5)
    # "left of" and "above" are right where the first comes before, the others where it does not.
    said_before = before == yes
    word = torch.where(
        sideways,
        torch.where(said_before, ID["left"], ID["right"]),
        torch.where(said_before, ID["above"], ID["below"]),
    )
    of = torch.where(sideways, ID["of"], NOTHING)
    question = s.question("is the", s.reference(i), word, of, "the", s.reference(j), "?")
    return Questions(question, s.answer(_yes_or_no(yes)), valid)


def _larger(s: _Subjects) -> Questions:
    named = s.nameable(_SIZE)
    both = named[:, :, None] & named[:, None]
    more = s.scenes.radius[:, :, None] - s.scenes.radius[:, None]
    differ = s.scenes.colour[:, :, None] != s.scenes.colour[:, None]
    i, j, valid = _pairs(s, both & differ & (more.abs() >= _LARGER))
    question = s.question(
        "which is larger , the", s.reference(i, _SIZE), "or the", s.reference(j, _SIZE), "?"
    )
    first = s.of(s.scenes.radius, i) > s.of(s.scenes.radius, j)
    colour = torch.where(first, s.of(s.scenes.colour, i), s.of(s.scenes.colour, j))
    return Questions(question, s.answer(_word(COLOURS, colour, valid)), valid)


def _digits(s: _Subjects) -> Questions:
    tens, units = s.scenes.number // 10, s.scenes.number % 10
    shown = s.scenes.shows_number
    answer = s.answer(ID["0"] + tens, ID[UNITS[0]] + units)
    return Questions(s.question("which number is shown ?"), answer, shown)


BUILDERS: dict[str, Callable[[_Subjects], Questions]] = {
    "colour": _colour,
    "shape": _shape,
    "count": _count,
    "exists": _exists,
    "position": _position,
    "relation": _relation,
    "larger": _larger,
    "digits": _digits,
}
TYPES = tuple(BUILDERS)


def ask(scenes: Scenes, kind: str, stream: int = 2) -> Questions:
    """One question of a type about each scene.

    Args:
        scenes: b of them.
        kind: One of TYPES.
        stream: Another stream draws another question; from 2, below are the scenes' own.
    """
    return BUILDERS[kind](_Subjects(scenes, Draws(scenes.seeds, stream)))


def ask_any(scenes: Scenes, turns: int, stream: int = 2) -> Questions:
    """Several questions of random types about each scene, [b * turns] with a scene's side by side.

    Every type that a scene can be asked is as likely. A question about nothing is never valid: a
    scene always has objects, so something can be counted.
    """
    repeated = scenes.rows(
        torch.arange(len(scenes.seeds), device=scenes.seeds.device).repeat_interleave(turns)
    )
    turn = torch.arange(turns, device=scenes.seeds.device).repeat(len(scenes.seeds))
    # The turn is part of the seed, so that the turns of a scene differ.
    draws = Draws(repeated.seeds * 16 + turn, stream)
    subjects = _Subjects(repeated, draws)
    every = [build(subjects) for build in BUILDERS.values()]
    choice, valid = draws.pick(torch.stack([questions.valid for questions in every], 1))
    question = torch.stack([questions.question for questions in every], 1)
    answer = torch.stack([questions.answer for questions in every], 1)
    return Questions(subjects.of(question, choice), subjects.of(answer, choice), valid)


def describe(scenes: Scenes) -> torch.Tensor:
    """A caption of each scene: every object with its place, row by row, then the number.

    Returns:
        Slots int64 [b, CAPTION_SLOTS].
    """
    s = _Subjects(scenes, Draws(scenes.seeds, 3))
    column, row = (scenes.x * 3 / SIDE).long(), (scenes.y * 3 / SIDE).long()
    key = (row * 3 + column).float() + scenes.x / (2 * SIDE)
    order = torch.where(scenes.present, key, torch.inf).argsort(1)
    objects = scenes.present.sum(1)
    things = objects + scenes.shows_number
    parts: list[str | torch.Tensor] = []
    full = torch.full_like(objects, _SIZE | _COLOUR | _SHAPE)
    for place in range(OBJECTS):
        i = order[:, place]
        said = place < objects
        parts.append(_separator(place, things, said))
        words = torch.cat(
            [
                torch.full_like(i, ID["a"])[:, None],
                s.spelt(s.of(s.attributes, i), full),
                torch.full_like(i, ID["at"])[:, None],
                torch.full_like(i, ID["the"])[:, None],
                _cell(s, i),
            ],
            1,
        )
        parts.append(torch.where(said[:, None], words, NOTHING))
    shown = scenes.shows_number
    parts.append(_separator(objects, things, shown))
    for id in (
        torch.full_like(objects, ID["the"]),
        torch.full_like(objects, ID["number"]),
        ID["0"] + scenes.number // 10,
        ID[UNITS[0]] + scenes.number % 10,
    ):
        parts.append(torch.where(shown, id, NOTHING))
    return s.caption(*parts, ".")


def _separator(place: int | torch.Tensor, things: torch.Tensor, said: torch.Tensor) -> torch.Tensor:
    """What stands before thing number ``place``: nothing, a comma, or "and" before the last."""
    word = torch.where(things == place + 1, ID["and"], ID[","])
    first = torch.zeros_like(said) | (torch.as_tensor(place, device=said.device) == 0)
    return torch.where(said & ~first, word, NOTHING)
