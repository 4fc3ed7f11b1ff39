"""Conversations in files: what /save writes and /load reads.

A file holds the turns as texts, and every picture whole, as the bytes of the file that was shown:
the photograph may be gone by then, or be another one under the same name, and whoever gets the file
gets the conversation. Read again, its pictures are the same ones, so that a cache knows them.

Owns the form of these files. Refuses terminals.
"""

# No `from __future__ import annotations` here: on Python 3.9 typer reads annotations as they stand.

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from awq_edge.cli._prompt_text import read_prompt_file
from awq_edge.conversation import Conversation
from awq_edge.errors import AwqEdgeError, InvalidArgumentError, UnsupportedError
from awq_edge.limited_json import parse_json
from awq_edge.outputs.place import check_new
from awq_edge.outputs.whole_file import write_whole

if TYPE_CHECKING:
    from awq_edge.vision.reader import PreparedPicture


_MOST_BYTES = 512 << 20  # a hundred photographs


class ShownPictures:
    """The files of the pictures in a conversation, so that it can be saved."""

    def __init__(self, conversation: Conversation) -> None:
        """Has none yet."""
        self._conversation = conversation
        self._files: dict[bytes, bytes] = {}

    def show(self, path: Path) -> "PreparedPicture":
        """A picture's file, for :meth:`Conversation.ask`.

        Raises:
            UnsupportedError: The model reads text alone, or the format is not read.
            FileUnreadableError: There is no such file, or it cannot be read.
            InvalidArgumentError: It is no picture.
        """
        from awq_edge.vision.decoding import file_bytes

        _ = self._conversation.pictures  # a model that sees none says so before anything is read
        try:
            return self._prepared(file_bytes(path))
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"{path}: {error}") from error

    def forget(self) -> None:
        """The conversation begins anew."""
        self._files.clear()

    def _prepared(self, content: bytes) -> "PreparedPicture":
        picture = self._conversation.pictures.prepare(content)
        self._files[picture.key] = content
        return picture

    def save(self, path: Path) -> None:
        """Writes the conversation to a new file."""
        talk = self._conversation
        turns = [{**turn, "content": self._written(turn["content"])} for turn in talk.turns]
        check_new(path, "{path} exists already: take another name.")
        document = {"system": talk.system, "turns": turns}
        content = json.dumps(document, ensure_ascii=False, indent=1).encode()
        if len(content) > _MOST_BYTES:
            raise InvalidArgumentError(
                f"The conversation and its pictures take {len(content) >> 20} MB; conversations of "
                f"up to {_MOST_BYTES >> 20} MB are saved."
            )
        write_whole(path, content)

    def load(self, path: Path) -> int:
        """Makes a file's conversation the one; gives the number of its messages.

        Raises:
            InvalidArgumentError: It is none that ``save`` wrote.
            UnsupportedError: It has pictures, and the model reads text alone.
        """
        try:
            document = parse_json(read_prompt_file(path, _MOST_BYTES).encode())
        except ValueError:
            document = None
        listed = document.get("turns") if isinstance(document, dict) else None
        turns = [self._turn(turn) for turn in listed] if isinstance(listed, list) else [None]
        system = document.get("system") if isinstance(document, dict) else None
        if any(turn is None for turn in turns) or not isinstance(system, (str, type(None))):
            raise InvalidArgumentError(f"{path} is no conversation that /save wrote.")
        talk = self._conversation
        talk.reset()
        talk.system = system or ""
        talk.turns.extend(turn for turn in turns if turn is not None)
        return len(turns)

    def _written(self, content: Any) -> Any:
        if isinstance(content, str):
            return content
        return [
            {"type": "image", "data": base64.b64encode(self._files[part["image"].key]).decode()}
            if part["type"] == "image"
            else part
            for part in content
        ]

    def _turn(self, turn: Any) -> Optional[dict[str, Any]]:
        """A turn as ``Conversation`` has it; None where it is none."""
        if not isinstance(turn, dict) or turn.get("role") not in ("user", "assistant"):
            return None
        content = turn.get("content")
        if isinstance(content, list) and turn["role"] == "user":
            content = [self._part(part) for part in content]
            if not content or any(part is None for part in content):
                return None
        elif not isinstance(content, str):
            return None
        reasoning = turn.get("reasoning_content")
        more = {"reasoning_content": reasoning} if isinstance(reasoning, str) else {}
        return {"role": turn["role"], "content": content, **more}

    def _part(self, part: Any) -> Optional[Mapping[str, Any]]:
        if not isinstance(part, dict):
            return None
        if part.get("type") == "text" and isinstance(part.get("text"), str):
            return {"type": "text", "text": part["text"]}
        if part.get("type") != "image" or not isinstance(part.get("data"), str):
            return None
        try:
            content = base64.b64decode(part["data"], validate=True)
        except ValueError:
            return None
        try:
            return {"type": "image", "image": self._prepared(content)}
        except UnsupportedError:
            raise
        except AwqEdgeError as error:
            raise InvalidArgumentError(f"A picture of the conversation: {error}") from error
