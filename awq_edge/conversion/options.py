"""What a user may choose of a conversion.

Owns the settings and their limits; refuses values that can never work, whatever the model.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from awq_edge import layouts
from awq_edge.errors import InvalidArgumentError
from awq_edge.quantize import methods

EFFORTS = ("normal", "high")
# Bytes at most of all matrices where those that need it most get more bits, in bytes of one width
# beside embedding and head at their defaults: what llama.cpp's Q4_K_M has over Q4_0. On the four
# trained models that one width cost most, the expected divergence falls to 0.45 to 0.59 of it with
# no more bytes, to 0.37 to 0.46 with 4 % more, to 0.30 to 0.35 with 8 %.
WIDENED = 1.08


@dataclasses.dataclass(frozen=True)
class Options:
    """What a user may choose."""

    method: str = "auto"
    effort: str = "normal"  # high: codes and scales learn what the float model predicts
    bits: float = 4  # of the decoder's matrices, at least; a fraction mixes widths
    group_size: int = 128
    head_bits: int | None = None  # None: as ``tables`` says
    embedding_bits: int | None = None
    size: int | None = None  # bytes of the whole file; then no width above counts
    vision_bits: int = 8  # of the tower's and the connector's matrices
    calibration: Path | None = None  # None: the texts that ship with the package
    calibration_images: Path | None = None  # a folder; None: those that are drawn for everybody
    samples: int = 160
    sequence_length: int = 512
    seed: int = 0
    device: str = "cpu"
    without: tuple[str, ...] = ()  # parts of the method that are left out

    def __post_init__(self) -> None:
        """Refuses values that can never work."""
        method = methods.named(self.method)
        self._check_effort()
        for name in ("head_bits", "embedding_bits", "vision_bits"):
            bits = getattr(self, name)
            if bits not in layouts.BITS and (bits is not None or name == "vision_bits"):
                raise InvalidArgumentError(
                    f"{name.replace('_', ' ')} is {getattr(self, name)}; it must be "
                    f"{layouts.BITS_TEXT}."
                )
        if not 2 <= self.bits <= 8:
            raise InvalidArgumentError(
                f"bits is {self.bits:g}; it must be {layouts.BITS_TEXT}, or a number between that "
                "widths are mixed to."
            )
        self._check_parts()
        if self.mixed and not method.mixes:
            others = " or ".join(other.name for other in methods.METHODS.values() if other.mixes)
            raise InvalidArgumentError(
                f"The method {self.method} knows one width for all matrices; use {others} with a "
                "size or a mean of bits."
            )
        if self.group_size not in layouts.GROUP_SIZES:
            raise InvalidArgumentError(
                f"The group size is {self.group_size}; it must be 32, 64 or 128."
            )
        if self.samples < 1 or self.sequence_length < 2:
            raise InvalidArgumentError(
                "Calibration needs at least 1 sample of at least 2 tokens, "
                f"not {self.samples} of {self.sequence_length}."
            )

    def _check_effort(self) -> None:
        """Refuses what does not exist, and to learn where nothing is begun with or could move."""
        if self.effort not in EFFORTS:
            raise InvalidArgumentError(
                f"The effort {self.effort!r} is none of {', '.join(EFFORTS)}."
            )
        if self.effort == "normal":
            return
        if self.method != "auto":
            raise InvalidArgumentError(
                f"--effort high goes on from what the method auto gives, not {self.method}; leave "
                "one of the two out."
            )
        if self.widths == (8,):
            raise InvalidArgumentError(
                "--effort high gains nothing at 8 bits, where only the rounding of inputs is left; "
                "leave it out, or choose fewer bits."
            )

    def _check_parts(self) -> None:
        """Refuses parts that do not exist, and to leave out one that has no place."""
        for part in self.without:
            if part not in methods.PARTS:
                raise InvalidArgumentError(
                    f"{part!r} is no part of a method; parts are {', '.join(methods.PARTS)}."
                )
            method = methods.METHODS[self.method]
            anyway = part == "widths" and self.mixed
            if anyway or all(
                method.plan(bits, (part,)) == method.plan(bits) for bits in self.widths
            ):
                where = "" if self.mixed else f" at {self.bits:g} bits"
                raise InvalidArgumentError(
                    f"The method {self.method} has no part {part!r}{where} to leave out."
                )

    def tables(self, *, tied: bool) -> tuple[int, int]:
        """Bits of the embedding and of the head, where nothing that is measured chooses them.

        By default 6, and 8 beside decoders of more than 6. On novels-45m, where the two are half of
        a file, 6 instead of 8 take 12 % of the bytes and add 8 % to the divergence. A tied table is
        both at once, and no Hessian tells how to round it: 8, for on SmolLM2 6 would add a fifth
        (as ``calibration.sensitivity`` measures).

        Args:
            tied: Whether both are one matrix, which takes the larger.
        """
        default = 8 if tied or self.bits > 6 else 6
        embedding, head = (
            default if bits is None else bits for bits in (self.embedding_bits, self.head_bits)
        )
        return (max(embedding, head),) * 2 if tied else (embedding, head)

    @property
    def mixed(self) -> bool:
        """Whether matrices get widths of their own."""
        return self.size is not None or self.bits not in layouts.BITS

    def of_one_width(self) -> Options:
        """The same, with the bits asked for in every matrix of the decoder."""
        if self.mixed or not self.measured:
            return self
        return dataclasses.replace(self, without=(*self.without, "widths"))

    @property
    def tables_given(self) -> bool:
        """Whether the user said bits of the embedding or the head."""
        return self.embedding_bits is not None or self.head_bits is not None

    @property
    def measured(self) -> bool:
        """Whether what each width of each matrix costs decides about widths."""
        return self.mixed or self.plan(int(self.bits)).widened

    @property
    def widths(self) -> tuple[int, ...]:
        """The bits that say what is done to a layer, which matrices of the decoder may get."""
        return layouts.BITS if self.mixed else (int(self.bits),)

    def plan(self, bits: int) -> methods.Plan:
        """What is done to a matrix of a width."""
        return methods.METHODS[self.method].plan(bits, self.without)
