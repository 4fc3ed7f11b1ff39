"""Measures prefill, decode and memory reading on this machine.

Owns what is timed and how often. Refuses to judge and to print: ``cli/bench.py`` does. Prompts are
random tokens with a fixed seed, since the speed does not depend on what they say.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from awq_edge.session import Session

# Larger than the caches of the CPUs we name, smaller than the memory of the smallest board.
BANDWIDTH_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True)
class Measurement:
    """One row of a benchmark.

    Attributes:
        kind: "prefill" or "decode".
        tokens: How many tokens were read in one repetition.
        rates: Tokens per second of each repetition.
    """

    kind: str
    tokens: int
    rates: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean of the rates."""
        return statistics.fmean(self.rates)

    @property
    def deviation(self) -> float | None:
        """Standard deviation of the rates; None for one repetition."""
        return statistics.stdev(self.rates) if len(self.rates) > 1 else None


def measure_prefill(
    session: Session, tokens: int, repetitions: int, done: Callable[[], None]
) -> Measurement:
    """Reads a prompt of ``tokens`` tokens from an empty context; once more at first, untimed."""
    prompt = _random_tokens(session, tokens)
    rates = []
    for repetition in range(repetitions + 1):
        session.truncate(0)
        started = time.perf_counter()
        session.evaluate(prompt)
        if repetition:
            rates.append(tokens / (time.perf_counter() - started))
        done()
    return Measurement("prefill", tokens, tuple(rates))


def measure_decode(
    session: Session, tokens: int, repetitions: int, done: Callable[[], None]
) -> Measurement:
    """Reads ``tokens`` tokens one by one from an empty context; a few more at first, untimed."""
    stream = _random_tokens(session, tokens)
    session.truncate(0)
    for token in stream[:8]:
        session.evaluate([token])
    rates = []
    for _ in range(repetitions):
        session.truncate(0)
        started = time.perf_counter()
        for token in stream:
            session.evaluate([token])
        rates.append(tokens / (time.perf_counter() - started))
        done()
    return Measurement("decode", tokens, tuple(rates))


def read_bandwidth(threads: int) -> float:
    """Bytes per second that ``threads`` threads read from memory."""
    from awq_edge import _native

    return _native.read_bandwidth(threads, BANDWIDTH_BYTES)


def gpu_read_bandwidth() -> float | None:
    """Bytes per second that the GPU reads from its memory; None where that cannot be timed."""
    from awq_edge import _native

    return _native.gpu_read_bandwidth() or None


def _random_tokens(session: Session, count: int) -> Sequence[int]:
    source = random.Random(count)
    return [source.randrange(session.model.info.vocabulary_size) for _ in range(count)]
