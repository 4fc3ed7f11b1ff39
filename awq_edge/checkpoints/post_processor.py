"""What a tokenizer.json puts around every text.

Owns the form of its post-processor. Refuses to decide what stands there: ``awq_edge/tokenizer.py``
owns the rule for a packed file, ``awq_edge/hf_tokenizer.py`` what a checkpoint's files say.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from awq_edge.checkpoints.special_tokens import ids_by_content
from awq_edge.errors import CheckpointError


def put_around(
    tokenizer: dict[str, Any], before: Sequence[int], behind: Sequence[int], place: Path
) -> None:
    """Replaces the post-processor by one that puts these tokens around a text.

    Args:
        tokenizer: The JSON of a tokenizer.json, changed in place.
        before: Ids before a text.
        behind: Ids behind it.
        place: Its file, for the error.

    Raises:
        CheckpointError: The tokenizer has no such token.
    """
    spelt = {number: content for content, number in ids_by_content(tokenizer).items()}
    for number in (*before, *behind):
        if number not in spelt:
            raise CheckpointError(
                f"{place} has no token {number}, which should stand beside every text; it does not "
                "belong to this config.json."
            )

    def pieces(numbers: Sequence[int], type_id: int) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": spelt[n], "type_id": type_id}} for n in numbers]

    def text(name: str, type_id: int) -> list[dict[str, Any]]:
        sequence = {"Sequence": {"id": name, "type_id": type_id}}
        return [*pieces(before, type_id), sequence, *pieces(behind, type_id)]

    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": text("A", 0),
        "pair": [*text("A", 0), *text("B", 1)],
        "special_tokens": {
            spelt[n]: {"id": spelt[n], "ids": [n], "tokens": [spelt[n]]} for n in (*before, *behind)
        },
    }
