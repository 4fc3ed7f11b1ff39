"""Calibration data: blocks of tokens from a text, and running statistics of a matrix's inputs.

Owns what a calibration sees. Keeps no activation: every statistic is a sum over tokens, in float32,
so that the order and the size of batches do not matter. The search is in ``awq.py``.
"""

from __future__ import annotations

import hashlib
import lzma
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F

from awq_edge import torch_decoder
from awq_edge.errors import CheckpointError, FileUnreadableError, InvalidArgumentError
from awq_edge.hf_tokenizer import StoredTokenizer

_SHIPPED_TEXT = Path(__file__).with_name("calibration_text.txt.xz")
_STRIP_ROWS = 1024  # of products, computed at once: large enough for every processor


def read_text(path: Path | None) -> str:
    """A calibration text; None is the one that ships with the package (public-domain novels)."""
    try:
        if path is None:
            return lzma.decompress(_SHIPPED_TEXT.read_bytes()).decode("utf-8")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise FileUnreadableError(
            f"Cannot read the calibration text {path or _SHIPPED_TEXT}: {error.strerror}."
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

    Each block begins with BOS where the model's prompts do. A text too short for ``samples`` blocks
    gives fewer.

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
    ids = torch.tensor(tokenizer.encode(text), dtype=torch.int64)
    begins_with_bos = tokenizer.add_bos and tokenizer.bos_id is not None
    payload = sequence_length - begins_with_bos
    if payload < 1:
        raise InvalidArgumentError(
            f"A block of {sequence_length} tokens has no room for text after BOS; use 2 or more."
        )
    if len(ids) < payload:
        raise InvalidArgumentError(
            f"The calibration text gives {len(ids)} tokens and one block needs {payload}: use a "
            "longer text (--calibration) or shorter blocks (--sequence-length)."
        )
    blocks = ids[: len(ids) // payload * payload].reshape(-1, payload)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(blocks), generator=generator)[:samples].sort().values
    blocks = blocks[chosen]
    if begins_with_bos:
        assert tokenizer.bos_id is not None
        blocks = F.pad(blocks, (1, 0), value=tokenizer.bos_id)
    return blocks


def check_tokens(blocks: torch.Tensor, vocabulary_size: int) -> None:
    """Refuses tokens that the model has no embedding for."""
    largest = int(blocks.max())
    if largest >= vocabulary_size:
        raise CheckpointError(
            f"The tokenizer gives token {largest}, but the model knows only {vocabulary_size}; "
            "tokenizer and weights do not belong together."
        )


class InputStatistics:
    """Sums over every token that one or more matrices of a layer read as their input."""

    def __init__(self, k: int, group_size: int, device: torch.device) -> None:
        """Starts with no tokens.

        Args:
            k: Width of the input.
            group_size: Inputs per group; the last group may be short.
            device: Where the sums are kept.
        """
        groups = -(-k // group_size)
        self._k = k
        self._group_size = group_size
        self._tokens = 0
        self._absolute = torch.zeros(k, device=device)
        self._products = torch.zeros(groups, group_size, group_size, device=device)

    def update(self, x: torch.Tensor) -> None:
        """Adds tokens, float32 [.., k]."""
        x = x.reshape(-1, self._k)
        self._tokens += len(x)
        self._absolute += x.abs().sum(dim=0)
        groups = F.pad(x, (0, -self._k % self._group_size))
        groups = groups.reshape(len(x), -1, self._group_size).transpose(0, 1)
        self._products += groups.transpose(1, 2) @ groups

    @property
    def tokens(self) -> int:
        """How many were added."""
        return self._tokens

    def divide_by(self, scales: torch.Tensor) -> None:
        """Makes the statistics those of inputs divided by ``scales`` [k]."""
        self._absolute /= scales
        padded = F.pad(scales, (0, -self._k % self._group_size), value=1.0)
        by_group = padded.reshape(-1, self._group_size)
        self._products /= by_group.unsqueeze(2) * by_group.unsqueeze(1)

    def merged(
        self,
        parts: Mapping[int, InputStatistics],
        total: Callable[[dict[int, torch.Tensor], torch.Tensor], torch.Tensor],
    ) -> InputStatistics:
        """The statistics of all parts, by segment; this one is empty and keeps what it is of."""
        whole = InputStatistics(self._k, self._group_size, self._absolute.device)
        whole._absolute = total({s: part._absolute for s, part in parts.items()}, self._absolute)
        whole._products = total({s: part._products for s, part in parts.items()}, self._products)
        counts = {
            s: torch.tensor([part._tokens], dtype=torch.float64, device=self._absolute.device)
            for s, part in parts.items()
        }
        whole._tokens = int(total(counts, whole._absolute.new_zeros(1, dtype=torch.float64)))
        return whole

    def mean_absolute(self) -> torch.Tensor:
        """The mean magnitude of each input, [k]."""
        return self._absolute / max(self._tokens, 1)

    def mean_products(self) -> torch.Tensor:
        """Means of x_i * x_j within each group, [groups, g, g]; zero beyond a short last group."""
        return self._products / max(self._tokens, 1)


class Products:
    """Sums of x_i * x_j over every token that a matrix reads, in float64.

    Only the lower triangle is summed, a strip of rows at a time, until the means are asked for.
    """

    def __init__(self, k: int, device: torch.device) -> None:
        """Starts with no tokens, for inputs of width k."""
        self.sums = torch.zeros(k, k, dtype=torch.float64, device=device)
        self.tokens = 0

    def add(self, x: torch.Tensor) -> None:
        """Adds tokens, float32 [.., k]."""
        x = x.reshape(-1, x.shape[-1])
        columns = x.T.contiguous()
        for first, end in self._strips():
            self.sums[first:end, :end] += torch_decoder.multiply(
                columns[first:end], columns[:end], None
            )
        self.tokens += len(x)

    def join(self, other: Products) -> None:
        """Adds the sums over other tokens."""
        self.sums += other.sums
        self.tokens += other.tokens

    def means(self) -> torch.Tensor:
        """Over the tokens so far, float64 [k, k], in the memory of the sums: nothing follows it."""
        self.sums /= max(self.tokens, 1)
        for first, end in self._strips():
            self.sums[first:end, end:] = self.sums[end:, first:end].T
        return self.sums

    def _strips(self) -> Iterator[tuple[int, int]]:
        k = len(self.sums)
        for first in range(0, k, _STRIP_ROWS):
            yield first, min(first + _STRIP_ROWS, k)
