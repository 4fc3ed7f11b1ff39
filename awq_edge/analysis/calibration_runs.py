"""How little calibration is enough, and what the wrong text costs.

Owns the list of conversions and their judging. Each is a whole conversion as ``awq-edge convert``
does it, into a temporary directory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from awq_edge import conversion
from awq_edge.analysis.subject import Subject
from awq_edge.calibration.text import read_text
from awq_edge.model_file import PackedFile


@dataclass(frozen=True)
class CalibrationResult:
    """One conversion.

    Attributes:
        method: As in ``convert --method``.
        text: Name of the calibration text.
        blocks: How many of its blocks were used.
        perplexity: Of the judged text.
    """

    method: str
    text: str
    blocks: int
    perplexity: float


def measure_calibration(
    subject: Subject,
    model: str,
    texts: Mapping[str, str],
    sizes: Sequence[int],
    methods: Sequence[str],
    advance: Callable[[], None] = lambda: None,
) -> list[CalibrationResult]:
    """Converts with more and more blocks of the first text, and with the most of every other.

    Args:
        subject: The model.
        model: The directory or hub id that it came from.
        texts: Names and contents.
        sizes: Numbers of blocks.
        methods: As in ``convert --method``.
        advance: Called after each conversion.
    """
    names = list(texts)
    runs = [(names[0], size) for size in sorted(sizes)]
    runs += [(name, max(sizes)) for name in names[1:]]
    results = []
    with tempfile.TemporaryDirectory(prefix="awq-edge-analyze-") as directory:
        for method in methods:
            for name, size in runs:
                text = Path(directory) / "calibration.txt"
                text.write_text(texts[name], encoding="utf-8")
                value = _perplexity(subject, model, text, size, method, Path(directory))
                results.append(CalibrationResult(method, name, size, value))
                advance()
    return results


def named_texts(arguments: Sequence[str]) -> dict[str, str]:
    """Texts given as NAME=FILE."""
    return {name: read_text(path) for name, path in map(_named, arguments)}


def text_files(arguments: Sequence[str]) -> list[Path]:
    """The files of such texts."""
    return [path for _, path in map(_named, arguments)]


def _named(argument: str) -> tuple[str, Path]:
    name, equals, path = argument.partition("=")
    return (name, Path(path or name)) if equals else (Path(argument).stem, Path(argument))


def _perplexity(
    subject: Subject, model: str, text: Path, blocks: int, method: str, directory: Path
) -> float:
    settings = subject.settings
    packed = directory / "model.awq.gguf"
    options = conversion.Options(
        method=method,
        bits=settings.bits,
        group_size=settings.group_size,
        calibration=text,
        samples=blocks,
        sequence_length=settings.sequence_length,
        seed=settings.seed,
    )
    conversion.convert(model, packed, options, force=True)
    file = PackedFile(packed)
    weights = {name: torch.from_numpy(file.floats(name)) for name in file.names()}
    # Embedding and head stay as they were: only the decoder's matrices are compared.
    for name in ("token_embd.weight", "output.weight"):
        if name in weights:
            weights[name] = subject.weights[name]
    return subject.perplexity(weights).value
