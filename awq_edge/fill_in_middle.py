"""Prompts for filling in the middle: what stands before a gap, and what behind.

Owns the markers of the families that were trained for it and their order: the text before, the text
behind, then what belongs between. Refuses drawing. A family is known by its markers, each of which
must be one token of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from awq_edge.errors import UnsupportedError
from awq_edge.tokenizer import Tokenizer


@dataclass(frozen=True)
class Markers:
    """How a family spells them.

    Attributes:
        before: What the text before the gap follows.
        behind: What the text behind it follows.
        middle: What the filling follows.
        ends: Tokens that end a filling, where the vocabulary has them.
    """

    before: str
    behind: str
    middle: str
    ends: tuple[str, ...] = ()


_FAMILIES = (
    # Qwen2.5-Coder and its successors; also Granite 4.
    Markers(
        "<|fim_prefix|>",
        "<|fim_suffix|>",
        "<|fim_middle|>",
        ("<|endoftext|>", "<|fim_pad|>", "<|file_sep|>", "<|repo_name|>"),
    ),
    # StarCoder, Granite Code, StableCode; CodeGemma spells them like Qwen.
    Markers("<fim_prefix>", "<fim_suffix>", "<fim_middle>", ("<|endoftext|>", "<file_sep>")),
    Markers("<fim-prefix>", "<fim-suffix>", "<fim-middle>", ("<|endoftext|>",)),  # SantaCoder
    Markers("▁<PRE>", "▁<SUF>", "▁<MID>", ("▁<EOT>",)),  # CodeLlama
    # DeepSeek-Coder, with bars that are wide.
    Markers("<\uff5cfim▁begin\uff5c>", "<\uff5cfim▁hole\uff5c>", "<\uff5cfim▁end\uff5c>"),
)


def fill_prompt(
    tokenizer: Tokenizer, before: str, behind: str, encode: Callable[[str], list[int]]
) -> tuple[list[int], list[int]]:
    """The prompt for a gap in a text.

    Args:
        tokenizer: The model's.
        before: The text before the gap.
        behind: The text behind it.
        encode: Ids of a text without BOS, in which words that stand for something else stay words.

    Returns:
        Its token ids, and those that end the filling beside the model's own.

    Raises:
        UnsupportedError: The vocabulary has none of the families' markers.
    """
    for family in _FAMILIES:
        found = [
            tokenizer.token_id(marker) for marker in (family.before, family.behind, family.middle)
        ]
        ids = [token for token in found if token is not None]
        if len(ids) < len(found):
            continue
        bos = [tokenizer.bos_token_id] if tokenizer.add_bos_token else []
        prompt = [
            *(token for token in bos if token is not None),
            ids[0],
            *encode(before),
            ids[1],
            *encode(behind),
            ids[2],
        ]
        ends = [tokenizer.token_id(end) for end in family.ends]
        return prompt, [token for token in ends if token is not None]
    raise UnsupportedError(
        "This model was not trained to fill in the middle: its vocabulary has no markers for it. "
        "Send the prompt without suffix."
    )
