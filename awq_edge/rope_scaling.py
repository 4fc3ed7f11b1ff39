"""How rotary frequencies are stretched for contexts longer than a model's first training.

Owns the kinds of scaling, their numbers, how a model file spells them and what they do to
frequencies. Knows no model family. numpy only.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from awq_edge.errors import InvalidArgumentError, UnsupportedError

Floats = npt.NDArray[np.float64]

_KINDS = "none, linear, dynamic, llama3, yarn, longrope"


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the context of a model's first training.

    Attributes:
        kind: ``linear`` divides all; ``dynamic`` changes none within the trained context, which is
            the only one that we have; ``llama3`` and ``yarn`` divide the slow ones and blend;
            ``longrope`` divides each by a factor of its own, the short ones, for a context of at
            most the original length.
        factor: By what is divided; of ``longrope`` nothing.
        low_frequency_factor: llama3: turns in the original context below which all is divided.
        high_frequency_factor: llama3: turns above which nothing is.
        original_context_length: llama3, yarn and longrope.
        beta_fast: yarn: turns above which nothing is divided.
        beta_slow: yarn: turns below which all is.
        truncate: yarn: whether the ends of the blend are whole pairs.
        factors: longrope: one of each pair, [head_size / 2].
    """

    kind: str
    factor: float
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_context_length: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuses numbers that give no frequencies."""
        positive = (self.factor, self.beta_fast, self.beta_slow, *self.factors)
        ordered = 0 < self.low_frequency_factor < self.high_frequency_factor
        fit = all(math.isfinite(number) and number > 0 for number in positive)
        if not (fit and ordered and self.original_context_length > 0):
            raise InvalidArgumentError(
                f"The rotary scaling {self.kind} has numbers that give no frequencies: factors, "
                "turns and lengths must be positive and finite, low ones below high ones."
            )

    def describe(self) -> str:
        """The text kept in a model file, for example ``llama3:8:1:4:8192``."""
        original = str(self.original_context_length)
        parts = {
            "linear": (_text(self.factor),),
            "dynamic": (_text(self.factor),),
            "llama3": (
                _text(self.factor),
                _text(self.low_frequency_factor),
                _text(self.high_frequency_factor),
                original,
            ),
            "yarn": (
                _text(self.factor),
                _text(self.beta_fast),
                _text(self.beta_slow),
                original,
                "truncated" if self.truncate else "exact",
            ),
            "longrope": (original, ",".join(map(_text, self.factors))),
        }
        if self.kind not in parts:
            raise UnsupportedError(f"The rotary scaling {self.kind!r} is none of {_KINDS}.")
        return ":".join((self.kind, *parts[self.kind]))

    @classmethod
    def parse(cls, text: str) -> RopeScaling | None:
        """The inverse of :meth:`describe`; ``none`` gives None."""
        kind, *parts = text.split(":")
        try:
            if kind == "none" and not parts:
                return None
            if kind in ("linear", "dynamic"):
                (factor,) = parts
                return cls(kind, float(factor))
            if kind == "llama3":
                factor, low, high, original = parts
                return cls(kind, float(factor), float(low), float(high), int(original))
            if kind == "yarn":
                factor, fast, slow, original, ends = parts
                return cls(
                    kind,
                    float(factor),
                    original_context_length=int(original),
                    beta_fast=float(fast),
                    beta_slow=float(slow),
                    truncate=ends == "truncated",
                )
            if kind == "longrope":
                original, factors = parts
                return cls(
                    kind,
                    1.0,
                    original_context_length=int(original),
                    factors=tuple(float(factor) for factor in factors.split(",")),
                )
        except ValueError:  # too few or too many parts, or one that is no number
            pass
        raise UnsupportedError(f"The rotary scaling {text[:80]!r} is none of {_KINDS}.")

    def scaled(self, frequencies: Floats, theta: float) -> Floats:
        """The frequencies of a head's pairs, radians per position, float64 [d / 2].

        As transformers computes them (``modeling_rope_utils``), in float64. llama3 after Meta's
        Llama 3.1, yarn after Peng et al. 2023 (arXiv 2309.00071), longrope after Ding et al. 2024
        (arXiv 2402.13753).

        Args:
            frequencies: Without scaling.
            theta: The base that they were made of.
        """
        if self.kind == "dynamic":
            return frequencies
        if self.kind == "linear":
            return frequencies / self.factor
        if self.kind == "longrope":
            if len(self.factors) != len(frequencies):
                raise InvalidArgumentError(
                    f"The rotary scaling has {len(self.factors)} factors for {len(frequencies)} "
                    "pairs of a head."
                )
            return frequencies / np.array(self.factors, dtype=np.float64)
        if self.kind == "llama3":
            # Wavelengths that fit the original context often are kept, those that do not fit once
            # are stretched by the whole factor, and the ones between are blended.
            low, high = self.low_frequency_factor, self.high_frequency_factor
            turns = self.original_context_length / (2.0 * np.pi / frequencies)
            blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
        elif self.kind == "yarn":
            # The same, but the blend is linear in the pair's number instead of its turns.
            if theta <= 1:
                raise InvalidArgumentError(
                    f"The rotary scaling yarn needs a base above 1; it is {theta:g}."
                )
            pairs = len(frequencies)
            first, last = (
                pairs
                * math.log(self.original_context_length / (turns * 2 * math.pi))
                / math.log(theta)
                for turns in (self.beta_fast, self.beta_slow)
            )
            if self.truncate:
                first, last = math.floor(first), math.ceil(last)
            first, last = max(first, 0), min(last, 2 * pairs - 1)
            if first == last:
                last += 0.001
            blend = 1.0 - np.clip((np.arange(pairs) - first) / (last - first), 0.0, 1.0)
        else:
            raise UnsupportedError(f"The rotary scaling {self.kind!r} is none of {_KINDS}.")
        return (1.0 - blend) * frequencies / self.factor + blend * frequencies


def _text(number: float) -> str:
    """Short where that is exact."""
    short = f"{number:g}"
    return short if float(short) == number else repr(float(number))
