"""A conversation with a model: the turns, what of them fits into the context, going back.

Owns ``Conversation``. Refuses terminals and files: ``cli/chat.py`` has them. The context keeps what
earlier turns have in common with the next prompt, so only what is new is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from awq_edge.chat import templates
from awq_edge.errors import AwqEdgeError, ContextFullError, InvalidArgumentError
from awq_edge.generation import GenerationConfig
from awq_edge.reasoning import Piece, ReasoningSplitter, reasoning_markers

if TYPE_CHECKING:
    from awq_edge.generation import Generation, Prompt
    from awq_edge.model import Model
    from awq_edge.vision.reader import PictureReader, PreparedPicture

# What an answer may take before the oldest turns go: a paragraph, on short contexts a quarter.
_ANSWER_TOKENS = 256

Message = Mapping[str, Any]


class Conversation:
    """Turns of a person and a model, in the model's own chat format.

    Attributes:
        system: What the model is told before the first turn; empty: nothing.
        turns: ``{"role": "user" or "assistant", "content": …}``, oldest first; an answer that the
            model has thought about has that as ``"reasoning_content"``. A question with pictures
            has parts as its content.
        dropped: How many messages no longer fitted into the context.
        last: The generation of the last answer, for its figures; None before the first.
    """

    def __init__(
        self,
        model: Model,
        *,
        system: str = "",
        config: GenerationConfig | None = None,
        drop_oldest: bool = True,
    ) -> None:
        """Begins without a turn.

        Args:
            model: An open one with a chat template.
            system: What the model is told first.
            config: How to draw and when to stop.
            drop_oldest: Leave out the oldest turns when the context is full; otherwise
                :meth:`ask` raises then.
        """
        self._model = model
        self._config = config or GenerationConfig(max_tokens=None)
        self._drop_oldest = drop_oldest
        self._markers = reasoning_markers(templates(model.metadata).get("default", ""))
        self.system = system
        self.turns: list[dict[str, Any]] = []
        self.dropped = 0
        self.last: Generation | None = None
        self._retries = 0  # of the last question

    def ask(self, text: str, pictures: Sequence[PreparedPicture] = ()) -> Iterator[Piece]:
        """Says something, and gives the answer piece by piece, reasoning before it told apart.

        Pictures that :meth:`Model.pictures` has prepared stand in front of the text.

        An answer that is stopped, by Ctrl-C too, stays as far as it came; one without a piece takes
        its question back.

        Raises:
            ContextFullError: There is no room: for this text at all, or without leaving turns out.
            UnsupportedError: The model has no chat template.
        """
        self._retries = 0
        yield from self._ask(text, pictures)

    def _ask(self, text: str, pictures: Sequence[PreparedPicture]) -> Iterator[Piece]:
        shown: list[dict[str, Any]] = [{"type": "image", "image": one} for one in pictures]
        content = [*shown, {"type": "text", "text": text}] if shown else text
        self.turns.append({"role": "user", "content": content})
        said = {False: "", True: ""}
        try:
            prompt, whole = self._fitting_prompt()
            self.last = self._model.generate(whole, self._seeded())
            splitter = ReasoningSplitter(self._markers, prompt)
            for part in self.last:
                for piece in splitter.add(part):
                    said[piece.is_reasoning] += piece.text
                    yield piece
            for piece in splitter.finish():
                said[piece.is_reasoning] += piece.text
                yield piece
        finally:
            if any(said.values()):
                self.turns.append({"role": "assistant", "content": said[False]})
                if said[True]:
                    self.turns[-1]["reasoning_content"] = said[True]
            else:
                self.turns.pop()

    def retry(self) -> Iterator[Piece]:
        """Another answer in the place of the last one, which stays if there is no new one.

        With a seed it is drawn with the next one, and with the one after it the next time.

        Raises:
            InvalidArgumentError: Nothing was asked yet.
            AwqEdgeError: As :meth:`ask`, also in the middle of the answer; the old exchange stays.
        """
        turns, dropped = list(self.turns), self.dropped
        pictures = self.last_pictures()
        said = self.undo()
        if said is None:
            raise InvalidArgumentError("There is nothing to ask again.")
        begun = failed = False
        try:
            self._retries += 1
            for piece in self._ask(said, pictures):
                begun = True
                yield piece
        except AwqEdgeError:
            failed = True
            raise
        finally:
            if failed or not begun:
                self.turns[:], self.dropped = turns, dropped

    def _seeded(self) -> GenerationConfig:
        """How this answer is drawn."""
        seed = self._config.seed
        if seed is None or not self._retries:
            return self._config
        return replace(self._config, seed=(seed + self._retries) % 2**64)

    def undo(self) -> str | None:
        """Takes the last exchange back; gives what was said in it, None if there is none."""
        while self.turns:
            turn = self.turns.pop()
            if turn["role"] == "user":
                return _text_of(turn)
        return None

    @property
    def pictures(self) -> PictureReader:
        """What prepares pictures for :meth:`ask`."""
        return self._model.pictures

    def last_pictures(self) -> list[PreparedPicture]:
        """Those of the last question."""
        for turn in reversed(self.turns):
            if turn["role"] == "user":
                parts = turn["content"] if isinstance(turn["content"], list) else []
                return [part["image"] for part in parts if part["type"] == "image"]
        return []

    def reset(self) -> None:
        """Forgets all turns; the system text stays."""
        self.turns.clear()
        self.dropped = 0

    def _messages(self, turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
        first = [{"role": "system", "content": self.system}] if self.system else []
        return first + turns

    def _prompt(self, turns: list[dict[str, Any]]) -> tuple[str, Prompt, int]:
        """The text of a prompt, what a session reads of it, and how many tokens that is."""
        messages = self._messages(turns)
        if self._model.sees_pictures:
            text, whole = self._model.picture_chat(messages)
            return text, whole, len(whole.tokens)
        text = self._model.chat_prompt(messages)
        ids = self._model.tokenizer.encode(text, add_bos=False)
        return text, ids, len(ids)

    def _fitting_prompt(self) -> tuple[str, Prompt]:
        """The prompt; leaves the oldest turns out until there is room for an answer.

        A turn goes with its pictures, and none is cut.
        """
        context = self._model.context_length
        room = context - min(_ANSWER_TOKENS, context // 4)
        turns, first = self.turns, 0
        while True:
            text, prompt, count = self._prompt(turns[first:])
            alone = first == len(turns) - 1
            if count <= room or (alone and count < context):
                del turns[:first]
                self.dropped += first
                return text, prompt
            if alone:
                raise ContextFullError(
                    f"The text takes {count} tokens, and the context has {context}: use a "
                    "longer --context, or say less at once."
                )
            if not self._drop_oldest:
                raise ContextFullError(
                    f"The conversation takes {count} of the context's {context} tokens, and "
                    "an answer needs room: /reset begins anew, /undo goes back."
                )
            # A question goes with its answer, so that the rest still begins with a question.
            first += 1
            while turns[first]["role"] != "user":
                first += 1


def _text_of(turn: Message) -> str:
    """What was said in a turn, its pictures left out."""
    content = turn["content"]
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")
