"""What a model's own program knows of its prompts, where no file of its tokenizer says so.

Owns the record of it and which types have one. Refuses to tokenise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Dialogue:
    """How such a program writes a prompt.

    Attributes:
        placeholder: The token that stands for a picture, added to a tokenizer without it.
        settings: What it tells the tokenizer, whatever tokenizer_config.json says.
        templates: A chat template for each word that a vocabulary may have, the first counts; none:
            the tokenizer's own count. The empty word is every vocabulary's.
        ends: Words that end a turn, where the vocabulary has them.
    """

    placeholder: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    templates: tuple[tuple[str, str], ...] = ()
    ends: tuple[str, ...] = ()

    def template(self, vocabulary: Mapping[str, int]) -> str | None:
        """The chat template for a vocabulary; None: the tokenizer's own counts."""
        found = (text for word, text in self.templates if not word or word in vocabulary)
        return next(found, None)


def dialogue_of(config: Mapping[str, Any]) -> Dialogue | None:
    """That of a model by its config.json; None: its tokenizer's files say everything."""
    # These import this module for the record.
    from .nanovlm import dialogue as nanovlm
    from .vila import dialogue as vila

    kind = config.get("model_type")
    if kind == "nanovlm":
        return nanovlm(config)
    return vila(config) if kind == "llava_llama" else None
