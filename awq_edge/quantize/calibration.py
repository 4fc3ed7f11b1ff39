"""Calibration data: blocks of tokens from a text, and running statistics of a matrix's inputs.

Owns what a calibration sees. Keeps no activation: every statistic is a sum over tokens, in float32,
so that the order and the size of batches do not matter. The search is in ``awq.py``.
"""

from __future__ import annotations

import hashlib
import lzma
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F

from awq_edge import torch_decoder
from awq_edge.errors import CheckpointError, FileUnreadableError, InvalidArgumentError
from awq_edge.hf_tokenizer import StoredTokenizer

_SHIPPED_TEXT = Path(__file__).with_name("calibration_text.txt.xz")
_STRIP_ROWS = 256  # of products, computed at once: enough for every processor to be busy


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
        self._products /= self._pairs(scales)

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

    def products_over(self, scales: torch.Tensor) -> torch.Tensor:
        """:meth:`mean_products` of inputs divided by ``scales`` [k]."""
        return self.mean_products() / self._pairs(scales)

    def _pairs(self, scales: torch.Tensor) -> torch.Tensor:
        """scales_i * scales_j within each group, [groups, g, g]; 1 beyond a short last group."""
        padded = F.pad(scales, (0, -self._k % self._group_size), value=1.0)
        by_group = padded.reshape(-1, self._group_size)
        return by_group.unsqueeze(2) * by_group.unsqueeze(1)


class Products:
    """Sums of x_i * x_j over every token that a matrix reads, in float64.

    The lower triangle alone, in strips of rows: half of what would be the largest tensor of all.
    """

    def __init__(self, k: int, device: torch.device) -> None:
        """Starts with no tokens, for inputs of width k."""
        ends = [min(first + _STRIP_ROWS, k) for first in range(0, k, _STRIP_ROWS)]
        self.strips = [
            torch.zeros(end - first, end, dtype=torch.float64, device=device)
            for first, end in zip([0, *ends], ends)
        ]
        self.tokens = 0

    def add(self, x: torch.Tensor) -> None:
        """Adds tokens, float32 [.., k]."""
        x = x.reshape(-1, x.shape[-1])
        columns = x.T.contiguous()
        for strip in self.strips:
            rows, end = strip.shape
            strip += torch_decoder.multiply(columns[end - rows : end], columns[:end], None)
        self.tokens += len(x)

    def join(self, other: Products) -> None:
        """Adds the sums over other tokens."""
        for strip, part in zip(self.strips, other.strips):
            strip += part
        self.tokens += other.tokens

    def means(self) -> torch.Tensor:
        """Over the tokens so far, float64 [k, k]; the sums are used up."""
        k = self.strips[-1].shape[1]
        means = torch.empty(k, k, dtype=torch.float64, device=self.strips[-1].device)
        while self.strips:
            strip = self.strips.pop().div_(max(self.tokens, 1))
            rows, end = strip.shape
            means[end - rows : end, :end] = strip
            means[: end - rows, end - rows : end] = strip[:, : end - rows].T
        return means
