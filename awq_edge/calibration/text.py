"""Calibration data: blocks of tokens from a text.

Owns what a calibration sees. Refuses to run a model.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from awq_edge.errors import CheckpointError, FileUnreadableError, InvalidArgumentError
from awq_edge.hf_tokenizer import StoredTokenizer
from awq_edge.text_files import read_whole


def read_text(path: Path) -> str:
    """A calibration text of the user's; ``shipped.py`` has those of the package."""
    try:
        return read_whole(path).decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except OSError as error:
        raise FileUnreadableError(
            f"Cannot read the calibration text {path}: {error.strerror}."
        ) from error
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"The calibration text {path} is not UTF-8.") from error


def text_digest(text: str) -> str:
    """SHA-256 of a calibration text, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def token_blocks(
    tokenizer: StoredTokenizer, text: str, samples: int, sequence_length: int, seed: int
) -> torch.Tensor:
    """Cuts a text into blocks and draws some of them, in text order.

    Each block begins with what the model's prompts begin with, such as BOS. A text too short for
    ``samples`` blocks gives fewer.

    Args:
        tokenizer: The model's.
        text: Any text, the more like the model's later use the better.
        samples: Blocks wanted.
        sequence_length: Tokens of a block.
        seed: Chooses the blocks if the text has more.

    Returns:
        int64 [blocks, tokens].

    Raises:
        InvalidArgumentError: The text is shorter than one block.
    """
    blocks = blocks_of(tokenizer, text, sequence_length)
    if not len(blocks):
        raise InvalidArgumentError(
            f"The calibration text gives {len(tokenizer.encode(text))} tokens and one block needs "
            f"{sequence_length - len(tokenizer.runtime.before)}: use a longer text (--calibration) "
            "or shorter blocks (--sequence-length)."
        )
    return drawn(blocks, samples, seed)


def blocks_of(tokenizer: StoredTokenizer, text: str, sequence_length: int) -> torch.Tensor:
    """A whole text in blocks, int64 [blocks, tokens]; what is left at its end is dropped.

    Raises:
        InvalidArgumentError: Nothing fits beside what the model's prompts begin with.
    """
    ids = torch.tensor(tokenizer.encode(text), dtype=torch.int64)
    before = torch.tensor(tokenizer.runtime.before, dtype=torch.int64)
    payload = sequence_length - len(before)
    if payload < 1:
        raise InvalidArgumentError(
            f"A block of {sequence_length} tokens has no room for text after BOS; use 2 or more."
        )
    blocks = ids[: len(ids) // payload * payload].reshape(-1, payload)
    return torch.cat([before.expand(len(blocks), -1), blocks], dim=1)


def drawn(blocks: torch.Tensor, samples: int, seed: int) -> torch.Tensor:
    """Some of the blocks, in their order."""
    generator = torch.Generator().manual_seed(seed)
    return blocks[torch.randperm(len(blocks), generator=generator)[:samples].sort().values]


def check_tokens(blocks: torch.Tensor, vocabulary_size: int) -> None:
    """Refuses tokens that the model has no embedding for."""
    largest = int(blocks.max())
    if largest >= vocabulary_size:
        raise CheckpointError(
            f"The tokenizer gives token {largest}, but the model knows only {vocabulary_size}; "
            "tokenizer and weights do not belong together."
        )
